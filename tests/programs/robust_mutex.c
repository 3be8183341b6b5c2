/* A robust mutex between processes: its owner, another process or a thread of it, is killed afterwards; a waiter
   that sleeps in the kernel already gets it then. */
#include "program.h"
#include <pthread.h>

struct shared { pthread_mutex_t held[3]; pthread_barrier_t set; };
static struct shared *shared;

static void *hold(void *argument)
{
	CHECK(pthread_mutex_lock(argument) == 0);
	pthread_barrier_wait(&shared->set);
	pause();
	return NULL;
}

static void owner(void)
{
	pthread_t thread;
	CHECK(pthread_mutex_lock(&shared->held[0]) == 0 && pthread_mutex_lock(&shared->held[1]) == 0);
	CHECK(pthread_create(&thread, NULL, hold, &shared->held[2]) == 0);
	pthread_join(thread, NULL);
	_exit(1);
}

static void *wait_for(void *mutex)
{
	CHECK(pthread_mutex_lock(mutex) == EOWNERDEAD);
	CHECK(pthread_mutex_consistent(mutex) == 0 && pthread_mutex_unlock(mutex) == 0);
	return mutex;
}

int main(void)
{
	pthread_mutexattr_t attributes;
	pthread_barrierattr_t barrier;
	pthread_t waiter;
	void *result;
	int status;
	pid_t child;
	start();
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	for (int i = 0; i < 3; i++) CHECK(pthread_mutex_init(&shared->held[i], &attributes) == 0);
	pthread_barrierattr_init(&barrier);
	pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->set, &barrier, 2);
	child = fork();
	if (child == 0) owner();
	pthread_barrier_wait(&shared->set);
	CHECK(pthread_create(&waiter, NULL, wait_for, &shared->held[1]) == 0);
	usleep(10000);
	ready();
	await_check();
	for (int i = 0; i < 3; i++) CHECK(pthread_mutex_trylock(&shared->held[i]) == EBUSY);
	CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL);
	CHECK(pthread_mutex_lock(&shared->held[0]) == EOWNERDEAD && pthread_mutex_lock(&shared->held[2]) == EOWNERDEAD);
	CHECK(pthread_join(waiter, &result) == 0 && result == &shared->held[1]);
	pass();
}

/* Threads: ids, names, thread-local memory, a mutex and condition handshake between all of them, joins of threads
   that end after the restart, new threads afterwards, the robust lists of pthreads in mutexes of dead owners. */
#include "program.h"
#include <pthread.h>
#include <sys/syscall.h>

#define THREADS 8
#define ROUNDS 200

static __thread int local = 7;
static __thread char large[3000];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t robust;
static int present, turn = -1;
static pid_t tids[THREADS];

static void name_of(int i, char *name) { sprintf(name, "worker %d: %c", i, 'a' + i); }

static void check_identity(int i)
{
	char name[16], now[16];
	name_of(i, name);
	CHECK(pthread_getname_np(pthread_self(), now, sizeof now) == 0 && strcmp(name, now) == 0);
	CHECK(syscall(SYS_gettid) == tids[i] && local == 100 + i);
	check_filled(large, sizeof large, i, "thread-local memory");
}

static void *work(void *argument)
{
	int i = (int)(intptr_t)argument;
	char name[16];
	name_of(i, name);
	CHECK(pthread_setname_np(pthread_self(), name) == 0);
	tids[i] = syscall(SYS_gettid);
	local = 100 + i;
	fill(large, sizeof large, i);
	pthread_mutex_lock(&mutex);
	present++;
	pthread_cond_broadcast(&changed);
	for (int round = 0; round < ROUNDS; round++) {
		while (turn != i) pthread_cond_wait(&changed, &mutex);
		check_identity(i);
		turn = (i + 1) % THREADS;
		pthread_cond_broadcast(&changed);
	}
	pthread_mutex_unlock(&mutex);
	return (void *)(intptr_t)(1000 + i);
}

static void *own_and_die(void *argument)
{
	CHECK(pthread_mutex_lock(&robust) == 0);
	pthread_mutex_lock(&mutex);
	present++;
	pthread_cond_broadcast(&changed);
	while (turn == -1) pthread_cond_wait(&changed, &mutex);
	pthread_mutex_unlock(&mutex);
	usleep(20000);   /* another waits for the mutex by now, in the kernel */
	return argument;
}

static void *quick(void *argument) { local += (int)(intptr_t)argument; return (void *)(intptr_t)local; }

int main(void)
{
	pthread_t threads[THREADS], owner, late[THREADS];
	pthread_mutexattr_t attributes;
	void *result;
	start();
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &attributes);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
	CHECK(pthread_create(&owner, NULL, own_and_die, &local) == 0);
	pthread_mutex_lock(&mutex);
	while (present < THREADS + 1) pthread_cond_wait(&changed, &mutex);
	pthread_mutex_unlock(&mutex);
	CHECK(pthread_mutex_trylock(&robust) == EBUSY);
	ready();
	await_check();
	pthread_mutex_lock(&mutex);
	turn = 0;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&mutex);
	CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0);
	CHECK(pthread_mutex_unlock(&robust) == 0);
	CHECK(pthread_join(owner, &result) == 0 && result == &local);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], &result) == 0 && (intptr_t)result == 1000 + i);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&late[i], NULL, quick, (void *)(intptr_t)i) == 0);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(late[i], &result) == 0 && (intptr_t)result == 7 + i);
	CHECK(local == 7 && syscall(SYS_gettid) == getpid());
	pass();
}

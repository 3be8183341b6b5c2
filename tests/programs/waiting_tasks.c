/* Threads and children that wait in calls on tasks without end: wait4, waitid, pause, sigsuspend, sigwaitinfo, futexes
   (plain, bitset, priority-inheriting), a pthread barrier and a semaphore. Each gets what it waits for afterwards. */
#include "family.h"
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>

enum { WAIT4, WAITID, PAUSE, SUSPEND, SIGWAIT, FUTEX, BITSET, PI, BARRIER, SEMAPHORE, WAYS };
static pid_t children[2], tids[WAYS];
static int words[2], heirs;
static pthread_mutex_t heir;
static pthread_barrier_t barrier;
static sem_t semaphore;
static __thread volatile int handled;

static void handle(int number) { handled = number; }

static void *wait_for(void *argument)
{
	int way = (int)(intptr_t)argument, status = 0;
	siginfo_t info = {0};
	sigset_t set;
	sigfillset(&set);
	if (way == PAUSE || way == SUSPEND) sigdelset(&set, SIGUSR1);
	if (way != SUSPEND) CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
	tids[way] = syscall(SYS_gettid);
	switch (way) {
	case WAIT4: CHECK(waitpid(children[0], &status, 0) == children[0] && WEXITSTATUS(status) == 3); break;
	case WAITID: CHECK(waitid(P_PID, children[1], &info, WEXITED) == 0 && info.si_pid == children[1] && info.si_status == 3); break;
	case PAUSE: CHECK(pause() == -1 && errno == EINTR && handled == SIGUSR1); break;
	case SUSPEND: CHECK(sigsuspend(&set) == -1 && errno == EINTR && handled == SIGUSR1); break;
	case SIGWAIT:
		sigemptyset(&set);
		sigaddset(&set, 42);
		CHECK(sigwaitinfo(&set, &info) == 42 && info.si_value.sival_int == 6);
		break;
	case FUTEX: CHECK(syscall(SYS_futex, &words[0], FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == 0); break;
	case BITSET: CHECK(syscall(SYS_futex, &words[1], FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, NULL, 4) == 0); break;
	case PI: CHECK(pthread_mutex_lock(&heir) == 0 && ++heirs == 1 && pthread_mutex_unlock(&heir) == 0); break;
	case BARRIER: pthread_barrier_wait(&barrier); break;
	case SEMAPHORE: CHECK(sem_wait(&semaphore) == 0); break;
	}
	return argument;
}

static void wake(int *word, int operation, int bits)   /* only who has waited all along is woken */
{
	for (int i = 0; i < 2000; i++) {
		if (syscall(SYS_futex, word, operation, 1, NULL, NULL, bits) == 1) return;
		usleep(1000);
	}
	fail("nobody waits at a futex");
}

static void child_that_ends(void)
{
	await_check();
	_exit(3);
}

int main(void)
{
	struct sigaction action = {.sa_handler = handle};
	pthread_t threads[WAYS];
	pthread_mutexattr_t attributes;
	sigset_t set;
	start();
	family();
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, 42);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < 2; i++) children[i] = child(child_that_ends);
	pthread_mutexattr_init(&attributes);
	CHECK(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT) == 0 && pthread_mutex_init(&heir, &attributes) == 0);
	CHECK(pthread_mutex_lock(&heir) == 0 && pthread_barrier_init(&barrier, NULL, 2) == 0 && sem_init(&semaphore, 0, 0) == 0);
	for (int i = 0; i < WAYS; i++) CHECK(pthread_create(&threads[i], NULL, wait_for, (void *)(intptr_t)i) == 0);
	usleep(30000);
	ready();
	await_check();
	CHECK(pthread_mutex_trylock(&heir) == EBUSY || pthread_mutex_trylock(&heir) == EDEADLK);
	for (int i = 0; i < WAYS; i++) {
		if (i == WAIT4 || i == WAITID) CHECK(kill(children[i - WAIT4], SIGTERM) == 0);
		if (i == PAUSE || i == SUSPEND) CHECK(syscall(SYS_tgkill, getpid(), tids[i], SIGUSR1) == 0);
		if (i == SIGWAIT) CHECK(pthread_sigqueue(threads[i], 42, (union sigval){6}) == 0);
		if (i == FUTEX) wake(&words[0], FUTEX_WAKE_PRIVATE, 0);
		if (i == BITSET) wake(&words[1], FUTEX_WAKE_BITSET_PRIVATE, 6);
		if (i == PI) CHECK(heirs == 0 && pthread_mutex_unlock(&heir) == 0);
		if (i == BARRIER) pthread_barrier_wait(&barrier);
		if (i == SEMAPHORE) CHECK(sem_post(&semaphore) == 0);
		CHECK(pthread_join(threads[i], NULL) == 0);
	}
	CHECK(heirs == 1 && pthread_mutex_lock(&heir) == 0);
	pass();
}

/* Signal masks and alternate stacks of threads: a handler that runs on its alternate stack across the checkpoint and
   returns afterwards, handlers called afterwards, SS_AUTODISARM, nested handlers, a mask of its own in each thread. */
#include "program.h"
#include <pthread.h>
#include <sys/syscall.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif
#define SIZE (64 << 10)
enum { INSIDE, NESTED, DISARMED, IDLE, THREADS };

static pthread_barrier_t set, checked;
static char *stacks[THREADS];
static __thread volatile int handled, value;
static __thread int me;

static int on_stack(void)
{
	char here, *stack = stacks[me];
	return &here >= stack && &here < stack + SIZE;
}

static void check_mask(int signal)
{
	sigset_t mask;
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0);
	for (int i = 1; i < 65; i++)
		if (i != 32 && i != 33 && sigismember(&mask, i) != (i == SIGTERM || i == 40 + me || i == signal)) fail("thread %d, signal %d", me, i);
}

static void check_stack(unsigned flags)
{
	stack_t now;
	CHECK(sigaltstack(NULL, &now) == 0);
	if ((unsigned)now.ss_flags != flags) fail("stack flags %#x instead of %#x in thread %d", now.ss_flags, flags, me);
	if (flags != SS_DISABLE) CHECK(now.ss_sp == stacks[me] && now.ss_size == SIZE);
}

static void quick(int number, siginfo_t *info, void *context)
{
	(void)context;
	CHECK(number == SIGUSR2 && info->si_value.sival_int == 77);
	CHECK(on_stack());
	handled++;
}

static void linger(int number, siginfo_t *info, void *context)
{
	char room[4000];
	(void)context;
	CHECK(number == SIGUSR1 && info->si_value.sival_int == 55 && on_stack());
	fill(room, sizeof room, me);
	if (me == NESTED && !handled) {
		handled++;
		CHECK(pthread_sigqueue(pthread_self(), SIGUSR1, (union sigval){55}) == 0);   /* SA_NODEFER: at once */
		CHECK(handled == 2);
	} else {
		handled++;
		pthread_barrier_wait(&set);
		pthread_barrier_wait(&checked);
		check_mask(0);
		check_stack(me == DISARMED ? SS_DISABLE : SS_ONSTACK);
	}
	check_filled(room, sizeof room, me, "a handler's frame");
	value = 5;
}

static void call_quick(void)
{
	int before = handled;
	CHECK(pthread_sigqueue(pthread_self(), SIGUSR2, (union sigval){77}) == 0);
	CHECK(handled == before + 1);
}

static void *work(void *argument)
{
	stack_t stack = {.ss_size = SIZE};
	sigset_t mask;
	me = (int)(intptr_t)argument;
	stack.ss_sp = stacks[me] = malloc(SIZE);
	stack.ss_flags = me == DISARMED ? SS_AUTODISARM : 0;
	CHECK(sigaltstack(&stack, NULL) == 0);
	sigemptyset(&mask);
	sigaddset(&mask, 40 + me);
	CHECK(pthread_sigmask(SIG_BLOCK, &mask, NULL) == 0);
	call_quick();
	handled = 0;
	if (me == IDLE) {
		pthread_barrier_wait(&set);
		pthread_barrier_wait(&checked);
	} else {
		CHECK(pthread_sigqueue(pthread_self(), SIGUSR1, (union sigval){55}) == 0);
		CHECK(value == 5 && handled == (me == NESTED ? 2 : 1));
	}
	check_mask(0);
	check_stack(me == DISARMED ? SS_AUTODISARM : 0);
	call_quick();
	return argument;
}

int main(void)
{
	struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
	pthread_t threads[THREADS];
	void *result;
	start();
	pthread_barrier_init(&set, NULL, THREADS + 1);
	pthread_barrier_init(&checked, NULL, THREADS + 1);
	action.sa_sigaction = quick;
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
	action.sa_sigaction = linger;
	action.sa_flags |= SA_NODEFER;
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
	pthread_barrier_wait(&set);
	ready();
	await_check();
	pthread_barrier_wait(&checked);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], &result) == 0 && result == (void *)(intptr_t)i);
	pass();
}

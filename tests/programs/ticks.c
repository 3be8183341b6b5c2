/* Periodic POSIX timers whose signals are waited for, handled, or left waiting: with the overruns that the kernel counts,
   every time that they were due is told once by the job's own clock. Only a restart may lose those of waiting signals. */
#include "timer.h"
#include <pthread.h>
#include <sys/syscall.h>

enum { WAITED, HANDLED, BOOTTIME, LEFT, LEFT_TOO, SHORT, LAST };
static const clockid_t clocks[LAST] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_REALTIME};
static const int64_t interval[LAST] = {3 * MS, 5 * MS, 4 * MS, 20 * MS, 30 * MS, 0};
static int64_t first[LAST];
static volatile int64_t told[LAST], begun;
static int64_t world;
static timer_t timers[LAST];
static volatile int over;

static void count(int i, siginfo_t *info)
{
	CHECK(info->si_code == SI_TIMER && info->si_value.sival_int == i && info->si_overrun >= 0);
	__atomic_add_fetch(&told[i], 1 + info->si_overrun, __ATOMIC_SEQ_CST);
}

static void handle(int number, siginfo_t *info, void *context)
{
	(void)context;
	count(number - 40, info);
}

static void *await_all(void *argument)
{
	int i = (int)(intptr_t)argument;
	siginfo_t info;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, 40 + i);
	while (!over) {
		CHECK(sigwaitinfo(&one, &info) == 40 + i);
		count(i, &info);
	}
	return argument;
}

/* What was due by now, at least and at most. */
static void check(int i)
{
	int64_t least = (now(clocks[i]) - first[i]) / interval[i] + 1, counted, most;
	if (llabs(now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC) - world) > MS) least = 1;   /* restarted */
	for (int tries = 0; (counted = __atomic_load_n(&told[i], __ATOMIC_SEQ_CST)) < least && tries < 10000; tries++) usleep(1000);
	most = (now(clocks[i]) - first[i]) / interval[i] + 1;
	if (counted < least || counted > most)
		fail("timer %d: %lld times instead of %lld to %lld", i, (long long)counted, (long long)least, (long long)most);
}

static siginfo_t take(int i)
{
	siginfo_t info;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, 40 + i);
	while (sigwaitinfo(&one, &info) != 40 + i) CHECK(errno == EINTR);   /* by the timer that is handled */
	return info;
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct itimerspec value;
	pthread_t threads[2];
	sigset_t set;
	siginfo_t info;
	start();
	world = now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC);
	sigemptyset(&set);
	for (int i = 0; i < LAST; i++) sigaddset(&set, 40 + i);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && sigaction(40 + HANDLED, &action, NULL) == 0);
	CHECK(pthread_create(&threads[0], NULL, await_all, (void *)WAITED) == 0);
	CHECK(pthread_create(&threads[1], NULL, await_all, (void *)BOOTTIME) == 0);
	for (int i = 0; i < LAST; i++) {
		struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 40 + i, .sigev_value.sival_int = i};
		first[i] = now(clocks[i]) + 2 * MS;
		value = (struct itimerspec){spec(interval[i]), spec(first[i])};
		CHECK(timer_create(clocks[i], &event, &timers[i]) == 0);
		CHECK(timer_settime(timers[i], TIMER_ABSTIME, &value, NULL) == 0);
	}
	usleep(10000);
	ready();
	await_check();
	for (int i = WAITED; i <= BOOTTIME; i += 2) check(i);
	sigemptyset(&set);
	sigaddset(&set, 40 + HANDLED);
	CHECK(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0);
	CHECK(told[HANDLED] >= 1);
	for (int i = LEFT; i <= LEFT_TOO; i++) {   /* from the signal that has waited on, none is missed */
		int64_t least, most, counted;
		info = take(i);
		counted = (now(clocks[i]) - first[i]) / interval[i] + 1;
		if (info.si_overrun + 1 > counted) fail("timer %d has overrun %d times", i, info.si_overrun);
		begun = now(clocks[i]);
		least = (begun - first[i]) / interval[i];
		for (counted = 0; counted < 5; counted += 1 + info.si_overrun) info = take(i);
		most = (now(clocks[i]) - first[i]) / interval[i] - least;
		if (counted < most - 1 || counted > most + 1)
			fail("timer %d: %lld times instead of %lld", i, (long long)counted, (long long)most);
	}
	info = take(SHORT);   /* once, and once only */
	CHECK(info.si_value.sival_int == SHORT && info.si_overrun == 0);
	sigpending(&set);
	CHECK(!sigismember(&set, 40 + SHORT));
	over = 1;
	pass();
}

/* POSIX timers of all clocks that tell nobody, the process, or one thread: ids with gaps, time left, intervals, values,
   absolute times, timers that are not armed or have fired, and of processor time; none may fire early. */
#include "timer.h"
#include <pthread.h>
#include <sys/syscall.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
enum { MONOTONIC, REALTIME, BOOTTIME, TAI, PROCESS, THREAD, NONE, OFF, FIRED, UNTIL, PERIODIC, OF_THREAD, LAST };
static const clockid_t clocks[LAST] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_PROCESS_CPUTIME_ID,
	CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC};
static int ids[LAST];
static int64_t begun[LAST], whole[LAST];
static volatile pid_t thread_id;
static pthread_barrier_t set, checked;

static void create(int i, int notify, pid_t thread)
{
	struct sigevent event = {.sigev_notify = notify, .sigev_signo = 40 + i, .sigev_value.sival_ptr = &ids[i]};
	int spare;
	event.sigev_notify_thread_id = thread;
	CHECK(syscall(SYS_timer_create, clocks[i], &event, &spare) == 0);   /* leaves a gap */
	CHECK(syscall(SYS_timer_create, clocks[i], &event, &ids[i]) == 0);
	CHECK(syscall(SYS_timer_delete, spare) == 0);
}

static void arm(int i, int64_t first, int64_t interval, int flags)
{
	struct itimerspec value = {spec(interval), spec(first)};
	begun[i] = now(clocks[i]);
	whole[i] = flags ? first - begun[i] : first;
	CHECK(syscall(SYS_timer_settime, ids[i], flags, &value, NULL) == 0);
}

static struct itimerspec look(int i)
{
	struct itimerspec value;
	CHECK(syscall(SYS_timer_gettime, ids[i], &value) == 0);
	return value;
}

static void check_left(int i, int64_t interval)
{
	int64_t left = ns(look(i).it_value), spent = now(clocks[i]) - begun[i];
	if (left <= 0 || left > whole[i]) fail("timer %d has %lld left of %lld", i, (long long)left, (long long)whole[i]);
	if (clocks[i] == CLOCK_MONOTONIC && left + spent < whole[i]) fail("timer %d is %lld early", i, (long long)(whole[i] - left - spent));
	CHECK(ns(look(i).it_interval) == interval);
}

static void await_signal(int i)
{
	siginfo_t info;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, 40 + i);
	CHECK(sigwaitinfo(&one, &info) == 40 + i && info.si_code == SI_TIMER);
	CHECK(info.si_value.sival_ptr == &ids[i] && info.si_timerid == ids[i]);
}

static void *work_alone(void *argument)
{
	thread_id = syscall(SYS_gettid);
	pthread_barrier_wait(&set);
	pthread_barrier_wait(&checked);
	await_signal(OF_THREAD);
	return argument;
}

int main(void)
{
	pthread_t thread;
	sigset_t all, waiting;
	start();
	sigfillset(&all);
	CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
	pthread_barrier_init(&set, NULL, 2);
	pthread_barrier_init(&checked, NULL, 2);
	CHECK(pthread_create(&thread, NULL, work_alone, NULL) == 0);
	pthread_barrier_wait(&set);
	for (int i = 0; i < LAST; i++)
		create(i, i == NONE ? SIGEV_NONE : i == OF_THREAD ? SIGEV_THREAD_ID : i == THREAD ? SIGEV_THREAD_ID : SIGEV_SIGNAL,
		       i == OF_THREAD ? thread_id : getpid());
	for (int i = MONOTONIC; i <= NONE; i++) arm(i, 1000 * NS + i, i % 2 ? 0 : 3 * NS, 0);
	arm(FIRED, 1, 0, 0);
	await_signal(FIRED);
	arm(UNTIL, now(CLOCK_MONOTONIC) + 700 * MS, 0, TIMER_ABSTIME);
	arm(PERIODIC, 300 * MS, 200 * MS, 0);
	arm(OF_THREAD, 500 * MS, 0, 0);
	ready();
	await_check();
	for (int i = MONOTONIC; i <= NONE; i++) check_left(i, i % 2 ? 0 : 3 * NS);
	CHECK(ns(look(OFF).it_value) == 0 && ns(look(FIRED).it_value) == 0 && ns(look(FIRED).it_interval) == 0);
	CHECK(sigpending(&waiting) == 0 && !sigismember(&waiting, 40 + FIRED));
	pthread_barrier_wait(&checked);
	await_signal(UNTIL);
	CHECK(now(CLOCK_MONOTONIC) - begun[UNTIL] >= 700 * MS);
	await_signal(PERIODIC);
	await_signal(PERIODIC);
	CHECK(now(CLOCK_BOOTTIME) - begun[PERIODIC] >= 500 * MS);
	CHECK(pthread_join(thread, NULL) == 0 && now(CLOCK_MONOTONIC) - begun[OF_THREAD] >= 500 * MS);
	arm(PROCESS, 20 * MS, 0, 0);
	arm(THREAD, 20 * MS, 0, 0);
	work(60 * MS);
	await_signal(PROCESS);
	await_signal(THREAD);
	for (int i = 0; i < LAST; i++) CHECK(syscall(SYS_timer_delete, ids[i]) == 0);
	pass();
}

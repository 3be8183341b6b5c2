/* Signals: masks, which only grow, so that what is sent stays; actions, and signals that wait. Timers that are far off. */
#ifndef SIGNALS_H
#define SIGNALS_H
#include "job.h"
#include <sys/time.h>

static const int numbers[] = {1, 2, 3, 6, 10, 12, 14, 16, 20, 21, 22, 23, 25, 28, 30, 34, 35, 40, 50, 64};
#define NUMBERS 20

static void on_signal(int number) { (void)number; }
static void on_signal_too(int number, siginfo_t *info, void *context) { (void)number, (void)info, (void)context; }

static void block(int number)
{
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, number);
	sigprocmask(SIG_BLOCK, &one, NULL);
}

static void set_action(int a, int b, int c)
{
	struct sigaction action = {0};
	if (b % 4 == 0) action.sa_handler = SIG_IGN;
	if (b % 4 == 1) action.sa_handler = on_signal;
	if (b % 4 == 2) action.sa_sigaction = on_signal_too, action.sa_flags = SA_SIGINFO;
	if (c & 1) action.sa_flags |= SA_RESTART;
	if (c & 2) action.sa_flags |= SA_NODEFER;
	if (c & 4) action.sa_flags |= SA_ONSTACK;
	if (c & 8) action.sa_flags |= SA_RESETHAND;
	if (c & 16) sigaddset(&action.sa_mask, numbers[c % NUMBERS]);
	sigaction(a == 255 ? SIGCHLD : numbers[a % NUMBERS], &action, NULL);
}

static void send_signal(int a, int b, int c)
{
	int number = numbers[a % NUMBERS];
	block(number);
	switch (b % 4) {
	case 0: kill(getpid(), number); break;
	case 1: syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number); break;
	case 2: sigqueue(getpid(), number, (union sigval){.sival_int = c}); break;
	case 3: {
		siginfo_t info = {.si_signo = number, .si_code = -60 - c % 4, .si_pid = getpid(), .si_uid = getuid(), .si_value.sival_int = c};
		if (b & 4) syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), number, &info);
		else syscall(SYS_rt_sigqueueinfo, getpid(), number, &info);
	}
	}
}

static void set_timer(int a, int b, int c)
{
	static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
	struct sigevent event = {.sigev_notify = b % 3 == 0 ? SIGEV_SIGNAL : b % 3 == 1 ? SIGEV_NONE : SIGEV_THREAD_ID, .sigev_signo = numbers[c % NUMBERS], .sigev_value.sival_int = c};
	struct itimerspec value = {{b & 4 ? 3 * c : 0, 7}, {FAR * (1 + c % 30), 0}};
	struct timespec now;
	int id, clock = clocks[a % 5];
	event._sigev_un._tid = syscall(SYS_gettid);
	if (syscall(SYS_timer_create, clock, &event, &id)) return;
	if (b & 16) syscall(SYS_timer_delete, id);   /* a gap among the ids */
	if (b & 16 && syscall(SYS_timer_create, clock, &event, &id)) return;
	if (b & 32) return;
	if (b & 64) clock_gettime(clock, &now), value.it_value.tv_sec += now.tv_sec;
	syscall(SYS_timer_settime, id, b & 64 ? TIMER_ABSTIME : 0, &value, NULL);
}

static int signal_step(int letter, int a, int b, int c)
{
	struct itimerval value = {{b & 1 ? c : 0, 11}, {FAR * (1 + c % 30), 0}};
	sigset_t set = set_of(a, b);
	switch (letter) {
	case 'b': sigprocmask(SIG_BLOCK, &set, NULL); break;
	case 'A': set_action(a, b, c); break;
	case 'k': send_signal(a, b, c); break;
	case 'i': setitimer((const int[]){ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}[a % 3], &value, NULL); break;
	case 'I': set_timer(a, b, c); break;
	default: return 0;
	}
	return 1;
}

static void report_signals(void)
{
	struct timespec none = {0};
	siginfo_t info;
	sigset_t set;
	sigprocmask(SIG_SETMASK, NULL, &set);
	sigdelset(&set, SIGTERM);
	while (sigtimedwait(&set, &info, &none) > 0)
		dprintf(1, "%d signal %d: code %d from %d with %d\n", self, info.si_signo, info.si_code,
		        info.si_code == SI_KERNEL ? -1 : actor_of(info.si_pid), info.si_code < 0 && info.si_code != SI_TKILL ? info.si_value.sival_int : 0);
}

/* A little more or less is left: processors' clocks count in ticks. */
static long far_of(const struct timespec *left) { return (left->tv_sec + FAR / 2) / FAR; }

static void report_timers(void)
{
	for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
		struct itimerval v;
		struct timespec left;
		getitimer(which, &v);
		left = (struct timespec){v.it_value.tv_sec, v.it_value.tv_usec * 1000};
		if (far_of(&left)) dprintf(1, "%d itimer %d: %ld, every %ld.%06ld\n", self, which, far_of(&left), v.it_interval.tv_sec, v.it_interval.tv_usec);
	}
	for (int id = 0; id < 200; id++) {
		struct itimerspec v;
		if (syscall(SYS_timer_gettime, id, &v) == 0)
			dprintf(1, "%d timer %d: %ld, every %ld.%09ld\n", self, id, far_of(&v.it_value), v.it_interval.tv_sec, v.it_interval.tv_nsec);
	}
}
#endif

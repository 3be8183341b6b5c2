/* Signals that wait: of the process and of threads, standard and real-time ones, with senders, values and order; sent
   by kill, tgkill, sigqueue, by a child that ended and by one that stopped and went on. */
#include "family.h"
#include <pthread.h>
#include <sys/syscall.h>

#define SENT 12
static sigset_t all;
static pthread_barrier_t sent, checked;
static pid_t children[2], thread_id;
static int exit_code = 9;

static siginfo_t take(int number)
{
	static const struct timespec at_once;
	siginfo_t info;
	sigset_t one;
	sigemptyset(&one);
	sigaddset(&one, number);
	if (syscall(SYS_rt_sigtimedwait, &one, &info, &at_once, 8) != number) fail("signal %d does not wait", number);
	return info;
}

static void take_queued(int number, int value, int code)
{
	siginfo_t info = take(number);
	if (info.si_code != code || (code == SI_QUEUE && info.si_value.sival_int != value) || info.si_pid != getpid() || info.si_uid != getuid())
		fail("signal %d: code %d value %d pid %d instead of %d %d", number, info.si_code, info.si_value.sival_int, info.si_pid, code, value);
}

static void *work(void *argument)
{
	thread_id = syscall(SYS_gettid);
	CHECK(syscall(SYS_tgkill, getpid(), thread_id, SIGUSR2) == 0 && syscall(SYS_tgkill, getpid(), thread_id, 43) == 0);
	for (int i = 0; i < SENT; i++) CHECK(pthread_sigqueue(pthread_self(), 44, (union sigval){100 + i}) == 0);
	pthread_barrier_wait(&sent);
	pthread_barrier_wait(&checked);
	take_queued(SIGUSR2, 0, SI_TKILL);
	take_queued(43, 0, SI_TKILL);
	for (int i = 0; i < SENT; i++) take_queued(44, 100 + i, SI_QUEUE);
	return argument;
}

static void end(void) { _exit(exit_code); }

int main(void)
{
	pthread_t thread;
	sigset_t none;
	siginfo_t info;
	int status;
	start();
	family();
	sigfillset(&all);
	CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
	children[0] = child(end);
	CHECK(waitid(P_PID, children[0], &info, WEXITED | WNOWAIT) == 0);
	pthread_barrier_init(&sent, NULL, 2);
	pthread_barrier_init(&checked, NULL, 2);
	CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
	CHECK(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGINT) == 0);
	for (int i = 0; i < SENT; i++) {
		CHECK(sigqueue(getpid(), 50 - i % 3, (union sigval){i}) == 0);
		if (i == 5) CHECK(kill(getpid(), 50) == 0);
	}
	pthread_barrier_wait(&sent);
	ready();
	await_check();
	pthread_barrier_wait(&checked);
	CHECK(pthread_join(thread, NULL) == 0);
	info = take(SIGCHLD);
	CHECK(info.si_code == CLD_EXITED && info.si_pid == children[0] && info.si_status == exit_code && info.si_uid == getuid());
	CHECK(waitpid(children[0], &status, 0) == children[0] && WEXITSTATUS(status) == exit_code);
	take_queued(SIGUSR1, 0, SI_USER);
	take_queued(SIGINT, 0, SI_USER);
	for (int number = 48; number <= 50; number++)
		for (int i = 50 - number; i < SENT; i += 3) {
			take_queued(number, i, SI_QUEUE);
			if (number == 50 && i == 3) take_queued(50, 0, SI_USER);   /* sent after the one of round 5: between 3 and 6 */
		}
	CHECK(sigpending(&none) == 0);
	for (int i = 1; i < 65; i++) if (sigismember(&none, i) == 1) fail("signal %d waits once too often", i);
	pass();
}

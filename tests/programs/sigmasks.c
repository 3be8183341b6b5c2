/* Calls that block other signals while they wait (sigsuspend, ppoll, pselect, epoll_pwait, epoll_pwait2): what is only
   blocked there must wait for their end, what is only let through there must end them, and the old mask comes back. */
#include "program.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>

enum { SUSPEND, PPOLL, PSELECT, EPOLL, EPOLL2, EPOLL_TIMED, WAYS };
static pid_t tids[WAYS];
static __thread volatile int ended, other;
static volatile int others;

static void end(int number) { CHECK(number == SIGUSR1 && !other); ended++; }
static void handle_other(int number) { CHECK(number == SIGUSR2); other++; __atomic_add_fetch(&others, 1, __ATOMIC_SEQ_CST); }

static void *wait_for(void *argument)
{
	static const struct timespec long_time = {1000, 0};
	int way = (int)(intptr_t)argument, fd = epoll_create1(0), result = 0;
	struct epoll_event event;
	sigset_t before, after, meanwhile;
	sigfillset(&meanwhile);
	sigdelset(&meanwhile, SIGUSR1);
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &before) == 0);
	CHECK(sigismember(&before, SIGUSR1) == 1 && sigismember(&before, SIGUSR2) == 0);
	tids[way] = syscall(SYS_gettid);
	if (way == SUSPEND) result = sigsuspend(&meanwhile);
	if (way == PPOLL) result = ppoll(NULL, 0, &long_time, &meanwhile);
	if (way == PSELECT) result = pselect(0, NULL, NULL, NULL, NULL, &meanwhile);
	if (way == EPOLL) result = epoll_pwait(fd, &event, 1, -1, &meanwhile);
	if (way == EPOLL2) result = syscall(SYS_epoll_pwait2, fd, &event, 1, &long_time, &meanwhile, 8);
	if (way == EPOLL_TIMED) result = epoll_pwait(fd, &event, 1, 1000000, &meanwhile);
	if (result != -1 || errno != EINTR || ended != 1) fail("way %d: result %d, ended %d", way, result, ended);
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0 && memcmp(&before, &after, 8) == 0);
	if (other != 1) fail("way %d: the other signal was handled %d times", way, other);
	return argument;
}

int main(void)
{
	struct sigaction action = {.sa_handler = end, .sa_flags = SA_RESTART};
	pthread_t threads[WAYS];
	sigset_t set;
	start();
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	action.sa_handler = handle_other;
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < WAYS; i++) CHECK(pthread_create(&threads[i], NULL, wait_for, (void *)(intptr_t)i) == 0);
	usleep(30000);
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) CHECK(syscall(SYS_tgkill, getpid(), tids[i], SIGUSR2) == 0);
	usleep(20000);
	CHECK(others == 0);
	for (int i = 0; i < WAYS; i++) CHECK(syscall(SYS_tgkill, getpid(), tids[i], SIGUSR1) == 0);
	for (int i = 0; i < WAYS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

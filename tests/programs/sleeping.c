/* Waits for some time, in all calls that have one, relative and absolute: none may end early or otherwise than by its
   time, however often it is interrupted; tests/engine/test_watch.py sees to it that none begins anew. */
#include "program.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#define MS 1200
#define NS 1000000000ll
static const struct timespec whole = {MS / 1000, MS % 1000 * 1000000};   /* the kernel can't write here */

static int64_t now(clockid_t clock)
{
	struct timespec time;
	CHECK(clock_gettime(clock, &time) == 0);
	return time.tv_sec * NS + time.tv_nsec;
}

static struct timespec in(clockid_t clock)
{
	int64_t until = now(clock) + MS * (NS / 1000);
	return (struct timespec){until / NS, until % NS};
}

static void no_rest(void) { CHECK(nanosleep(&whole, NULL) == 0); }
static void with_rest(void) { struct timespec rest = {7, 7}; CHECK(nanosleep(&whole, &rest) == 0); }
static void same_rest(void) { struct timespec rest = whole; CHECK(nanosleep(&rest, &rest) == 0); }
static void monotonic(void) { CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &whole, NULL) == 0); }
static void boottime(void) { struct timespec rest; CHECK(clock_nanosleep(CLOCK_BOOTTIME, 0, &whole, &rest) == 0); }
static void realtime(void) { CHECK(clock_nanosleep(CLOCK_REALTIME, 0, &whole, NULL) == 0); }
static void until(void)
{
	struct timespec end = in(CLOCK_MONOTONIC);
	CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == 0);
}
static void until_boottime(void)
{
	struct timespec end = in(CLOCK_BOOTTIME);
	CHECK(clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &end, NULL) == 0);
}
static void poll_ms(void) { CHECK(poll(NULL, 0, MS) == 0); }
static void ppoll_ns(void) { CHECK(ppoll(NULL, 0, &whole, NULL) == 0); }
static void select_us(void) { struct timeval time = {MS / 1000, MS % 1000 * 1000}; CHECK(select(0, NULL, NULL, NULL, &time) == 0); }
static void pselect_ns(void) { CHECK(pselect(0, NULL, NULL, NULL, &whole, NULL) == 0); }
static void epoll(void)
{
	struct epoll_event event;
	int fd = epoll_create1(0);
	CHECK(epoll_wait(fd, &event, 1, MS) == 0);
	close(fd);
}
static void epoll_masked(void)
{
	struct epoll_event event;
	sigset_t none;
	int fd = epoll_create1(0);
	sigemptyset(&none);
	sigaddset(&none, SIGTERM);
	CHECK(epoll_pwait(fd, &event, 1, MS, &none) == 0);
	close(fd);
}
static void epoll_ns(void)
{
	struct epoll_event event;
	int fd = epoll_create1(0);
	CHECK(syscall(SYS_epoll_pwait2, fd, &event, 1, &whole, NULL, 0) == 0);
	close(fd);
}
static void signal_wait(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, 40);
	CHECK(sigtimedwait(&set, NULL, &whole) == -1 && errno == EAGAIN);
}
static void futex(void)
{
	int word = 0;
	CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &whole, NULL, 0) == -1 && errno == ETIMEDOUT);
}
static void futex_until(void)
{
	int word = 0;
	struct timespec end = in(CLOCK_MONOTONIC);
	CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &end, NULL, FUTEX_BITSET_MATCH_ANY) == -1 && errno == ETIMEDOUT);
}
static void condition(void)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	struct timespec end = in(CLOCK_MONOTONIC);
	pthread_mutex_lock(&mutex);
	CHECK(pthread_cond_clockwait(&never, &mutex, CLOCK_MONOTONIC, &end) == ETIMEDOUT);
}
static void limited(int way)
{
	struct timeval limit = {MS / 1000, MS % 1000 * 1000};
	int fds[2];
	char c;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
	CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
	CHECK((way ? recv(fds[0], &c, 1, 0) : read(fds[0], &c, 1)) == -1 && errno == EAGAIN);
	close(fds[0]);
	close(fds[1]);
}
static void limited_read(void) { limited(0); }
static void limited_recv(void) { limited(1); }

static void (*const ways[])(void) = {
	no_rest, with_rest, same_rest, monotonic, boottime, realtime, until, until_boottime, poll_ms, ppoll_ns, select_us,
	pselect_ns, epoll, epoll_masked, epoll_ns, signal_wait, futex, futex_until, condition, limited_read, limited_recv};
#define WAYS (int)(sizeof ways / sizeof *ways)
static int counted;

static void *sleep_once(void *way)
{
	clockid_t clock = ways[(intptr_t)way] == until_boottime ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
	int64_t begin = now(clock), took;
	__atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
	ways[(intptr_t)way]();
	took = now(clock) - begin;
	if (took < MS * (NS / 1000)) fail("way %d took no more than %lld ns", (int)(intptr_t)way, (long long)took);
	return way;
}

int main(void)
{
	pthread_t threads[WAYS];
	start();
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, 40);
	CHECK(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
	for (int i = 0; i < WAYS; i++) CHECK(pthread_create(&threads[i], NULL, sleep_once, (void *)(intptr_t)i) == 0);
	while (__atomic_load_n(&counted, __ATOMIC_SEQ_CST) < WAYS) usleep(1000);
	usleep(20000);
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

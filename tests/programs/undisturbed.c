/* Threads that make blocking calls of every sort again and again, while another gives them what they wait for and
   timers tick: no call ends with EINTR unless a handler has run in its thread, all that is sent comes once and in order,
   no tick is lost, no time is over too soon, no descriptor is another, however often the program is stopped. */
#include "timer.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

enum { READ, READV, POLL, PPOLL, SELECT, PSELECT, EPOLL, RECV, RECVMSG, DATAGRAM, FED, EVENT = FED, SIGNAL, SIGWAIT, FUTEX,
       SEMAPHORE, CONDITION, JOIN, CHILD, LOCK, FULL, SLEEP, SLEEP_UNTIL, TIMED_POLL, TIMED_FUTEX, TIMED_WAIT, TICKS, HANDLED, WAYS };
static int ends[FED][2], full[2], event, signals, clock_fd, locks[2], word, never;
static unsigned rounds[WAYS], fed[WAYS], handled;
static int64_t begun, ticks, told;
static sem_t semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_t threads[WAYS];
static const struct timespec step = {0, 7 * MS};

#define DO(call) ({ long r_ = (call); if (r_ < 0) fail("way %d, round %u: %s", way, rounds[way], #call); r_; })
#define GET(variable) __atomic_load_n(&(variable), __ATOMIC_SEQ_CST)

static void take_byte(int way, int fd)
{
	unsigned char c = 0;
	struct iovec part = {&c, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	struct pollfd poller = {fd, POLLIN, 0};
	struct epoll_event ready = {.events = EPOLLIN};
	fd_set set;
	int ep;
	FD_ZERO(&set);
	FD_SET(fd, &set);
	switch (way) {
	case POLL: DO(poll(&poller, 1, -1)); break;
	case PPOLL: DO(ppoll(&poller, 1, NULL, NULL)); break;
	case SELECT: DO(select(fd + 1, &set, NULL, NULL, NULL)); break;
	case PSELECT: DO(pselect(fd + 1, &set, NULL, NULL, NULL, NULL)); break;
	case EPOLL: ep = DO(epoll_create1(0)); DO(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ready)); DO(epoll_wait(ep, &ready, 1, -1)); DO(close(ep)); break;
	}
	if (way == READV) DO(readv(fd, &part, 1));
	else if (way == RECVMSG) DO(recvmsg(fd, &message, 0));
	else if (way == RECV || way == DATAGRAM) DO(recv(fd, &c, 1, 0));
	else DO(read(fd, &c, 1));
	if (c != (unsigned char)rounds[way]) fail("way %d: byte %d, not %u", way, c, rounds[way] & 255);
}

static void *nothing(void *unused) { usleep(2000); return unused; }

static void on_tick(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	told += 1 + info->si_overrun, handled++;
}

static void at_least(int way, int64_t start, int64_t wanted)
{
	int64_t passed = now(CLOCK_MONOTONIC) - start;
	if (passed < wanted) fail("way %d, round %u: %ld ns, not %ld", way, rounds[way], (long)passed, (long)wanted);
}

static void once(int way)
{
	static char some[4096];
	struct signalfd_siginfo info;
	int64_t start = now(CLOCK_MONOTONIC);
	struct timespec until = spec(start + 9 * MS);
	unsigned before = handled;
	uint64_t number;
	sigset_t set;
	pthread_t other;
	int status;
	pid_t pid;
	sigemptyset(&set);
	sigaddset(&set, way == SIGWAIT ? 42 : 50);
	switch (way) {
	case EVENT: DO(read(event, &number, 8)); break;
	case SIGNAL: DO(read(signals, &info, sizeof info)); CHECK(info.ssi_signo == 41); break;
	case SIGWAIT: CHECK(DO(sigwaitinfo(&set, NULL)) == 42); break;
	case FUTEX: CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0); break;
	case SEMAPHORE: DO(sem_wait(&semaphore)); break;
	case CONDITION: CHECK(pthread_mutex_lock(&mutex) == 0 && pthread_cond_wait(&condition, &mutex) == 0 && pthread_mutex_unlock(&mutex) == 0); break;
	case JOIN: CHECK(pthread_create(&other, NULL, nothing, NULL) == 0 && pthread_join(other, NULL) == 0); break;
	case CHILD:
		if ((pid = DO(fork())) == 0) { usleep(2000); _exit(7); }
		CHECK(DO(waitpid(pid, &status, 0)) == pid && WEXITSTATUS(status) == 7);
		break;
	case LOCK: DO(flock(locks[0], LOCK_EX)); DO(flock(locks[0], LOCK_UN)); usleep(500); break;
	case FULL: for (long moved = 0; moved < 300000;) moved += DO(write(full[1], some, sizeof some)); break;
	case SLEEP: DO(nanosleep(&step, NULL)); at_least(way, start, 7 * MS); break;
	case SLEEP_UNTIL: CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == 0); at_least(way, start, 9 * MS); break;
	case TIMED_POLL: CHECK(DO(poll(NULL, 0, 11)) == 0); at_least(way, start, 11 * MS); break;
	case TIMED_FUTEX: CHECK(syscall(SYS_futex, &never, FUTEX_WAIT, 0, &step, NULL, 0) == -1 && errno == ETIMEDOUT); at_least(way, start, 7 * MS); break;
	case TIMED_WAIT: CHECK(sigtimedwait(&set, NULL, &step) == -1 && errno == EAGAIN); at_least(way, start, 7 * MS); break;
	case TICKS: DO(read(clock_fd, &number, 8)); ticks += number; break;
	case HANDLED:
		if (nanosleep(&(struct timespec){0, 20 * MS}, NULL) == 0) at_least(way, start, 20 * MS);
		else if (errno != EINTR || handled == before) fail("a sleep has ended, and no handler has run");
	}
}

static void *work_on(void *argument)
{
	int way = (int)(intptr_t)argument;
	if (way == HANDLED) {
		struct sigevent notice = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = 43};
		sigset_t set;
		timer_t timer;
		sigemptyset(&set), sigaddset(&set, 43);
		notice._sigev_un._tid = syscall(SYS_gettid);
		CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0 && timer_create(CLOCK_MONOTONIC, &notice, &timer) == 0);
		CHECK(timer_settime(timer, TIMER_ABSTIME, &(struct itimerspec){spec(13 * MS), spec(begun)}, NULL) == 0);
	}
	for (;; __atomic_add_fetch(&rounds[way], 1, __ATOMIC_SEQ_CST)) way < FED ? take_byte(way, ends[way][0]) : once(way);
	return NULL;
}

/* What each waits for, when it has taken what it had before. */
static void *feed(void *unused)
{
	static char some[100000];
	for (;; usleep(2000)) {
		int hold = flock(locks[1], LOCK_EX | LOCK_NB) == 0;
		for (int way = 0; way <= SEMAPHORE; way++) {
			unsigned char c = fed[way];
			if (GET(rounds[way]) != fed[way] || way == FUTEX) continue;
			fed[way]++;
			if (way < FED) CHECK(write(ends[way][1], &c, 1) == 1);
			if (way == EVENT) CHECK(eventfd_write(event, 1) == 0);
			if (way == SIGNAL) CHECK(sigqueue(getpid(), 41, (union sigval){0}) == 0);
			if (way == SIGWAIT) CHECK(pthread_sigqueue(threads[way], 42, (union sigval){0}) == 0);
			if (way == SEMAPHORE) CHECK(sem_post(&semaphore) == 0);
		}
		syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
		CHECK(pthread_mutex_lock(&mutex) == 0 && pthread_cond_broadcast(&condition) == 0 && pthread_mutex_unlock(&mutex) == 0);
		CHECK(read(full[0], some, sizeof some) > 0 || errno == EAGAIN);
		usleep(500);
		if (hold) CHECK(flock(locks[1], LOCK_UN) == 0);
	}
	return unused;
}

/* How often a timer was due by now is how often it was told. */
static void check_ticks(const char *what, int64_t *count, int64_t interval, int some_may_be_lost)
{
	int64_t least = some_may_be_lost ? 1 : (now(CLOCK_MONOTONIC) - begun) / interval, counted, most;
	for (int tries = 0; (counted = GET(*count)) < least && tries < 10000; tries++) usleep(1000);
	most = (now(CLOCK_MONOTONIC) - begun) / interval + 1;
	if (counted < least || counted > most) fail("%s: %ld times, not %ld to %ld", what, (long)counted, (long)least, (long)most);
}

static void look(char (*seen)[100])
{
	char path[40];
	for (int fd = 0; fd < 60; fd++) {   /* those that come and go have higher numbers */
		int n;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		n = readlink(path, seen[fd], 60);
		snprintf(seen[fd] + (n < 0 ? 0 : n), 40, " %d %o", fcntl(fd, F_GETFD), fcntl(fd, F_GETFL));
		if (strstr(seen[fd], "[")) snprintf(strchr(seen[fd], '['), 40, " %d %o", fcntl(fd, F_GETFD), fcntl(fd, F_GETFL));
	}
}

int main(void)
{
	static char before[60][100], after[60][100];
	struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO};
	unsigned at[WAYS];
	pthread_t feeder;
	sigset_t set;
	int64_t world = now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC);
	start();
	sigemptyset(&set);
	for (int i = 41; i <= 43; i++) sigaddset(&set, i);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && sigaction(43, &action, NULL) == 0);
	sigdelset(&set, 42), sigdelset(&set, 43);
	for (int i = 0; i < FED; i++) CHECK((i < RECV ? pipe(ends[i]) : socketpair(AF_UNIX, i == DATAGRAM ? SOCK_DGRAM : SOCK_STREAM, 0, ends[i])) == 0);
	CHECK(pipe(full) == 0 && fcntl(full[0], F_SETFL, O_NONBLOCK) == 0 && (event = eventfd(0, 0)) >= 0 && (signals = signalfd(-1, &set, 0)) >= 0);
	CHECK((clock_fd = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0 && sem_init(&semaphore, 0, 0) == 0);
	for (int i = 0; i < 2; i++) CHECK((locks[i] = open("locked", O_RDWR | O_CREAT, 0600)) >= 0);
	for (int fd = locks[1] + 1; fd < 60; fd++) CHECK(dup2(1, fd) == fd);
	begun = now(CLOCK_MONOTONIC) + MS;
	CHECK(timerfd_settime(clock_fd, TFD_TIMER_ABSTIME, &(struct itimerspec){spec(3 * MS), spec(begun)}, NULL) == 0);
	for (int i = 0; i < WAYS; i++) CHECK(pthread_create(&threads[i], NULL, work_on, (void *)(intptr_t)i) == 0);
	CHECK(pthread_create(&feeder, NULL, feed, NULL) == 0);
	look(before);
	usleep(30000);
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) at[i] = GET(rounds[i]);
	for (int i = 0; i < WAYS; i++)   /* all go on */
		for (int tries = 0; GET(rounds[i]) < at[i] + 3; tries++) if (tries == 20000) fail("way %d stands still", i); else usleep(1000);
	check_ticks("the timer that is read", &ticks, 3 * MS, 0);
	check_ticks("the timer with a handler", &told, 13 * MS, llabs(now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC) - world) > MS);
	look(after);
	for (int fd = 0; fd < 60; fd++) if (strcmp(before[fd], after[fd])) fail("descriptor %d: %s -> %s", fd, before[fd], after[fd]);
	pass();
}

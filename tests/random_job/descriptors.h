/* Descriptors of everything but sockets, and what can be done with any. Those from 3 to 199 are the script's. */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H
#include "job.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#define FIRST 3
#define LAST 200
#define FAR 10000   /* seconds; timers are armed for multiples of it, and so can be told whenever they are looked at */
static unsigned char data[400000];

static int count_fds(void)
{
	int n = 0;
	for (int fd = FIRST; fd < LAST; fd++) n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static int nth_fd(int number)
{
	int n = count_fds();
	if (n == 0) return -1;
	number %= n;
	for (int fd = FIRST; fd < LAST; fd++) if (fcntl(fd, F_GETFD) >= 0 && number-- == 0) return fd;
	return -1;
}

static const char *link_of(int fd)
{
	static char text[512];
	char path[64];
	ssize_t n;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	n = readlink(path, text, sizeof text - 1);
	text[n > 0 ? n : 0] = 0;
	return text;
}

static int is(int fd, const char *kind) { return strstr(link_of(fd), kind) != NULL; }

/* A new one stays where it is or goes to another number, whatever is there. */
static void put(int fd, int number)
{
	if (fd < 0) return;
	if (count_fds() > 60) { close(fd); return; }
	if (number & 1) fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (number >= 192 && dup3(fd, 20 + number % 64, number & 1 ? O_CLOEXEC : 0) >= 0 && fd != 20 + number % 64) close(fd);
}

static void write_some(int fd, int size)
{
	int flags = fcntl(fd, F_GETFL);
	fill(data, size_of(size), step_number);
	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	if (is(fd, "eventfd")) { if (write(fd, &(uint64_t){size + 1}, 8)) {} }
	else if (write(fd, data, size_of(size))) {}
	fcntl(fd, F_SETFL, flags);
}

static void read_some(int fd, int size)
{
	int flags = fcntl(fd, F_GETFL);
	if (is(fd, "signalfd") || is(fd, "/dev/")) return;
	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	if (read(fd, data, size_of(size))) {}
	fcntl(fd, F_SETFL, flags);
}

static void open_file(int a, int b, int c)
{
	static const int ways[] = {O_RDWR, O_RDONLY, O_WRONLY, O_RDWR | O_APPEND, O_WRONLY | O_APPEND, O_RDWR | O_TRUNC, O_PATH, O_RDWR | O_NONBLOCK | O_NOATIME};
	char name[32];
	int fd;
	snprintf(name, sizeof name, "f%d", a % 6);
	if (a % 8 == 7) { put(open(b & 1 ? "." : "/dev/null", b & 1 ? O_RDONLY | O_DIRECTORY : O_RDWR), c); return; }
	if (a % 8 == 6) fd = open(".", O_TMPFILE | O_RDWR, 0600);
	else fd = open(name, ways[b % 8] | (ways[b % 8] & O_PATH ? 0 : O_CREAT), 0640);
	if (fd < 0) return;
	if (b & 8) write_some(fd, b);
	if (b & 16) lseek(fd, b * 3, b & 32 ? SEEK_END : SEEK_SET);
	if (b & 64) unlink(name);
	put(fd, c);
}

static void make_memfd(int a, int b, int c)
{
	int fd = memfd_create(a & 1 ? "one" : "another", MFD_ALLOW_SEALING | (c & 1 ? MFD_CLOEXEC : 0));
	write_some(fd, a);
	if (b & 1) lseek(fd, b, SEEK_SET);
	if (b & 2) fcntl(fd, F_ADD_SEALS, (b >> 3) & 15);
	put(fd, c);
}

static void make_timerfd(int a, int b, int c)
{
	static const int clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
	struct itimerspec value = {{b & 1 ? 7 * b : 0, 5}, {FAR * (1 + a % 30), 0}};
	struct timespec now;
	int fd = timerfd_create(clocks[a % 3], b & 2 ? TFD_NONBLOCK : 0);
	if (b & 4) clock_gettime(clocks[a % 3], &now), value.it_value.tv_sec += now.tv_sec;
	if (b & 8) value.it_value.tv_sec = 0;
	timerfd_settime(fd, b & 4 ? TFD_TIMER_ABSTIME : 0, &value, NULL);
	put(fd, c);
}

static void make_pipe(int a, int b, int c)
{
	int ends[2];
	char name[32];
	if (a % 4 == 3) {
		snprintf(name, sizeof name, "fifo%d", b % 3);
		mkfifo(name, 0600);
		put(open(name, (b >> 2) % 3 == 0 ? O_RDWR : (b >> 2) % 3 == 1 ? O_RDONLY | O_NONBLOCK : O_WRONLY | O_NONBLOCK), c);
		return;
	}
	if (pipe2(ends, a % 4 == 1 ? O_DIRECT : a % 4 == 2 ? O_NONBLOCK : 0)) return;
	if (b & 1) fcntl(ends[1], F_SETPIPE_SZ, 4096 << b % 6);
	if (b & 2) write_some(ends[1], b);
	put(ends[0], c);
	put(ends[1], c ^ 5);
}

static void change(int fd, int b, int c)
{
	struct flock lock = {.l_type = c & 1 ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET, .l_start = c % 7 * 10, .l_len = 5 + c % 20};
	switch (b % 10) {
	case 0: fcntl(fd, F_SETFD, c & 1 ? FD_CLOEXEC : 0); break;
	case 1: fcntl(fd, F_SETFL, (fcntl(fd, F_GETFL) & ~(O_NONBLOCK | O_APPEND)) | (c & 1 ? O_NONBLOCK : 0) | (c & 2 ? O_APPEND : 0)); break;
	case 2: fcntl(fd, F_SETOWN_EX, &(struct f_owner_ex){F_OWNER_PID, shared->pids[c % shared->actors]}); fcntl(fd, F_SETSIG, c & 1 ? 35 : 0); break;
	case 3: if (!is(fd, "eventpoll")) lseek(fd, c * 5, SEEK_SET); break;
	case 4: if (ftruncate(fd, c * 40)) {} break;
	case 5: flock(fd, (c & 1 ? LOCK_SH : LOCK_EX) | LOCK_NB); break;
	case 6: fcntl(fd, F_SETLK, &lock); break;
	case 7: fcntl(fd, F_OFD_SETLK, &lock); break;
	case 8: fcntl(fd, F_SETPIPE_SZ, 4096 << c % 7); break;
	case 9: if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, c * 20, 6000)) {} break;
	}
}

static void watch_with_epoll(int a, int b, int c)
{
	static const unsigned kinds[] = {EPOLLIN, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLET, EPOLLRDHUP | EPOLLIN | EPOLLPRI, EPOLLIN | EPOLLEXCLUSIVE, 0};
	struct epoll_event event = {kinds[c % 6], {.u64 = (uint64_t)step_number << 32 | c}};
	int found[LAST], n = 0, target = nth_fd(b);
	for (int fd = FIRST; fd < LAST; fd++) if (fcntl(fd, F_GETFD) >= 0 && is(fd, "eventpoll")) found[n++] = fd;
	if (n == 0) { put(epoll_create1(0), c); return; }
	/* Whose signals it tells of depends on who has added it, which the kernel doesn't say (docs/kinds.md). */
	if (shared->actors > 1 && is(target, "signalfd")) return;
	if (c >= 200) epoll_ctl(found[a % n], c & 1 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD, target, &event);
	else epoll_ctl(found[a % n], EPOLL_CTL_ADD, target, &event);
}

static sigset_t set_of(int a, int b)
{
	sigset_t set;
	sigemptyset(&set);
	for (int i = 1; i <= 64; i++) if ((i * 37 + a * 11) % (b % 7 + 2) == 0 && i != SIGTERM) sigaddset(&set, i);
	return set;
}

static int descriptor_step(int letter, int a, int b, int c)
{
	int fd = nth_fd(a);
	sigset_t set = set_of(a, b);
	switch (letter) {
	case 'p': make_pipe(a, b, c); break;
	case 'o': open_file(a, b, c); break;
	case 'M': make_memfd(a, b, c); break;
	case 'e': put(eventfd(a, (b & 1 ? EFD_SEMAPHORE : 0) | (b & 2 ? EFD_NONBLOCK : 0)), c); break;
	case 'E': make_timerfd(a, b, c); break;
	case 'S': put(signalfd(-1, &set, c & 2 ? SFD_NONBLOCK : 0), c); break;
	case 'P': put(syscall(SYS_pidfd_open, shared->pids[a % shared->actors], 0), c); break;
	case 'l': watch_with_epoll(a, b, c); break;
	case 'w': if (fd >= 0 && !is(fd, "socket:")) write_some(fd, b); break;
	case 'r': if (fd >= 0 && !is(fd, "socket:")) read_some(fd, b); break;
	case 'd': if (fd >= 0) { if (c & 1) dup3(fd, 3 + b % 90, O_CLOEXEC); else put(dup(fd), c); } break;
	case 'c': if (fd >= 0) close(fd), usleep(500); break;
	case 'C': if (fd >= 0) change(fd, b, c); break;
	default: return 0;
	}
	return 1;
}
#endif

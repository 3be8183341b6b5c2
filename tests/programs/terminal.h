/* Pseudo-terminals for test programs: pairs, settings, and what must be read. */
#ifndef TERMINAL_H
#define TERMINAL_H
#include "program.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static inline int number_of(int master)
{
	int number;
	CHECK(ioctl(master, TIOCGPTN, &number) == 0);
	return number;
}

/* A new master, its slave not locked any more. */
static inline int open_master(void)
{
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), locked = 0;
	CHECK(master >= 0 && ioctl(master, TIOCSPTLCK, &locked) == 0);
	return master;
}

static inline int open_slave(int master, int flags)
{
	char path[40];
	snprintf(path, sizeof path, "/dev/pts/%d", number_of(master));
	int slave = open(path, flags | O_NOCTTY | O_CLOEXEC);
	CHECK(slave >= 0);
	return slave;
}

static inline void set_modes(int fd, tcflag_t input, tcflag_t output, tcflag_t local)
{
	struct termios t;
	CHECK(tcgetattr(fd, &t) == 0);
	t.c_iflag = input;
	t.c_oflag = output;
	t.c_lflag = local;
	CHECK(tcsetattr(fd, TCSANOW, &t) == 0);
}

static inline void put(int fd, const void *data, size_t size) { CHECK(write(fd, data, size) == (ssize_t)size); }
static inline void say(int fd, const char *text) { put(fd, text, strlen(text)); }

static inline short events(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLPRI};
	CHECK(poll(&p, 1, 0) >= 0);
	return p.revents;
}

/* Exactly this must come from the next read(2), which may take a moment. */
static inline void expect(int fd, const void *data, size_t size, int line)
{
	char room[32768];
	struct pollfd p = {.fd = fd, .events = POLLIN};
	if (poll(&p, 1, 5000) != 1) fail("line %d: nothing to read", line);
	ssize_t got = read(fd, room, sizeof room);
	if (got != (ssize_t)size || memcmp(room, data, size))
		fail("line %d: read %zd bytes \"%.*s\", not %zu \"%.*s\"", line, got, (int)(got > 0 ? got : 0), room, size,
		     (int)size, (const char *)data);
}

/* The same in any number of reads. */
static inline void expect_all(int fd, const char *text, int line)
{
	char room[4096];
	for (size_t at = 0; at < strlen(text);) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		if (poll(&p, 1, 5000) != 1) fail("line %d: no more to read behind %zu bytes", line, at);
		ssize_t got = read(fd, room, sizeof room);
		if (got <= 0 || strncmp(text + at, room, (size_t)got)) fail("line %d: read \"%.*s\"", line, (int)got, room);
		at += (size_t)got;
	}
}

#define EXPECT_ALL(fd, text) expect_all(fd, text, __LINE__)
#define EXPECT(fd, text) expect(fd, text, sizeof(text) - 1, __LINE__)

static inline void expect_none(int fd, int line)
{
	char byte;
	int flags = fcntl(fd, F_GETFL);
	CHECK(fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
	ssize_t got = read(fd, &byte, 1);
	if (got != -1 || errno != EAGAIN) fail("line %d: there is something to read: %zd, %#x", line, got, byte);
	CHECK(fcntl(fd, F_SETFL, flags) == 0);
}

#define EXPECT_NONE(fd) expect_none(fd, __LINE__)
#endif

/* What all test programs share. A program sets something up, calls ready(), then await_check(), verifies its own
   state and ends with pass() or fail(). In between it may be checkpointed, killed and restarted any number of times.
   SIGTERM says that it is time to verify; it is blocked from start() on and taken by sigwaitinfo(2). */
#ifndef PROGRAM_H
#define PROGRAM_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where a program may put files: its working directory is a fresh one of its own. */

static inline void fail(const char *format, ...)
{
	va_list arguments;
	int number = errno;
	va_start(arguments, format);
	dprintf(1, "FAIL: ");
	vdprintf(1, format, arguments);
	dprintf(1, " (errno %d: %s)\n", number, strerror(number));
	va_end(arguments);
	_exit(1);
}

#define CHECK(condition) do { if (!(condition)) fail("line %d: %s", __LINE__, #condition); } while (0)

static inline void start(void)
{
	sigset_t term;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	CHECK(sigprocmask(SIG_BLOCK, &term, NULL) == 0);
}

static inline void ready(void) { CHECK(write(1, "ready\n", 6) == 6); }

static inline void await_check(void)
{
	sigset_t term;
	siginfo_t info;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	errno = 0;
	if (sigwaitinfo(&term, &info) != SIGTERM) fail("sigwaitinfo was disturbed");
}

static inline void pass(void) { _exit(0); }

/* A pattern that differs at every byte and seed, to fill and check memory and queues. */
static inline unsigned char pattern(unsigned seed, size_t offset)
{
	uint64_t x = (uint64_t)offset * 0x9E3779B97F4A7C15u + seed * 0xBF58476D1CE4E5B9u;
	return (unsigned char)(x >> 56 ^ x >> 24);
}

static inline void fill(void *memory, size_t size, unsigned seed)
{
	for (size_t i = 0; i < size; i++) ((unsigned char *)memory)[i] = pattern(seed, i);
}

static inline void check_filled(const void *memory, size_t size, unsigned seed, const char *what)
{
	for (size_t i = 0; i < size; i++)
		if (((const unsigned char *)memory)[i] != pattern(seed, i)) fail("%s differs at byte %zu", what, i);
}
#endif

/* Threads with a mask, a name, signals and perhaps a directory of their own, which wait in several ways. */
#ifndef THREADS_H
#define THREADS_H
#include "signals.h"
#include <pthread.h>

#define THREADS 6
static struct other { pthread_t thread; int way, number, wake, tid; atomic_int asked; } others[THREADS];
static int threads;
static __thread int mine;

static void report_thread(void)
{
	char name[16] = "", line[32] = "";
	sigset_t mask;
	uint64_t bits;
	mode_t mask_of_files = umask(0);
	umask(mask_of_files);
	prctl(PR_GET_NAME, name);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	memcpy(&bits, &mask, sizeof bits);
	snprintf(line, sizeof line, "%s", strrchr(link_of(0), '/') ? "" : "?");
	dprintf(1, "%d thread %s: own %d mask %lx umask %o slack %d%s\n", self, name, mine, (long)bits, mask_of_files, prctl(PR_GET_TIMERSLACK), line);
	report_signals();
}

static void *wait_and_report(void *argument)
{
	struct other *o = argument;
	char name[16];
	sigset_t set = set_of(o->number, o->way);
	mine = o->number * 1000 + o->way;
	snprintf(name, sizeof name, "thread %d", o->number);
	prctl(PR_SET_NAME, name);
	for (int i = 0; i < NUMBERS; i++) sigaddset(&set, numbers[i]);   /* what is sent to the process must wait */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (o->way & 16) { if (unshare(CLONE_FS)) fail("unshare"); umask(o->number & 0077); if (o->way & 32 && chdir("/")) {} }
	if (o->way & 64) {
		sigaddset(&set, 36);
		pthread_sigmask(SIG_BLOCK, &set, NULL);
		pthread_sigqueue(pthread_self(), 36, (union sigval){o->number});
		pthread_sigqueue(pthread_self(), 36, (union sigval){o->number + 1});
	}
	o->tid = syscall(SYS_gettid);
	o->asked = -1;
	wake(&o->asked);
	while (o->asked != 1) {
		uint64_t value;
		struct pollfd one = {o->wake, POLLIN, 0};
		switch (o->way & 3) {
		case 0: wait_for_change(&o->asked, -1); break;
		case 1: settle(&o->asked, -1); break;
		case 2: if (read(o->wake, &value, 8)) {} break;
		case 3: poll(&one, 1, -1); break;
		}
	}
	report_thread();
	o->asked = 2;
	wake(&o->asked);
	for (;;) pause();
	return NULL;
}

static int thread_step(int letter, int a, int b, int c)
{
	struct other *o = &others[threads];
	(void)c;
	if (letter != 't') fail("unknown step %c", letter);
	if (threads == THREADS) return 1;
	int fd = eventfd(0, EFD_CLOEXEC);
	*o = (struct other){.way = b, .number = a, .wake = fcntl(fd, F_DUPFD_CLOEXEC, LAST)};
	close(fd);
	CHECK(pthread_create(&o->thread, NULL, wait_and_report, o) == 0);
	threads++;
	while (o->asked == 0) settle(&o->asked, 0);
	return 1;
}

static void threads_are_gone(int shares_files)
{
	if (!shares_files) close_range(LAST, ~0u, 0);
	threads = 0;
}

static void report_threads(void)
{
	for (int i = 0; i < threads; i++) {
		struct other *o = &others[i];
		o->asked = 1;
		wake(&o->asked);
		if (write(o->wake, &(uint64_t){1}, 8) != 8) fail("a thread's eventfd");
		while (o->asked == 1) settle(&o->asked, 1);
	}
}
#endif

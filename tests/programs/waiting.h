/* Waiting for the processes of a tree: for a word that they share, and for the state that one of them is in. */
#ifndef WAITING_H
#define WAITING_H
#include "program.h"
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>

static inline void settle(atomic_int *word, int seen)
{
	struct timespec patience = {0, 20000000};
	syscall(SYS_futex, word, FUTEX_WAIT, seen, &patience, NULL, 0);
}

/* The letter of /proc/PID/stat; 0 where there is no such process. */
static inline int process_state(int pid)
{
	char path[64], line[512] = "", *end;
	int fd;
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) return 0;
	if (read(fd, line, sizeof line - 1) <= 0) line[0] = 0;
	close(fd);
	end = strrchr(line, ')');
	return end ? end[2] : 0;
}

static inline void await_process(int pid, int a, int b)
{
	for (int i = 0; i < 20000; i++) {
		int state = process_state(pid);
		if (state == a || state == b) return;
		usleep(500);
	}
	fail("process %d does not get into state %c", pid, a);
}

#endif

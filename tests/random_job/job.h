/* What all parts of the program share: the actors, and waiting for each other. */
#ifndef JOB_H
#define JOB_H
#include "../programs/program.h"
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>

#define ACTORS 8
#define MOST_STEPS 400
#define PLACES 64   /* where others can connect to */
#define STREAMS 256

static struct shared {
	atomic_int turn, phase, reporter, actors, pids[ACTORS], dead[ACTORS], stopped[ACTORS], places, streams;
	struct place { int family, type, port, number; } place[PLACES];
	struct stream { unsigned from, to; uint64_t sent; } stream[STREAMS];   /* what was written to each TCP connection */
} *shared;
static int self, step_number;
static unsigned job_number;   /* for names that all programs of the machine share */

static inline void settle(atomic_int *word, int seen)
{
	struct timespec patience = {0, 20000000};
	syscall(SYS_futex, word, FUTEX_WAIT, seen, &patience, NULL, 0);
}

static inline void wait_for_change(atomic_int *word, int seen)
{
	syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static inline void wake(atomic_int *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1000, NULL, NULL, 0); }

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

/* Who has a number; 100 for nobody, 99 for someone else. */
static inline int actor_of(int pid)
{
	for (int i = 0; i < shared->actors; i++) if (shared->pids[i] == pid) return i;
	return pid ? 99 : 100;
}

static inline uint64_t hash_more(uint64_t hash, const void *data, size_t size)
{
	for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
	return hash;
}
#define NO_HASH 14695981039346656037u

static inline size_t size_of(int number)   /* most are small */
{
	return number < 200 ? number * 17 + 1 : (number - 199) * 2500;
}

static inline void prepare_names(void)
{
	char *cwd = getcwd(NULL, 0);
	job_number = (unsigned)hash_more(NO_HASH, cwd, strlen(cwd));
	free(cwd);
}
#endif

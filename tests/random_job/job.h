/* What all parts of the program share: the actors, and waiting for each other. */
#ifndef JOB_H
#define JOB_H
#include "../programs/waiting.h"
#include <poll.h>
#include <sched.h>

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

static inline void wait_for_change(atomic_int *word, int seen)
{
	syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static inline void wake(atomic_int *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1000, NULL, NULL, 0); }

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

/* For programs of several processes: steps that they reach together, and children that verify at SIGTERM too. */
#ifndef FAMILY_H
#define FAMILY_H
#include "program.h"
#include <sys/prctl.h>

static int *family_step;

/* Before the first fork. */
static inline void family(void)
{
	family_step = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(family_step != MAP_FAILED);
}

/* Steps are reached in their order, each by one process. */
static inline void reach(int step) { __atomic_store_n(family_step, step, __ATOMIC_SEQ_CST); }

static inline void await_step(int step)
{
	int status;
	while (__atomic_load_n(family_step, __ATOMIC_SEQ_CST) < step) {
		if (waitpid(-1, &status, WNOHANG) > 0) fail("a child ended early, wait status %#x", status);
		usleep(500);
	}
}

static inline pid_t child(void (*body)(void))
{
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
		body();
		_exit(0);
	}
	return pid;
}

/* Let a child verify; it must end with pass(). */
static inline void check_child(pid_t pid)
{
	int status;
	CHECK(kill(pid, SIGTERM) == 0);
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status != 0) fail("child %d: wait status %#x", (int)pid, status);
}
#endif

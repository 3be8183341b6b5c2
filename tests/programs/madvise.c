/* Settings of mappings: madvise(2) for fork, dumps, huge pages and merging, mlock(2) in both ways, names, and what a
   fork does with them; also on memory that may not be touched. */
#include "smaps.h"
#include <sys/prctl.h>
#include <sys/resource.h>

#define SIZE (16 * 4096)
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static const struct { int advice; const char *flag; } advices[] = {
	{MADV_DONTFORK, "dc"}, {MADV_WIPEONFORK, "wf"}, {MADV_DONTDUMP, "dd"}, {MADV_HUGEPAGE, "hg"}, {MADV_NOHUGEPAGE, "nh"},
	{MADV_MERGEABLE, "mg"}, {MADV_SEQUENTIAL, "sr"}, {MADV_RANDOM, "rr"}};
#define ADVICES (int)(sizeof advices / sizeof *advices)

static char *areas[ADVICES], *locked, *on_fault, *closed, *named, *plain;
static int taken[ADVICES], has_names;

static char *map(int protection)
{
	/* A hole on both sides keeps it from becoming one with its neighbours. */
	char *at = mmap(NULL, SIZE + 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED && munmap(at, 4096) == 0 && munmap(at + 4096 + SIZE, 4096) == 0);
	CHECK(mprotect(at + 4096, SIZE, protection) == 0);
	return at + 4096;
}

static void check_fork(void)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		CHECK(!taken[0] || smap_at(areas[0]).start == 0);
		for (int i = 0; i < SIZE; i++) if (taken[1]) CHECK(areas[1][i] == 0);
		check_filled(plain, SIZE, 30, "a plain area in a child");
		check_flag(locked, "lo", 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
	start();
	for (int i = 0; i < ADVICES; i++) {
		areas[i] = map(PROT_READ | PROT_WRITE);
		fill(areas[i], SIZE, i);
		taken[i] = madvise(areas[i], SIZE, advices[i].advice) == 0;   /* not every kernel has all */
		check_flag(areas[i], advices[i].flag, taken[i]);
	}
	CHECK(taken[0] && taken[1] && taken[2] && taken[6] && taken[7]);
	locked = map(PROT_READ | PROT_WRITE), on_fault = map(PROT_READ | PROT_WRITE), closed = map(PROT_READ | PROT_WRITE);
	fill(locked, SIZE, 20), fill(on_fault, SIZE / 2, 21), fill(closed, SIZE, 22);
	CHECK(mlock(locked, SIZE) == 0 && mlock2(on_fault, SIZE, MLOCK_ONFAULT) == 0 && mlock(closed, SIZE) == 0);
	CHECK(mprotect(closed, SIZE, PROT_NONE) == 0);
	named = map(PROT_READ | PROT_WRITE);
	has_names = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, SIZE, "a name: of (its) own") == 0;
	plain = map(PROT_READ | PROT_WRITE);
	fill(plain, SIZE, 30);
	ready();
	await_check();
	for (int i = 0; i < ADVICES; i++) {
		check_flag(areas[i], advices[i].flag, taken[i]);
		check_filled(areas[i], SIZE, i, advices[i].flag);
		check_flag(plain, advices[i].flag, 0);
	}
	check_flag(locked, "lo", 1), check_flag(locked, "lf", 0);
	check_flag(on_fault, "lo", 1), check_flag(on_fault, "lf", 1);
	check_flag(closed, "lo", 1), check_flag(plain, "lo", 0);
	check_protection(closed, "---p");
	check_filled(locked, SIZE, 20, "locked memory"), check_filled(on_fault, SIZE / 2, 21, "memory locked when touched");
	CHECK(mprotect(closed, SIZE, PROT_READ) == 0);
	check_filled(closed, SIZE, 22, "locked memory without access");
	if (has_names && strcmp(smap_at(named).name, "[anon:a name: of (its) own]")) fail("named %s", smap_at(named).name);
	check_fork();
	pass();
}

/* mlockall(2): all that is mapped and all that will be; in a child only what will be, and only as it is touched; in
   another nothing. What is mapped afterwards is locked like before. */
#include "family.h"
#include "smaps.h"
#include <sys/syscall.h>

#define PAGE 4096UL
#define SIZE (8 * PAGE)

static int future, on_fault;
static char *before;

static void check_new(void)
{
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned char there[8];
	CHECK(at != MAP_FAILED);
	check_flag(at, "lo", future);
	check_flag(at, "lf", on_fault);
	CHECK(mincore(at, SIZE, there) == 0 && there[5] == (future && !on_fault));
	CHECK(munmap(at, SIZE) == 0);
}

static void later(void)
{
	future = on_fault = 1;
	CHECK(mlockall(MCL_FUTURE | MCL_ONFAULT) == 0);
	check_new();
	reach(1);
	await_check();
	check_flag(before, "lo", 0);
	check_new();
	pass();
}

static void none(void)
{
	future = 0;
	check_new();
	reach(2);
	await_check();
	check_flag(before, "lo", 0);
	check_new();
	pass();
}

int main(void)
{
	pid_t pids[2];
	start();
	family();
	before = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(before != MAP_FAILED);
	fill(before, SIZE, 1);
	pids[0] = child(later);
	await_step(1);
	CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
	future = 1;
	check_new();
	pids[1] = child(none);
	await_step(2);
	ready();
	await_check();
	check_flag(before, "lo", 1);
	check_filled(before, SIZE, 1, "locked memory");
	check_new();
	for (int i = 0; i < 2; i++) check_child(pids[i]);
	CHECK(munlockall() == 0);
	future = 0;
	check_new();
	pass();
}

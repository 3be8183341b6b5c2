/* A process without huge pages (PR_SET_THP_DISABLE), a child that may have them, and one that may have them where it
   says so (PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18). */
#include "family.h"

#define HUGE_PAGE (2UL << 20)
static char *memory;

static void with_them(void)
{
	CHECK(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) == 0);
	reach(1);
	await_check();
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0);
	check_filled(memory, 4 * HUGE_PAGE, 1, "memory of the child");
	pass();
}

static void where_it_says_so(void)
{
	int known = prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) == 0;
	reach(2);
	await_check();
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == (known ? 3 : 1));
	check_filled(memory, 4 * HUGE_PAGE, 1, "memory of the other child");
	pass();
}

static long huge(void)
{
	char line[256];
	long kilobytes = 0;
	FILE *file = fopen("/proc/self/smaps_rollup", "r");
	CHECK(file);
	while (fgets(line, sizeof line, file)) if (sscanf(line, "AnonHugePages: %ld", &kilobytes) == 1) break;
	fclose(file);
	return kilobytes;
}

int main(void)
{
	pid_t pid, other;
	start();
	family();
	CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
	memory = mmap(NULL, 4 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	madvise(memory, 4 * HUGE_PAGE, MADV_HUGEPAGE);
	fill(memory, 4 * HUGE_PAGE, 1);
	pid = child(with_them);
	await_step(1);
	other = child(where_it_says_so);
	await_step(2);
	CHECK(huge() == 0);
	ready();
	await_check();
	CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
	if (huge() != 0) fail("%ld kB of huge pages", huge());
	check_filled(memory, 4 * HUGE_PAGE, 1, "memory");
	check_child(pid);
	check_child(other);
	pass();
}

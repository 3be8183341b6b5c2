/* Memory that the kernel may merge with equal pages: said of a mapping (madvise(2), MADV_MERGEABLE) and of a whole
   process (prctl(2), PR_SET_MEMORY_MERGE, Linux 6.4), also of what it maps later; a child has it taken back. */
#include "family.h"
#include "smaps.h"

#define SIZE (16 * 4096UL)
#define SET_MEMORY_MERGE 67
#define GET_MEMORY_MERGE 68

static char *equal, *by_itself;
static int merges;

static char *map(void)
{
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	return at;
}

static void check(int wanted)
{
	char *at = map();
	if (merges) CHECK(prctl(GET_MEMORY_MERGE, 0, 0, 0, 0) == wanted);
	if (merges) check_flag(at, "mg", wanted);
	for (size_t i = 0; i < SIZE; i++) CHECK(equal[i] == 'e');
	check_filled(by_itself, SIZE, 1, "memory to be merged");
	CHECK(munmap(at, SIZE) == 0);
}

static void without(void)
{
	CHECK(!merges || prctl(SET_MEMORY_MERGE, 0, 0, 0, 0) == 0);
	check(0);
	reach(1);
	await_check();
	check(0);
	pass();
}

int main(void)
{
	pid_t pid;
	start();
	family();
	equal = map(), by_itself = map();
	memset(equal, 'e', SIZE);
	fill(by_itself, SIZE, 1);
	madvise(by_itself, SIZE, MADV_MERGEABLE);
	merges = prctl(SET_MEMORY_MERGE, 1, 0, 0, 0) == 0;
	check(1);
	pid = child(without);
	await_step(1);
	ready();
	await_check();
	check(1);
	if (merges) check_flag(equal, "mg", 1);
	check_child(pid);
	pass();
}

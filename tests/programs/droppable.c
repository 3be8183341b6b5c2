/* MAP_DROPPABLE (Linux 6.11): pages that the kernel may drop and a fork wipes; what has not been dropped is kept. */
#include "smaps.h"

#define PAGE 4096UL
#define PAGES 32
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 8
#endif

static void check_pages(char *at, unsigned seed)
{
	for (int page = 0; page < PAGES; page++)
		if (at[page * PAGE] || at[page * PAGE + 1]) check_filled(at + page * PAGE, PAGE, seed + page, "a page that may be dropped");
}

int main(void)
{
	char *at;
	pid_t child;
	int status;
	start();
	at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED) {   /* an older kernel */
		ready(), await_check(), pass();
	}
	for (int page = 0; page < PAGES; page++) fill(at + page * PAGE, PAGE, 10 + page);
	check_flag(at, "dp", 1);
	ready();
	await_check();
	check_flag(at, "dp", 1), check_flag(at, "wf", 1), check_flag(at, "dd", 1);
	check_pages(at, 10);
	child = fork();
	if (child == 0) {
		for (size_t i = 0; i < PAGES * PAGE; i++) CHECK(at[i] == 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(mlock(at, PAGE) == 0);
	check_flag(at, "lo", 0);   /* what may be dropped is not locked */
	fill(at, PAGE, 10);
	check_pages(at, 10);
	pass();
}

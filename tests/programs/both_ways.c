/* A file mapped privately, with own pages, and shared, with what it shows changed; both see what is the file's, and what
   is the process's own stays so when the file is brought back. */
#include "smaps.h"

#define PAGE 4096UL
#define PAGES 10

static void check_pages(const char *at, int first, int count, unsigned seed, const char *what)
{
	for (int page = first; page < first + count; page++) check_filled(at + page * PAGE, PAGE, seed + page, what);
}

int main(void)
{
	char *own, *common;
	int fd;
	start();
	fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0);
	own = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	common = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(own != MAP_FAILED && common != MAP_FAILED && close(fd) == 0);
	for (int page = 0; page < PAGES; page++) fill(common + page * PAGE, PAGE, 10 + page);
	for (int page = 3; page < 7; page++) fill(own + page * PAGE, PAGE, 30 + page);
	memset(own + 8 * PAGE, 0, PAGE);
	ready();
	await_check();
	check_pages(own, 0, 3, 10, "a page of the file"), check_pages(own, 3, 4, 30, "a page of the process's own");
	check_pages(own, 7, 1, 10, "a page of the file");
	for (size_t i = 0; i < PAGE; i++) CHECK(own[8 * PAGE + i] == 0);
	check_pages(common, 0, PAGES, 10, "the file");
	strcpy(common + 9 * PAGE, "changed"), strcpy(common + 4 * PAGE, "changed");
	CHECK(strcmp(own + 9 * PAGE, "changed") == 0);
	check_pages(own, 3, 4, 30, "a page of the process's own");
	pass();
}

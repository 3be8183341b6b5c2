/* Private mappings of files: some pages the process's own copies, one of them all zeros, the rest still the file's;
   with an offset, an end in the middle of a page, no write permission; of a file whose name is gone, of a memfd, of
   /dev/zero. The files themselves stay as they are. */
#include "smaps.h"

#define PAGE 4096UL
#define PAGES 40

static int make(const char *name, unsigned seed, size_t size)
{
	char *content = malloc(size);
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0);
	fill(content, size, seed);
	CHECK(write(fd, content, size) == (ssize_t)size);
	free(content);
	return fd;
}

static char *map(int fd, size_t offset, size_t size, int protection)
{
	char *at = mmap(NULL, size, protection, MAP_PRIVATE, fd, offset);
	CHECK(at != MAP_FAILED);
	return at;
}

/* Page numbers of the file: 3 and 4 copied, 7 zeroed, 9 copied and then made read-only. */
static void change(char *at, size_t first)
{
	for (size_t page = 3; page < 5; page++) fill(at + (page - first) * PAGE, PAGE, 90 + page);
	memset(at + (7 - first) * PAGE, 0, PAGE);
	at[(9 - first) * PAGE + 5] = 'x';
	CHECK(mprotect(at + (9 - first) * PAGE, PAGE, PROT_READ) == 0);
}

static void check_pages(const char *at, size_t first, size_t size, unsigned seed, int changed)
{
	for (size_t i = 0; i < size; i++) {
		size_t place = first * PAGE + i, page = place / PAGE;
		unsigned char wanted = pattern(seed, place);
		if (changed && (page == 3 || page == 4)) wanted = pattern(90 + page, place % PAGE);
		if (changed && page == 7) wanted = 0;
		if (changed && place == 9 * PAGE + 5) wanted = 'x';
		if ((unsigned char)at[i] != wanted) fail("byte %zu of page %zu is %#x", place % PAGE, page, at[i]);
	}
}

static void check_file(const char *name, unsigned seed, size_t size)
{
	char *content = malloc(size + 1);
	int fd = open(name, O_RDONLY);
	CHECK(fd >= 0 && read(fd, content, size + 1) == (ssize_t)size);
	check_filled(content, size, seed, name);
	close(fd);
	free(content);
}

int main(void)
{
	size_t ragged = PAGES * PAGE - 100;
	int fd, gone, memory, zero;
	char *whole, *part, *constant, *deleted, *of_memory, *of_zero, *tail;
	start();
	fd = make("data", 1, ragged);
	whole = map(fd, 0, PAGES * PAGE, PROT_READ | PROT_WRITE);
	change(whole, 0);
	part = map(fd, 2 * PAGE, 20 * PAGE, PROT_READ | PROT_WRITE);
	change(part, 2);
	constant = map(fd, 0, PAGES * PAGE, PROT_READ);
	tail = map(fd, (PAGES - 1) * PAGE, PAGE, PROT_READ | PROT_WRITE);
	strcpy(tail + PAGE - 50, "behind the end");
	close(fd);
	gone = make("gone", 2, PAGES * PAGE);
	deleted = map(gone, 0, (PAGES + 5) * PAGE, PROT_READ | PROT_WRITE);   /* the last pages lie behind its end */
	change(deleted, 0);
	CHECK(unlink("gone") == 0);
	close(gone);
	memory = memfd_create("private", 0);
	CHECK(memory >= 0 && ftruncate(memory, 12 * PAGE) == 0);
	of_memory = map(memory, 0, 12 * PAGE, PROT_READ | PROT_WRITE);
	fill(of_memory, 3 * PAGE, 5);
	CHECK(pwrite(memory, "later", 5, 8 * PAGE) == 5);
	close(memory);
	zero = open("/dev/zero", O_RDWR);
	of_zero = map(zero, 0, 8 * PAGE, PROT_READ | PROT_WRITE);
	fill(of_zero + PAGE, PAGE, 6);
	close(zero);
	ready();
	await_check();
	check_pages(whole, 0, ragged, 1, 1);
	for (size_t i = ragged; i < PAGES * PAGE; i++) CHECK(whole[i] == 0);
	check_pages(part, 2, 20 * PAGE, 1, 1);
	check_pages(constant, 0, ragged, 1, 0);
	CHECK(strcmp(tail + PAGE - 50, "behind the end") == 0);
	check_pages(tail, PAGES - 1, PAGE - 100, 1, 1);
	check_protection(whole + 9 * PAGE, "r--p");
	check_protection(constant, "r--p");
	CHECK(strstr(smap_at(whole).name, "/data") && smap_at(part).offset == 2 * PAGE);
	check_pages(deleted, 0, PAGES * PAGE, 2, 1);
	check_filled(of_memory, 3 * PAGE, 5, "a private mapping of a memfd");
	CHECK(strcmp(of_memory + 8 * PAGE, "later") == 0 && of_memory[4 * PAGE] == 0);
	check_filled(of_zero + PAGE, PAGE, 6, "a private mapping of /dev/zero");
	CHECK(of_zero[0] == 0 && of_zero[7 * PAGE] == 0);
	whole[0] ^= 1, deleted[0] ^= 1, of_memory[0] ^= 1, of_zero[0] ^= 1;
	check_file("data", 1, ragged);
	pass();
}

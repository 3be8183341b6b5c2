/* Sealed mappings (mseal(2), Linux 6.10): anonymous memory with contents, a private mapping of a file, memory without
   access, shared memory; nothing of them can be changed, and what they hold is kept. */
#include "smaps.h"
#include <sys/syscall.h>

#define PAGE 4096UL
#define SIZE (8 * PAGE)
#ifndef SYS_mseal
#define SYS_mseal 462
#endif
enum { WRITABLE, CLOSED, CONSTANT, OF_FILE, SHARED, KINDS };

static char *areas[KINDS];
static const int protections[KINDS] = {PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ, PROT_READ, PROT_READ | PROT_WRITE};
static int sealed;

static void set_up(void)
{
	int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	for (int i = 0; i < KINDS; i++) {
		int flags = i == OF_FILE ? MAP_PRIVATE : i == SHARED ? MAP_SHARED | MAP_ANONYMOUS : MAP_PRIVATE | MAP_ANONYMOUS;
		areas[i] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, i == OF_FILE ? fd : -1, 0);
		CHECK(areas[i] != MAP_FAILED);
		fill(areas[i], SIZE, i);
		CHECK(mprotect(areas[i], SIZE, protections[i]) == 0);
	}
	close(fd);
	sealed = 1;
	for (int i = 0; i < KINDS; i++) if (syscall(SYS_mseal, areas[i], SIZE, 0) != 0) sealed = 0;
}

int main(void)
{
	start();
	set_up();
	ready();
	await_check();
	for (int i = 0; i < KINDS; i++) {
		if (sealed) {
			check_flag(areas[i], "sl", 1);
			CHECK(mprotect(areas[i], SIZE, PROT_READ | PROT_EXEC) == -1 && errno == EPERM);
			CHECK(munmap(areas[i], PAGE) == -1 && errno == EPERM);
		}
		if (i != CLOSED) check_filled(areas[i], SIZE, i, "sealed memory");
	}
	fill(areas[WRITABLE], SIZE, 100);
	check_filled(areas[WRITABLE], SIZE, 100, "sealed memory that may be written");
	pass();
}

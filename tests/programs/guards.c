/* Guard regions (madvise(2), MADV_GUARD_INSTALL): in anonymous memory, over pages that held something, in a private
   mapping of a file and in shared memory of all sorts where the kernel allows it (Linux 6.15), in a child; they can be
   removed, and what is shared is there under them. */
#include "family.h"
#include "smaps.h"
#include <setjmp.h>
#include <sys/shm.h>

#define PAGE 4096UL
#define PAGES 16
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
enum { ANONYMOUS, PRIVATE, SHARED, OF_FILE, SEGMENT, KINDS };

static char *areas[KINDS];
static int guarded[KINDS];
static sigjmp_buf faulted;

static void on_fault(int number) { siglongjmp(faulted, number); }

static int faults(volatile char *at)
{
	struct sigaction action = {.sa_handler = on_fault}, old;
	volatile int number;
	sigaction(SIGSEGV, &action, &old);
	number = sigsetjmp(faulted, 1);
	if (number == 0) (void)*at;
	sigaction(SIGSEGV, &old, NULL);
	return number == SIGSEGV;
}

static void check(int kind)
{
	for (int page = 0; page < PAGES; page++) {
		char *at = areas[kind] + page * PAGE;
		int guard = guarded[kind] && page >= 3 && page < 6;
		if (faults(at) != guard) fail("page %d of kind %d: a guard is %d", page, kind, !guard);
		if (!guard && (page < 3 || page > 5)) check_filled(at, PAGE, 10 * kind + page, "a page beside guards");
	}
}

static void brother(void)
{
	reach(1);
	await_check();
	for (int i = 0; i < KINDS; i++) check(i);
	pass();
}

static int file(void)
{
	int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0);
	return fd;
}

int main(void)
{
	pid_t pid;
	int fd, segment;
	start();
	family();
	fd = file();
	areas[ANONYMOUS] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	areas[PRIVATE] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	areas[SHARED] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	segment = shmget(IPC_PRIVATE, PAGES * PAGE, IPC_CREAT | 0600);
	areas[SEGMENT] = shmat(segment, NULL, 0);
	CHECK(shmctl(segment, IPC_RMID, NULL) == 0);
	areas[OF_FILE] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (int i = 0; i < KINDS; i++) {
		CHECK(areas[i] != MAP_FAILED);
		for (int page = 0; page < PAGES; page++) fill(areas[i] + page * PAGE, PAGE, 10 * i + page);
		guarded[i] = madvise(areas[i] + 3 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL) == 0;
	}
	close(fd);
	pid = child(brother);
	await_step(1);
	ready();
	await_check();
	check_child(pid);
	for (int i = 0; i < KINDS; i++) {
		check(i);
		if (guarded[i]) CHECK(madvise(areas[i], PAGES * PAGE, MADV_GUARD_REMOVE) == 0);
		if (i >= SHARED) for (int page = 3; page < 6; page++) check_filled(areas[i] + page * PAGE, PAGE, 10 * i + page, "what was under a guard");
		areas[i][4 * PAGE] = 'x';
	}
	pass();
}

/* Files that were cut after they were mapped, and mappings that reach behind a file's end: private and shared, with a
   name and without. What lies behind the end is SIGBUS, until the file grows again; what lies before it is kept. */
#include "smaps.h"
#include <setjmp.h>

#define PAGE 4096UL
#define PAGES 12
enum { PRIVATE, SHARED, UNLINKED, MEMFD, FILES };

static int fds[FILES];
static char *areas[FILES], *copied;
static sigjmp_buf faulted;

static void on_fault(int number) { siglongjmp(faulted, number); }

static int signal_at(volatile char *at)
{
	struct sigaction action = {.sa_handler = on_fault}, old;
	volatile int number;
	sigaction(SIGBUS, &action, &old);
	number = sigsetjmp(faulted, 1);
	if (number == 0) (void)*at;
	sigaction(SIGBUS, &old, NULL);
	return number;
}

static void set_up(int i)
{
	char name[20];
	sprintf(name, "file%d", i);
	fds[i] = i == MEMFD ? memfd_create(name, 0) : open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fds[i] >= 0 && ftruncate(fds[i], PAGES * PAGE) == 0);
	areas[i] = mmap(NULL, (PAGES + 4) * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
	CHECK(areas[i] != MAP_FAILED);
	fill(areas[i], PAGES * PAGE, i);
	if (i == PRIVATE) {
		CHECK(munmap(areas[i], (PAGES + 4) * PAGE) == 0);
		areas[i] = mmap(NULL, (PAGES + 4) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[i], 0);
		CHECK(areas[i] != MAP_FAILED);
		fill(areas[i] + 2 * PAGE, PAGE, 50), fill(areas[i] + 8 * PAGE, PAGE, 51);   /* the second is cut off */
	}
	if (i == UNLINKED) CHECK(unlink(name) == 0);
	CHECK(ftruncate(fds[i], 5 * PAGE + 100) == 0);
}

int main(void)
{
	start();
	for (int i = 0; i < FILES; i++) set_up(i);
	copied = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[UNLINKED], 0);
	CHECK(copied != MAP_FAILED);
	fill(copied + PAGE, PAGE, 60);
	ready();
	await_check();
	for (int i = 0; i < FILES; i++) {
		for (int page = 0; page < PAGES + 4; page++) {
			int number = signal_at(areas[i] + page * PAGE);
			if (number != (page > 5 ? SIGBUS : 0)) fail("page %d of file %d: signal %d", page, i, number);
		}
		check_filled(areas[i], i == PRIVATE ? 2 * PAGE : 5 * PAGE + 100, i, "a file that was cut");
		for (size_t k = 100; k < PAGE; k++) CHECK(areas[i][5 * PAGE + k] == 0);
		CHECK(ftruncate(fds[i], 9 * PAGE) == 0);
		for (int page = 6; page < PAGES + 4; page++) CHECK(signal_at(areas[i] + page * PAGE) == (page > 8 ? SIGBUS : 0));
		CHECK(areas[i][8 * PAGE] == 0);
	}
	check_filled(areas[PRIVATE] + 2 * PAGE, PAGE, 50, "an own page of a file that was cut");
	check_filled(copied + PAGE, PAGE, 60, "an own page of a file without a name");
	CHECK(signal_at(copied + 8 * PAGE) == 0 && signal_at(copied + 9 * PAGE) == SIGBUS);
	pass();
}

/* Terabytes of address space with a page here and there: closed, open without reservation, read but never written, a
   page table's worth apart; they cost nothing, neither in the image nor at a restart. */
#include "smaps.h"

#define PAGE 4096UL
#define TB (1UL << 40)
#define PARTS 64

static char *closed, *opened, *looked_at;

static char *reserve(size_t size, int protection)
{
	char *at = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(at != MAP_FAILED);
	return at;
}

static char *part(char *of, size_t size, int i) { return of + size / PARTS * i + (size_t)i * 17 * PAGE; }

static long resident(void)
{
	long size, pages;
	FILE *file = fopen("/proc/self/statm", "r");
	CHECK(file && fscanf(file, "%ld %ld", &size, &pages) == 2);
	fclose(file);
	return pages;
}

int main(void)
{
	long before;
	start();
	closed = reserve(40 * TB, PROT_NONE);
	opened = reserve(20 * TB, PROT_READ | PROT_WRITE);
	looked_at = reserve(TB, PROT_READ);
	for (int i = 0; i < PARTS; i++) {
		CHECK(mprotect(part(closed, 40 * TB, i), 3 * PAGE, PROT_READ | PROT_WRITE) == 0);
		fill(part(closed, 40 * TB, i) + PAGE, PAGE, i);
		fill(part(opened, 20 * TB, i), PAGE, 100 + i);
		CHECK(*(volatile char *)part(looked_at, TB, i) == 0);
	}
	CHECK(madvise(opened, 20 * TB, MADV_NOHUGEPAGE) == 0);
	before = resident();
	ready();
	await_check();
	if (resident() > before + 2000) fail("%ld pages are resident, %ld were", resident(), before);
	for (int i = 0; i < PARTS; i++) {
		char *at = part(closed, 40 * TB, i);
		check_filled(at + PAGE, PAGE, i, "a page of a closed reservation");
		CHECK(at[0] == 0 && at[2 * PAGE] == 0);
		check_protection(at, "rw-p"), check_protection(at + 3 * PAGE, "---p");
		check_filled(part(opened, 20 * TB, i), PAGE, 100 + i, "a page of an open reservation");
		CHECK(part(opened, 20 * TB, i)[PAGE] == 0 && part(looked_at, TB, i)[0] == 0);
	}
	check_flag(opened, "nr", 1), check_flag(opened, "nh", 1);
	opened[19 * TB] = 'x';
	pass();
}

/* Transparent huge pages come back as huge pages where there were any; memory that must not have them stays without;
   what was returned in the middle of one stays empty. */
#include "smaps.h"

#define PAGE 4096UL
#define HUGE_PAGE (2UL << 20)
#define SIZE (32 * HUGE_PAGE)

static char *map(int advice)
{
	char *at = mmap(NULL, SIZE + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	at = (char *)(((uintptr_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	madvise(at, SIZE, advice);
	return at;
}

/* Bytes of huge pages in the mapping at an address. */
static long huge(const char *at)
{
	char line[256];
	long found = -1, value;
	int here = 0;
	FILE *file = fopen("/proc/self/smaps", "r");
	CHECK(file);
	while (found < 0 && fgets(line, sizeof line, file)) {
		unsigned long low, high;
		if (sscanf(line, "%lx-%lx ", &low, &high) == 2) here = (uintptr_t)at >= low && (uintptr_t)at < high;
		else if (here && sscanf(line, "AnonHugePages: %ld", &value) == 1) found = value << 10;
	}
	fclose(file);
	return found;
}

int main(void)
{
	char *wanted, *unwanted;
	long before;
	start();
	wanted = map(MADV_HUGEPAGE), unwanted = map(MADV_NOHUGEPAGE);
	for (size_t i = 0; i < SIZE / 2; i += PAGE) fill(wanted + i, 64, i / PAGE), fill(unwanted + i, 64, i / PAGE);
	CHECK(madvise(wanted + 10 * HUGE_PAGE + 7 * PAGE, 5 * PAGE, MADV_DONTNEED) == 0);
	before = huge(wanted);
	CHECK(huge(unwanted) == 0);
	ready();
	await_check();
	if (before >= 4L * (long)HUGE_PAGE && huge(wanted) == 0) fail("no huge pages, there were %ld", before);
	CHECK(huge(unwanted) == 0);
	for (size_t i = 0; i < SIZE / 2; i += PAGE) {
		int returned = i >= 10 * HUGE_PAGE + 7 * PAGE && i < 10 * HUGE_PAGE + 12 * PAGE;
		if (returned) CHECK(wanted[i] == 0 && wanted[i + 63] == 0);
		else check_filled(wanted + i, 64, i / PAGE, "memory with huge pages");
		check_filled(unwanted + i, 64, i / PAGE, "memory without huge pages");
	}
	for (size_t i = SIZE / 2; i < SIZE; i += PAGE) CHECK(wanted[i] == 0 && unwanted[i] == 0);
	pass();
}

/* Memory at unusual addresses: low, in the first 2 GiB, at every place where the restart might want room for itself,
   up to the last page of the address space, next to the stack. */
#include "smaps.h"

#define PAGE 4096UL

static const uintptr_t wanted[] = {0x10000, 0x20000, 0x0ffff000, 0x10000000, 0x10001000, 0x10101000, 0x10200000,
	0x30000000, 0x7fff0000, 0x100000000, 0x100000000000, 0x7ffffffeb000, 0x7ffffffed000};
#define PLACES (int)(sizeof wanted / sizeof *wanted)

static char *below_4g, *last;

static char *map(uintptr_t at, size_t size, int flags)
{
	char *got = mmap((void *)at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	if (got == MAP_FAILED) fail("mmap at %#lx", at);
	return got;
}

int main(void)
{
	start();
	for (int i = 0; i < PLACES; i++) fill(map(wanted[i], PAGE, MAP_FIXED_NOREPLACE), PAGE, i);
	below_4g = map(0, 10 * PAGE, MAP_32BIT);
	CHECK((uintptr_t)below_4g + 10 * PAGE <= 1UL << 31);
	fill(below_4g, 10 * PAGE, 50);
	last = map(0x7fffffffe000, PAGE, MAP_FIXED_NOREPLACE);
	fill(last, PAGE, 51);
	ready();
	await_check();
	for (int i = 0; i < PLACES; i++) {
		check_filled((void *)wanted[i], PAGE, i, "memory at an unusual address");
		CHECK(munmap((void *)wanted[i], PAGE) == 0);
		fill(map(wanted[i], PAGE, MAP_FIXED_NOREPLACE), PAGE, 1);
	}
	check_filled(below_4g, 10 * PAGE, 50, "MAP_32BIT");
	CHECK((uintptr_t)map(0, PAGE, MAP_32BIT) < 1UL << 31);
	check_filled(last, PAGE, 51, "the last page");
	pass();
}

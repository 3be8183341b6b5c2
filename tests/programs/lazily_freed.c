/* Pages given back lazily (MADV_FREE), sent away (MADV_COLD, MADV_PAGEOUT) or dropped (MADV_DONTNEED): the first hold
   what they held or zeros until they are written to, then what was written; the others what they held. */
#include "smaps.h"

#define PAGE 4096UL
#define PAGES 64

static char *map(unsigned seed)
{
	char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	for (int page = 0; page < PAGES; page++) fill(at + page * PAGE, PAGE, seed + page);
	return at;
}

static int zeros(const char *at)
{
	for (size_t i = 0; i < PAGE; i++) if (at[i]) return 0;
	return 1;
}

int main(void)
{
	char *lazy, *cold, *out, *dropped;
	start();
	lazy = map(100), cold = map(200), out = map(300), dropped = map(400);
	CHECK(madvise(lazy, PAGES * PAGE, MADV_FREE) == 0);
	for (int page = 0; page < PAGES; page += 4) fill(lazy + page * PAGE, PAGE, 500 + page);
	CHECK(madvise(cold, PAGES * PAGE, MADV_COLD) == 0);
	madvise(out, PAGES * PAGE, MADV_PAGEOUT);
	CHECK(madvise(dropped + PAGE, 5 * PAGE, MADV_DONTNEED) == 0);
	ready();
	await_check();
	for (int page = 0; page < PAGES; page++) {
		if (page % 4 == 0) check_filled(lazy + page * PAGE, PAGE, 500 + page, "a freed page that was written again");
		else if (!zeros(lazy + page * PAGE)) check_filled(lazy + page * PAGE, PAGE, 100 + page, "a freed page");
		fill(lazy + page * PAGE, PAGE, 600 + page);
		check_filled(cold + page * PAGE, PAGE, 200 + page, "a cold page");
		check_filled(out + page * PAGE, PAGE, 300 + page, "a page that was sent out");
		if (page >= 1 && page < 6) CHECK(zeros(dropped + page * PAGE));
		else check_filled(dropped + page * PAGE, PAGE, 400 + page, "a page beside dropped ones");
	}
	for (int page = 0; page < PAGES; page++) check_filled(lazy + page * PAGE, PAGE, 600 + page, "a page in use again");
	pass();
}

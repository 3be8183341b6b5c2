/* Private memory: many mappings with gaps, adjacent ones of different protection, contents that may not be read or
   written, code, a large sparse reservation, MAP_NORESERVE, MAP_GROWSDOWN, huge pages, guard regions, pages of zeros. */
#include "smaps.h"
#include <setjmp.h>

#define PAGE 4096UL
#define BIG (64UL << 30)
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static char *scattered[40], *adjacent, *hidden, *readonly, *code, *sparse, *unreserved, *grows, *huge, *guarded, *zeros;
static int has_guards;
static sigjmp_buf faulted;

static char *map(size_t size, int protection, int flags)
{
	char *at = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	CHECK(at != MAP_FAILED);
	return at;
}

static void on_fault(int number) { siglongjmp(faulted, number); }

static int faults(volatile char *at, int write)
{
	struct sigaction action = {.sa_handler = on_fault}, old;
	volatile int number;
	sigaction(SIGSEGV, &action, &old);
	number = sigsetjmp(faulted, 1);
	if (number == 0) {
		if (write) *at = *at;
		else (void)*at;
	}
	sigaction(SIGSEGV, &old, NULL);
	return number == SIGSEGV;
}

static void set_up(void)
{
	char *area = map(80 * 8 * PAGE, PROT_NONE, 0);
	for (int i = 0; i < 40; i++) {
		scattered[i] = area + (2 * i + 1) * 8 * PAGE;
		CHECK(mprotect(scattered[i], (i % 8 + 1) * PAGE, PROT_READ | PROT_WRITE) == 0);
		fill(scattered[i], (i % 8 + 1) * PAGE, i);
		if (i % 3 == 0) CHECK(munmap(scattered[i] - 4 * PAGE, 3 * PAGE) == 0);
	}
	adjacent = map(8 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(adjacent, 8 * PAGE, 50);
	CHECK(mprotect(adjacent + PAGE, PAGE, PROT_READ) == 0 && mprotect(adjacent + 3 * PAGE, PAGE, PROT_NONE) == 0);
	CHECK(mprotect(adjacent + 4 * PAGE, PAGE, PROT_READ | PROT_EXEC) == 0);
	CHECK(mprotect(adjacent + 5 * PAGE, PAGE, PROT_WRITE) == 0 && mprotect(adjacent + 6 * PAGE, PAGE, PROT_EXEC) == 0);
	hidden = map(5 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(hidden, 5 * PAGE, 51);
	CHECK(mprotect(hidden, 5 * PAGE, PROT_NONE) == 0);
	readonly = map(5 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(readonly + PAGE, 3 * PAGE, 52);
	CHECK(mprotect(readonly, 5 * PAGE, PROT_READ) == 0);
	code = map(PAGE, PROT_READ | PROT_WRITE, 0);
	memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6);   /* mov eax, 42; ret */
	CHECK(mprotect(code, PAGE, PROT_READ | PROT_EXEC) == 0);
}

static void set_up_large(void)
{
	sparse = map(BIG, PROT_NONE, MAP_NORESERVE);
	for (unsigned long i = 0; i < 16; i++) {
		char *part = sparse + i * (BIG / 16) + i * PAGE;
		CHECK(mprotect(part, 2 * PAGE, PROT_READ | PROT_WRITE) == 0);
		fill(part, PAGE, 60 + i);
	}
	unreserved = map(BIG / 4, PROT_READ | PROT_WRITE, MAP_NORESERVE);
	fill(unreserved + BIG / 8, 3 * PAGE, 80);
	/* With room to grow: free pages below it, and behind them memory that may not be touched. */
	grows = map(8 << 20, PROT_NONE, 0) + (4 << 20);
	CHECK(munmap(grows - (64 << 10), 64 << 10) == 0);
	grows = mmap(grows, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0);
	CHECK(grows != MAP_FAILED);
	fill(grows, 4 * PAGE, 81);
	huge = map(8 << 20, PROT_READ | PROT_WRITE, 0);
	madvise(huge, 8 << 20, MADV_HUGEPAGE);
	fill(huge, 6 << 20, 82);
	CHECK(mprotect(huge + (3 << 20), PAGE, PROT_READ) == 0);
	guarded = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(guarded, 16 * PAGE, 83);
	has_guards = madvise(guarded + 4 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0;
	zeros = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
	fill(zeros, 64 * PAGE, 84);
	memset(zeros + 8 * PAGE, 0, 8 * PAGE);                              /* written zeros */
	CHECK(madvise(zeros + 24 * PAGE, 8 * PAGE, MADV_DONTNEED) == 0);    /* holes, one of them read */
	for (int i = 0; i < 3; i++) CHECK(((volatile char *)zeros)[(24 + i) * PAGE] == 0);
}

static void check(void)
{
	for (int i = 0; i < 40; i++) {
		check_filled(scattered[i], (i % 8 + 1) * PAGE, i, "a scattered mapping");
		check_protection(scattered[i], "rw-p");
		if (i % 3 == 0) CHECK(smap_at(scattered[i] - 4 * PAGE).start == 0 && smap_at(scattered[i] - 2 * PAGE).start == 0);
		check_protection(scattered[i] - PAGE, "---p");
	}
	check_protection(adjacent, "rw-p");
	check_protection(adjacent + PAGE, "r--p");
	check_protection(adjacent + 3 * PAGE, "---p");
	check_protection(adjacent + 4 * PAGE, "r-xp");
	check_protection(adjacent + 5 * PAGE, "-w-p");
	check_protection(adjacent + 6 * PAGE, "--xp");
	CHECK(faults(adjacent + 3 * PAGE, 0) && faults(adjacent + PAGE, 1) && !faults(adjacent + 2 * PAGE, 1));
	CHECK(mprotect(adjacent, 8 * PAGE, PROT_READ) == 0);
	check_filled(adjacent, 8 * PAGE, 50, "adjacent mappings");
	CHECK(faults(hidden, 0) && mprotect(hidden, 5 * PAGE, PROT_READ) == 0);
	check_filled(hidden, 5 * PAGE, 51, "unreadable memory");
	CHECK(faults(readonly + PAGE, 1) && readonly[0] == 0 && readonly[4 * PAGE] == 0);
	check_filled(readonly + PAGE, 3 * PAGE, 52, "read-only memory");
	CHECK(((int (*)(void))code)() == 42);
}

static void check_large(void)
{
	for (unsigned long i = 0; i < 16; i++) {
		char *part = sparse + i * (BIG / 16) + i * PAGE;
		check_filled(part, PAGE, 60 + i, "a part of the reservation");
		CHECK(part[PAGE] == 0 && faults(part + 2 * PAGE, 0));
	}
	CHECK(smap_at(sparse + 5 * PAGE).start && has_flag(sparse + 5 * PAGE, "nr"));
	check_flag(unreserved, "nr", 1);
	check_filled(unreserved + BIG / 8, 3 * PAGE, 80, "memory without reservation");
	CHECK(unreserved[BIG / 8 - 1] == 0 && unreserved[BIG / 8 + 3 * PAGE] == 0);
	check_flag(grows, "gd", 1);
	check_filled(grows, 4 * PAGE, 81, "memory that grows down");
	grows[-1] = 5;
	CHECK(smap_at(grows - PAGE).start != 0);
	check_filled(huge, 6 << 20, 82, "huge pages");
	check_protection(huge + (3 << 20), "r--p");
	for (size_t i = 6 << 20; i < 8 << 20; i += PAGE) CHECK(huge[i] == 0);
	check_filled(guarded, 4 * PAGE, 83, "memory before a guard");
	if (has_guards) CHECK(faults(guarded + 4 * PAGE, 0) && faults(guarded + 5 * PAGE, 1));
	check_filled(zeros, 8 * PAGE, 84, "memory before zeros");
	for (size_t i = 8 * PAGE; i < 16 * PAGE; i++) CHECK(zeros[i] == 0);
	for (size_t i = 24 * PAGE; i < 32 * PAGE; i++) CHECK(zeros[i] == 0);
}

int main(void)
{
	start();
	set_up();
	set_up_large();
	ready();
	await_check();
	check();
	check_large();
	pass();
}

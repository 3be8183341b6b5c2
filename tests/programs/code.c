/* Code that a program makes and changes: writable and executable memory, memory that may only be executed, one file
   mapped twice to write and to execute, its own program text patched, a page of a library made its own. */
#include "smaps.h"
#include <sys/prctl.h>

#define PAGE 4096UL

static char *both, *only, *written, *executed;

/* mov eax, n; ret */
static void put_code(char *at, int n)
{
	unsigned char code[6] = {0xb8, n, 0, 0, 0, 0xc3};
	memcpy(at, code, 6);
}

static int run(char *at) { return ((int (*)(void))at)(); }

__attribute__((noinline, aligned(4096))) static int patched(void) { __asm__ volatile(""); return 11; }

static char *map(int protection, int fd)
{
	char *at = mmap(NULL, PAGE, protection, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED);
	return at;
}

static void *page_of(void *at) { return (void *)((uintptr_t)at & ~(PAGE - 1)); }

int main(void)
{
	int fd;
	char *text = (char *)(uintptr_t)patched, *of_libc = page_of((void *)(uintptr_t)sigwaitinfo);
	start();
	both = map(PROT_READ | PROT_WRITE | PROT_EXEC, -1);
	put_code(both, 1);
	only = map(PROT_READ | PROT_WRITE, -1);
	put_code(only, 2);
	CHECK(mprotect(only, PAGE, PROT_EXEC) == 0);
	fd = memfd_create("code", MFD_CLOEXEC);
	CHECK(fd >= 0 && ftruncate(fd, PAGE) == 0);
	written = map(PROT_READ | PROT_WRITE, fd), executed = map(PROT_READ | PROT_EXEC, fd);
	put_code(written, 3);
	CHECK(mprotect(page_of(text), 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
	for (int i = 0; i < 64; i++) if ((unsigned char)text[i] == 0xb8 && text[i + 1] == 11) { text[i + 1] = 12; break; }
	CHECK(mprotect(page_of(text), 2 * PAGE, PROT_READ | PROT_EXEC) == 0);
	CHECK(mprotect(of_libc, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
	*(volatile char *)of_libc = *(volatile char *)of_libc;
	CHECK(mprotect(of_libc, PAGE, PROT_READ | PROT_EXEC) == 0);
	CHECK(((int (*volatile)(void))patched)() == 12);
	ready();
	await_check();
	check_protection(both, "rwxp"), check_protection(only, "--xp"), check_protection(executed, "r-xs");
	CHECK(run(both) == 1 && run(only) == 2 && run(executed) == 3);
	put_code(both, 21), put_code(written, 23);
	CHECK(run(both) == 21 && run(executed) == 23);
	CHECK(((int (*volatile)(void))patched)() == 12);
	check_protection(text, "r-xp"), check_protection(of_libc, "r-xp");
	pass();
}

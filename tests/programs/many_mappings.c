/* Six thousand mappings, each of a page with contents, no two of them alike their neighbours. */
#include "smaps.h"

#define PAGE 4096UL
#define COUNT 6000

int main(void)
{
	char *at;
	long lines = 0;
	int c;
	FILE *file;
	start();
	at = mmap(NULL, COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	for (size_t i = 0; i < COUNT; i++) {
		fill(at + i * PAGE, 32, i);
		if (i % 2) CHECK(mprotect(at + i * PAGE, PAGE, i % 4 == 1 ? PROT_READ : PROT_NONE) == 0);
	}
	ready();
	await_check();
	file = fopen("/proc/self/maps", "r");
	CHECK(file);
	while ((c = getc(file)) != EOF) lines += c == '\n';
	fclose(file);
	if (lines < COUNT) fail("%ld mappings", lines);
	for (size_t i = 0; i < COUNT; i += 997) check_protection(at + i * PAGE, i % 2 == 0 ? "rw-p" : i % 4 == 1 ? "r--p" : "---p");
	CHECK(mprotect(at, COUNT * PAGE, PROT_READ) == 0);
	for (size_t i = 0; i < COUNT; i++) check_filled(at + i * PAGE, 32, i, "a page");
	pass();
}

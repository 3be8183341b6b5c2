/* A process that has moved its vdso, with the pages that it reads, to another address: calls go there, and signal
   handlers, which return through libc, are served. */
#include "smaps.h"
#include <elf.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

static uintptr_t vdso, start_of_all, end_of_all;
static int signals;

/* All that the kernel shares with the process, side by side. */
static void find(void)
{
	char line[300];
	unsigned long low, high;
	FILE *file = fopen("/proc/self/maps", "r");
	CHECK(file);
	while (fgets(line, sizeof line, file)) {
		if (!strstr(line, "[vvar") && !strstr(line, "[vdso]")) continue;
		CHECK(sscanf(line, "%lx-%lx", &low, &high) == 2);
		if (!start_of_all) start_of_all = low;
		CHECK(end_of_all == 0 || end_of_all == low);
		end_of_all = high;
	}
	fclose(file);
}

static void *function(const char *name)
{
	const Elf64_Ehdr *header = (void *)vdso;
	const Elf64_Phdr *parts = (void *)(vdso + header->e_phoff);
	const Elf64_Sym *symbols = NULL;
	const char *names = NULL;
	for (int i = 0; i < header->e_phnum; i++) {
		if (parts[i].p_type != PT_DYNAMIC) continue;
		for (const Elf64_Dyn *d = (void *)(vdso + parts[i].p_offset); d->d_tag; d++) {
			if (d->d_tag == DT_SYMTAB) symbols = (void *)(vdso + d->d_un.d_ptr);
			if (d->d_tag == DT_STRTAB) names = (void *)(vdso + d->d_un.d_ptr);
		}
	}
	for (int i = 1; i < 30; i++) if (strcmp(names + symbols[i].st_name, name) == 0) return (void *)(vdso + symbols[i].st_value);
	fail("no %s", name);
	return NULL;
}

/* With relocations of its own the vdso finds the pages below it by their distance: all move together. */
static void move(char *to)
{
	char line[300];
	unsigned long low, high;
	for (;;) {
		FILE *file = fopen("/proc/self/maps", "r");
		int moved = 0;
		while (!moved && fgets(line, sizeof line, file)) {
			if (!strstr(line, "[vvar") && !strstr(line, "[vdso]")) continue;
			CHECK(sscanf(line, "%lx-%lx", &low, &high) == 2);
			if (low < start_of_all || low >= end_of_all) continue;
			CHECK(mremap((void *)low, high - low, high - low, MREMAP_MAYMOVE | MREMAP_FIXED, to + (low - start_of_all)) != MAP_FAILED);
			moved = 1;
		}
		fclose(file);
		if (!moved) return;
	}
}

static void handler(int number) { signals += number == SIGUSR1; }

static void check(void)
{
	struct timespec by_vdso, by_kernel;
	int (*gettime)(clockid_t, struct timespec *) = function("__vdso_clock_gettime");
	for (int i = 0; i < 1000; i++) {
		CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_kernel) == 0 && gettime(CLOCK_MONOTONIC, &by_vdso) == 0);
		long ahead = (by_vdso.tv_sec - by_kernel.tv_sec) * 1000000000L + by_vdso.tv_nsec - by_kernel.tv_nsec;
		if (ahead < 0 || ahead > 1000000000L) fail("the vdso's clock is %ld ns ahead", ahead);
	}
	raise(SIGUSR1);
}

int main(void)
{
	char *to;
	size_t size;
	start();
	signal(SIGUSR1, handler);
	find();
	size = end_of_all - start_of_all;
	to = mmap(NULL, size + (64 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(to != MAP_FAILED && munmap(to + (32 << 20), size) == 0);
	vdso = getauxval(AT_SYSINFO_EHDR) - start_of_all + (uintptr_t)to + (32 << 20);
	move(to + (32 << 20));
	check();
	ready();
	await_check();
	check();
	CHECK(signals == 2);
	CHECK(strcmp(smap_at((void *)vdso).name, "[vdso]") == 0 && smap_at((void *)start_of_all).start == 0);
	pass();
}

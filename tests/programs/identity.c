/* What a process knows of itself: /proc/self/exe, cmdline, environ, auxv and comm, and the vdso's clock_gettime and
   getcpu, which must agree with the system calls. */
#include "smaps.h"
#include <elf.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>

extern char **environ;
static char before[5][20000], after[20000];
static ssize_t lengths[5];
static const char *const names[5] = {"cmdline", "environ", "auxv", "comm", "exe"};

static ssize_t look(const char *name, char *into)
{
	char path[64];
	ssize_t length;
	int fd;
	sprintf(path, "/proc/self/%s", name);
	if (strcmp(name, "exe") == 0) return readlink(path, into, 20000);
	fd = open(path, O_RDONLY);
	CHECK(fd >= 0);
	length = read(fd, into, 20000);
	close(fd);
	return length;
}

static void check_clock(clockid_t clock)
{
	struct timespec direct, vdso, again;
	CHECK(syscall(SYS_clock_gettime, clock, &direct) == 0 && clock_gettime(clock, &vdso) == 0);
	CHECK(syscall(SYS_clock_gettime, clock, &again) == 0);
	CHECK(vdso.tv_sec > direct.tv_sec || (vdso.tv_sec == direct.tv_sec && vdso.tv_nsec >= direct.tv_nsec));
	CHECK(vdso.tv_sec < again.tv_sec || (vdso.tv_sec == again.tv_sec && vdso.tv_nsec <= again.tv_nsec));
}

/* A symbol of the vdso, looked up afresh. */
static void *in_vdso(const char *name)
{
	const char *base = (char *)getauxval(AT_SYSINFO_EHDR), *strings = NULL;
	const Elf64_Ehdr *head = (const void *)base;
	const Elf64_Phdr *parts;
	const Elf64_Sym *symbols = NULL;
	const uint32_t *hash = NULL;
	CHECK(base != NULL && memcmp(base, ELFMAG, 4) == 0);
	parts = (const void *)(base + head->e_phoff);
	for (int i = 0; i < head->e_phnum; i++)
		if (parts[i].p_type == PT_DYNAMIC)
			for (const Elf64_Dyn *d = (const void *)(base + parts[i].p_offset); d->d_tag; d++) {
				if (d->d_tag == DT_STRTAB) strings = base + d->d_un.d_ptr;
				if (d->d_tag == DT_SYMTAB) symbols = (const void *)(base + d->d_un.d_ptr);
				if (d->d_tag == DT_HASH) hash = (const void *)(base + d->d_un.d_ptr);
			}
	if (hash == NULL) return NULL;
	for (unsigned i = 0; i < hash[1]; i++)
		if (strcmp(strings + symbols[i].st_name, name) == 0) return (char *)base + symbols[i].st_value;
	return NULL;
}

int main(int argc, char **argv)
{
	int (*getcpu_of_vdso)(unsigned *, unsigned *, void *);
	cpu_set_t one;
	unsigned cpu;
	start();
	setenv("LATE", "only in memory", 1);
	CHECK(argc == 1 && argv[0][0] == '/');
	argv[0][1] = 'X';   /* as programs do that show what they are at */
	for (int i = 0; i < 5; i++) CHECK((lengths[i] = look(names[i], before[i])) > 0);
	CHECK(strcmp(before[0], argv[0]) == 0);
	ready();
	await_check();
	for (int i = 0; i < 5; i++)
		if (look(names[i], after) != lengths[i] || memcmp(after, before[i], lengths[i])) fail("%s has changed", names[i]);
	CHECK(strcmp(getenv("LATE"), "only in memory") == 0 && getauxval(AT_PAGESZ) == 4096);
	CHECK(strcmp(smap_at((void *)getauxval(AT_SYSINFO_EHDR)).name, "[vdso]") == 0);
	for (int i = 0; i < 100; i++) {
		check_clock(CLOCK_REALTIME), check_clock(CLOCK_MONOTONIC), check_clock(CLOCK_BOOTTIME);
		check_clock(CLOCK_REALTIME_COARSE), check_clock(CLOCK_MONOTONIC_COARSE);
	}
	getcpu_of_vdso = (int (*)(unsigned *, unsigned *, void *))in_vdso("__vdso_getcpu");
	for (int i = 0; i < 2; i++) {
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		if (sched_setaffinity(0, sizeof one, &one)) continue;
		CHECK(sched_getcpu() == i);
		if (getcpu_of_vdso) CHECK(getcpu_of_vdso(&cpu, NULL, NULL) == 0 && (int)cpu == i);
	}
	pass();
}

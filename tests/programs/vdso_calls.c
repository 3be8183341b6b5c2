/* Every function of the vdso, by the addresses that the program found at its start, called all the time by several
   threads and at the end compared with the system calls; time goes forward only. */
#include "program.h"
#include <elf.h>
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#define THREADS 3
static int (*gettime)(clockid_t, struct timespec *), (*getres)(clockid_t, struct timespec *);
static int (*timeofday)(struct timeval *, void *), (*cpu)(unsigned *, unsigned *, void *);
static time_t (*seconds)(time_t *);
static ssize_t (*entropy)(void *, size_t, unsigned, void *, size_t);
static volatile int over;

static void *function(const char *name)
{
	const Elf64_Ehdr *header = (void *)getauxval(AT_SYSINFO_EHDR);
	const Elf64_Phdr *parts = (void *)((uintptr_t)header + header->e_phoff);
	const Elf64_Sym *symbols = NULL;
	const char *names = NULL;
	for (int i = 0; i < header->e_phnum; i++) {
		if (parts[i].p_type != PT_DYNAMIC) continue;
		for (const Elf64_Dyn *d = (void *)((uintptr_t)header + parts[i].p_offset); d->d_tag; d++) {
			if (d->d_tag == DT_SYMTAB) symbols = (void *)((uintptr_t)header + d->d_un.d_ptr);
			if (d->d_tag == DT_STRTAB) names = (void *)((uintptr_t)header + d->d_un.d_ptr);
		}
	}
	for (int i = 1; (const char *)(symbols + i) < names; i++)
		if (strcmp(names + symbols[i].st_name, name) == 0) return (void *)((uintptr_t)header + symbols[i].st_value);
	return NULL;
}

static long long nanoseconds(const struct timespec *t) { return t->tv_sec * 1000000000LL + t->tv_nsec; }

static void call_all(clockid_t clock)
{
	struct timespec before, by_vdso, after, resolution, real_resolution;
	struct timeval day;
	unsigned node, number, nodes, numbers;
	char bytes[16] = {0}, zeros[16] = {0};
	time_t now, stored = 0;
	CHECK(syscall(SYS_clock_gettime, clock, &before) == 0 && gettime(clock, &by_vdso) == 0);
	CHECK(syscall(SYS_clock_gettime, clock, &after) == 0);
	/* the kernel's own coarse clocks may be one tick apart */
	if (nanoseconds(&by_vdso) < nanoseconds(&before) - 20000000 || nanoseconds(&by_vdso) > nanoseconds(&after) + 20000000)
		fail("clock %d: %lld, between %lld and %lld", clock, nanoseconds(&by_vdso), nanoseconds(&before), nanoseconds(&after));
	CHECK(getres(clock, &resolution) == 0 && syscall(SYS_clock_getres, clock, &real_resolution) == 0);
	CHECK(nanoseconds(&resolution) == nanoseconds(&real_resolution));
	CHECK(syscall(SYS_clock_gettime, CLOCK_REALTIME, &before) == 0 && timeofday(&day, NULL) == 0);
	now = seconds(&stored);
	CHECK(now == stored && now >= before.tv_sec - 1 && now <= before.tv_sec + 60);
	CHECK(day.tv_sec >= before.tv_sec - 1 && day.tv_sec <= before.tv_sec + 60);
	CHECK(cpu(&number, &node, NULL) == 0 && syscall(SYS_getcpu, &numbers, &nodes, NULL) == 0 && number < 4096 && node < 1024);
	if (entropy) CHECK(entropy(bytes, sizeof bytes, 0, NULL, 0) == sizeof bytes && memcmp(bytes, zeros, sizeof bytes) != 0);
}

static void *spin(void *unused)
{
	struct timespec last = {0, 0}, now;
	(void)unused;
	while (!over) {
		CHECK(gettime(CLOCK_MONOTONIC, &now) == 0 && nanoseconds(&now) >= nanoseconds(&last));
		last = now;
		CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0 && nanoseconds(&now) >= nanoseconds(&last));
		last = now;
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	start();
	gettime = function("__vdso_clock_gettime"), getres = function("__vdso_clock_getres");
	timeofday = function("__vdso_gettimeofday"), cpu = function("__vdso_getcpu");
	seconds = function("__vdso_time"), entropy = function("__vdso_getrandom");   /* the last from Linux 6.11 on */
	CHECK(gettime && getres && timeofday && cpu && seconds);
	call_all(CLOCK_MONOTONIC);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, spin, NULL) == 0);
	ready();
	await_check();
	for (int i = 0; i < 200; i++) {
		call_all(CLOCK_MONOTONIC), call_all(CLOCK_REALTIME), call_all(CLOCK_BOOTTIME), call_all(CLOCK_MONOTONIC_COARSE);
		call_all(CLOCK_REALTIME_COARSE), call_all(CLOCK_THREAD_CPUTIME_ID);
	}
	over = 1;
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

/* Mappings: made in slots at addresses of their own, changed in part, reported page by page. */
#ifndef MEMORY_H
#define MEMORY_H
#include "job.h"
#include <sys/prctl.h>
#include <sys/uio.h>

#define SLOTS 24
#define PAGES 64
static char *slot_address(int slot) { return (char *)0x100000000000 + (size_t)slot * 0x100000; }
static unsigned char page[4096];

static int write_page(char *at, unsigned seed)
{
	struct iovec from = {page, sizeof page}, to = {at, sizeof page};
	fill(page, sizeof page, seed);
	return process_vm_writev(getpid(), &from, 1, &to, 1, 0) == sizeof page;
}

static int backing(int kind, int number, size_t size)
{
	char name[32];
	struct stat st;
	int fd = -1;
	snprintf(name, sizeof name, "f%d", number % 4);
	if (kind == 2 || kind == 3) fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (kind == 4 || kind == 5) fd = memfd_create(name, MFD_CLOEXEC);
	if (kind == 6) snprintf(name, sizeof name, "/dev/shm/random_job-%x-%d", job_number, number % 4), fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (kind == 7) return open("/dev/zero", O_RDWR | O_CLOEXEC);
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size < (off_t)size && ftruncate(fd, size) != 0) { close(fd); return -1; }
	if (fd >= 0 && kind == 4 && number & 8) unlink(name);
	return fd;
}

/* 0, 1: anonymous; 2, 3, 6: files; 4, 5: memfd; 7: a device. Odd ones are shared but for 5; so are 4, 6, 7. */
static void make_mapping(int a, int b, int c)
{
	int kind = b % 8, slot = a % SLOTS, pages = 1 + c % 16, protection = a >> 5 & 3, fd = -1, first = c >> 4 & 1;
	int is_shared = kind == 1 || kind == 3 || kind == 4 || kind == 6 || (kind == 7 && a & 128);
	int flags = MAP_FIXED | (is_shared ? MAP_SHARED : MAP_PRIVATE) | (kind < 2 ? MAP_ANONYMOUS : 0);
	char *at = slot_address(slot) + (c >> 5) * 4096;
	if (kind == 0 && b & 64) flags |= MAP_NORESERVE;
	if (kind == 0 && b & 128) flags |= MAP_GROWSDOWN;
	if (kind >= 2 && (fd = backing(kind, b >> 3, (pages + first) * 4096)) < 0) return;
	if (kind >= 2 && kind < 7 && b & 128 && pages > 2) pages += 3;   /* beyond the end of the file, perhaps */
	at = mmap(at, pages * 4096, PROT_READ | PROT_WRITE, flags, fd, first * 4096 * (kind >= 2));
	if (fd >= 0) close(fd);
	if (at == MAP_FAILED) return;
	for (int i = 0; i < pages; i++) if (i % 3 != (a & 1)) write_page(at + i * 4096, step_number * 64 + i);
	mprotect(at, pages * 4096, (const int[]){PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE | PROT_EXEC}[protection]);
}

static const int advices[] = {MADV_DONTNEED, MADV_SEQUENTIAL, MADV_RANDOM, MADV_NORMAL, MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP,
	MADV_WIPEONFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_REMOVE, 102 /* MADV_GUARD_INSTALL */, MADV_POPULATE_WRITE, MADV_COLD};
static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_WRITE};

static int memory_step(int letter, int a, int b, int c)
{
	char *at = slot_address(a % SLOTS) + (a / SLOTS + (c >> 4)) * 4096;
	size_t size = (1 + c % 8) * 4096;
	switch (letter) {
	case 'm': make_mapping(a, b, c); break;
	case 'v':
		switch (b % 8) {
		case 0: munmap(at, size); break;
		case 1: case 2: mprotect(at, size, protections[(b >> 3) % 6]); break;
		case 3: case 4: case 5: madvise(at, size, advices[(b >> 3) % 15]); break;
		case 6: if (b & 64) munlock(at, size); else mlock2(at, size, b >> 3 & 1); break;
		case 7:
			if (b & 64) mremap(at, size, size + 4096 * (b >> 3 & 7), 0);
			else if (b & 32) mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, slot_address((b >> 3) % SLOTS) + 0x20000);
			else prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, size, b & 8 ? "of chance" : NULL);
		}
		break;
	case 'V': for (int i = 0; i < 1 + c % 8; i++) write_page(at + i * 4096, step_number * 64 + b + i); break;
	default: return 0;
	}
	return 1;
}

static void report_memory(void)
{
	for (int slot = 0; slot < SLOTS; slot++) {
		char line[PAGES * 10 + 1] = "";
		int length = 0, any = 0;
		for (int i = 0; i < PAGES; i++) {
			char *at = slot_address(slot) + i * 4096;
			struct iovec to = {page, sizeof page}, from = {at, sizeof page};
			int got = process_vm_readv(getpid(), &to, 1, &from, 1, 0) == sizeof page, there = 1;
			if (!got) {
				there = mprotect(at, 4096, PROT_READ) == 0 || errno != ENOMEM;
				got = process_vm_readv(getpid(), &to, 1, &from, 1, 0) == sizeof page;
			}
			any |= there;
			if (got) length += sprintf(line + length, " %x", (unsigned)(hash_more(NO_HASH, page, sizeof page) >> 32));
			else length += sprintf(line + length, there ? " ?" : " -");
		}
		if (any) dprintf(1, "%d memory %d:%s\n", self, slot, line);
	}
}
#endif

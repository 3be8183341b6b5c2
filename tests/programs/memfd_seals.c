/* Sealed memfds (fcntl(2), F_ADD_SEALS): no more writing but through the mapping that is there, none at all, no other
   size, no more seals, not executable; mapped and not, by a child too. */
#include "family.h"
#include "smaps.h"

#define PAGE 4096UL
#define SIZE (6 * PAGE)
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

static const struct { const char *name; unsigned flags, seals; int protection; } kinds[] = {
	{"no future", MFD_ALLOW_SEALING, F_SEAL_FUTURE_WRITE, PROT_READ | PROT_WRITE},
	{"constant", MFD_ALLOW_SEALING, F_SEAL_WRITE | F_SEAL_SEAL, PROT_READ},
	{"of one size", MFD_ALLOW_SEALING | MFD_CLOEXEC, F_SEAL_GROW | F_SEAL_SHRINK, PROT_READ | PROT_WRITE},
	{"not executable", MFD_NOEXEC_SEAL, F_SEAL_EXEC, PROT_READ | PROT_WRITE},
	{"without seals", 0, F_SEAL_SEAL, PROT_READ | PROT_WRITE},
	{"only open", MFD_ALLOW_SEALING, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0}};
#define KINDS (int)(sizeof kinds / sizeof *kinds)

static int fds[KINDS];
static char *at[KINDS];

static void check(int i)
{
	struct stat st;
	void *other;
	char buffer[SIZE];
	unsigned seals = kinds[i].seals;
	CHECK(fcntl(fds[i], F_GETFD) == (kinds[i].flags & MFD_CLOEXEC ? FD_CLOEXEC : 0));
	if ((unsigned)fcntl(fds[i], F_GET_SEALS) != seals) fail("%s: seals %#x", kinds[i].name, fcntl(fds[i], F_GET_SEALS));
	CHECK(fstat(fds[i], &st) == 0 && st.st_size == SIZE);
	CHECK((st.st_mode & 0777) == (seals & F_SEAL_EXEC ? 0666 : 0777));
	CHECK(pread(fds[i], buffer, SIZE, 0) == SIZE);
	check_filled(buffer, SIZE, i, kinds[i].name);
	if (at[i]) CHECK(memcmp(at[i], buffer, SIZE) == 0);
	other = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
	CHECK((other == MAP_FAILED) == !!(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
	if (other != MAP_FAILED) CHECK(munmap(other, SIZE) == 0);
	if (seals & F_SEAL_GROW) CHECK(ftruncate(fds[i], 2 * SIZE) == -1 && errno == EPERM);
	if (seals & F_SEAL_SEAL) CHECK(fcntl(fds[i], F_ADD_SEALS, F_SEAL_GROW) == -1 && errno == EPERM);
	if (seals & F_SEAL_EXEC) CHECK(fchmod(fds[i], 0777) == -1);
}

static void brother(void)
{
	reach(1);
	await_check();
	for (int i = 0; i < KINDS; i++) check(i);
	pass();
}

int main(void)
{
	pid_t pid;
	start();
	family();
	for (int i = 0; i < KINDS; i++) {
		char content[SIZE];
		fds[i] = memfd_create(kinds[i].name, kinds[i].flags);
		if (fds[i] < 0) fds[i] = memfd_create(kinds[i].name, MFD_ALLOW_SEALING);   /* before Linux 6.3 */
		fill(content, SIZE, i);
		CHECK(fds[i] >= 0 && write(fds[i], content, SIZE) == SIZE);
		if (kinds[i].protection & PROT_WRITE) at[i] = mmap(NULL, SIZE, kinds[i].protection, MAP_SHARED, fds[i], 0);
		CHECK(at[i] != MAP_FAILED);
		if (kinds[i].flags & MFD_ALLOW_SEALING) CHECK(fcntl(fds[i], F_ADD_SEALS, kinds[i].seals) == 0);
		if (kinds[i].protection == PROT_READ) at[i] = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fds[i], 0);
		CHECK(at[i] != MAP_FAILED);
	}
	pid = child(brother);
	await_step(1);
	ready();
	await_check();
	check_child(pid);
	for (int i = 0; i < KINDS; i++) check(i);
	for (int i = 0; i < KINDS; i++) if (kinds[i].protection & PROT_WRITE) fill(at[i], SIZE, 90 + i);
	pass();
}

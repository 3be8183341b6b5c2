/* System V segments that are locked (shmctl(2), SHM_LOCK), that may be executed, that only their owner may read, and
   that a child has attached at another address; attached twice in one process with different rights. */
#include "family.h"
#include "smaps.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define PAGE 4096UL
#define SIZE (4 * PAGE)
#ifndef SHM_LOCKED
#define SHM_LOCKED 02000
#endif
enum { LOCKED, CODE, CLOSED, SEGMENTS };

static int ids[SEGMENTS], locks;
static char *at[SEGMENTS], *constant;

static int mode(int i)
{
	struct shmid_ds now;
	CHECK(shmctl(ids[i], IPC_STAT, &now) == 0);
	return now.shm_perm.mode;
}

static void check(void)
{
	CHECK(!!(mode(LOCKED) & SHM_LOCKED) == locks && !(mode(CODE) & SHM_LOCKED));
	CHECK((mode(CLOSED) & 0777) == 0400);
	check_filled(at[LOCKED], SIZE, LOCKED, "a locked segment");
	check_filled(at[CLOSED], SIZE, CLOSED, "a segment that may only be read");
	CHECK(((int (*)(void))at[CODE])() == 42);
	check_protection(at[CODE], "r-xs"), check_protection(at[CLOSED], "r--s");
}

static void brother(void)
{
	CHECK(shmdt(at[CODE]) == 0);
	at[CODE] = shmat(ids[CODE], NULL, SHM_RDONLY | SHM_EXEC);
	CHECK(at[CODE] != (void *)-1);
	reach(1);
	await_check();
	check();
	pass();
}

int main(void)
{
	pid_t pid;
	char *scratch;
	start();
	family();
	for (int i = 0; i < SEGMENTS; i++) {
		ids[i] = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0700);
		CHECK(ids[i] >= 0);
		scratch = shmat(ids[i], NULL, 0);
		CHECK(scratch != (void *)-1);
		fill(scratch, SIZE, i);
		if (i == CODE) memcpy(scratch, "\xb8\x2a\x00\x00\x00\xc3", 6);   /* mov eax, 42; ret */
		if (i == CLOSED) {
			struct shmid_ds now;
			CHECK(shmctl(ids[i], IPC_STAT, &now) == 0);
			now.shm_perm.mode = 0400;
			CHECK(shmctl(ids[i], IPC_SET, &now) == 0);
		}
		if (i != LOCKED) CHECK(shmdt(scratch) == 0);
		at[i] = i == LOCKED ? scratch : shmat(ids[i], NULL, SHM_RDONLY | (i == CODE ? SHM_EXEC : 0));
		CHECK(at[i] != (void *)-1);
	}
	constant = shmat(ids[LOCKED], NULL, SHM_RDONLY);
	CHECK(constant != (void *)-1);
	locks = shmctl(ids[LOCKED], SHM_LOCK, NULL) == 0;   /* not beyond RLIMIT_MEMLOCK */
	pid = child(brother);
	await_step(1);
	check();
	ready();
	await_check();
	check_child(pid);
	check();
	strcpy(at[LOCKED], "through the one");
	CHECK(strcmp(constant, "through the one") == 0 && mprotect(constant, PAGE, PROT_READ | PROT_WRITE) == -1);
	CHECK(!locks || shmctl(ids[LOCKED], SHM_UNLOCK, NULL) == 0);
	for (int i = 0; i < SEGMENTS; i++) CHECK(shmctl(ids[i], IPC_RMID, NULL) == 0);
	pass();
}

/* System V shared memory: a segment that two processes have attached, one marked for removal, one read-only, one
   attached twice and once in part, one that nobody has attached; ids, keys, modes and sizes; attaching by id again. */
#include "family.h"
#include "smaps.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define PAGE 4096UL
#define SIZE (10 * PAGE)
enum { BOTH, REMOVED, CONSTANT, PART, LOOSE, ODD, SEGMENTS };

static int ids[SEGMENTS];
static key_t keys[SEGMENTS];
static char *at[SEGMENTS], *again;
static const size_t sizes[SEGMENTS] = {SIZE, SIZE, SIZE, SIZE, SIZE, 2 * PAGE + 100};

static void *attach(int id, int flags)
{
	void *place = shmat(id, NULL, flags);
	CHECK(place != (void *)-1);
	return place;
}

static void check_ids(int attached)
{
	struct shmid_ds now;
	for (int i = 0; i < SEGMENTS; i++) {
		CHECK(shmctl(ids[i], IPC_STAT, &now) == 0);
		CHECK(now.shm_segsz == sizes[i] && now.shm_perm.uid == getuid() && now.shm_perm.gid == getgid());
		CHECK((now.shm_perm.mode & 0777) == (i == CONSTANT ? 0640 : 0600));
		CHECK(!!(now.shm_perm.mode & SHM_DEST) == (i == REMOVED));
		if (i != REMOVED) CHECK(shmget(keys[i], 0, 0) == ids[i] || keys[i] == IPC_PRIVATE);
		if (i == LOOSE) CHECK(now.shm_nattch == 0);
		if (i == BOTH) CHECK((int)now.shm_nattch == attached);
	}
}

static void check_contents(int i)
{
	char *other = attach(ids[i], SHM_RDONLY);
	check_filled(other, sizes[i], i, "a segment, attached once more");
	if (at[i] && i != PART) CHECK(memcmp(other, at[i], sizes[i]) == 0);
	CHECK(shmdt(other) == 0);
}

static void brother(void)
{
	ready();
	reach(1);
	await_check();
	check_ids(2);
	check_filled(at[BOTH], SIZE, BOTH, "a segment in the child");
	strcpy(at[BOTH], "from the child");
	strcpy(at[REMOVED], "from the child");
	pass();
}

int main(void)
{
	char *scratch;
	pid_t pid;
	start();
	family();
	for (int i = 0; i < SEGMENTS; i++) {
		keys[i] = i == ODD ? IPC_PRIVATE : 0x4000 + i * 77 + (getpid() << 16);
		ids[i] = shmget(keys[i], sizes[i], IPC_CREAT | IPC_EXCL | (i == CONSTANT ? 0640 : 0600));
		CHECK(ids[i] >= 0);
		scratch = attach(ids[i], 0);
		fill(scratch, sizes[i], i);
		if (i == CONSTANT || i == LOOSE) CHECK(shmdt(scratch) == 0);
		else at[i] = scratch;
	}
	at[CONSTANT] = attach(ids[CONSTANT], SHM_RDONLY);
	again = attach(ids[PART], 0);
	CHECK(mprotect(again + 2 * PAGE, PAGE, PROT_READ) == 0);
	CHECK(munmap(at[PART] + 4 * PAGE, PAGE) == 0 && munmap(at[PART], 2 * PAGE) == 0);
	CHECK(shmctl(ids[REMOVED], IPC_RMID, NULL) == 0);
	pid = child(brother);
	await_step(1);
	await_check();
	check_ids(2);
	for (int i = 0; i < SEGMENTS; i++) check_contents(i);
	check_child(pid);
	CHECK(strcmp(at[BOTH], "from the child") == 0 && strcmp(at[REMOVED], "from the child") == 0);
	CHECK(smap_at(at[PART] + 4 * PAGE).start == 0 && smap_at(at[PART]).start == 0);
	at[PART][3 * PAGE] = 'x', at[PART][9 * PAGE] = 'y';
	CHECK(again[3 * PAGE] == 'x' && again[9 * PAGE] == 'y');
	check_protection(again + 2 * PAGE, "r--s"), check_protection(at[CONSTANT], "r--s");
	CHECK(mprotect(at[CONSTANT], PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
	CHECK(shmdt(at[REMOVED]) == 0 && shmctl(ids[REMOVED], IPC_STAT, &(struct shmid_ds){0}) == -1);
	for (int i = 0; i < SEGMENTS; i++) if (i != REMOVED) CHECK(shmctl(ids[i], IPC_RMID, NULL) == 0);
	pass();
}

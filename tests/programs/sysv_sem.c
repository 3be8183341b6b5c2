/* System V semaphores: ids, keys, modes, values and who changed each last; adjustments of every sign and size that the
   ends of three children undo; threads that share them; a set that was made and never used; who waits goes on waiting. */
#include "family.h"
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>

enum { MIXED, UNUSED, WIDE, WAITED, SETS };
#define MANY 60

static int ids[SETS];
static key_t keys[SETS];
static const int sizes[SETS] = {6, 3, MANY, 3};
static const int changes[3][6] = {{5, 0, -3, 32767, 0, 1}, {-2, 0, 7, 0, -30000, 0}, {1, 0, 0, -32767, 9, -4}};
static const int first[6] = {100, 0, 40, 0, 31000, 32000};   /* the values that the adjustments are made at */
static pid_t pids[3];

static void operate(int set, int number, int change, int flags)
{
	struct sembuf operation = {number, change, flags};
	CHECK(semop(ids[set], &operation, 1) == 0);
}

static int value(int set, int number) { return semctl(ids[set], number, GETVAL); }

static void adjust(int which)
{
	for (int i = 0; i < 6; i++)
		if (changes[which][i]) operate(MIXED, i, changes[which][i], SEM_UNDO);
	operate(WIDE, which * 25, 1, SEM_UNDO);
	if (which == 1) operate(WIDE, MANY - 1, -1, SEM_UNDO);
}

static void *work(void *which)
{
	adjust(*(int *)which);
	return NULL;
}

static void adjuster(void)
{
	static int which = 0;
	pthread_t thread;
	while (__atomic_load_n(family_step, __ATOMIC_SEQ_CST) != which) which++;
	if (which == 1) {   /* what a thread does is undone when the process ends */
		CHECK(pthread_create(&thread, NULL, work, &which) == 0 && pthread_join(thread, NULL) == 0);
	} else adjust(which);
	reach(10);
	await_check();
	pass();
}

static void waiter(void)
{
	struct sembuf both[2] = {{0, -2, 0}, {1, 0, 0}};
	reach(11);
	CHECK(semop(ids[WAITED], both, 2) == 0);
	pass();
}

static void check_sets(void)
{
	struct semid_ds now;
	for (int i = 0; i < SETS; i++) {
		CHECK(semctl(ids[i], 0, IPC_STAT, &now) == 0);
		CHECK((int)now.sem_nsems == sizes[i] && now.sem_perm.uid == getuid() && now.sem_perm.gid == getgid());
		CHECK((now.sem_perm.mode & 0777) == (i == WIDE ? 0620 : 0600) && (now.sem_otime == 0) == (i == UNUSED));
		if (i != UNUSED) CHECK(semget(keys[i], 0, 0) == ids[i]);
	}
}

/* After so many children have ended; what would leave the range of a value ends at 0. */
static void check_values(int ended)
{
	for (int i = 0; i < 6; i++) {
		int wanted = first[i] + changes[0][i] + changes[1][i] + changes[2][i];
		for (int which = 0; which < ended; which++) wanted = wanted < changes[which][i] ? 0 : wanted - changes[which][i];
		if (value(MIXED, i) != wanted) fail("semaphore %d is %d, not %d", i, value(MIXED, i), wanted);
	}
	for (int i = 0; i < MANY; i++)
		CHECK(value(WIDE, i) == i % 7 + (i % 25 == 0 && i / 25 < 3 && i / 25 >= ended) - (i == MANY - 1 && ended < 2));
}

int main(void)
{
	pid_t waiting;
	int status;
	start();
	family();
	for (int i = 0; i < SETS; i++) {   /* none has the id that a first one would get */
		CHECK(semctl(semget(IPC_PRIVATE, 1, 0600), 0, IPC_RMID) == 0);
		keys[i] = i == UNUSED ? IPC_PRIVATE : (getpid() << 12) + i;
		CHECK((ids[i] = semget(keys[i], sizes[i], IPC_CREAT | IPC_EXCL | (i == WIDE ? 0620 : 0600))) >= 0);
	}
	for (int i = 0; i < 6; i++) CHECK(semctl(ids[MIXED], i, SETVAL, first[i]) == 0);
	for (int i = 0; i < MANY; i++) if (i % 7) operate(WIDE, i, i % 7, 0);
	CHECK(semctl(ids[UNUSED], 1, SETVAL, 77) == 0);
	operate(WAITED, 1, 1, 0);
	for (int which = 0; which < 3; which++) {
		reach(which);
		pids[which] = child(adjuster);
		await_step(10);
	}
	waiting = child(waiter);
	await_step(11);
	usleep(20000);   /* so that it waits, most likely */
	operate(MIXED, 1, 0, 0);
	ready();
	await_check();
	check_sets();
	check_values(0);
	CHECK(semctl(ids[MIXED], 1, GETPID) == getpid() && semctl(ids[MIXED], 0, GETPID) == pids[2]);
	CHECK(semctl(ids[MIXED], 2, GETPID) == pids[1] && semctl(ids[UNUSED], 1, GETPID) == getpid());
	CHECK(semctl(ids[UNUSED], 0, GETPID) == 0 && value(UNUSED, 1) == 77 && value(UNUSED, 2) == 0);
	CHECK(semctl(ids[WIDE], 25, GETPID) == pids[1] && semctl(ids[WIDE], 26, GETPID) == getpid());
	for (int which = 0; which < 3; which++) {
		check_child(pids[which]);
		check_values(which + 1);
	}
	CHECK(waitpid(waiting, NULL, WNOHANG) == 0);
	operate(WAITED, 0, 2, 0), operate(WAITED, 1, -1, 0);
	CHECK(waitpid(waiting, &status, 0) == waiting && status == 0 && value(WAITED, 0) == 0);
	for (int i = 0; i < SETS; i++) CHECK(semctl(ids[i], 0, IPC_RMID) == 0);
	pass();
}

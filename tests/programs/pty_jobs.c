/* What a shell does with jobs on a terminal: one stopped by ^Z, one by a read and one by a write in the background
   (TOSTOP), and a group that is orphaned, to which nothing of that happens. Later each is taken to the foreground, goes
   on and finishes; the shell is told of each stop and end. */
#include "family.h"
#include "terminal.h"

static int master, slave;

static void say_so(int number) { (void)number; put(slave, "woken\n", 6); }

static void stopped_by_key(void)
{
	CHECK(setpgid(0, 0) == 0 && signal(SIGCONT, say_so) != SIG_ERR);
	reach(1);
	while (__atomic_load_n(family_step, __ATOMIC_SEQ_CST) < 20) usleep(500);
	_exit(21);
}

static void reads(void)
{
	char room[16];
	CHECK(setpgid(0, 0) == 0);
	reach(2);
	ssize_t n = read(slave, room, sizeof room);   /* SIGTTIN stops it, and it reads again */
	CHECK(n == 6 && memcmp(room, "typed\n", 6) == 0);
	_exit(22);
}

static void writes(void)
{
	CHECK(setpgid(0, 0) == 0);
	reach(3);
	put(slave, "late\n", 5);   /* SIGTTOU */
	_exit(23);
}

static void orphaned(void)
{
	char byte;
	while (getppid() != 1 && getppid() != *(family_step + 1)) usleep(500);   /* whoever takes orphans */
	errno = 0;
	CHECK(read(slave, &byte, 1) == -1 && errno == EIO);
	reach(4);
	await_check();
	CHECK(read(slave, &byte, 1) == -1 && errno == EIO);
	pass();
}

static void between(void)
{
	CHECK(setpgid(0, 0) == 0);
	if (fork() == 0) {
		family_step[2] = getpid();
		orphaned();
	}
	_exit(0);
}

static void await_stop_of(pid_t pid, int number)
{
	int status;
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	if (WSTOPSIG(status) != number) fail("%d was stopped by %d", pid, WSTOPSIG(status));
}

static void finish(pid_t pid, int wanted)
{
	int status;
	CHECK(tcsetpgrp(slave, pid) == 0 && kill(-pid, SIGCONT) == 0);
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status != wanted << 8) fail("%d ended with %#x", pid, status);
	CHECK(tcsetpgrp(slave, getpgrp()) == 0);
}

static void shell(void)
{
	int status;
	CHECK(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0 && signal(SIGTTOU, SIG_IGN) != SIG_ERR);
	set_modes(slave, ICRNL, 0, ICANON | ISIG | TOSTOP);
	pid_t key = child(stopped_by_key);
	CHECK(signal(SIGTTOU, SIG_DFL) != SIG_ERR);   /* its children must not inherit that */
	await_step(1);
	CHECK(signal(SIGTTOU, SIG_IGN) != SIG_ERR && tcsetpgrp(slave, key) == 0);
	say(master, "\032");
	await_stop_of(key, SIGTSTP);
	CHECK(tcsetpgrp(slave, getpgrp()) == 0 && signal(SIGTTOU, SIG_DFL) != SIG_ERR);
	pid_t reader = child(reads), writer = child(writes);
	CHECK(signal(SIGTTOU, SIG_IGN) != SIG_ERR);
	await_stop_of(reader, SIGTTIN);
	siginfo_t info;   /* that the writer has stopped is not asked for before the check */
	CHECK(waitid(P_PID, (id_t)writer, &info, WSTOPPED | WNOWAIT) == 0);
	pid_t middle = fork();
	if (middle == 0) between();
	CHECK(waitpid(middle, &status, 0) == middle && status == 0);
	await_step(4);
	reach(5);
	await_check();
	await_stop_of(writer, SIGTTOU);
	CHECK(waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED) == 0 && tcgetpgrp(slave) == getpgrp());
	finish(writer, 23);
	say(master, "typed\n");
	finish(reader, 22);
	reach(20);
	finish(key, 21);
	pass();
}

int main(void)
{
	int status;
	start();
	family();
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	family_step[1] = getpid();
	master = open_master();
	slave = open_slave(master, O_RDWR);
	pid_t pid = child(shell);
	for (int step = 0; step < 5; step = __atomic_load_n(family_step, __ATOMIC_SEQ_CST)) usleep(500);
	ready();
	await_check();
	EXPECT_NONE(master);
	pid_t lone = family_step[2];
	check_child(lone);
	check_child(pid);
	EXPECT_ALL(master, "late\nwoken\n");
	CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);
	pass();
}

/* Record locks of processes that share one descriptor table (CLONE_FILES): the locks are the table's, and whoever asks is
   told which of the processes has taken them. */
#include "family.h"
#include <sched.h>
#include <sys/syscall.h>

static int file;

static int lock(int command, short type, off_t start, pid_t *owner)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 10};
	int result = fcntl(file, command, &lock);
	if (owner) *owner = lock.l_type == F_UNLCK ? 0 : lock.l_pid;
	return result;
}

/* What a process with a table of its own is told. */
static pid_t owner_of(off_t start)
{
	pid_t pid, *owner = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(owner != MAP_FAILED && (pid = fork()) >= 0);
	if (pid == 0) {
		CHECK(lock(F_GETLK, F_WRLCK, start, owner) == 0);
		_exit(0);
	}
	CHECK(waitpid(pid, NULL, 0) == pid);
	pid = *owner;
	munmap(owner, 4096);
	return pid;
}

int main(void)
{
	pid_t pid;
	start();
	family();
	CHECK((file = open("locked", O_RDWR | O_CREAT, 0600)) >= 0);
	CHECK(lock(F_SETLK, F_RDLCK, 100, NULL) == 0);
	pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0);
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && lock(F_SETLK, F_WRLCK, 200, NULL) == 0);
		reach(1);
		await_check();
		pass();
	}
	await_step(1);
	ready();
	await_check();
	CHECK(owner_of(100) == getpid() && owner_of(200) == pid && owner_of(300) == 0);
	CHECK(lock(F_SETLK, F_WRLCK, 205, NULL) == 0);   /* it is this process's own, too */
	check_child(pid);
	CHECK(lock(F_SETLK, F_UNLCK, 100, NULL) == 0 && owner_of(100) == 0);
	pass();
}

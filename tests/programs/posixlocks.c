/* Record locks of fcntl(2), which belong to a process: ranges to read and to write, split and merged ones, several in one
   file that is open more than once, to the end of the file, of two processes side by side in one file. */
#include "family.h"

static int fd, again, whole, common;

static int child_does(int file, short type, off_t start, off_t length, pid_t owner)
{
	/* what another process is told: F_GETLK never tells of one's own */
	int status;
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
		if (fcntl(file, F_GETLK, &lock) != 0) _exit(3);
		_exit(lock.l_type == F_UNLCK ? 0 : lock.l_pid == owner ? 1 : 2);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	return WEXITSTATUS(status);
}

#define FREE(file, type, start, length) (child_does(file, type, start, length, getpid()) == 0)
#define OURS(file, type, start, length) (child_does(file, type, start, length, getpid()) == 1)

static int take(int file, short type, off_t start, off_t length)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	return fcntl(file, F_SETLK, &lock) == 0;
}

static void child_body(void)
{
	CHECK(take(common, F_WRLCK, 0, 100) && take(common, F_RDLCK, 500, 100));
	reach(1);
	await_check();
	CHECK(OURS(common, F_RDLCK, 50, 1) && !OURS(common, F_WRLCK, 100, 100));
	pass();
}

int main(void)
{
	pid_t pid;
	start();
	family();
	unlink("ranges"); unlink("whole"); unlink("common");
	fd = open("ranges", O_CREAT | O_RDWR, 0600);
	again = open("ranges", O_RDONLY | O_CLOEXEC);
	whole = open("whole", O_CREAT | O_WRONLY, 0600);
	common = open("common", O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && again >= 0 && whole >= 0 && common >= 0);
	CHECK(take(fd, F_WRLCK, 0, 100) && take(fd, F_UNLCK, 40, 20));   /* split in two */
	CHECK(take(fd, F_RDLCK, 1000, 10) && take(again, F_RDLCK, 1010, 10));   /* merged to one, by two open files */
	CHECK(take(again, F_RDLCK, 5000, 1000) && take(fd, F_WRLCK, 5500, 100));   /* one in the middle of the other */
	CHECK(take(fd, F_WRLCK, 1LL << 40, 0));   /* from there to the end, wherever that is */
	CHECK(take(whole, F_WRLCK, 0, 0));
	pid = child(child_body);
	await_step(1);
	CHECK(take(common, F_WRLCK, 100, 100) && take(common, F_RDLCK, 550, 100));
	ready();
	await_check();
	CHECK(OURS(fd, F_RDLCK, 0, 40) && FREE(fd, F_WRLCK, 40, 20) && OURS(fd, F_RDLCK, 60, 40) && FREE(fd, F_WRLCK, 100, 900));
	CHECK(OURS(fd, F_WRLCK, 1000, 20) && FREE(fd, F_RDLCK, 1000, 20) && OURS(fd, F_WRLCK, 1019, 1));
	CHECK(FREE(fd, F_RDLCK, 5000, 500) && OURS(fd, F_RDLCK, 5500, 100) && FREE(fd, F_RDLCK, 5600, 400));
	CHECK(OURS(fd, F_RDLCK, (1LL << 40) + (1LL << 30), 5) && FREE(fd, F_WRLCK, 6000, (1LL << 40) - 6000));
	CHECK(child_does(common, F_WRLCK, 0, 100, pid) == 1 && OURS(common, F_RDLCK, 100, 100));
	CHECK(!take(common, F_WRLCK, 50, 1) && !take(common, F_WRLCK, 500, 10) && take(common, F_RDLCK, 500, 50));
	CHECK(child_does(whole, F_WRLCK, 1 << 20, 10, getpid()) == 1);
	check_child(pid);
	CHECK(take(common, F_WRLCK, 0, 0));
	/* the rule that nobody likes: any close lets all of them go */
	close(again);
	CHECK(FREE(fd, F_WRLCK, 0, 0));
	pass();
}

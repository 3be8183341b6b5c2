/* Record locks that belong to an open file (F_OFD_SETLK): ranges in one file by several open files, shared by dup and fork,
   beside locks of the process and of flock(2), which don't meet these. */
#include "family.h"
#include <sys/file.h>

static int first, second, reader;

static int set(int fd, int command, short type, off_t start, off_t length)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	return fcntl(fd, command, &lock) == 0;
}

static int take(int fd, short type, off_t start, off_t length) { return set(fd, F_OFD_SETLK, type, start, length); }

static void child_body(void)
{
	await_check();
	CHECK(take(first, F_WRLCK, 0, 100) && !take(first, F_WRLCK, 100, 1));
	CHECK(take(first, F_UNLCK, 50, 50));
	pass();
}

int main(void)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};
	int copy, other, mixed;
	pid_t pid;
	start();
	family();
	unlink("file"); unlink("mixed");
	first = open("file", O_CREAT | O_RDWR, 0600);
	second = open("file", O_RDWR);
	reader = open("file", O_RDONLY);
	CHECK(first >= 0 && second >= 0 && reader >= 0);
	CHECK(take(first, F_WRLCK, 0, 100) && take(second, F_WRLCK, 100, 100) && take(second, F_UNLCK, 140, 20));
	CHECK(take(reader, F_RDLCK, 1000, 0) && take(second, F_RDLCK, 2000, 10));
	copy = dup(second);
	mixed = open("mixed", O_CREAT | O_RDWR, 0600);
	CHECK(flock(mixed, LOCK_EX) == 0 && set(mixed, F_OFD_SETLK, F_WRLCK, 0, 10) && set(mixed, F_SETLK, F_WRLCK, 10, 10));
	pid = child(child_body);
	ready();
	await_check();
	CHECK(!take(second, F_RDLCK, 0, 100) && !take(first, F_RDLCK, 100, 40) && take(first, F_WRLCK, 140, 20));
	CHECK(!take(first, F_RDLCK, 160, 40) && take(first, F_UNLCK, 140, 20));
	CHECK(!take(first, F_WRLCK, 5000, 1) && take(first, F_RDLCK, 5000, 1) && take(first, F_UNLCK, 5000, 1));
	CHECK(fcntl(first, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == -1 && lock.l_start == 100);
	check_child(pid);
	CHECK(take(second, F_WRLCK, 50, 50) && !take(second, F_WRLCK, 49, 1));   /* the child has let go of a half */
	close(second);
	other = open("file", O_RDWR);
	CHECK(!take(other, F_WRLCK, 100, 1) && close(copy) == 0 && take(other, F_WRLCK, 50, 150));
	CHECK(!take(other, F_WRLCK, 2000, 10) && close(reader) == 0 && take(other, F_WRLCK, 2000, 10));
	other = open("mixed", O_RDWR);
	CHECK(flock(other, LOCK_SH | LOCK_NB) == -1 && !take(other, F_RDLCK, 0, 10) && !take(other, F_RDLCK, 10, 10));
	CHECK(flock(mixed, LOCK_UN) == 0 && flock(other, LOCK_SH | LOCK_NB) == 0);
	pass();
}

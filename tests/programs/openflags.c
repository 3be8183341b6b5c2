/* Flags of open(2) and fcntl(2) on regular files: O_APPEND, O_DIRECT, O_SYNC, O_DSYNC, O_NOATIME, O_NOFOLLOW, O_NONBLOCK,
   O_ASYNC with an owner and a signal, access mode 3 (ioctl only), write hints. */
#include "family.h"

#ifndef F_GET_RW_HINT
#define F_GET_RW_HINT 1035
#define F_SET_RW_HINT 1036
#endif
#define HINT 3   /* RWH_WRITE_LIFE_MEDIUM */

static const int flags[] = {
	O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY | O_APPEND, O_RDWR | O_SYNC, O_WRONLY | O_DSYNC, O_RDONLY | O_NOATIME,
	O_RDWR | O_NOFOLLOW, O_RDONLY | O_NONBLOCK, O_WRONLY | O_ASYNC, O_RDWR | O_DIRECT, O_RDONLY | O_NOCTTY,
	O_ACCMODE, O_RDWR | O_APPEND | O_SYNC | O_NOATIME | O_NONBLOCK,
};
#define COUNT ((int)(sizeof flags / sizeof *flags))

int main(void)
{
	static char block[4096] __attribute__((aligned(4096)));
	int fds[COUNT], told[COUNT], later, hinted;
	struct f_owner_ex owner;
	uint64_t hint = HINT;
	start();
	setpgid(0, 0);
	unlink("file");
	unlink("hinted");
	close(open("file", O_CREAT | O_WRONLY, 0600));
	CHECK(truncate("file", 65536) == 0);
	for (int i = 0; i < COUNT; i++) {
		fds[i] = open("file", flags[i] | (i % 2 ? O_CLOEXEC : 0));
		if (fds[i] < 0 && flags[i] & O_DIRECT) continue;   /* not on every file system */
		CHECK(fds[i] >= 0);
		told[i] = fcntl(fds[i], F_GETFL);
		if ((flags[i] & O_ACCMODE) != O_ACCMODE) CHECK(lseek(fds[i], 1000 * i, SEEK_SET) == 1000 * i);
	}
	/* what was set only after the file had been opened */
	later = open("file", O_RDWR);
	CHECK(later >= 0 && fcntl(later, F_SETFL, O_APPEND | O_NONBLOCK | O_NOATIME) == 0);
	CHECK(fcntl(later, F_SETOWN, -getpgrp()) == 0 && fcntl(later, F_SETSIG, SIGRTMIN + 2) == 0);
	owner = (struct f_owner_ex){F_OWNER_PID, getpid()};
	CHECK(fcntl(fds[9], F_SETOWN_EX, &owner) == 0 && fcntl(fds[9], F_SETSIG, SIGUSR2) == 0);
	hinted = open("hinted", O_CREAT | O_RDWR, 0600);
	CHECK(hinted >= 0);
	if (fcntl(hinted, F_SET_RW_HINT, &hint) != 0) hint = 0;
	ready();
	await_check();
	for (int i = 0; i < COUNT; i++) {
		if (fds[i] < 0) continue;
		if (fcntl(fds[i], F_GETFL) != told[i])
			fail("flags %#o of %d, they were %#o", fcntl(fds[i], F_GETFL), i, told[i]);
		CHECK(fcntl(fds[i], F_GETFD) == (i % 2 ? FD_CLOEXEC : 0));
		if ((flags[i] & O_ACCMODE) != O_ACCMODE) CHECK(lseek(fds[i], 0, SEEK_CUR) == 1000 * i);
	}
	CHECK(write(fds[1], "w", 1) == 1 && read(fds[1], block, 1) == -1 && errno == EBADF);
	CHECK(read(fds[0], block, 1) == 1 && write(fds[0], "x", 1) == -1 && errno == EBADF);
	CHECK(read(fds[12], block, 1) == -1 && errno == EBADF && write(fds[12], "x", 1) == -1 && errno == EBADF);
	CHECK(write(fds[3], "tail", 4) == 4 && lseek(fds[3], 0, SEEK_CUR) == 65540);
	if (fds[10] >= 0) CHECK(pread(fds[10], block, 4096, 4096) == 4096 && block[0] == 0);
	CHECK(fcntl(later, F_GETOWN) == -getpgrp() && fcntl(later, F_GETSIG) == SIGRTMIN + 2);
	CHECK((fcntl(later, F_GETFL) & (O_APPEND | O_NONBLOCK | O_NOATIME)) == (O_APPEND | O_NONBLOCK | O_NOATIME));
	CHECK(fcntl(fds[9], F_GETOWN_EX, &owner) == 0 && owner.type == F_OWNER_PID && owner.pid == getpid());
	CHECK(fcntl(fds[9], F_GETSIG) == SIGUSR2);
	if (hint) CHECK(fcntl(hinted, F_GET_RW_HINT, &hint) == 0 && hint == HINT);
	pass();
}

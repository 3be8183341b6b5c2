/* Slaves that are open still although their masters are closed: reads give end of file, writes EIO, polls a hang-up.
   One was opened as /dev/tty; one is opened by two processes. The numbers stay taken. */
#include "terminal.h"

static void check_dead(int fd)
{
	char byte;
	struct termios t;
	CHECK(read(fd, &byte, 1) == 0);
	if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) CHECK(write(fd, "x", 1) == -1 && errno == EIO);
	CHECK((events(fd) & (POLLHUP | POLLERR)) == (POLLHUP | POLLERR));
	CHECK(tcgetattr(fd, &t) == -1 && errno == EIO);
}

int main(void)
{
	int status;
	struct stat st;
	start();
	int alive = open_master(), dead = open_master(), last = open_master();
	int slave = open_slave(dead, O_RDWR | O_NONBLOCK), reader = open_slave(dead, O_RDONLY);
	int number = number_of(dead), living = open_slave(alive, O_RDWR);
	CHECK(signal(SIGHUP, SIG_IGN) != SIG_ERR);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {   /* a session whose terminal is taken away, with its /dev/tty */
		CHECK(setsid() == getpid());
		int own = open_master(), other = open_slave(own, O_RDWR);
		CHECK(ioctl(other, TIOCSCTTY, 0) == 0);
		int tty = open("/dev/tty", O_RDWR);
		CHECK(tty >= 0 && close(other) == 0 && close(own) == 0);
		check_dead(tty);
		CHECK(close(dead) == 0);
		ready();
		await_check();
		check_dead(tty);
		check_dead(slave);
		CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
		pass();
	}
	CHECK(close(dead) == 0);
	await_check();
	check_dead(slave);
	check_dead(reader);
	CHECK((fcntl(slave, F_GETFL) & O_NONBLOCK) && (fcntl(reader, F_GETFL) & O_ACCMODE) == O_RDONLY);
	CHECK(fstat(slave, &st) == 0 && (int)(st.st_rdev & 0xFF) == number);
	CHECK(number_of(open_master()) != number);
	say(living, "alive");
	EXPECT(alive, "alive");
	CHECK(number_of(last) == number + 1);
	CHECK(kill(child, SIGTERM) == 0 && waitpid(child, &status, 0) == child);
	if (status) fail("the child ended with %#x", status);
	pass();
}

/* Packet mode (TIOCPKT): what the next read tells first - flushed, stopped, started, flow control on or off - and data
   behind it; with nothing to tell, data only. */
#include "terminal.h"

static void expect_status(int master, int wanted, int line)
{
	unsigned char byte[64];
	CHECK(fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
	ssize_t n = read(master, byte, sizeof byte);
	if (n != 1 || byte[0] != wanted) fail("line %d: %zd bytes, status %#x", line, n, n > 0 ? byte[0] : -1);
}

int main(void)
{
	int master[6], slave[6], one = 1;
	struct termios t;
	start();
	for (int i = 0; i < 6; i++) {
		master[i] = open_master();
		slave[i] = open_slave(master[i], O_RDWR);
		CHECK(ioctl(master[i], TIOCPKT, &one) == 0);
	}
	say(slave[0], "only data");

	CHECK(tcflush(slave[1], TCIOFLUSH) == 0);
	say(slave[1], "after it");
	say(master[1], "typed\n");

	say(slave[2], "stopped");
	CHECK(tcflow(slave[2], TCOOFF) == 0);

	CHECK(tcflow(slave[3], TCOOFF) == 0 && tcflow(slave[3], TCOON) == 0);
	CHECK(tcgetattr(slave[3], &t) == 0);
	t.c_iflag &= ~IXON;
	CHECK(tcsetattr(slave[3], TCSANOW, &t) == 0);

	CHECK(tcsetattr(slave[4], TCSANOW, &t) == 0);
	t.c_iflag |= IXON;
	CHECK(tcsetattr(slave[4], TCSANOW, &t) == 0);
	CHECK(tcflush(slave[4], TCIFLUSH) == 0);

	t.c_lflag |= EXTPROC;
	CHECK(tcsetattr(slave[5], TCSANOW, &t) == 0);
	ready();
	await_check();

	CHECK(!(events(master[0]) & POLLPRI));
	EXPECT(master[0], "\0only data");
	for (int i = 1; i < 6; i++) CHECK(events(master[i]) & POLLPRI);
	expect_status(master[1], TIOCPKT_FLUSHREAD | TIOCPKT_FLUSHWRITE, __LINE__);
	EXPECT(master[1], "\0after ittyped\r\n");
	EXPECT(slave[1], "typed\n");
	expect_status(master[2], TIOCPKT_STOP, __LINE__);
	EXPECT(master[2], "\0stopped");
	CHECK(!(events(slave[2]) & POLLOUT) && tcflow(slave[2], TCOON) == 0);
	expect_status(master[2], TIOCPKT_START, __LINE__);
	expect_status(master[3], TIOCPKT_START | TIOCPKT_NOSTOP, __LINE__);
	expect_status(master[4], TIOCPKT_DOSTOP | TIOCPKT_FLUSHREAD, __LINE__);
	expect_status(master[5], TIOCPKT_IOCTL, __LINE__);
	for (int i = 0; i < 6; i++) CHECK(!(events(master[i]) & POLLPRI));
	pass();
}

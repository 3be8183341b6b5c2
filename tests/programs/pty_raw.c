/* Bytes of all values unread in both directions of a raw pseudo-terminal; fewer than VMIN, which poll(2) does not
   tell of; the same with timed reads. */
#include "terminal.h"

int main(void)
{
	unsigned char all[256], again[256];
	struct termios t;
	int count;
	start();
	for (int i = 0; i < 256; i++) all[i] = (unsigned char)i;
	int master[3], slave[3];
	for (int i = 0; i < 3; i++) {
		master[i] = open_master();
		slave[i] = open_slave(master[i], O_RDWR);
		set_modes(slave[i], 0, 0, 0);
	}
	put(master[0], all, 256);
	put(slave[0], all, 256);

	CHECK(tcgetattr(slave[1], &t) == 0);
	t.c_cc[VMIN] = 10;
	t.c_cc[VTIME] = 0;
	CHECK(tcsetattr(slave[1], TCSANOW, &t) == 0);
	say(master[1], "three");

	t.c_cc[VMIN] = 0;
	t.c_cc[VTIME] = 1;
	CHECK(tcsetattr(slave[2], TCSANOW, &t) == 0);
	say(slave[2], "only out");

	ready();
	await_check();

	for (int i = 0; i < 2; i++) {
		int fd = i ? master[0] : slave[0];
		struct pollfd p = {.fd = fd, .events = POLLIN};
		CHECK(poll(&p, 1, 1000) == 1);
		memset(again, 0, sizeof again);
		CHECK(read(fd, again, sizeof again) == 256);
		if (memcmp(all, again, 256)) fail("%s differs", i ? "output" : "input");
		EXPECT_NONE(fd);
	}
	CHECK(!(events(slave[1]) & POLLIN));
	CHECK(ioctl(slave[1], FIONREAD, &count) == 0 && count == 5);
	say(master[1], "and more");
	EXPECT(slave[1], "threeand more");
	EXPECT_NONE(master[1]);
	CHECK(read(slave[2], again, 1) == 0);
	EXPECT(master[2], "only out");
	EXPECT_NONE(master[2]);
	pass();
}

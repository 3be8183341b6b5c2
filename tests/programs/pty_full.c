/* Pseudo-terminals so full in both directions that nobody could write a byte more; one was filled byte by byte, one in
   large pieces. All comes out in its order, and nothing more. (How much more goes in depends on the pieces.) */
#include "terminal.h"

static long filled(int fd, unsigned seed, size_t piece)
{
	unsigned char room[8192];
	long total = 0;
	CHECK(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
	for (int idle = 0; idle < 20;) {
		for (size_t i = 0; i < piece; i++) room[i] = pattern(seed, (size_t)total + i);
		ssize_t n = write(fd, room, piece);
		if (n < 0) {
			CHECK(errno == EAGAIN);
			idle++;
			usleep(1000);
		} else {
			total += n;
			idle = 0;
		}
	}
	return total;
}

static void emptied(int fd, unsigned seed, long total)
{
	unsigned char byte[512];
	long at = 0;
	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		if (poll(&p, 1, 0) == 0) break;
		ssize_t n = read(fd, byte, sizeof byte);
		CHECK(n > 0);
		for (ssize_t i = 0; i < n; i++, at++)
			if (byte[i] != pattern(seed, (size_t)at)) fail("byte %ld of %ld differs", at, total);
	}
	if (at != total) fail("%ld bytes, not %ld", at, total);
}

int main(void)
{
	static const size_t pieces[] = {1, 100, 1000, 8000};
	int master[4], slave[4];
	long in[4], out[4];
	start();
	for (int i = 0; i < 4; i++) {
		master[i] = open_master();
		slave[i] = open_slave(master[i], O_RDWR);
		set_modes(slave[i], 0, i % 2 ? OPOST : 0, 0);
		in[i] = filled(master[i], 2 * (unsigned)i, pieces[i]);
		out[i] = filled(slave[i], 2 * (unsigned)i + 1, pieces[i]);
	}
	ready();
	await_check();
	for (int i = 0; i < 4; i++) {
		emptied(slave[i], 2 * (unsigned)i, in[i]);
		emptied(master[i], 2 * (unsigned)i + 1, out[i]);
		CHECK((events(master[i]) & events(slave[i]) & (POLLIN | POLLOUT)) == POLLOUT);
	}
	pass();
}

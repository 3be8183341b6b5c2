/* Pipes in packet mode (O_DIRECT): the borders of packets are kept, what is left of one is dropped, a single one, one
   whose writer is gone, and a mode that was turned on later. */
#include "program.h"

static void take(int fd, size_t room, const char *text)
{
	char buffer[100] = "";
	ssize_t got = read(fd, buffer, room);
	if (got != (ssize_t)strlen(text) || memcmp(buffer, text, got) != 0) fail("%zd: '%s' instead of '%s'", got, buffer, text);
}

int main(void)
{
	int several[2], single[2], gone[2], later[2];
	char big[4096], read_back[8192];
	start();
	CHECK(pipe2(several, O_DIRECT | O_NONBLOCK) == 0 && pipe2(single, O_DIRECT | O_NONBLOCK) == 0);
	CHECK(pipe2(gone, O_DIRECT) == 0 && pipe2(later, O_NONBLOCK) == 0);
	fill(big, sizeof big, 2);
	CHECK(write(several[1], "one", 3) == 3 && write(several[1], big, sizeof big) == sizeof big);
	CHECK(write(several[1], "three", 5) == 5 && write(several[1], "4", 1) == 1);
	CHECK(write(single[1], "longer than what is read", 24) == 24);
	CHECK(write(gone[1], "testament", 9) == 9 && close(gone[1]) == 0);
	CHECK(write(later[1], "plain", 5) == 5 && fcntl(later[1], F_SETFL, O_DIRECT | O_NONBLOCK) == 0);
	ready();
	await_check();
	take(several[0], 100, "one");
	CHECK(read(several[0], read_back, sizeof read_back) == sizeof big);
	check_filled(read_back, sizeof big, 2, "the second packet");
	take(several[0], 2, "th");
	take(several[0], 100, "4");
	CHECK(read(several[0], big, 1) == -1 && errno == EAGAIN);
	CHECK((fcntl(several[1], F_GETFL) & O_DIRECT) && !(fcntl(several[0], F_GETFL) & O_DIRECT));
	CHECK(write(several[1], "new", 3) == 3 && write(several[1], "er", 2) == 2);
	take(several[0], 100, "new");
	take(several[0], 100, "er");
	take(single[0], 6, "longer");
	CHECK(read(single[0], big, 1) == -1 && errno == EAGAIN);
	take(gone[0], 4, "test");
	CHECK(read(gone[0], big, 1) == 0);
	CHECK(fcntl(later[1], F_GETFL) & O_DIRECT);
	take(later[0], 3, "pla");
	take(later[0], 3, "in");
	pass();
}

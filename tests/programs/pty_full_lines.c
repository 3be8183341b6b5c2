/* More lines than a terminal takes at once: what lies behind has not been looked at yet, so a ^C and a ^D in it do
   nothing, and nothing of it has been echoed. As lines are read it comes, is echoed, and the ^C interrupts. */
#include "terminal.h"

static volatile sig_atomic_t interrupted;
static void note(int number) { interrupted += number == SIGINT; }

int main(void)
{
	char line[64], room[8192];
	int lines = 0;
	long echoed = 0;
	start();
	int master = open_master(), slave = open_slave(master, O_RDWR);
	CHECK(signal(SIGINT, note) != SIG_ERR && signal(SIGHUP, SIG_IGN) != SIG_ERR);
	CHECK(setsid() == getpid() || getsid(0) != getpid());   /* a group's leader can't */
	pid_t child = fork();
	CHECK(child >= 0);
	if (child) {   /* the parent only waits: a child can lead a session */
		int status;
		await_check();
		CHECK(kill(child, SIGTERM) == 0 && waitpid(child, &status, 0) == child);
		if (status) fail("the child ended with %#x", status);
		pass();
	}
	if (getsid(0) != getpid()) CHECK(setsid() == getpid());
	CHECK(ioctl(slave, TIOCSCTTY, 0) == 0 && tcgetpgrp(slave) == getpid());
	set_modes(slave, ICRNL, OPOST, ICANON | ECHO | ECHOE | ISIG | IEXTEN | NOFLSH);
	CHECK(fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
	for (int i = 0; i < 100; i++, lines++) {   /* 49 bytes each: more than the 4095 that it takes */
		snprintf(line, sizeof line, "line %04d with so many characters that it has 49\r", i);
		put(master, line, 49);
	}
	say(master, "\003behind\r" "last\004");
	for (int idle = 0; idle < 20;) {
		ssize_t n = read(master, room, sizeof room);
		idle = n > 0 ? 0 : idle + 1;
		echoed += n > 0 ? n : 0;
		usleep(1000);
	}
	CHECK(echoed >= 4000 && echoed < 4200 && !interrupted);
	ready();
	await_check();
	if (interrupted) fail("interrupted early");
	EXPECT_NONE(master);
	for (int i = 0; i < lines; i++) {
		snprintf(line, sizeof line, "line %04d with so many characters that it has 49\n", i);
		struct pollfd p = {.fd = slave, .events = POLLIN};
		CHECK(poll(&p, 1, 5000) == 1);
		ssize_t n = read(slave, room, sizeof room);
		if (n != 49 || memcmp(room, line, 49)) fail("line %d: %zd bytes %.*s", i, n, (int)n, room);
	}
	EXPECT(slave, "behind\n");
	EXPECT(slave, "last");
	CHECK(interrupted == 1);
	while (poll(&(struct pollfd){.fd = master, .events = POLLIN}, 1, 100) == 1) {
		ssize_t n = read(master, room, sizeof room);
		CHECK(n > 0);
		echoed += n;
	}
	if (echoed != 49 * lines + 1 + 7 + 4) fail("%ld bytes were echoed", echoed);
	pass();
}

/* Urgent data (MSG_OOB): kept apart and in line (SO_OOBINLINE), not read yet, read already, at the front, in the middle
   and at the end; the mark stays where it was (SIOCATMARK), and nobody gets a second SIGURG. */
#include "net.h"

enum { APART, INLINE, READ, FRONT, LAST, CASES };
static int ends[CASES][2];
static volatile int signals;

static void count(int number) { (void)number; signals++; }

static int at_mark(int fd)
{
	int yes = -1;
	CHECK(ioctl(fd, SIOCATMARK, &yes) == 0);
	return yes;
}

static void urgent(int fd, char byte) { CHECK(send(fd, &byte, 1, MSG_OOB) == 1); }

static void hear_urgent(int fd, char wanted)
{
	char byte = 0;
	CHECK(recv(fd, &byte, 1, MSG_OOB) == 1 && byte == wanted);
	CHECK(recv(fd, &byte, 1, MSG_OOB) == -1 && errno == EINVAL);
}

static void await_urgent(int fd)
{
	struct pollfd one = {fd, POLLPRI, 0};
	CHECK(poll(&one, 1, 5000) == 1);
}

int main(void)
{
	int listener;
	char text[20];
	start();
	CHECK(signal(SIGURG, count) != SIG_ERR);
	listener = listening("127.0.0.1", CASES);
	for (int i = 0; i < CASES; i++) {
		connection(listener, "127.0.0.1", ends[i]);
		CHECK(fcntl(ends[i][1], F_SETOWN, getpid()) == 0);
		if (i == INLINE) set_option(ends[i][1], SOL_SOCKET, SO_OOBINLINE, 1);
		if (i != FRONT) say(ends[i][0], "before");
		urgent(ends[i][0], '!');
		await_urgent(ends[i][1]);
		if (i != LAST) say(ends[i][0], "behind");
		if (i == READ) hear_urgent(ends[i][1], '!');
	}
	usleep(20000);
	int had = signals;
	CHECK(had > 0);
	ready();
	await_check();
	CHECK(signals == had);
	for (int i = 0; i < CASES; i++) {
		int fd = ends[i][1];
		CHECK(!!(events_of(fd) & POLLPRI) == (i != READ));
		CHECK(at_mark(fd) == (i == FRONT));
		if (i == FRONT) hear_urgent(fd, '!');
		if (i != FRONT) {
			CHECK(recv(fd, text, sizeof text, 0) == 6 && memcmp(text, "before", 6) == 0);
			CHECK(at_mark(fd) == 1);
		}
		if (i == APART || i == LAST) hear_urgent(fd, '!');
		if (i == INLINE) CHECK(recv(fd, text, sizeof text, 0) == 7 && memcmp(text, "!behind", 7) == 0);
		else if (i != LAST) CHECK(recv(fd, text, sizeof text, 0) == 6 && memcmp(text, "behind", 6) == 0);
		say(ends[i][0], "on");
		hear(fd, "on");
		CHECK(at_mark(fd) == 0);
	}
	pass();
}

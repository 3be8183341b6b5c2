/* Connections that nobody has accepted yet: without data, with data, with the client's direction closed, with the client
   gone, with and without data, and reset by it. They come in their order, from the ports that they came from; so do
   those of a listener in which none has sent anything. */
#include "net.h"

enum { QUIET, TALKING, SAID_ALL, GONE, GONE_TALKING, RESET, LAST, CASES };
static int listener, silent, clients[CASES], quiet[3];
static address from[CASES], came[CASES];

static int accepted(int i)
{
	came[i].length = sizeof came[i].name;
	int fd = accept4(listener, (void *)&came[i].name, &came[i].length, SOCK_NONBLOCK);
	if (fd < 0) fail("connection %d is not there", i);
	if (!same(&came[i], &from[i])) fail("connection %d comes from port %u, not %u", i, port_of(&came[i]), port_of(&from[i]));
	return fd;
}

int main(void)
{
	char big[3000];
	struct linger none = {1, 0};
	start();
	listener = listening("127.0.0.1", CASES);
	for (int i = 0; i < CASES; i++) {
		clients[i] = connected_to(listener, "127.0.0.1");
		from[i] = name_of(clients[i]);
	}
	say(clients[TALKING], "first words");
	fill(big, sizeof big, 7);
	CHECK(send(clients[TALKING], big, sizeof big, 0) == sizeof big);
	say(clients[SAID_ALL], "all");
	CHECK(shutdown(clients[SAID_ALL], SHUT_WR) == 0);
	close(clients[GONE]);
	say(clients[GONE_TALKING], "last words");
	close(clients[GONE_TALKING]);
	say(clients[RESET], "lost");
	CHECK(setsockopt(clients[RESET], SOL_SOCKET, SO_LINGER, &none, sizeof none) == 0);
	close(clients[RESET]);
	silent = listening("::1", 5);
	for (int i = 0; i < 3; i++) quiet[i] = connected_to(silent, "::1");
	ready();
	await_check();
	for (int i = 0; i < CASES; i++)
		if (i != GONE && i != GONE_TALKING && i != RESET) {
			address now = name_of(clients[i]);
			CHECK(same(&now, &from[i]));
			if (events_of(clients[i]) != POLLOUT) fail("client %d: %#x", i, events_of(clients[i]));
		}
	int fd = accepted(QUIET);
	CHECK(events_of(fd) == POLLOUT);
	say(fd, "welcome");
	hear(clients[QUIET], "welcome");
	say(clients[QUIET], "thanks");
	CHECK(fcntl(fd, F_SETFL, 0) == 0);
	hear(fd, "thanks");
	fd = accepted(TALKING);
	hear(fd, "first words");
	CHECK(recv(fd, big, sizeof big, MSG_WAITALL) == sizeof big);
	check_filled(big, sizeof big, 7, "what was sent before it was accepted");
	say(fd, "welcome");
	hear(clients[TALKING], "welcome");
	say(clients[TALKING], "more");
	CHECK(fcntl(fd, F_SETFL, 0) == 0);
	hear(fd, "more");
	fd = accepted(SAID_ALL);
	hear(fd, "all");
	hear_end(fd);
	say(fd, "welcome");
	hear(clients[SAID_ALL], "welcome");
	CHECK(send(clients[SAID_ALL], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	fd = accepted(GONE);
	hear_end(fd);
	fd = accepted(GONE_TALKING);
	hear(fd, "last words");
	hear_end(fd);
	fd = accepted(RESET);
	hear(fd, "lost");
	CHECK(recv(fd, big, 1, 0) == -1 && errno == ECONNRESET);
	fd = accepted(LAST);
	say(clients[LAST], "end");
	CHECK(fcntl(fd, F_SETFL, 0) == 0);
	hear(fd, "end");
	CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0 && accept(listener, NULL, NULL) == -1 && errno == EAGAIN);
	for (int i = 0; i < 3; i++) {
		address to, wanted = name_of(quiet[i]);
		to.length = sizeof to.name;
		fd = accept(silent, (void *)&to.name, &to.length);
		CHECK(fd >= 0 && same(&to, &wanted));
		say(quiet[i], "hello");
		hear(fd, "hello");
	}
	pass();
}

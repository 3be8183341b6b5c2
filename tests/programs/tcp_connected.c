/* Connections within one process, over IPv4, IPv6 and IPv4 through an IPv6 listener, on loopback and an address of the
   machine's own: names of both ends, unread data both ways, what poll(2) tells, and that they go on. */
#include "net.h"

enum { KINDS = 5 };
static const char *const listeners[KINDS] = {"127.0.0.1", "::1", "::", "0.0.0.0", "127.0.0.2"};
static const char *clients[KINDS] = {"127.0.0.1", "::1", "127.0.0.1", NULL, "127.0.0.2"};
static int at_listener[KINDS], ends[KINDS][3][2];
static address names[KINDS][3][4];

static void note(int i, int j)
{
	for (int e = 0; e < 2; e++) {
		names[i][j][2 * e] = name_of(ends[i][j][e]);
		names[i][j][2 * e + 1] = peer_of(ends[i][j][e]);
	}
}

int main(void)
{
	start();
	clients[3] = own_address();
	for (int i = 0; i < KINDS; i++) {
		at_listener[i] = listening(listeners[i], 5);
		for (int j = 0; j < 3; j++) {
			connection(at_listener[i], clients[i], ends[i][j]);
			note(i, j);
		}
		say(ends[i][1][0], "from the client");
		say(ends[i][2][0], "one way ");
		say(ends[i][2][0], "in two");
		say(ends[i][2][1], "the other way");
		await_queued(ends[i][2][0], 13);
		await_queued(ends[i][2][1], 14);
	}
	CHECK(fcntl(ends[0][0][0], F_SETFL, O_NONBLOCK) == 0);
	ready();
	await_check();
	for (int i = 0; i < KINDS; i++) {
		for (int j = 0; j < 3; j++)
			for (int e = 0; e < 2; e++) {
				address own = name_of(ends[i][j][e]), other = peer_of(ends[i][j][e]);
				if (!same(&own, &names[i][j][2 * e]) || !same(&other, &names[i][j][2 * e + 1]))
					fail("%d %d %d: now %s:%u to %s:%u", i, j, e, host_of(&own), port_of(&own),
					     host_of(&other), port_of(&other));
			}
		CHECK(events_of(ends[i][0][0]) == POLLOUT && events_of(ends[i][0][1]) == POLLOUT);
		CHECK(events_of(ends[i][1][0]) == POLLOUT && events_of(ends[i][1][1]) == (POLLIN | POLLOUT));
		CHECK(queued(ends[i][2][0]) == 13 && queued(ends[i][2][1]) == 14);
		hear(ends[i][1][1], "from the client");
		hear(ends[i][2][1], "one way in two");
		hear(ends[i][2][0], "the other way");
		for (int j = 0; j < 3; j++)
			for (int e = 0; e < 2; e++) {
				say(ends[i][j][e], "hello");
				hear(ends[i][j][!e], "hello");
			}
		int more[2];
		connection(at_listener[i], clients[i], more);
		say(more[0], "new");
		hear(more[1], "new");
		close(ends[i][0][0]);
		hear_end(ends[i][0][1]);
	}
	CHECK(fcntl(ends[0][1][0], F_GETFL) == O_RDWR);
	pass();
}

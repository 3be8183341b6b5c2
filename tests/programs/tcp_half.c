/* Half closed connections in either direction, with and without data unread, and such whose other end is gone
   altogether: data first, then the end; the open direction goes on. */
#include "net.h"

enum { CLIENT, SERVER };
enum { EMPTY, UNREAD, BOTH_UNREAD, END_READ, PEER_GONE, PEER_GONE_UNREAD, DEAF, BOTH_CLOSED, BOTH_CLOSED_UNREAD, CASES };
static int listener, ends[CASES][2][2];   /* [case][who closes][end] */

static void set_up(int i, int who)
{
	int closer = ends[i][who][who], other = ends[i][who][!who];
	if (i == UNREAD || i == BOTH_UNREAD || i == PEER_GONE_UNREAD || i == BOTH_CLOSED_UNREAD) say(closer, "before the end");
	if (i == BOTH_UNREAD || i == BOTH_CLOSED_UNREAD) say(other, "the open way");
	if (i == DEAF) {
		CHECK(shutdown(closer, SHUT_RD) == 0);
		return;
	}
	if (i == PEER_GONE || i == PEER_GONE_UNREAD) close(closer);
	else CHECK(shutdown(closer, SHUT_WR) == 0);
	await_state(other, TCP_CLOSE_WAIT);
	if (i == END_READ) hear_end(other);
	if (i == BOTH_CLOSED || i == BOTH_CLOSED_UNREAD) {
		CHECK(shutdown(other, SHUT_WR) == 0);
		await_state(other, TCP_CLOSE);
		await_state(closer, TCP_CLOSE);
	}
}

static void verify(int i, int who)
{
	int closer = ends[i][who][who], other = ends[i][who][!who];
	int gone = i == PEER_GONE || i == PEER_GONE_UNREAD, over = i == BOTH_CLOSED || i == BOTH_CLOSED_UNREAD;
	if (i == DEAF) {
		CHECK(events_of(closer) == (POLLIN | POLLOUT | POLLRDHUP));
		hear_end(closer);
		say(closer, "can speak");
		hear(other, "can speak");
		return;
	}
	if (events_of(other) != (POLLIN | POLLOUT | POLLRDHUP | (over ? POLLHUP : 0)))
		fail("%d %d: %#x", i, who, events_of(other));
	if (i == UNREAD || i == BOTH_UNREAD || i == PEER_GONE_UNREAD || i == BOTH_CLOSED_UNREAD) hear(other, "before the end");
	hear_end(other);
	hear_end(other);
	if (gone) {
		CHECK(send(other, "x", 1, MSG_NOSIGNAL) == 1);
		await_state(other, TCP_CLOSE);
		CHECK(send(other, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
		return;
	}
	if (i == BOTH_UNREAD || i == BOTH_CLOSED_UNREAD) hear(closer, "the open way");
	CHECK(send(closer, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	if (over) {
		hear_end(closer);
		CHECK(error_of(closer) == 0 && error_of(other) == 0);
		return;
	}
	CHECK(events_of(closer) == POLLOUT);
	say(other, "goes on");
	hear(closer, "goes on");
	close(other);
	hear_end(closer);
}

int main(void)
{
	start();
	listener = listening("127.0.0.1", 5);
	for (int i = 0; i < CASES; i++)
		for (int who = CLIENT; who <= SERVER; who++) {
			connection(listener, "127.0.0.1", ends[i][who]);
			set_up(i, who);
		}
	ready();
	await_check();
	for (int i = 0; i < CASES; i++)
		for (int who = CLIENT; who <= SERVER; who++) verify(i, who);
	pass();
}

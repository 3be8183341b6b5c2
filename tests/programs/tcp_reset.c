/* Connections that were reset and connects that were refused: the error pending or already taken, in each state that tells
   another one, with and without data unread. */
#include "net.h"

enum { PENDING, TAKEN, TIMES };
static int reset[TIMES], unread[TIMES], after_end[TIMES], after_end_unread[TIMES], refused[TIMES], blocking, given_up;
static address refused_name[TIMES], nobody;
static int listener;

static void reset_by(int fd)
{
	struct linger none = {1, 0};
	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none) == 0);
	close(fd);
}

static int broken(int ended, const char *left)
{
	int ends[2];
	connection(listener, "127.0.0.1", ends);
	if (*left) say(ends[0], left);
	if (ended) {
		CHECK(shutdown(ends[0], SHUT_WR) == 0);
		await_state(ends[1], TCP_CLOSE_WAIT);
	}
	reset_by(ends[0]);
	await_state(ends[1], TCP_CLOSE);
	return ends[1];
}

static void no_more(int fd, int error, int taken)
{
	char byte;
	int wanted = POLLIN | POLLOUT | POLLRDHUP | POLLHUP | (taken ? 0 : POLLERR);
	if (events_of(fd) != wanted) fail("events %#x, not %#x", events_of(fd), wanted);
	if (!taken && error == ECONNRESET) CHECK(recv(fd, &byte, 1, 0) == -1 && errno == error);
	else if (!taken) CHECK(error_of(fd) == error);
	CHECK(error_of(fd) == 0);
	hear_end(fd);
	CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
}

int main(void)
{
	int gone;
	start();
	listener = listening("127.0.0.1", 5);
	gone = bound("127.0.0.1", SOCK_STREAM);   /* a port that nobody listens at */
	nobody = name_of(gone);
	for (int i = 0; i < TIMES; i++) {
		reset[i] = broken(0, "");
		unread[i] = broken(0, "still to be read");
		after_end[i] = broken(1, "");
		after_end_unread[i] = broken(1, "still to be read");
		refused[i] = new_socket("127.0.0.1", SOCK_STREAM | SOCK_NONBLOCK);
		CHECK(connect(refused[i], (void *)&nobody.name, nobody.length) == -1 && errno == EINPROGRESS);
		await_state(refused[i], TCP_CLOSE);
		refused_name[i] = name_of(refused[i]);
		if (i == TAKEN) {
			CHECK(error_of(reset[i]) == ECONNRESET && error_of(unread[i]) == ECONNRESET);
			CHECK(error_of(after_end[i]) == EPIPE && error_of(after_end_unread[i]) == EPIPE);
			CHECK(error_of(refused[i]) == ECONNREFUSED);
		}
	}
	blocking = new_socket("127.0.0.1", SOCK_STREAM);
	CHECK(connect(blocking, (void *)&nobody.name, nobody.length) == -1 && errno == ECONNREFUSED);
	given_up = connected_to(listener, "127.0.0.1");
	address none = {.name.ss_family = AF_UNSPEC, .length = sizeof(struct sockaddr_in)};
	CHECK(connect(given_up, (void *)&none.name, none.length) == 0);
	close(accept(listener, NULL, NULL));
	ready();
	await_check();
	for (int i = 0; i < TIMES; i++) {
		CHECK(state_of(reset[i]) == TCP_CLOSE && queued(unread[i]) == 16 && queued(after_end_unread[i]) == 16);
		hear(unread[i], "still to be read");
		hear(after_end_unread[i], "still to be read");
		no_more(reset[i], ECONNRESET, i);
		no_more(unread[i], ECONNRESET, i);
		no_more(after_end[i], EPIPE, i);
		no_more(after_end_unread[i], EPIPE, i);
		address now = name_of(refused[i]);
		CHECK(same(&now, &refused_name[i]));
		CHECK(!!(events_of(refused[i]) & POLLERR) == (i == PENDING));
		CHECK(connect(refused[i], (void *)&nobody.name, nobody.length) == -1);
		CHECK(errno == (i == PENDING ? ECONNREFUSED : ECONNABORTED));
	}
	CHECK(error_of(given_up) == ECONNRESET);
	int last[3] = {refused[0], blocking, given_up};
	address to = name_of(listener);
	for (int i = 0; i < 3; i++) {   /* they can be used again */
		CHECK(fcntl(last[i], F_SETFL, 0) == 0 && connect(last[i], (void *)&to.name, to.length) == 0);
		int other = accept(listener, NULL, NULL);
		say(other, "again");
		hear(last[i], "again");
		close(other);
	}
	pass();
}

/* Several UDP sockets at one port (SO_REUSEADDR, SO_REUSEPORT), some connected, each with datagrams of its own; one whose
   directions are shut down; and one that was told that nobody is there (ECONNREFUSED). */
#include "net.h"

enum { SHARED = 4 };
static int shared[SHARED], senders[SHARED], over[2], refused;
static address common;

int main(void)
{
	char text[20];
	start();
	int first = bound("127.0.0.1", SOCK_DGRAM);   /* a port that is asked for stays when a socket is disconnected */
	common = name_of(first);
	close(first);
	for (int i = 0; i < SHARED; i++) {
		senders[i] = bound("127.0.0.1", SOCK_DGRAM);
		address peer = name_of(senders[i]);
		shared[i] = new_socket("127.0.0.1", SOCK_DGRAM);
		set_option(shared[i], SOL_SOCKET, SO_REUSEADDR, 1);
		set_option(shared[i], SOL_SOCKET, SO_REUSEPORT, 1);
		CHECK(bind(shared[i], (void *)&common.name, common.length) == 0);
		CHECK(connect(shared[i], (void *)&peer.name, peer.length) == 0);
		snprintf(text, sizeof text, "for socket %d", i);
		CHECK(sendto(senders[i], text, strlen(text), 0, (void *)&common.name, common.length) > 0);
	}
	address none = {.name.ss_family = AF_UNSPEC, .length = sizeof(struct sockaddr_in)};
	for (int i = 0; i < 2; i++) CHECK(connect(shared[i], (void *)&none.name, none.length) == 0);
	for (int i = 0; i < 2; i++) over[i] = bound("127.0.0.1", SOCK_DGRAM);
	for (int i = 0; i < 2; i++) {
		address peer = name_of(over[!i]);
		CHECK(connect(over[i], (void *)&peer.name, peer.length) == 0);
	}
	say(over[1], "before the end");
	CHECK(shutdown(over[0], SHUT_RDWR) == 0);
	int gone = bound("127.0.0.1", SOCK_DGRAM);
	address nobody = name_of(gone);
	close(gone);
	refused = new_socket("127.0.0.1", SOCK_DGRAM);
	CHECK(connect(refused, (void *)&nobody.name, nobody.length) == 0);
	CHECK(send(refused, "x", 1, 0) == 1);
	struct pollfd one = {refused, 0, 0};
	CHECK(poll(&one, 1, 5000) == 1 && one.revents == POLLERR);
	ready();
	await_check();
	for (int i = 0; i < SHARED; i++) {
		address now = name_of(shared[i]), peer = name_of(senders[i]);
		CHECK(same(&now, &common));
		snprintf(text, sizeof text, "for socket %d", i);
		hear(shared[i], text);
		CHECK(recv(shared[i], text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
		if (i >= 2) {
			now = peer_of(shared[i]);
			CHECK(same(&now, &peer));
			CHECK(sendto(senders[i], "yours", 5, 0, (void *)&common.name, common.length) == 5);
			hear(shared[i], "yours");
		} else {
			CHECK(getpeername(shared[i], (void *)&now.name, &now.length) == -1 && errno == ENOTCONN);
		}
	}
	CHECK(events_of(over[0]) & POLLRDHUP && events_of(over[0]) & POLLHUP);
	hear(over[0], "before the end");
	hear_end(over[0]);
	CHECK(send(over[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	CHECK(events_of(refused) & POLLERR && error_of(refused) == ECONNREFUSED && error_of(refused) == 0);
	address peer = peer_of(refused);
	CHECK(same(&peer, &nobody));
	pass();
}

/* UDP sockets, bound, connected, never bound and bound to all addresses, with datagrams that are not read yet: sizes,
   order, contents and senders, also of senders that are closed, and over IPv6 and IPv4 mapped into it. */
#include "net.h"

enum { PLAIN, WILD, SIX, MAPPED, CONNECTED, KINDS, EACH = 4, LARGE = 20000 };
static const char *const hosts[KINDS] = {"127.0.0.1", "0.0.0.0", "::1", "::", "127.0.0.1"};
static const char *const to_hosts[KINDS] = {"127.0.0.1", "127.0.0.1", "::1", "::ffff:127.0.0.1", "127.0.0.1"};
static int fds[KINDS], sender[KINDS], never;
static address names[KINDS], senders[KINDS][EACH];
static const int sizes[EACH] = {5, 1, LARGE, 1200};

static void send_to(int from, const address *to, int kind, int n)
{
	static char data[LARGE];
	fill(data, sizes[n], kind * EACH + n);
	CHECK(sendto(from, data, sizes[n], 0, (void *)&to->name, to->length) == sizes[n]);
}

int main(void)
{
	start();
	for (int k = 0; k < KINDS; k++) {
		fds[k] = bound(hosts[k], SOCK_DGRAM);
		names[k] = name_of(fds[k]);
		address to = at(to_hosts[k], port_of(&names[k]));
		sender[k] = bound(k == WILD ? "0.0.0.0" : k == MAPPED ? "::ffff:127.0.0.1" : to_hosts[k], SOCK_DGRAM);
		for (int n = 0; n < EACH; n++) {
			int from = n == 1 ? bound(to_hosts[k], SOCK_DGRAM) : sender[k];   /* that one is closed at once */
			senders[k][n] = name_of(from);
			if (k == WILD && n != 1) senders[k][n] = at("127.0.0.1", port_of(&senders[k][n]));
			send_to(from, &to, k, n);
			if (n == 1) close(from);
		}
	}
	address peer = name_of(sender[CONNECTED]);
	CHECK(connect(fds[CONNECTED], (void *)&peer.name, peer.length) == 0);
	CHECK(connect(sender[CONNECTED], (void *)&names[CONNECTED].name, names[CONNECTED].length) == 0);
	never = new_socket("127.0.0.1", SOCK_DGRAM);
	ready();
	await_check();
	for (int k = 0; k < KINDS; k++) {
		address now = name_of(fds[k]);
		CHECK(same(&now, &names[k]));
		CHECK(events_of(fds[k]) == (POLLIN | POLLOUT) && queued(fds[k]) == sizes[0]);
		for (int n = 0; n < EACH; n++) {
			static char data[LARGE];
			address from = {.length = sizeof from.name};
			ssize_t size = recvfrom(fds[k], data, sizeof data, MSG_DONTWAIT, (void *)&from.name, &from.length);
			if (size != sizes[n]) fail("datagram %d of socket %d has %zd bytes", n, k, size);
			check_filled(data, size, k * EACH + n, "a datagram");
			if (!same(&from, &senders[k][n]))
				fail("it comes from %s:%u, not %s:%u", host_of(&from), port_of(&from),
				     host_of(&senders[k][n]), port_of(&senders[k][n]));
		}
		CHECK(events_of(fds[k]) == POLLOUT);
		send_to(sender[k], &(address){at(to_hosts[k], port_of(&names[k])).name, names[k].length}, k, 0);
		await_queued(fds[k], sizes[0]);
	}
	address now = peer_of(fds[CONNECTED]);
	CHECK(same(&now, &peer));
	say(fds[CONNECTED], "answer");
	hear(sender[CONNECTED], "answer");
	int stranger = bound("127.0.0.1", SOCK_DGRAM);
	char byte;
	send_to(stranger, &names[CONNECTED], 0, 0);
	CHECK(recv(fds[CONNECTED], &byte, 1, 0) == 1 && recv(fds[CONNECTED], &byte, 1, MSG_DONTWAIT) == -1);
	now = name_of(never);
	CHECK(port_of(&now) == 0);
	send_to(never, &names[PLAIN], 0, 0);
	pass();
}

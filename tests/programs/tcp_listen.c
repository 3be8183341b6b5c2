/* Listening sockets: backlogs, two at one port (SO_REUSEPORT), IPv6 alone beside IPv4 at one port, one that was closed
   while what it had accepted lives, and one whose port is a connection's, too. */
#include "net.h"

static int plain, shared[2], six, four, live[2][2], beside[2];
static unsigned closed_port;

static int backlog_of(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof info;
	CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
	return info.tcpi_sacked;
}

static void check_works(int listener, const char *host)
{
	int ends[2];
	connection(listener, host, ends);
	say(ends[0], "hello");
	hear(ends[1], "hello");
	close(ends[0]);
	close(ends[1]);
}

int main(void)
{
	address name, other;
	start();
	plain = listening("127.0.0.1", 7);
	shared[0] = new_socket("127.0.0.1", SOCK_STREAM);
	shared[1] = new_socket("127.0.0.1", SOCK_STREAM);
	for (int i = 0; i < 2; i++) {
		name = i ? name_of(shared[0]) : at("127.0.0.1", 0);
		set_option(shared[i], SOL_SOCKET, SO_REUSEPORT, 1);
		CHECK(bind(shared[i], (void *)&name.name, name.length) == 0 && listen(shared[i], 20) == 0);
	}
	do {   /* a port that both have free */
		six = new_socket("::", SOCK_STREAM);
		set_option(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
		name = at("::", 0);
		CHECK(bind(six, (void *)&name.name, name.length) == 0);
		name = name_of(six);
		four = new_socket("0.0.0.0", SOCK_STREAM);
		other = at("0.0.0.0", port_of(&name));
	} while (bind(four, (void *)&other.name, other.length) != 0);
	CHECK(listen(six, 0) == 0 && listen(four, 1) == 0);
	int closed = listening("127.0.0.1", 3);
	name = name_of(closed);
	closed_port = port_of(&name);
	connection(closed, "127.0.0.1", live[0]);
	connection(closed, "127.0.0.1", live[1]);
	close(closed);
	connection(plain, "127.0.0.1", beside);
	ready();
	await_check();
	CHECK(backlog_of(plain) == 7 && backlog_of(shared[0]) == 20 && backlog_of(six) == 0 && backlog_of(four) == 1);
	check_works(plain, "127.0.0.1");
	check_works(six, "::1");
	check_works(four, "127.0.0.1");
	for (int i = 0; i < 40; i++) {   /* the kernel deals them out */
		int client = connected_to(shared[0], "127.0.0.1");
		struct pollfd both[2] = {{shared[0], POLLIN, 0}, {shared[1], POLLIN, 0}};
		CHECK(poll(both, 2, 5000) == 1);
		close(accept(both[0].revents ? shared[0] : shared[1], NULL, NULL));
		close(client);
		int listens = option(shared[1], SOL_SOCKET, SO_ACCEPTCONN);
		CHECK(listens);
	}
	for (int i = 0; i < 2; i++) {
		name = name_of(live[i][1]);
		CHECK(port_of(&name) == closed_port);
		say(live[i][0], "hello");
		hear(live[i][1], "hello");
	}
	int again = new_socket("127.0.0.1", SOCK_STREAM);
	other = at("127.0.0.1", closed_port);
	CHECK(connect(again, (void *)&other.name, other.length) == -1 && errno == ECONNREFUSED);
	say(beside[1], "beside");
	hear(beside[0], "beside");
	pass();
}

/* Sockets without a connection: never bound, bound, bound to an address without a port (IP_BIND_ADDRESS_NO_PORT), and
   two at one port (SO_REUSEADDR); options that were set before the connection count when it is made. */
#include "net.h"

static int fresh, six, named, portless, twins[2], prepared;
static address name, twin;

static void use(int fd, int listener)
{
	address to = name_of(listener);
	CHECK(connect(fd, (void *)&to.name, to.length) == 0);
	int other = accept(listener, NULL, NULL);
	say(fd, "hello");
	hear(other, "hello");
	address own = name_of(fd), seen = peer_of(other);
	CHECK(same(&own, &seen));
	close(other);
}

int main(void)
{
	start();
	fresh = new_socket("127.0.0.1", SOCK_STREAM);
	six = new_socket("::1", SOCK_STREAM);
	named = bound("127.0.0.1", SOCK_STREAM);
	name = name_of(named);
	portless = new_socket("127.0.0.3", SOCK_STREAM);
	set_option(portless, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
	address only = at("127.0.0.3", 0);
	CHECK(bind(portless, (void *)&only.name, only.length) == 0);
	twin = at("127.0.0.1", 0);
	for (int i = 0; i < 2; i++) {
		twins[i] = new_socket("127.0.0.1", SOCK_STREAM);
		set_option(twins[i], SOL_SOCKET, SO_REUSEADDR, 1);
		if (i) twin = name_of(twins[0]);
		CHECK(bind(twins[i], (void *)&twin.name, twin.length) == 0);
	}
	prepared = new_socket("127.0.0.1", SOCK_STREAM);
	set_option(prepared, IPPROTO_TCP, TCP_MAXSEG, 700);
	set_option(prepared, SOL_SOCKET, SO_RCVBUF, 5000);
	ready();
	await_check();
	address now = name_of(fresh);
	CHECK(port_of(&now) == 0 && strcmp(host_of(&now), "0.0.0.0") == 0);
	now = name_of(six);
	CHECK(port_of(&now) == 0 && strcmp(host_of(&now), "::") == 0);
	now = name_of(named);
	CHECK(same(&now, &name));
	now = name_of(portless);
	CHECK(port_of(&now) == 0 && strcmp(host_of(&now), "127.0.0.3") == 0);
	for (int i = 0; i < 2; i++) {
		now = name_of(twins[i]);
		CHECK(same(&now, &twin));
	}
	CHECK(events_of(fresh) == (POLLOUT | POLLHUP) && events_of(named) == (POLLOUT | POLLHUP));
	int listener = listening("127.0.0.1", 5), v6 = listening("::1", 5);
	use(fresh, listener);
	use(six, v6);
	use(named, listener);
	now = name_of(named);
	CHECK(same(&now, &name));
	use(portless, listener);
	now = name_of(portless);
	CHECK(port_of(&now) != 0 && strcmp(host_of(&now), "127.0.0.3") == 0);
	use(twins[0], listener);
	CHECK(listen(twins[1], 1) == 0);
	CHECK(option(prepared, IPPROTO_TCP, TCP_MAXSEG) == 700 && option(prepared, SOL_SOCKET, SO_RCVBUF) == 10000);
	use(prepared, listener);
	CHECK(option(prepared, IPPROTO_TCP, TCP_MAXSEG) <= 700);
	pass();
}

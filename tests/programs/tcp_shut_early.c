/* shutdown(2) of TCP sockets that have no connection: it says ENOTCONN, and shuts that way all the same. */
#include "net.h"

int main(void)
{
	int sockets[4], fd, peer, listener;
	start();
	for (int i = 0; i < 4; i++) {
		sockets[i] = bound(i & 1 ? "127.0.0.1" : "::1", SOCK_STREAM);
		CHECK(shutdown(sockets[i], i / 2) == -1 && errno == ENOTCONN);
	}
	ready();
	await_check();
	for (int i = 0; i < 4; i++) CHECK(((events_of(sockets[i]) & POLLRDHUP) == 0) == i / 2);
	CHECK((listener = listening("127.0.0.1", 1)) >= 0);
	address name = name_of(listener);
	CHECK(connect(sockets[3], (void *)&name.name, name.length) == 0 && (peer = accept(listener, NULL, NULL)) >= 0);
	CHECK((fd = sockets[3]) >= 0 && error_of(fd) == 0);
	say(peer, "all is well");
	hear(fd, "all is well");
	pass();
}

/* TCP and UDP at one address of the machine, 127.0.0.2: a listener, a connection, a datagram that waits. Later the old
   address still leads there, for what connects and for what is bound, wherever the machine's end of it is by then. */
#include "net.h"

static const char *const old = "127.0.0.2";

static void is_at(int fd, const char *host, const char *what)
{
	address name = name_of(fd);
	if (strcmp(host_of(&name), host)) fail("%s is at %s, not at %s", what, host_of(&name), host);
}

static void talks(int one, int other, const char *word)
{
	char got[16] = "";
	CHECK(send(one, word, strlen(word), MSG_NOSIGNAL) == (ssize_t)strlen(word));
	CHECK(recv(other, got, sizeof got - 1, 0) == (ssize_t)strlen(word) && strcmp(got, word) == 0);
}

int main(void)
{
	int listener, near, far, bound = new_socket(old, SOCK_DGRAM), sender = new_socket(old, SOCK_DGRAM);
	address any = at(old, 0), place, post;
	char got[16] = "", host[64];
	start();
	listener = new_socket(old, SOCK_STREAM);
	CHECK(bind(listener, (void *)&any.name, any.length) == 0 && listen(listener, 4) == 0);
	place = name_of(listener);
	near = new_socket(old, SOCK_STREAM);
	CHECK(bind(near, (void *)&any.name, any.length) == 0);
	CHECK(connect(near, (void *)&place.name, place.length) == 0 && (far = accept(listener, NULL, NULL)) >= 0);
	CHECK(send(near, "early", 5, 0) == 5);
	CHECK(bind(bound, (void *)&any.name, any.length) == 0 && bind(sender, (void *)&any.name, any.length) == 0);
	post = name_of(bound);
	CHECK(connect(sender, (void *)&post.name, post.length) == 0 && send(sender, "waits", 5, 0) == 5);
	ready();
	await_check();

	place = name_of(listener);
	snprintf(host, sizeof host, "%s", host_of(&place));
	is_at(near, host, "the client"), is_at(far, host, "the server"), is_at(bound, host, "UDP"), is_at(sender, host, "the sender");
	place = peer_of(near);
	if (strcmp(host_of(&place), host)) fail("a connection leads to %s", host_of(&place));
	CHECK(recv(far, got, sizeof got, 0) == 5 && memcmp(got, "early", 5) == 0);
	CHECK(recv(bound, got, sizeof got, 0) == 5 && memcmp(got, "waits", 5) == 0);
	memset(got, 0, sizeof got);
	talks(near, far, "there"), talks(far, near, "back"), talks(sender, bound, "again");

	address first = at(old, port_of(&place));
	int late = new_socket(old, SOCK_STREAM), accepted;
	CHECK(connect(late, (void *)&first.name, first.length) == 0);
	struct pollfd wait = {listener, POLLIN, 0};
	if (poll(&wait, 1, 5000) != 1) fail("nobody comes to the listener");
	CHECK((accepted = accept(listener, NULL, NULL)) >= 0);
	talks(late, accepted, "late");
	int fresh = new_socket(old, SOCK_DGRAM);
	CHECK(bind(fresh, (void *)&any.name, any.length) == 0);
	is_at(fresh, host, "what is bound late");
	post = at(old, port_of(&post));
	CHECK(connect(fresh, (void *)&post.name, post.length) == 0);
	talks(fresh, bound, "fresh");
	pass();
}

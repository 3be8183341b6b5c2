/* Connections that are made late to addresses which the program has known all along: of listeners at one address and
   at all, over IPv4 and IPv6; blocking and not, by threads and by children. What is no such connection is as ever. */
#include "net.h"
#include <pthread.h>
#include <sys/un.h>

#define COUNT 6

static struct {
	const char *host, *from;   /* where it listens, and the client's name for that */
	int listener, early[2];
	address known;
} all[COUNT] = {
	{.host = "127.0.0.1", .from = "127.0.0.1"}, {.host = "::1", .from = "::1"},
	{.host = "0.0.0.0", .from = "127.0.0.1"}, {.host = "::", .from = "::1"},
	{.host = "::", .from = "127.0.0.1"}, {.host = "0.0.0.0", .from = "::ffff:127.0.0.1"},
};

static void talk(int client, int listener)
{
	int server = accept(listener, NULL, NULL);
	CHECK(server >= 0);
	say(client, "hello");
	hear(server, "hello");
	say(server, "well");
	hear(client, "well");
	close(server);
	close(client);
}

static int by_connect(int i, int flags)
{
	int fd = new_socket(all[i].from, SOCK_STREAM | flags);
	if (connect(fd, (void *)&all[i].known.name, all[i].known.length) != 0) {
		struct pollfd one = {fd, POLLOUT, 0};
		CHECK(flags & SOCK_NONBLOCK && errno == EINPROGRESS);
		CHECK(poll(&one, 1, 10000) == 1 && error_of(fd) == 0);
	}
	if (flags) CHECK(fcntl(fd, F_SETFL, 0) == 0);
	return fd;
}

static void *by_thread(void *argument)
{
	return (void *)(intptr_t)by_connect((int)(intptr_t)argument, 0);
}

static void connect_late(int i)
{
	pthread_t thread;
	void *result;
	int status;
	talk(by_connect(i, 0), all[i].listener);
	talk(by_connect(i, SOCK_NONBLOCK), all[i].listener);
	CHECK(pthread_create(&thread, NULL, by_thread, (void *)(intptr_t)i) == 0 && pthread_join(thread, &result) == 0);
	talk((int)(intptr_t)result, all[i].listener);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		talk(by_connect(i, 0), all[i].listener);
		pass();
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* A socket of its own keeps its options and flags. */
static void check_options(void)
{
	struct timeval limit = {7, 0}, seen;
	socklen_t length = sizeof seen;
	int fd = new_socket(all[0].from, SOCK_STREAM);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
	CHECK(connect(fd, (void *)&all[0].known.name, all[0].known.length) == 0);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &seen, &length) == 0 && seen.tv_sec == 7 && seen.tv_usec == 0);
	CHECK(fcntl(fd, F_GETFL) == O_RDWR);
	CHECK(connect(fd, (void *)&all[0].known.name, all[0].known.length) == -1 && errno == EISCONN);
	talk(fd, all[0].listener);
}

/* Calls that have nothing to do with it, and wrong ones. */
static void check_others(void)
{
	struct sockaddr_un name = {AF_UNIX, "late"};
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	int un = socket(AF_UNIX, SOCK_STREAM, 0), peer = socket(AF_UNIX, SOCK_STREAM, 0);
	unlink("late");
	CHECK(bind(un, (void *)&name, sizeof name) == 0 && listen(un, 1) == 0);
	CHECK(connect(peer, (void *)&name, sizeof name) == 0);
	talk(peer, un);
	int udp[2] = {bound("127.0.0.1", SOCK_DGRAM), new_socket("127.0.0.1", SOCK_DGRAM)};
	address to = name_of(udp[0]);
	CHECK(connect(udp[1], (void *)&to.name, to.length) == 0);
	say(udp[1], "datagram");
	hear(udp[0], "datagram");
	to = at("127.0.0.1", port_of(&all[0].known));   /* of UDP, the port is another one */
	CHECK(connect(udp[1], (void *)&to.name, to.length) == 0);
	to = peer_of(udp[1]);
	CHECK(port_of(&to) == port_of(&all[0].known));
	int fd = bound("127.0.0.1", SOCK_STREAM), client = new_socket("127.0.0.1", SOCK_STREAM);
	to = name_of(fd);
	CHECK(connect(client, (void *)&to.name, to.length) == -1 && errno == ECONNREFUSED);
	CHECK(connect(client, (void *)8, sizeof(struct sockaddr_in)) == -1 && errno == EFAULT);
	CHECK(connect(client, (void *)&to.name, 5) == -1 && errno == EINVAL);
	CHECK(connect(999, (void *)&all[0].known.name, all[0].known.length) == -1 && errno == EBADF);
	CHECK(connect(1, (void *)&all[0].known.name, all[0].known.length) == -1 && errno == ENOTSOCK);
	CHECK(connect(client, (void *)&all[1].known.name, all[1].known.length) == -1 && errno == EAFNOSUPPORT);
	CHECK(connect(client, &none, sizeof none) == 0);
}

int main(void)
{
	start();
	for (int i = 0; i < COUNT; i++) {
		all[i].listener = listening(all[i].host, 5);
		address name = name_of(all[i].listener);
		all[i].known = at(all[i].from, port_of(&name));
		connection(all[i].listener, all[i].from, all[i].early);
	}
	ready();
	await_check();
	for (int i = 0; i < COUNT; i++) {
		say(all[i].early[0], "early");
		hear(all[i].early[1], "early");
		connect_late(i);
	}
	check_options();
	check_others();
	pass();
}

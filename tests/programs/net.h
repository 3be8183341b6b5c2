/* For programs with internet sockets: addresses, and connections within one process. */
#ifndef NET_H
#define NET_H
#include "program.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

typedef struct {
	struct sockaddr_storage name;
	socklen_t length;
} address;

/* host is "127.0.0.1", "::1", "::ffff:127.0.0.1" or the like. */
static inline address at(const char *host, unsigned port)
{
	address a = {.length = 0};
	struct sockaddr_in *four = (void *)&a.name;
	struct sockaddr_in6 *six = (void *)&a.name;
	if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		a.length = sizeof *four;
	} else {
		CHECK(inet_pton(AF_INET6, host, &six->sin6_addr) == 1);
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		a.length = sizeof *six;
	}
	return a;
}

static inline unsigned port_of(const address *a)
{
	return ntohs(((struct sockaddr_in *)&a->name)->sin_port);
}

static inline const char *host_of(const address *a)
{
	static char text[4][INET6_ADDRSTRLEN];
	static unsigned turn;
	char *into = text[turn++ % 4];
	const void *from = a->name.ss_family == AF_INET ? (void *)&((struct sockaddr_in *)&a->name)->sin_addr
							: (void *)&((struct sockaddr_in6 *)&a->name)->sin6_addr;
	CHECK(inet_ntop(a->name.ss_family, from, into, INET6_ADDRSTRLEN));
	return into;
}

static inline address name_of(int fd)
{
	address a = {.length = sizeof a.name};
	CHECK(getsockname(fd, (void *)&a.name, &a.length) == 0);
	return a;
}

static inline address peer_of(int fd)
{
	address a = {.length = sizeof a.name};
	CHECK(getpeername(fd, (void *)&a.name, &a.length) == 0);
	return a;
}

static inline int same(const address *a, const address *b)
{
	return port_of(a) == port_of(b) && strcmp(host_of(a), host_of(b)) == 0;
}

static inline int new_socket(const char *host, int type)
{
	int fd = socket(strchr(host, ':') ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);
	CHECK(fd >= 0);
	return fd;
}

static inline int bound(const char *host, int type)
{
	int fd = new_socket(host, type);
	address a = at(host, 0);
	CHECK(bind(fd, (void *)&a.name, a.length) == 0);
	return fd;
}

static inline int listening(const char *host, int backlog)
{
	int fd = bound(host, SOCK_STREAM);
	CHECK(listen(fd, backlog) == 0);
	return fd;
}

/* A client's end; host is the listener's address as the client writes it. */
static inline int connected_to(int listener, const char *host)
{
	address name = name_of(listener), to = at(host, port_of(&name));
	int fd = new_socket(host, SOCK_STREAM);
	CHECK(connect(fd, (void *)&to.name, to.length) == 0);
	return fd;
}

static inline void connection(int listener, const char *host, int ends[2])
{
	ends[0] = connected_to(listener, host);
	ends[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	CHECK(ends[1] >= 0);
}

static inline int queued(int fd)
{
	int count = -1;
	CHECK(ioctl(fd, SIOCINQ, &count) == 0);
	return count;
}

static inline void await_queued(int fd, int count)
{
	for (int i = 0; queued(fd) != count; i++) {
		if (i == 20000) fail("%d bytes wait, not %d", queued(fd), count);
		usleep(500);
	}
}

/* Until the other end has said that it has all. */
static inline void await_acknowledged(int fd)
{
	int count = -1;
	for (int i = 0; i < 20000 && count != 0; i++) {
		CHECK(ioctl(fd, SIOCOUTQ, &count) == 0);
		if (count) usleep(500);
	}
	CHECK(count == 0);
}

static inline int state_of(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof info;
	CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
	return info.tcpi_state;
}

static inline void await_state(int fd, int state)
{
	for (int i = 0; state_of(fd) != state; i++) {
		if (i == 20000) fail("state %d, not %d", state_of(fd), state);
		usleep(500);
	}
}

static inline int events_of(int fd)
{
	struct pollfd one = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
	CHECK(poll(&one, 1, 0) >= 0);
	return one.revents;
}

static inline int error_of(int fd)
{
	int number = -1;
	socklen_t length = sizeof number;
	CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &number, &length) == 0);
	return number;
}

static inline void say(int fd, const char *text)
{
	CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

/* Exactly this comes, however it is cut. */
static inline void hear(int fd, const char *text)
{
	char got[256];
	size_t have = 0, want = strlen(text);
	while (have < want) {
		ssize_t n = recv(fd, got + have, want - have, 0);
		if (n <= 0) fail("of \"%s\" %zu bytes came, then %zd", text, have, n);
		have += n;
	}
	if (memcmp(got, text, want)) fail("\"%.*s\" came, not \"%s\"", (int)want, got, text);
}

static inline void hear_end(int fd)
{
	char byte;
	ssize_t n = recv(fd, &byte, 1, 0);
	if (n != 0) fail("%zd instead of the end of the stream", n);
}

/* An address of the machine's own that other machines could reach; else another one of loopback's. */
static inline const char *own_address(void)
{
	static char text[INET6_ADDRSTRLEN] = "127.0.0.2";
	struct ifaddrs *all, *one;
	CHECK(getifaddrs(&all) == 0);
	for (one = all; one; one = one->ifa_next)
		if (one->ifa_addr && one->ifa_addr->sa_family == AF_INET && !(one->ifa_flags & IFF_LOOPBACK)
		    && one->ifa_flags & IFF_UP) {
			inet_ntop(AF_INET, &((struct sockaddr_in *)one->ifa_addr)->sin_addr, text, sizeof text);
			break;
		}
	freeifaddrs(all);
	return text;
}

static inline void set_option(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof value) != 0) fail("option %d of level %d", name, level);
}

static inline int option(int fd, int level, int name)
{
	int value = 0;
	socklen_t length = sizeof value;
	if (getsockopt(fd, level, name, &value, &length) != 0) fail("option %d of level %d", name, level);
	return value;
}
#endif

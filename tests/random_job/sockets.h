/* Sockets: pairs, listeners that all actors can connect to, connections, messages with descriptors. */
#ifndef SOCKETS_H
#define SOCKETS_H
#include "descriptors.h"
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

union name { struct sockaddr any; struct sockaddr_un un; struct sockaddr_in in; struct sockaddr_in6 in6; };

static socklen_t unix_name(union name *name, int number)
{
	memset(name, 0, sizeof *name);
	name->un.sun_family = AF_UNIX;
	if (number & 1) return offsetof(struct sockaddr_un, sun_path) + 1 + sprintf(name->un.sun_path + 1, "random_job-%x-%d", job_number, number);
	return offsetof(struct sockaddr_un, sun_path) + 1 + sprintf(name->un.sun_path, "u%d", number);
}

static socklen_t loopback(union name *name, int family, int port)
{
	memset(name, 0, sizeof *name);
	name->any.sa_family = family;
	if (family == AF_INET) return name->in.sin_port = port, name->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK), sizeof name->in;
	name->in6.sin6_port = port, name->in6.sin6_addr = in6addr_loopback;
	return sizeof name->in6;
}

static int port_of(union name *name) { return name->any.sa_family == AF_INET ? name->in.sin_port : name->in6.sin6_port; }

static int option_of(int fd, int name)
{
	int value = -1;
	socklen_t size = sizeof value;
	getsockopt(fd, SOL_SOCKET, name, &value, &size);
	return value;
}

static int is_tcp(int fd) { int family = option_of(fd, SO_DOMAIN); return (family == AF_INET || family == AF_INET6) && option_of(fd, SO_TYPE) == SOCK_STREAM; }

/* What was written so far from one end of a TCP connection to the other. */
static struct stream *stream_of(int fd, int incoming)
{
	union name mine = {0}, other = {0};
	socklen_t a = sizeof mine, b = sizeof other;
	unsigned from, to;
	if (getsockname(fd, &mine.any, &a) || getpeername(fd, &other.any, &b)) return NULL;
	from = port_of(incoming ? &other : &mine), to = port_of(incoming ? &mine : &other);
	for (int i = 0; i < shared->streams; i++)
		if (shared->stream[i].from == from && shared->stream[i].to == to) return &shared->stream[i];
	if (shared->streams == STREAMS) return NULL;
	shared->stream[shared->streams] = (struct stream){from, to, 0};
	return &shared->stream[shared->streams++];
}

static void make_place(int a, int b, int c)
{
	static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_UNIX}, unix_types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
	struct place *p = &shared->place[shared->places];
	int family = families[a % 4], type = family == AF_UNIX ? unix_types[b % 3] : unix_types[b % 2], fd = socket(family, type, 0);
	union name name;
	socklen_t size = family == AF_UNIX ? unix_name(&name, shared->places) : loopback(&name, family, 0);
	if (fd < 0 || shared->places == PLACES) { if (fd >= 0) close(fd); return; }
	if (b & 64) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(fd, &name.any, size)) { close(fd); return; }
	if (type != SOCK_DGRAM && (b & 128) == 0) listen(fd, 1 + b % 8);
	size = sizeof name;
	getsockname(fd, &name.any, &size);
	*p = (struct place){family, type, family == AF_UNIX ? 0 : port_of(&name), shared->places};
	shared->places++;
	put(fd, c);
}

static void connect_to_place(int a, int b, int c)
{
	struct place *p = shared->places ? &shared->place[a % shared->places] : NULL;
	union name name;
	socklen_t size;
	int fd;
	if (!p) return;
	size = p->family == AF_UNIX ? unix_name(&name, p->number) : loopback(&name, p->family, p->port);
	fd = socket(p->family, p->type | SOCK_NONBLOCK, 0);
	if (b & 1 && p->family == AF_UNIX) bind(fd, &name.any, sizeof(sa_family_t));   /* autobound */
	if (b & 2 && p->type == SOCK_DGRAM) sendto(fd, "to whom it concerns", b % 19 + 1, MSG_NOSIGNAL, &name.any, size);
	if (!(b & 2) && connect(fd, &name.any, size) && errno != EINPROGRESS && p->type != SOCK_DGRAM && b & 32) { close(fd); return; }
	if (b & 4) fcntl(fd, F_SETFL, 0);
	put(fd, c);
	usleep(1000);
}

static void send_some(int fd, int size, int carried)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {data, size_of(size)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	struct stream *stream = is_tcp(fd) ? stream_of(fd, 0) : NULL;
	ssize_t sent;
	fill(data, size_of(size), step_number);
	if (option_of(fd, SO_TYPE) != SOCK_STREAM && size > 200) part.iov_len = 2000 + size;
	if (carried >= 0) {
		message.msg_control = control, message.msg_controllen = sizeof control;
		*CMSG_FIRSTHDR(&message) = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &carried, sizeof carried);
	}
	sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent > 0 && stream) stream->sent += sent;
	usleep(500);
}

static void receive_some(int fd, int size)
{
	ssize_t got = recv(fd, data, size_of(size), MSG_DONTWAIT);
	struct stream *stream = got > 0 && is_tcp(fd) ? stream_of(fd, 1) : NULL;
	if (stream) stream->sent -= got;
}

static void set_some_option(int fd, int b, int c)
{
	static const int names[] = {SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_PASSCRED, SO_PRIORITY, SO_REUSEADDR, SO_RCVLOWAT, SO_OOBINLINE, SO_TIMESTAMP, SO_MARK};
	int name = names[b % 10], value = name == SO_SNDBUF || name == SO_RCVBUF ? 4096 + c * 300 : name == SO_RCVLOWAT ? 1 : c % 2;
	if (b >= 128 && is_tcp(fd)) setsockopt(fd, IPPROTO_TCP, (const int[]){TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPCNT, TCP_USER_TIMEOUT}[b % 4], &(int){1 + c % 100 * (b % 4 > 0)}, sizeof(int));
	else if (b >= 120) setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){c & 1, c}, sizeof(struct linger));
	else setsockopt(fd, SOL_SOCKET, name, &value, sizeof value);
}

static int nth_socket(int number)
{
	int found[LAST], n = 0;
	for (int fd = FIRST; fd < LAST; fd++) if (fcntl(fd, F_GETFD) >= 0 && is(fd, "socket:")) found[n++] = fd;
	return n ? found[number % n] : -1;
}

static int socket_step(int letter, int a, int b, int c)
{
	int ends[2], fd = nth_socket(a);
	switch (letter) {
	case 'u':
		if (socketpair(AF_UNIX, (const int[]){SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}[a % 3] | (b & 1 ? SOCK_NONBLOCK : 0), 0, ends)) break;
		if (b & 2) send_some(ends[0], b, -1);
		put(ends[0], c);
		put(ends[1], c ^ 3);
		break;
	case 'B': make_place(a, b, c); break;
	case 'n': connect_to_place(a, b, c); break;
	case 'a': if (fd >= 0 && option_of(fd, SO_ACCEPTCONN) == 1) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); put(accept(fd, NULL, NULL), c); } break;
	case 's': if (fd >= 0) send_some(fd, b, -1); break;
	case 'R': if (fd >= 0) send_some(fd, c, nth_fd(b)); break;
	case 'q': if (fd >= 0) receive_some(fd, b); break;
	case 'h': if (fd >= 0 && (!is_tcp(fd) || stream_of(fd, 0))) shutdown(fd, b % 3), usleep(1000); break;
	case 'O': if (fd >= 0) set_some_option(fd, b, c); break;
	default: return 0;
	}
	return 1;
}
#endif

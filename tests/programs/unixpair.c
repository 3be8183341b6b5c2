/* Pairs of unix sockets of each type: data on its way in both directions, directions that are closed, peers that are
   gone with data left or with data unread, a full one with a writer that waits, options, a place to peek from. */
#include "family.h"
#include <sys/socket.h>
#include <poll.h>

static const int types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
static int both[3][2], half[3][2], other_half[3][2], gone[3][2], reset[2], full[2], far_end[2];
static size_t filled;

static void put(int fd, const void *data, size_t size) { CHECK(send(fd, data, size, MSG_NOSIGNAL) == (ssize_t)size); }

static void get(int fd, const void *data, size_t size)
{
	char buffer[5000];
	ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
	if (got != (ssize_t)size) fail("%zd bytes instead of %zu", got, size);
	CHECK(memcmp(buffer, data, size) == 0);
}

static void nothing(int fd)
{
	char buffer[1];
	CHECK(recv(fd, buffer, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static void end_of_file(int fd)
{
	char buffer[1];
	CHECK(recv(fd, buffer, 1, MSG_DONTWAIT) == 0);
}

static void child_body(void)
{
	char buffer[100];
	CHECK(close(far_end[0]) == 0 && close(full[0]) == 0);
	put(far_end[1], "from the child", 14);
	await_check();
	CHECK(recv(far_end[1], buffer, 100, 0) == 15 && memcmp(buffer, "from the parent", 15) == 0);
	for (size_t i = 0, got; i < filled; i += got) {
		unsigned char part[1000];
		got = recv(full[1], part, sizeof part < filled - i ? sizeof part : filled - i, 0);
		CHECK((ssize_t)got > 0);
		for (size_t k = 0; k < got; k++) CHECK(part[k] == pattern(9, i + k));
	}
	put(far_end[1], "all", 3);
	pass();
}

int main(void)
{
	int size = 30000, value, peek = 3, sizes[2];
	unsigned char big[4000];
	char buffer[100];
	socklen_t length = sizeof value;
	struct linger linger = {1, 7}, got_linger;
	struct pollfd poll_fd;
	pid_t pid;
	start();
	family();
	fill(big, sizeof big, 4);
	for (int i = 0; i < 3; i++) {
		CHECK(socketpair(AF_UNIX, types[i], 0, both[i]) == 0);
		put(both[i][0], "one", 3);
		put(both[i][0], "three", 5);
		put(both[i][0], big, sizeof big);
		put(both[i][1], "back", 4);
		CHECK(socketpair(AF_UNIX, types[i], 0, half[i]) == 0);
		put(half[i][0], "last", 4);
		put(half[i][1], "still open", 10);
		CHECK(shutdown(half[i][0], SHUT_WR) == 0);
		CHECK(socketpair(AF_UNIX, types[i], 0, other_half[i]) == 0);
		CHECK(shutdown(other_half[i][0], SHUT_RD) == 0);
		put(other_half[i][0], "outwards", 8);
		CHECK(socketpair(AF_UNIX, types[i], 0, gone[i]) == 0);
		put(gone[i][1], "testament", 9);
		put(gone[i][1], "and more", 8);
		CHECK(close(gone[i][1]) == 0);
	}
	/* the peer closed without reading what it was sent */
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, reset) == 0);
	put(reset[0], "unread", 6);
	CHECK(close(reset[1]) == 0);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, full) == 0);
	while (1) {
		unsigned char part[777];
		for (size_t k = 0; k < sizeof part; k++) part[k] = pattern(9, filled + k);
		ssize_t done = send(full[0], part, sizeof part, MSG_DONTWAIT);
		if (done < 0) break;
		filled += done;
	}
	CHECK(setsockopt(both[0][0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
	CHECK(setsockopt(both[0][1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
	CHECK(setsockopt(both[0][1], SOL_SOCKET, SO_PEEK_OFF, &peek, sizeof peek) == 0);
	length = sizeof value;
	CHECK(getsockopt(both[0][0], SOL_SOCKET, SO_SNDBUF, &sizes[0], &length) == 0);
	CHECK(getsockopt(both[0][1], SOL_SOCKET, SO_SNDBUF, &sizes[1], &length) == 0);
	CHECK(fcntl(both[1][0], F_SETFL, O_NONBLOCK) == 0);

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, far_end) == 0);
	put(far_end[0], "from the parent", 15);
	pid = child(child_body);
	CHECK(close(far_end[1]) == 0 && close(full[1]) == 0);
	poll_fd = (struct pollfd){far_end[0], POLLIN, 0};
	CHECK(poll(&poll_fd, 1, 10000) == 1);
	ready();
	await_check();
	length = sizeof value;
	CHECK(getsockopt(both[0][1], SOL_SOCKET, SO_PEEK_OFF, &value, &length) == 0 && value == 3);
	CHECK(recv(both[0][1], buffer, 5, MSG_PEEK) == 5 && memcmp(buffer, "three", 5) == 0);
	value = -1;
	CHECK(setsockopt(both[0][1], SOL_SOCKET, SO_PEEK_OFF, &value, sizeof value) == 0);
	CHECK(getsockopt(both[0][0], SOL_SOCKET, SO_SNDBUF, &value, &length) == 0 && value == sizes[0]);
	CHECK(getsockopt(both[0][1], SOL_SOCKET, SO_SNDBUF, &value, &length) == 0 && value == sizes[1]);
	length = sizeof got_linger;
	CHECK(getsockopt(both[0][1], SOL_SOCKET, SO_LINGER, &got_linger, &length) == 0 && got_linger.l_linger == 7);
	CHECK(fcntl(both[1][0], F_GETFL) & O_NONBLOCK);
	for (int i = 0; i < 3; i++) {
		length = sizeof value;
		CHECK(getsockopt(both[i][0], SOL_SOCKET, SO_TYPE, &value, &length) == 0 && value == types[i]);
		if (i == 0) {
			CHECK(recv(both[i][1], buffer, 8, MSG_DONTWAIT) == 8 && memcmp(buffer, "onethree", 8) == 0);
		} else {
			get(both[i][1], "one", 3);
			get(both[i][1], "three", 5);
		}
		get(both[i][1], big, sizeof big);
		nothing(both[i][1]);
		get(both[i][0], "back", 4);
		nothing(both[i][0]);
		put(both[i][0], "again", 5);
		get(both[i][1], "again", 5);

		get(half[i][1], "last", 4);
		if (i != 1) end_of_file(half[i][1]);
		CHECK(send(half[i][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
		get(half[i][0], "still open", 10);
		put(half[i][1], "to", 2);
		get(half[i][0], "to", 2);
		nothing(half[i][0]);

		CHECK(send(other_half[i][1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
		get(other_half[i][1], "outwards", 8);
		put(other_half[i][0], "more", 4);
		get(other_half[i][1], "more", 4);

		if (i == 0) {
			get(gone[i][0], "testamentand more", 17);
		} else {
			get(gone[i][0], "testament", 9);
			get(gone[i][0], "and more", 8);
		}
		if (i == 1) {
			CHECK(send(gone[i][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED);
		} else {
			end_of_file(gone[i][0]);
			CHECK(send(gone[i][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
		}
	}
	CHECK(recv(reset[0], buffer, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET);
	end_of_file(reset[0]);

	get(far_end[0], "from the child", 14);
	CHECK(kill(pid, SIGTERM) == 0);
	poll_fd.revents = 0;
	CHECK(poll(&poll_fd, 1, 10000) == 1);
	get(far_end[0], "all", 3);
	CHECK(waitpid(pid, &value, 0) == pid && value == 0);
	pass();
}

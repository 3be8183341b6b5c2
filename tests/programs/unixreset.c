/* Ends of unix connections whose other ends were closed with something unread in them. Of a stream, what has come is read
   first, then there is ECONNRESET once, then the end. */
#include "program.h"
#include <sys/socket.h>

static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};

static int error_of(int fd)
{
	int error = -1;
	socklen_t length = sizeof error;
	CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0);
	return error;
}

int main(void)
{
	int ends[4][2];
	char text[20];
	start();
	for (int i = 0; i < 4; i++) {
		CHECK(socketpair(AF_UNIX, types[i % 2], 0, ends[i]) == 0);
		if (i == 0) CHECK(send(ends[i][1], "farewell", 8, 0) == 8);
		CHECK(send(ends[i][0], "to nobody", 9, 0) == 9 && close(ends[i][1]) == 0);
	}
	ready();
	await_check();
	for (int i = 0; i < 4; i++) {
		if (i == 0) CHECK(recv(ends[i][0], text, sizeof text, 0) == 8 && memcmp(text, "farewell", 8) == 0);
		errno = 0;
		CHECK(recv(ends[i][0], text, sizeof text, 0) == -1 && errno == ECONNRESET);
		CHECK(recv(ends[i][0], text, sizeof text, 0) == 0 && error_of(ends[i][0]) == 0);
		CHECK(send(ends[i][0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	}
	pass();
}

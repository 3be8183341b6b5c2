/* Descriptors that lie in a stream behind more bytes than a read takes, and before more: they come with the first byte
   that they were sent with, not before. */
#include "program.h"
#include <sys/socket.h>

#define BEFORE 100000
#define WITH 5000
#define BEHIND 3000
static char data[BEFORE];

/* Read so many bytes, a few at a time; where a descriptor comes, counted from the first. */
static long read_on(int fd, long size)
{
	long at = 0, found = -1;
	while (at < size) {
		char some[50], control[CMSG_SPACE(sizeof(int))];
		struct iovec part = {some, size - at < 50 ? size - at : 50};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
		ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
		CHECK(got > 0);
		for (int i = 0; i < got; i++) CHECK(some[i] == data[at + i]);
		if (message.msg_controllen && found >= 0) fail("a descriptor at %ld, and another at %ld", found, at);
		if (message.msg_controllen) found = at;
		at += got;
	}
	return found;
}

int main(void)
{
	int ends[2], size = 1 << 20;
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {data, WITH};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	start();
	fill(data, sizeof data, 1);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0);
	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &ends[0], sizeof(int));
	CHECK(send(ends[0], data, BEFORE, MSG_DONTWAIT) == BEFORE && sendmsg(ends[0], &message, MSG_DONTWAIT) == WITH);
	CHECK(send(ends[0], data, BEHIND, MSG_DONTWAIT) == BEHIND);
	ready();
	await_check();
	CHECK(read_on(ends[1], BEFORE) == -1 && read_on(ends[1], WITH) == 0 && read_on(ends[1], BEHIND) == -1);
	CHECK(recv(ends[1], data, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	pass();
}

/* sendmsg(2) with a descriptor along, to a full unix socket, and recvmsg(2) of an exact length over TCP: interrupted
   half-way, each must return the whole count, the descriptor must arrive once, and the headers must be untouched. */
#include "program.h"
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define SIZE (2 << 20)
static int unix_pair[2], tcp[2];
static char *content, *room;

static void *send_message(void *argument)
{
	union { char raw[CMSG_SPACE(sizeof(int))]; struct cmsghdr head; } control = {.raw = {0}};
	struct iovec parts[3] = {{content, 10}, {content + 10, SIZE - 20}, {content + SIZE - 10, 10}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3, .msg_control = &control, .msg_controllen = sizeof control};
	struct msghdr same = message;
	control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(&control.head), &tcp[0], sizeof(int));
	ssize_t sent = sendmsg(unix_pair[1], &message, 0);
	if (sent != SIZE) fail("%zd of %d bytes sent", sent, SIZE);
	CHECK(memcmp(&message, &same, sizeof same) == 0);
	CHECK(parts[0].iov_base == content && parts[1].iov_len == SIZE - 20 && parts[2].iov_len == 10);
	return argument;
}

static void *receive_message(void *argument)
{
	struct iovec parts[2] = {{room, 70000}, {room + 70000, SIZE - 70000}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t got = recvmsg(tcp[0], &message, MSG_WAITALL);
	if (got != SIZE) fail("%zd of %d bytes received", got, SIZE);
	CHECK(message.msg_iov == parts && message.msg_iovlen == 2);
	CHECK(parts[0].iov_len == 70000 && parts[1].iov_base == room + 70000);
	check_filled(room, SIZE, 3, "what was received");
	return argument;
}

static void connect_tcp(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	tcp[1] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
	CHECK(connect(tcp[1], (struct sockaddr *)&address, size) == 0 && (tcp[0] = accept(listener, NULL, NULL)) >= 0);
	close(listener);
}

int main(void)
{
	union { char raw[CMSG_SPACE(8 * sizeof(int))]; struct cmsghdr head; } control;
	char *other = malloc(SIZE);
	pthread_t threads[2];
	int fds = 0;
	start();
	content = malloc(SIZE);
	room = malloc(SIZE);
	fill(content, SIZE, 3);
	connect_tcp();
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair) == 0);
	CHECK(pthread_create(&threads[0], NULL, send_message, NULL) == 0);
	CHECK(pthread_create(&threads[1], NULL, receive_message, NULL) == 0);
	usleep(20000);
	CHECK(write(tcp[1], content, 100000) == 100000);
	usleep(50000);
	ready();
	await_check();
	CHECK(write(tcp[1], content + 100000, SIZE - 100000) == SIZE - 100000);
	CHECK(pthread_join(threads[1], NULL) == 0);
	for (size_t done = 0; done < SIZE;) {
		struct iovec part = {other + done, SIZE - done};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
		ssize_t n = recvmsg(unix_pair[0], &message, 0);
		CHECK(n > 0 && !(message.msg_flags & MSG_CTRUNC));
		done += n;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) fds++;
	}
	CHECK(fds == 1);
	check_filled(other, SIZE, 3, "what came through a socket");
	CHECK(pthread_join(threads[0], NULL) == 0);
	pass();
}

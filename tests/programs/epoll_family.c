/* An instance that a family shares: its targets are open in one process only, here or there, or in a message that nobody
   has read; one instance is itself only in a message. A child waits. */
#include "family.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static int epoll, mine, yours, pair[2], number;

static void watch(int instance, int fd, uint64_t data)
{
	struct epoll_event event = {EPOLLIN, {.u64 = data}};
	CHECK(epoll_ctl(instance, EPOLL_CTL_ADD, fd, &event) == 0);
}

static uint64_t told(int instance, int patience)
{
	struct epoll_event event;
	int n = epoll_wait(instance, &event, 1, patience);
	CHECK(n >= 0);
	return n ? event.data.u64 : 0;
}

static void send_fd(int fd)
{
	char control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec byte = {"x", 1};
	struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
	CHECK(sendmsg(pair[0], &message, 0) == 1 && close(fd) == 0);
}

static int receive_fd(void)
{
	char control[CMSG_SPACE(sizeof(int))], data;
	struct iovec byte = {&data, 1};
	struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	int fd;
	CHECK(recvmsg(pair[1], &message, 0) == 1 && CMSG_FIRSTHDR(&message) != NULL);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static void child_body(void)
{
	int theirs = eventfd(0, EFD_NONBLOCK);
	uint64_t one = 1;
	close(mine);
	CHECK(yours == number);
	watch(epoll, theirs, 3);
	reach(1);
	while (told(epoll, -1) != 2) {}   /* waits in the kernel over the checkpoint */
	CHECK(read(yours, &one, 8) == 8 && write(theirs, &one, 8) == 8);
	reach(2);
	await_check();
	pass();
}

int main(void)
{
	uint64_t one = 1, value;
	int sent, only_sent, in_it, elsewhere;
	pid_t pid;
	start();
	family();
	epoll = epoll_create1(0);
	mine = eventfd(0, EFD_NONBLOCK);
	yours = number = eventfd(0, EFD_NONBLOCK);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	watch(epoll, mine, 1);
	watch(epoll, yours, 2);
	pid = child(child_body);
	await_step(1);
	/* here it has another number, and its old one is another file's */
	CHECK((elsewhere = fcntl(yours, F_DUPFD, 70)) >= 70 && dup2(mine, number) == number);
	sent = eventfd(0, EFD_NONBLOCK);
	watch(epoll, sent, 4);
	send_fd(sent);
	only_sent = epoll_create1(0);
	in_it = eventfd(0, EFD_NONBLOCK);
	watch(only_sent, in_it, 5);
	send_fd(only_sent);
	ready();
	await_check();
	CHECK(told(epoll, 0) == 0);
	CHECK(write(mine, &one, 8) == 8 && told(epoll, 0) == 1 && read(number, &value, 8) == 8 && value == 1);
	sent = receive_fd();
	CHECK(told(epoll, 0) == 0 && write(sent, &one, 8) == 8 && told(epoll, 0) == 4 && read(sent, &value, 8) == 8);
	only_sent = receive_fd();
	CHECK(told(only_sent, 0) == 0 && write(in_it, &one, 8) == 8 && told(only_sent, 0) == 5);
	CHECK(write(elsewhere, &one, 8) == 8);
	await_step(2);
	CHECK(told(epoll, 0) == 3);   /* of a file that the child alone has */
	check_child(pid);
	pass();
}

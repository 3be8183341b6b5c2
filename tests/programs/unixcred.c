/* Who is at the other end (SO_PEERCRED) of pairs, clients and servers in several processes, and who has sent what is not
   read yet (SO_PASSCRED). */
#include "family.h"
#include <sys/socket.h>
#include <stddef.h>
#include <sys/un.h>

static int listener, pair[2], stream[2], packets[2];
static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "cred"};

static pid_t peer_of(int fd)
{
	struct ucred cred;
	socklen_t length = sizeof cred;
	CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) == 0);
	CHECK(cred.uid == geteuid() && cred.gid == getegid());
	return cred.pid;
}

static void comes(int fd, const char *text, pid_t from)
{
	char buffer[100] = "", control[CMSG_SPACE(sizeof(struct ucred))];
	struct iovec iov = {buffer, strlen(text)};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct ucred cred;
	CHECK(recvmsg(fd, &message, MSG_DONTWAIT) == (ssize_t)strlen(text) && strcmp(buffer, text) == 0);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	CHECK(header && header->cmsg_type == SCM_CREDENTIALS);
	memcpy(&cred, CMSG_DATA(header), sizeof cred);
	if (cred.pid != from) fail("'%s' comes from %d, not from %d", text, cred.pid, from);
	CHECK(cred.uid == geteuid() && cred.gid == getegid());
}

static int connected(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
	return fd;
}

static void child_body(void)
{
	int fd = connected();
	CHECK(send(stream[1], "child's", 7, 0) == 7 && send(packets[1], "child's", 7, 0) == 7);
	reach(1);
	await_check();
	CHECK(peer_of(fd) == getppid() && peer_of(pair[1]) == getppid());
	CHECK(send(stream[1], "anew", 4, 0) == 4);
	pass();
}

static void passing_body(void)
{
	CHECK(send(packets[1], "of the gone", 11, 0) == 11);
	pass();
}

int main(void)
{
	int one = 1, mine, served, served_own, value;
	socklen_t length = sizeof value;
	pid_t pid;
	start();
	family();
	unlink("cred");
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 5) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, packets) == 0);
	CHECK(setsockopt(stream[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
	CHECK(setsockopt(packets[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
	CHECK(send(stream[1], "parent's", 8, 0) == 8 && send(packets[1], "parent's", 8, 0) == 8);
	pid = child(child_body);
	await_step(1);
	served = accept(listener, NULL, NULL);
	mine = connected();
	served_own = accept(listener, NULL, NULL);
	CHECK(served >= 0 && served_own >= 0);
	CHECK(send(stream[1], "parent's again", 14, 0) == 14);
	ready();
	await_check();
	CHECK(peer_of(served) == pid && peer_of(served_own) == getpid() && peer_of(mine) == getpid());
	CHECK(peer_of(pair[0]) == getpid() && peer_of(pair[1]) == getpid() && peer_of(listener) == getpid());
	CHECK(getsockopt(stream[0], SOL_SOCKET, SO_PASSCRED, &value, &length) == 0 && value == 1);
	CHECK(getsockopt(stream[1], SOL_SOCKET, SO_PASSCRED, &value, &length) == 0 && value == 0);
	comes(stream[0], "parent's", getpid());
	comes(stream[0], "child's", pid);
	comes(stream[0], "parent's again", getpid());
	comes(packets[0], "parent's", getpid());
	comes(packets[0], "child's", pid);
	check_child(pid);
	comes(stream[0], "anew", pid);
	pid = child(passing_body);
	CHECK(waitpid(pid, &value, 0) == pid && value == 0);
	comes(packets[0], "of the gone", pid);
	pass();
}

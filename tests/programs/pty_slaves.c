/* States of the slave's side: never opened, with input waiting; closed, with output waiting that is followed by EIO;
   opened several times with flags of their own, by path and through the master; a file that is on its way in a
   message; masters opened by both of their names. */
#include "terminal.h"
#include <sys/socket.h>

static void send_fd(int sock, int fd)
{
	union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
	struct iovec data = {.iov_base = (char[]){'x'}, .iov_len = 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	CHECK(sendmsg(sock, &message, 0) == 1);
}

static int received_fd(int sock)
{
	union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
	char byte;
	struct iovec data = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int fd;
	CHECK(recvmsg(sock, &message, 0) == 1 && CMSG_FIRSTHDR(&message) != NULL);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

int main(void)
{
	int pair[2], one = 1, zero = 0, locked;
	char byte, name[64], link[64], first[64];
	start();
	int fresh = open_master(), closed = open_master(), many = open_master(), flying = open_master();
	int untouched = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);   /* locked, as it is at first */
	if (untouched < 0) untouched = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);   /* outside a pod it may be closed */
	CHECK(untouched >= 0);
	snprintf(name, sizeof name, "/proc/self/fd/%d", untouched);
	ssize_t length = readlink(name, first, sizeof first);
	say(fresh, "early\nbird");
	say(untouched, "waits\n");
	int gone = open_slave(closed, O_RDWR);
	say(gone, "last words\n");
	say(closed, "never read\n");
	CHECK(close(gone) == 0 && ioctl(closed, TIOCSPTLCK, &one) == 0);
	int reader = open_slave(many, O_RDONLY | O_NONBLOCK), writer = open_slave(many, O_WRONLY | O_APPEND);
	int peer = ioctl(many, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_ASYNC);
	CHECK(peer >= 0);
	say(many, "shared\n");
	while (!(events(many) & POLLIN)) usleep(500);   /* its echo */
	say(writer, "out\n");
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	int lone = open_slave(flying, O_RDWR);
	say(lone, "under way\n");
	say(flying, "to be read\n");
	send_fd(pair[0], lone);
	CHECK(close(lone) == 0);
	ready();
	await_check();

	CHECK(!(events(fresh) & POLLHUP) && !(events(untouched) & POLLHUP));
	CHECK(ioctl(untouched, TIOCGPTLCK, &locked) == 0 && locked && ioctl(untouched, TIOCSPTLCK, &zero) == 0);
	EXPECT_ALL(fresh, "early\r\nbird");
	EXPECT_NONE(fresh);
	int slave = open_slave(fresh, O_RDWR);
	EXPECT(slave, "early\n");
	EXPECT_NONE(slave);
	CHECK(close(slave) == 0 && events(fresh) & POLLHUP);
	slave = open_slave(untouched, O_RDWR);
	EXPECT(slave, "waits\n");

	CHECK(events(closed) & POLLHUP);
	EXPECT_ALL(closed, "last words\r\nnever read\r\n");
	CHECK(read(closed, &byte, 1) == -1 && errno == EIO);
	CHECK(ioctl(closed, TIOCSPTLCK, &zero) == 0);
	slave = open_slave(closed, O_RDWR);
	EXPECT(slave, "never read\n");

	CHECK((fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK) && (fcntl(writer, F_GETFL) & (O_ACCMODE | O_APPEND)) ==
	      (O_WRONLY | O_APPEND) && (fcntl(peer, F_GETFL) & O_ACCMODE) == O_RDWR);
	CHECK(write(reader, "x", 1) == -1 && errno == EBADF && read(writer, &byte, 1) == -1 && errno == EBADF);
	EXPECT(reader, "shared\n");
	EXPECT_ALL(many, "shared\r\nout\r\n");

	lone = received_fd(pair[1]);
	EXPECT(lone, "to be read\n");
	EXPECT_ALL(flying, "under way\r\nto be read\r\n");
	CHECK(close(lone) == 0 && events(flying) & POLLHUP);
	CHECK(readlink(name, link, sizeof link) == length && memcmp(link, first, (size_t)length) == 0);
	pass();
}

/* Descriptors on their way in messages: the ends of pipes that nobody else holds, a file whose offset is shared with one
   that is open, a socket with a descriptor on its way in it, several in one message; in streams with data around them,
   datagrams and packets. */
#include "family.h"
#include <sys/socket.h>

static int carried[3][2], outer[2], gone[2];

static void send_fds(int socket, const char *text, const int *fds, int count)
{
	char control[CMSG_SPACE(sizeof(int) * 8)] = "";
	struct iovec iov = {(char *)text, strlen(text)};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int) * count);
	memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
	CHECK(sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

/* Receive this text and so many descriptors. */
static void comes(int socket, const char *text, int *fds, int count)
{
	char buffer[100] = "", control[CMSG_SPACE(sizeof(int) * 8)];
	struct iovec iov = {buffer, 99};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got != (ssize_t)strlen(text) || strcmp(buffer, text) != 0) fail("%zd bytes: '%s', not '%s'", got, buffer, text);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!count) {
		CHECK(!header);
		return;
	}
	CHECK(header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int) * count));
	memcpy(fds, CMSG_DATA(header), sizeof(int) * count);
}

static void child_body(void)
{
	await_check();
	pass();
}

int main(void)
{
	static const int types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
	int pipes[3][2], inner[2], file, fds[8], received[8];
	char buffer[20];
	struct stat st;
	pid_t pid;
	start();
	family();
	file = open("file", O_CREAT | O_TRUNC | O_RDWR, 0600);
	CHECK(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 2, SEEK_SET) == 2);
	for (int i = 0; i < 3; i++) {
		CHECK(socketpair(AF_UNIX, types[i], 0, carried[i]) == 0 && pipe(pipes[i]) == 0);
		CHECK(write(pipes[i][1], "in the pipe", 11) == 11);
		CHECK(send(carried[i][0], "before", 6, 0) == 6);
		send_fds(carried[i][0], "reader", &pipes[i][0], 1);
		CHECK(send(carried[i][0], "between", 7, 0) == 7);
		fds[0] = pipes[i][1];
		fds[1] = file;
		fds[2] = file;
		send_fds(carried[i][0], "three", fds, 3);
		CHECK(send(carried[i][0], "after", 5, 0) == 5);
		CHECK(close(pipes[i][0]) == 0 && close(pipes[i][1]) == 0);
	}
	/* a socket in a socket, of which nobody has an end; and an unlinked file in the inner one */
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, outer) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, inner) == 0);
	fds[0] = open("unlinked", O_CREAT | O_RDWR, 0600);
	CHECK(fds[0] >= 0 && write(fds[0], "unlinked", 8) == 8 && unlink("unlinked") == 0);
	send_fds(inner[0], "file", fds, 1);
	CHECK(close(fds[0]) == 0);
	send_fds(outer[0], "ends", inner, 2);
	CHECK(close(inner[0]) == 0 && close(inner[1]) == 0);
	/* the sender is gone */
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, gone) == 0);
	send_fds(gone[1], "testament", &file, 1);
	CHECK(close(gone[1]) == 0);
	pid = child(child_body);
	ready();
	await_check();
	for (int i = 0; i < 3; i++) {
		if (i == 0) {
			comes(carried[i][1], "beforereader", received, 1);   /* a stream joins what comes before descriptors */
		} else {
			comes(carried[i][1], "before", NULL, 0);
			comes(carried[i][1], "reader", received, 1);
		}
		if (i == 0) {
			comes(carried[i][1], "betweenthree", received + 1, 3);
		} else {
			comes(carried[i][1], "between", NULL, 0);
			comes(carried[i][1], "three", received + 1, 3);
		}
		comes(carried[i][1], "after", NULL, 0);
		CHECK(read(received[0], buffer, 20) == 11 && memcmp(buffer, "in the pipe", 11) == 0);
		CHECK(write(received[1], "x", 1) == 1 && read(received[0], buffer, 20) == 1);
		CHECK(close(received[1]) == 0 && read(received[0], buffer, 1) == 0);
		CHECK(lseek(received[2], 1, SEEK_CUR) == lseek(file, 0, SEEK_CUR) && lseek(received[3], 0, SEEK_CUR) == 3 + i);
	}
	comes(outer[1], "ends", received, 2);
	comes(received[1], "file", received + 2, 1);
	CHECK(pread(received[2], buffer, 20, 0) == 8 && memcmp(buffer, "unlinked", 8) == 0);
	CHECK(fstat(received[2], &st) == 0 && st.st_nlink == 0);
	CHECK(send(received[0], "hello", 5, 0) == 5 && recv(received[1], buffer, 20, 0) == 5);
	comes(gone[0], "testament", received, 1);
	CHECK(lseek(received[0], 0, SEEK_CUR) == 5 && recv(gone[0], buffer, 1, 0) == 0);
	check_child(pid);
	pass();
}

/* One offset for many descriptors: after dup, after fork, after a message with descriptors, in a message that nobody has
   read yet; of their own where the file was opened again. Offsets above 4 GiB, behind the end, in sparse files. */
#include "family.h"
#include <sys/socket.h>

#define FAR (5LL << 30)

static int forked, pair[2], passed;

static int send_fd(int sock, int fd)
{
	char control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec byte = {"x", 1};
	struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(head), &fd, sizeof fd);
	return sendmsg(sock, &message, 0) == 1;
}

static int receive_fd(int sock)
{
	char control[CMSG_SPACE(sizeof(int))], data;
	struct iovec byte = {&data, 1};
	struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	int fd;
	CHECK(recvmsg(sock, &message, 0) == 1 && CMSG_FIRSTHDR(&message) != NULL);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static void child_body(void)
{
	int got = receive_fd(pair[1]);
	CHECK(lseek(got, 0, SEEK_CUR) == FAR + 7);
	CHECK(lseek(got, 1, SEEK_CUR) == FAR + 8);
	reach(1);
	await_check();
	CHECK(lseek(forked, 0, SEEK_CUR) == 1000 && lseek(forked, 5, SEEK_CUR) == 1005);
	CHECK(lseek(got, 0, SEEK_CUR) == FAR + 8 && lseek(got, 2, SEEK_CUR) == FAR + 10);
	pass();
}

int main(void)
{
	char buffer[8];
	struct stat st;
	int copy, again, behind, waiting, sparse, nameless;
	pid_t pid;
	start();
	family();
	unlink("shared"); unlink("sparse"); unlink("nameless"); unlink("waiting");
	forked = open("shared", O_CREAT | O_RDWR, 0600);
	CHECK(forked >= 0 && ftruncate(forked, 10000) == 0 && lseek(forked, 1000, SEEK_SET) == 1000);
	copy = dup(forked);
	again = open("shared", O_RDWR);
	behind = open("shared", O_RDWR);
	CHECK(lseek(again, 2000, SEEK_SET) == 2000 && lseek(behind, FAR, SEEK_SET) == FAR);
	sparse = open("sparse", O_CREAT | O_RDWR, 0600);
	CHECK(pwrite(sparse, "far", 3, FAR) == 3 && lseek(sparse, FAR + 7, SEEK_SET) == FAR + 7);
	nameless = open("nameless", O_CREAT | O_RDWR, 0600);
	CHECK(pwrite(nameless, "deep", 4, 3 * FAR) == 4 && pwrite(nameless, "start", 5, 0) == 5 && unlink("nameless") == 0);
	CHECK(lseek(nameless, 3 * FAR, SEEK_SET) == 3 * FAR);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid = child(child_body);
	passed = dup(sparse);
	CHECK(send_fd(pair[0], passed) && close(passed) == 0);
	await_step(1);
	/* this one is held by the message alone */
	waiting = open("waiting", O_CREAT | O_RDWR | O_APPEND, 0600);
	CHECK(write(waiting, "123456", 6) == 6 && lseek(waiting, 3, SEEK_SET) == 3);
	CHECK(send_fd(pair[1], waiting) && close(waiting) == 0);
	ready();
	await_check();
	check_child(pid);
	CHECK(lseek(forked, 0, SEEK_CUR) == 1005 && lseek(copy, 0, SEEK_CUR) == 1005 && lseek(again, 0, SEEK_CUR) == 2000);
	CHECK(lseek(behind, 0, SEEK_CUR) == FAR && read(behind, buffer, 1) == 0);
	CHECK(lseek(sparse, 0, SEEK_CUR) == FAR + 10 && pread(sparse, buffer, 8, FAR) == 3 && memcmp(buffer, "far", 3) == 0);
	CHECK(fstat(sparse, &st) == 0 && st.st_size == FAR + 3 && st.st_blocks < 2048);
	CHECK(fstat(nameless, &st) == 0 && st.st_size == 3 * FAR + 4 && st.st_blocks < 2048 && st.st_nlink == 0);
	CHECK(read(nameless, buffer, 8) == 4 && memcmp(buffer, "deep", 4) == 0);
	CHECK(pread(nameless, buffer, 8, 0) == 8 && memcmp(buffer, "start\0\0", 8) == 0);
	waiting = receive_fd(pair[0]);
	CHECK(lseek(waiting, 0, SEEK_CUR) == 3 && (fcntl(waiting, F_GETFL) & O_APPEND));
	CHECK(write(waiting, "7", 1) == 1 && lseek(waiting, 0, SEEK_CUR) == 7);
	pass();
}

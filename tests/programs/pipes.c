/* Pipes: contents, closed ends, size, O_NONBLOCK, ends in different processes, a description opened anew; what poll and epoll say of them. */
#include "family.h"
#include <poll.h>
#include <sys/epoll.h>

static int across[2], back[2];

static short events(int fd, short wanted)
{
	struct pollfd poll_fd = {fd, wanted, 0};
	CHECK(poll(&poll_fd, 1, 0) >= 0);
	return poll_fd.revents;
}

static void child_body(void)
{
	char buffer[20];
	CHECK(close(across[1]) == 0 && close(back[0]) == 0);
	await_check();
	CHECK(read(across[0], buffer, 20) == 10 && memcmp(buffer, "to a child", 10) == 0);
	CHECK(write(back[1], "answer", 6) == 6);
	pass();
}

int main(void)
{
	int plain[2], no_writer[2], no_reader[2], large[2], both, empty[2], size, epoll;
	unsigned char big[200000];
	char buffer[100];
	struct epoll_event event = {EPOLLIN, {.u64 = 0x1122334455667788}};
	pid_t pid;
	start();
	family();
	signal(SIGPIPE, SIG_IGN);
	CHECK(pipe(plain) == 0 && pipe(no_writer) == 0 && pipe(no_reader) == 0 && pipe(across) == 0 && pipe(back) == 0);
	CHECK(pipe2(large, O_NONBLOCK | O_CLOEXEC) == 0 && pipe(empty) == 0);
	CHECK(write(plain[1], "some ", 5) == 5 && write(plain[1], "words", 5) == 5);
	CHECK(write(no_writer[1], "the last", 8) == 8 && close(no_writer[1]) == 0);
	CHECK(write(no_reader[1], "unread", 6) == 6 && close(no_reader[0]) == 0);
	CHECK(write(across[1], "to a child", 10) == 10);
	size = fcntl(large[1], F_SETPIPE_SZ, 1 << 18);
	CHECK(size == 1 << 18);
	fill(big, sizeof big, 7);
	CHECK(write(large[1], big, sizeof big) == sizeof big);
	snprintf(buffer, sizeof buffer, "/proc/self/fd/%d", plain[0]);
	both = open(buffer, O_RDWR | O_NONBLOCK);
	CHECK(both >= 0);
	epoll = epoll_create1(0);
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, empty[0], &event) == 0);
	pid = child(child_body);
	CHECK(close(across[0]) == 0 && close(back[1]) == 0);
	ready();
	await_check();
	CHECK(fcntl(large[0], F_GETPIPE_SZ) == size && fcntl(plain[0], F_GETPIPE_SZ) == 65536);
	CHECK(fcntl(large[0], F_GETFL) == O_NONBLOCK && (fcntl(large[1], F_GETFL) & O_NONBLOCK) && !(fcntl(plain[0], F_GETFL) & O_NONBLOCK));
	CHECK((fcntl(both, F_GETFL) & O_ACCMODE) == O_RDWR);
	CHECK(events(plain[0], POLLIN) == POLLIN && events(plain[1], POLLOUT) == POLLOUT);
	CHECK(events(empty[0], POLLIN) == 0 && events(no_writer[0], POLLIN) == (POLLIN | POLLHUP));
	CHECK(events(no_reader[1], POLLOUT) & POLLERR);
	CHECK(read(plain[0], buffer, 3) == 3 && read(both, buffer + 3, 90) == 7 && memcmp(buffer, "some words", 10) == 0);
	CHECK(read(both, buffer, 1) == -1 && errno == EAGAIN);
	CHECK(read(no_writer[0], buffer, 100) == 8 && memcmp(buffer, "the last", 8) == 0 && read(no_writer[0], buffer, 1) == 0);
	CHECK(write(no_reader[1], "x", 1) == -1 && errno == EPIPE);
	memset(big, 0, sizeof big);
	CHECK(read(large[0], big, sizeof big) == sizeof big);
	check_filled(big, sizeof big, 7, "the large pipe");
	CHECK(read(large[0], buffer, 1) == -1 && errno == EAGAIN);
	CHECK(epoll_wait(epoll, &event, 1, 0) == 0);
	CHECK(write(empty[1], "x", 1) == 1 && epoll_wait(epoll, &event, 1, 1000) == 1 && event.data.u64 == 0x1122334455667788);
	check_child(pid);
	CHECK(read(back[0], buffer, 10) == 6 && read(back[0], buffer, 1) == 0);
	CHECK(write(across[1], "x", 1) == -1 && errno == EPIPE);
	pass();
}

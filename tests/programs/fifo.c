/* Fifos by name, in the working directory and in $TMPDIR: contents, both ends, a reader to which nobody ever wrote, a reader
   whose writer is gone, a writer whose reader is gone, one that is unlinked, one opened for both; and one that a process is
   just opening. */
#include "family.h"
#include <poll.h>

static short events(int fd, short wanted)
{
	struct pollfd poll_fd = {fd, wanted, 0};
	CHECK(poll(&poll_fd, 1, 0) >= 0);
	return poll_fd.revents;
}

static int make(const char *name, int flags)
{
	unlink(name);
	CHECK(mkfifo(name, 0640) == 0);
	int fd = open(name, flags);
	if (fd < 0) fail("cannot open %s", name);
	return fd;
}

static void child_body(void)
{
	char buffer[4];
	CHECK(close_range(3, ~0U, 0) == 0);
	int fd = open("opening", O_RDONLY);   /* stands still here until the parent opens the other end */
	CHECK(fd >= 0);
	CHECK(read(fd, buffer, 4) == 4 && memcmp(buffer, "here", 4) == 0);
	await_check();
	pass();
}

int main(void)
{
	int reader, writer, virgin, left, deaf, deaf_reader, lost, lost_writer, both, private;
	char buffer[100], tmp[300];
	struct stat st;
	pid_t pid;
	start();
	family();
	signal(SIGPIPE, SIG_IGN);
	reader = make("plain", O_RDONLY | O_NONBLOCK);
	writer = open("plain", O_WRONLY);
	CHECK(writer >= 0 && write(writer, "in the fifo", 11) == 11);
	virgin = make("virgin", O_RDONLY | O_NONBLOCK);
	left = make("left", O_RDONLY | O_NONBLOCK);
	int passing = open("left", O_WRONLY);
	CHECK(passing >= 0 && write(passing, "bye", 3) == 3 && close(passing) == 0);
	deaf_reader = make("deaf", O_RDONLY | O_NONBLOCK);
	deaf = open("deaf", O_WRONLY);
	CHECK(deaf >= 0 && close(deaf_reader) == 0);
	lost = make("lost", O_RDONLY | O_NONBLOCK);
	lost_writer = open("lost", O_WRONLY);
	CHECK(lost_writer >= 0 && write(lost_writer, "lost", 4) == 4 && unlink("lost") == 0);
	both = make("both", O_RDWR);
	CHECK(write(both, "to itself", 9) == 9);
	snprintf(tmp, sizeof tmp, "%s/fifo", getenv("TMPDIR"));
	private = make(tmp, O_RDWR);
	CHECK(write(private, "private", 7) == 7);
	unlink("opening");
	CHECK(mkfifo("opening", 0600) == 0);
	pid = child(child_body);
	usleep(10000);
	ready();
	await_check();
	CHECK(read(reader, buffer, 100) == 11 && memcmp(buffer, "in the fifo", 11) == 0);
	CHECK(read(reader, buffer, 1) == -1 && errno == EAGAIN);
	passing = open("plain", O_WRONLY | O_NONBLOCK);
	CHECK(passing >= 0 && write(passing, "by name", 7) == 7 && read(reader, buffer, 100) == 7 && close(passing) == 0);
	CHECK(close(writer) == 0 && read(reader, buffer, 1) == 0);

	CHECK(events(virgin, POLLIN) == 0 && read(virgin, buffer, 1) == 0);
	passing = open("virgin", O_WRONLY | O_NONBLOCK);
	CHECK(passing >= 0 && close(passing) == 0 && (events(virgin, POLLIN) & POLLHUP));

	CHECK(events(left, POLLIN) == (POLLIN | POLLHUP) && read(left, buffer, 100) == 3 && read(left, buffer, 1) == 0);
	CHECK((events(deaf, POLLOUT) & POLLERR) && write(deaf, "x", 1) == -1 && errno == EPIPE);
	CHECK(access("lost", F_OK) == -1 && read(lost, buffer, 100) == 4 && memcmp(buffer, "lost", 4) == 0);
	CHECK(write(lost_writer, "x", 1) == 1 && read(lost, buffer, 100) == 1);
	CHECK(read(both, buffer, 100) == 9 && memcmp(buffer, "to itself", 9) == 0);
	CHECK(read(private, buffer, 100) == 7 && stat(tmp, &st) == 0 && S_ISFIFO(st.st_mode) && (st.st_mode & 0777) == 0640);
	passing = open("opening", O_WRONLY);
	CHECK(passing >= 0 && write(passing, "here", 4) == 4);
	check_child(pid);
	pass();
}

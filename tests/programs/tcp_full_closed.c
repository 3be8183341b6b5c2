/* Full windows of senders that can't send again: one has shut its direction down, one has closed the socket, one has ended
   altogether; and a client whose data does not fit is not accepted yet. All of it arrives, then the end. */
#include "family.h"
#include "net.h"

enum { SHUT, CLOSED, ENDED, UNACCEPTED, CASES };
static int listener, full[CASES], sizes[CASES], shut;

static int send_much(int fd, unsigned seed)
{
	static char data[16 << 20];
	int at = 0, idle = 0;
	fill(data, sizeof data, seed);
	while (idle < 5) {
		ssize_t n = send(fd, data + at, sizeof data - at, MSG_DONTWAIT);
		if (n > 0) at += n, idle = 0;
		else if (errno == EAGAIN) idle++, usleep(10000);
		else fail("send");
	}
	return at;
}

static void check_all(int fd, int size, unsigned seed)
{
	char *data = malloc(size);
	for (int at = 0; at < size; ) {
		ssize_t n = recv(fd, data + at, size - at, 0);
		if (n <= 0) fail("of %d bytes of stream %u %zd comes at %d", size, seed, n, at);
		at += n;
	}
	for (int i = 0; i < size; i++)
		if ((unsigned char)data[i] != pattern(seed, i)) fail("stream %u differs at %d", seed, i);
	hear_end(fd);
	free(data);
}

static void sender(void)
{
	int fd = connected_to(listener, "127.0.0.1"), size = send_much(fd, ENDED);
	reach(size);
	_exit(0);
}

int main(void)
{
	int status;
	start();
	family();
	listener = listening("127.0.0.1", 5);
	for (int i = 0; i < ENDED; i++) {
		int ends[2];
		connection(listener, "127.0.0.1", ends);
		full[i] = ends[1];
		sizes[i] = send_much(ends[0], i);
		if (i == CLOSED) close(ends[0]);
		else shut = ends[0], shutdown(shut, SHUT_WR);
	}
	pid_t other = child(sender);
	full[ENDED] = accept(listener, NULL, NULL);
	CHECK(waitpid(other, &status, 0) == other && status == 0);
	sizes[ENDED] = *family_step;
	int client = connected_to(listener, "127.0.0.1");
	sizes[UNACCEPTED] = send_much(client, UNACCEPTED);
	ready();
	await_check();
	full[UNACCEPTED] = accept(listener, NULL, NULL);
	say(full[UNACCEPTED], "welcome");
	hear(client, "welcome");
	CHECK(shutdown(client, SHUT_WR) == 0);
	for (int i = 0; i < CASES; i++) check_all(full[i], sizes[i], i);
	say(full[SHUT], "the open way");
	hear(shut, "the open way");
	pass();
}

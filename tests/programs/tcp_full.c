/* LDFLAGS: -pthread */
/* A connection whose windows are full in both directions, with megabytes under way and both sides blocked in write(2);
   the rest of 24 MB each way follows when it is time to verify. Nothing is lost, doubled or out of order. */
#include "family.h"
#include "net.h"
#include <pthread.h>

enum { SIZE = 24 << 20 };
static int listener, fd, own;
static pid_t other;

static void *write_all(void *unused)
{
	char *data = malloc(SIZE);
	fill(data, SIZE, own);
	for (size_t at = 0; at < SIZE; ) {
		ssize_t n = write(fd, data + at, SIZE - at);
		if (n <= 0) fail("write ended with %zd at %zu", n, at);
		at += n;
	}
	free(data);
	return unused;
}

static void read_all(unsigned seed)
{
	static char piece[1 << 16];
	for (size_t at = 0; at < SIZE; ) {
		ssize_t n = recv(fd, piece, sizeof piece < SIZE - at ? sizeof piece : SIZE - at, 0);
		if (n <= 0) fail("of stream %u %zd comes at %zu (errno %d)", seed, n, at, errno);
		for (ssize_t i = 0; i < n; i++)
			if ((unsigned char)piece[i] != pattern(seed, at + i)) fail("stream %u differs at %zu", seed, at + i);
		at += n;
	}
}

/* Until nothing moves any more. */
static void await_full(void)
{
	int before = -1, now = 0, sent;
	while (now == 0 || now != before) {
		before = now;
		usleep(50000);
		CHECK(ioctl(fd, SIOCOUTQ, &sent) == 0);
		now = queued(fd) + sent;
	}
}

static void talk(void)
{
	pthread_t writer;
	CHECK(pthread_create(&writer, NULL, write_all, NULL) == 0);
	await_full();
	if (other) await_step(1), ready();
	else reach(1);
	await_check();
	if (other) CHECK(kill(other, SIGTERM) == 0);
	read_all(!own);
	CHECK(pthread_join(writer, NULL) == 0);
	CHECK(shutdown(fd, SHUT_WR) == 0);
	hear_end(fd);
}

static void second(void)
{
	own = 1;
	fd = connected_to(listener, "127.0.0.1");
	talk();
	pass();
}

int main(void)
{
	int status;
	start();
	family();
	listener = listening("127.0.0.1", 5);
	other = child(second);
	fd = accept(listener, NULL, NULL);
	talk();
	CHECK(waitpid(other, &status, 0) == other && status == 0);
	pass();
}

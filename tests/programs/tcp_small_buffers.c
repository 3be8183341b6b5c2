/* LDFLAGS: -pthread */
/* A full connection with small buffers that the program has fixed, threads blocked in send(2) at both ends, and with
   TCP_CORK a last piece that waits for more; sizes and options stay. */
#include "net.h"
#include <pthread.h>

enum { SIZE = 300000 };
static int ends[2], corked[2], sizes[2][2];

static void *send_all(void *argument)
{
	int i = (int)(long)argument;
	char *data = malloc(SIZE);
	fill(data, SIZE, i);
	for (int at = 0; at < SIZE; ) {
		ssize_t n = send(ends[i], data + at, SIZE - at, 0);
		if (n <= 0) fail("send ended with %zd at %d", n, at);
		at += n;
	}
	free(data);
	return NULL;
}

static void *receive_all(void *argument)
{
	int i = (int)(long)argument;
	char *data = malloc(SIZE);
	for (int at = 0; at < SIZE; ) {
		ssize_t n = recv(ends[i], data + at, SIZE - at, 0);
		if (n <= 0) fail("recv ended with %zd at %d", n, at);
		at += n;
	}
	check_filled(data, SIZE, !i, "a stream");
	free(data);
	return NULL;
}

int main(void)
{
	pthread_t threads[4];
	int listener, before = -1, now = 0, sent;
	start();
	listener = new_socket("127.0.0.1", SOCK_STREAM);
	address name = at("127.0.0.1", 0);
	set_option(listener, SOL_SOCKET, SO_RCVBUF, 4096);
	set_option(listener, SOL_SOCKET, SO_SNDBUF, 8192);
	CHECK(bind(listener, (void *)&name.name, name.length) == 0 && listen(listener, 1) == 0);
	connection(listener, "127.0.0.1", ends);
	set_option(ends[0], SOL_SOCKET, SO_RCVBUF, 6000);
	connection(listener, "127.0.0.1", corked);
	set_option(corked[0], IPPROTO_TCP, TCP_CORK, 1);
	say(corked[0], "waits for more");
	for (int i = 0; i < 2; i++) {
		sizes[i][0] = option(ends[i], SOL_SOCKET, SO_RCVBUF);
		sizes[i][1] = option(ends[i], SOL_SOCKET, SO_SNDBUF);
		CHECK(pthread_create(&threads[i], NULL, send_all, (void *)(long)i) == 0);
	}
	while (now == 0 || now != before) {
		before = now;
		usleep(50000);
		CHECK(ioctl(ends[0], SIOCOUTQ, &sent) == 0);
		now = queued(ends[0]) + sent;
	}
	ready();
	await_check();
	CHECK(sizes[0][0] == option(ends[0], SOL_SOCKET, SO_RCVBUF) && sizes[1][0] == option(ends[1], SOL_SOCKET, SO_RCVBUF));
	CHECK(sizes[1][1] == option(ends[1], SOL_SOCKET, SO_SNDBUF));
	for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[2 + i], NULL, receive_all, (void *)(long)i) == 0);
	for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(option(corked[0], IPPROTO_TCP, TCP_CORK) == 1 && option(corked[0], IPPROTO_TCP, TCP_NODELAY) == 0);
	say(corked[0], ", and here it is");
	set_option(corked[0], IPPROTO_TCP, TCP_CORK, 0);
	hear(corked[1], "waits for more, and here it is");
	pass();
}

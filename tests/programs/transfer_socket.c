/* Sends to full stream sockets (sendfile(2) to TCP), and receives of an exact length (MSG_WAITALL; SO_RCVLOWAT over
   unix): interrupted half-way, each must return the whole count, and every byte must arrive once. */
#include "program.h"
#include <netinet/in.h>
#include <pthread.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

#define LARGE (6 << 20)
#define SMALL 40000
enum { UNIX, TCP, KINDS };
static int large[KINDS][2], small[KINDS][2], low[KINDS][2];
static char *content;

static void pair(int kind, int *pair)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof address;
	int listener;
	if (kind == UNIX) {
		CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
		return;
	}
	listener = socket(AF_INET, SOCK_STREAM, 0);
	pair[1] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
	CHECK(connect(pair[1], (struct sockaddr *)&address, size) == 0);
	CHECK((pair[0] = accept(listener, NULL, NULL)) >= 0);
	close(listener);
}

static ssize_t send_file(int to)
{
	int in = open("source", O_RDWR | O_CREAT | O_TRUNC, 0600);
	off_t from = 4;
	CHECK(in >= 0 && write(in, "head", 4) == 4 && write(in, content, LARGE) == LARGE && write(in, "tail", 4) == 4);
	ssize_t sent = sendfile(to, in, &from, LARGE);
	if (from != 4 + LARGE) fail("sendfile is at %lld", (long long)from);
	close(in);
	return sent;
}

static void *send_large(void *argument)
{
	int kind = (int)(intptr_t)argument;
	ssize_t sent = kind == UNIX ? write(large[kind][1], content, LARGE) : send_file(large[kind][1]);
	if (sent != LARGE) fail("kind %d: %zd of %d bytes sent", kind, sent, LARGE);
	return argument;
}

static void *receive_all(void *argument)
{
	int kind = (int)(intptr_t)argument;
	char *room = malloc(SMALL + 8);
	memset(room + SMALL, '#', 8);
	ssize_t got = recv(small[kind][0], room, SMALL, MSG_WAITALL);
	if (got != SMALL) fail("kind %d: %zd of %d bytes received", kind, got, SMALL);
	check_filled(room, SMALL, 7, "what was received");
	CHECK(memcmp(room + SMALL, "########", 8) == 0);
	return argument;
}

static void *receive_some(void *argument)   /* at least SMALL bytes, at most as many as there are */
{
	int kind = (int)(intptr_t)argument, least = SMALL;
	char *room = malloc(2 * SMALL);
	CHECK(setsockopt(low[kind][0], SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least) == 0);
	ssize_t got = read(low[kind][0], room, 2 * SMALL);
	if (got < SMALL) fail("kind %d: %zd bytes are less than %d", kind, got, SMALL);
	check_filled(room, got, 7, "what was read");
	return argument;
}

int main(void)
{
	pthread_t threads[3 * KINDS];
	char *room = malloc(LARGE);
	start();
	content = malloc(LARGE);
	fill(content, LARGE, 7);
	for (int kind = 0; kind < KINDS; kind++) {
		void *argument = (void *)(intptr_t)kind;
		pair(kind, large[kind]);
		pair(kind, small[kind]);
		pair(kind, low[kind]);
		CHECK(pthread_create(&threads[3 * kind], NULL, send_large, argument) == 0);
		CHECK(pthread_create(&threads[3 * kind + 1], NULL, receive_all, argument) == 0);
		if (kind == UNIX) CHECK(pthread_create(&threads[2], NULL, receive_some, argument) == 0);
		usleep(20000);
		CHECK(write(small[kind][1], content, 15000) == 15000 && write(low[kind][1], content, 15000) == 15000);
	}
	usleep(50000);
	ready();
	await_check();
	for (int kind = 0; kind < KINDS; kind++) {
		CHECK(write(small[kind][1], content + 15000, 25000) == 25000);
		CHECK(write(low[kind][1], content + 15000, 25000) == 25000);
		CHECK(recv(large[kind][0], room, LARGE, MSG_WAITALL) == LARGE);
		check_filled(room, LARGE, 7, "what came through a socket");
		for (int i = 0; i < (kind == UNIX ? 3 : 2); i++) CHECK(pthread_join(threads[3 * kind + i], NULL) == 0);
		CHECK(recv(large[kind][0], room, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	}
	pass();
}

/* Connections that are made but not accepted yet: they keep their order, and clients may have closed their sending side
   or be gone. One that was made while the queue was full waits in connect(2). */
#include "family.h"
#include <sys/socket.h>
#include <sys/un.h>
#include <pthread.h>

static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "waiting"};
static int late;

static void *connect_late(void *unused)
{
	(void)unused;
	late = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(connect(late, (struct sockaddr *)&address, sizeof address) == 0);
	return NULL;
}

int main(void)
{
	int listener, clients[4], served;
	char buffer[4];
	struct ucred cred;
	socklen_t length;
	pthread_t thread;
	start();
	unlink("waiting");
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 3) == 0);
	for (int i = 0; i < 4; i++) {
		clients[i] = socket(AF_UNIX, SOCK_STREAM, 0);
		CHECK(connect(clients[i], (struct sockaddr *)&address, sizeof address) == 0);
	}
	CHECK(shutdown(clients[1], SHUT_WR) == 0);
	CHECK(pthread_create(&thread, NULL, connect_late, NULL) == 0);
	usleep(20000);
	ready();
	await_check();
	for (int i = 0; i < 5; i++) {
		int fd;
		served = accept(listener, NULL, NULL);
		CHECK(served >= 0);
		if (i == 0) CHECK(pthread_join(thread, NULL) == 0);
		fd = i < 4 ? clients[i] : late;
		length = sizeof cred;
		CHECK(getsockopt(served, SOL_SOCKET, SO_PEERCRED, &cred, &length) == 0 && cred.pid == getpid());
		CHECK(send(served, "hi", 2, MSG_NOSIGNAL) == 2 && recv(fd, buffer, 4, MSG_DONTWAIT) == 2);
		if (i == 1) CHECK(recv(served, buffer, 1, 0) == 0);
		else CHECK(send(fd, "you", 3, MSG_NOSIGNAL) == 3 && recv(served, buffer, 4, 0) == 3);
	}
	pass();
}

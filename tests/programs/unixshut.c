/* Listening unix sockets that were shut down: nobody gets in any more, who waits already is accepted still. */
#include "program.h"
#include <sys/socket.h>
#include <sys/un.h>

static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET};

static int connected(const struct sockaddr_un *name, int type)
{
	int fd = socket(AF_UNIX, type, 0);
	CHECK(fd >= 0);
	return connect(fd, (const struct sockaddr *)name, sizeof *name) == 0 ? fd : -1;
}

int main(void)
{
	struct sockaddr_un names[4];
	int listeners[4], clients[4], fd;
	char byte;
	start();
	for (int i = 0; i < 4; i++) {
		names[i] = (struct sockaddr_un){.sun_family = AF_UNIX};
		sprintf(names[i].sun_path, "listener%d", i);
		unlink(names[i].sun_path);
		CHECK((listeners[i] = socket(AF_UNIX, types[i % 2], 0)) >= 0);
		CHECK(bind(listeners[i], (struct sockaddr *)&names[i], sizeof names[i]) == 0 && listen(listeners[i], 3) == 0);
		CHECK((clients[i] = connected(&names[i], types[i % 2])) >= 0);
		CHECK(shutdown(listeners[i], i < 2 ? SHUT_RD : SHUT_RDWR) == 0);
	}
	ready();
	await_check();
	for (int i = 0; i < 4; i++) {
		errno = 0;
		CHECK(connected(&names[i], types[i % 2]) == -1 && errno == ECONNREFUSED);
		CHECK((fd = accept(listeners[i], NULL, NULL)) >= 0 && send(clients[i], "x", 1, 0) == 1 && recv(fd, &byte, 1, 0) == 1);
	}
	pass();
}

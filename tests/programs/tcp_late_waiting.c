/* A thread that waits in connect(2), as the listener's backlog is full, from when there is a file "go" on. */
#include "net.h"
#include <pthread.h>

static int listener, late, filler[2];
static address known;

static void *wait_in_connect(void *unused)
{
	(void)unused;
	while (access("go", F_OK) != 0) usleep(1000);
	CHECK(connect(late, (void *)&known.name, known.length) == 0);
	say(late, "at last");
	return NULL;
}

int main(void)
{
	pthread_t thread;
	start();
	listener = listening("127.0.0.1", 1);
	known = name_of(listener);
	late = new_socket("127.0.0.1", SOCK_STREAM);
	for (int i = 0; i < 2; i++) filler[i] = connected_to(listener, "127.0.0.1");   /* one more than was asked for */
	CHECK(pthread_create(&thread, NULL, wait_in_connect, NULL) == 0);
	ready();
	await_check();
	int fd = open("go", O_CREAT | O_WRONLY, 0600);
	CHECK(fd >= 0);
	await_state(late, TCP_SYN_SENT);
	for (int i = 0; i < 2; i++) {
		int server = accept(listener, NULL, NULL);
		CHECK(server >= 0);
		say(filler[i], "early");
		hear(server, "early");
	}
	int server = accept(listener, NULL, NULL);
	CHECK(server >= 0);
	hear(server, "at last");
	CHECK(pthread_join(thread, NULL) == 0 && error_of(late) == 0);
	say(server, "welcome");
	hear(late, "welcome");
	pass();
}

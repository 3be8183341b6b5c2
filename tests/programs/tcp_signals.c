/* Who asks for signals (O_ASYNC, F_SETOWN, F_SETSIG) gets none for what a checkpoint does to full windows and to connections
   that wait to be accepted; later events are told, with the number of the descriptor. SO_PEEK_OFF stays, too. */
#include "net.h"

static int full[2], listener, client, peeker[2];
static volatile int told, last_fd;

static void note(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	told++;
	last_fd = info->si_fd;
}

static void ask(int fd)
{
	CHECK(fcntl(fd, F_SETOWN, getpid()) == 0 && fcntl(fd, F_SETSIG, SIGRTMIN + 3) == 0);
	CHECK(fcntl(fd, F_SETFL, O_ASYNC) == 0);
}

static void fill_up(int fd)
{
	static char data[1 << 16];
	for (int idle = 0; idle < 5; )
		if (send(fd, data, sizeof data, MSG_DONTWAIT) > 0) idle = 0;
		else idle++, usleep(10000);
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
	char text[10];
	start();
	CHECK(sigaction(SIGRTMIN + 3, &action, NULL) == 0);
	listener = listening("127.0.0.1", 5);
	connection(listener, "127.0.0.1", full);
	connection(listener, "127.0.0.1", peeker);
	fill_up(full[0]);
	fill_up(full[1]);
	client = connected_to(listener, "127.0.0.1");
	say(client, "not accepted yet");
	say(peeker[0], "0123456789");
	set_option(peeker[1], SOL_SOCKET, 42, 2);   /* SO_PEEK_OFF */
	if (recv(peeker[1], text, 3, MSG_PEEK) != 3 || memcmp(text, "234", 3)) fail("it is of Linux before 6.9");
	usleep(400000);   /* acknowledgements that are still to come would be told, too */
	for (int i = 0; i < 2; i++) ask(full[i]), ask(peeker[i]);
	ask(listener);
	ask(client);
	told = 0;
	ready();
	await_check();
	if (told) fail("%d signals, the last for %d", told, last_fd);
	CHECK(option(peeker[1], SOL_SOCKET, 42) == 5);
	CHECK(recv(peeker[1], text, 3, MSG_PEEK) == 3 && memcmp(text, "567", 3) == 0);
	say(peeker[0], "more");
	await_queued(peeker[1], 14);
	CHECK(told > 0 && last_fd == peeker[1]);
	told = 0;
	int fd = accept(listener, NULL, NULL);
	hear(fd, "not accepted yet");
	say(fd, "welcome");
	hear(client, "welcome");
	CHECK(told > 0 && last_fd == client);
	pass();
}

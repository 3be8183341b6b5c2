/* A socket that is connected to itself (tcp(7): both ends connect at once), with data of its own unread; and two that have
   connected to each other, without any listener. */
#include "net.h"

static int alone, both[2];
static address names[3];

static void connect_soon(int fd, const address *to)
{
	for (int i = 0; connect(fd, (void *)&to->name, to->length) != 0 && errno != EISCONN; i++) {
		if (errno != EALREADY && errno != EINPROGRESS) fail("connect");
		usleep(500);
	}
}

int main(void)
{
	start();
	alone = new_socket("127.0.0.1", SOCK_STREAM);
	set_option(alone, SOL_SOCKET, SO_REUSEADDR, 1);   /* else its port is kept for a minute when it has ended */
	names[2] = at("127.0.0.1", 0);
	CHECK(bind(alone, (void *)&names[2].name, names[2].length) == 0);
	names[2] = name_of(alone);
	CHECK(connect(alone, (void *)&names[2].name, names[2].length) == 0);
	say(alone, "to myself");
	await_queued(alone, 9);
	/* Two sockets meet only when both are under way at once: a filter keeps the first answers away. */
	for (int tries = 0; ; tries++) {
		for (int i = 0; i < 2; i++) {
			both[i] = bound("127.0.0.1", SOCK_STREAM | SOCK_NONBLOCK);
			names[i] = name_of(both[i]);
		}
		struct { unsigned short code; unsigned char jt, jf; unsigned k; } drop[] = {{6, 0, 0, 0}};
		struct { unsigned short length; void *code; } program = {1, drop};
		CHECK(setsockopt(both[0], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
		int a = connect(both[0], (void *)&names[1].name, names[1].length);
		if (a == -1 && errno == EINPROGRESS && state_of(both[0]) == TCP_SYN_SENT) {
			set_option(both[0], SOL_SOCKET, SO_DETACH_FILTER, 0);
			connect_soon(both[1], &names[0]);
			await_state(both[0], TCP_ESTABLISHED);
			await_state(both[1], TCP_ESTABLISHED);
			break;
		}
		if (tries == 50) fail("two sockets do not meet");
		close(both[0]), close(both[1]);
	}
	say(both[0], "one");
	await_queued(both[1], 3);
	await_acknowledged(both[0]);
	ready();
	await_check();
	address own = name_of(alone), other = peer_of(alone);
	CHECK(same(&own, &names[2]) && same(&other, &names[2]));
	hear(alone, "to myself");
	say(alone, "again");
	hear(alone, "again");
	for (int i = 0; i < 2; i++) {
		own = name_of(both[i]), other = peer_of(both[i]);
		CHECK(same(&own, &names[i]) && same(&other, &names[!i]));
		CHECK(fcntl(both[i], F_SETFL, 0) == 0);
	}
	hear(both[1], "one");
	say(both[1], "other");
	hear(both[0], "other");
	pass();
}

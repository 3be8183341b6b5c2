/* Connections between parent and child, and between processes that have nothing to do with each other any more: unread
   data both ways, and they go on. */
#include "family.h"
#include "net.h"
#include <sys/prctl.h>

static int listener, accepted[2], connected;

static void client(void)
{
	connected = connected_to(listener, "127.0.0.1");
	close(listener);
	say(connected, "from the child");
	hear(connected, "to the child");
	say(connected, "unread at the parent");
	reach(1);
	await_check();
	hear(connected, "unread at the child");
	say(connected, "answer");
	hear_end(connected);
	pass();
}

/* Of no relation: its parent has ended, and the first process of the pod has taken it over. */
static void orphan(void)
{
	if (fork() != 0) _exit(0);
	CHECK(setsid() > 0);
	connected = connected_to(listener, "127.0.0.1");
	close(listener);
	say(connected, "from afar");
	reach(2);
	hear(connected, "verify");   /* blocked in recv(2) all the time */
	say(connected, "still here");
	hear_end(connected);
	_exit(0);
}

int main(void)
{
	pid_t near, far;
	int status;
	start();
	family();
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 0) == 0);
	listener = listening("127.0.0.1", 3);
	near = child(client);
	accepted[0] = accept(listener, NULL, NULL);
	hear(accepted[0], "from the child");
	say(accepted[0], "to the child");
	await_step(1);
	far = fork();
	if (far == 0) orphan();
	CHECK(waitpid(far, &status, 0) == far && status == 0);
	accepted[1] = accept(listener, NULL, NULL);
	await_step(2);
	say(accepted[0], "unread at the child");
	ready();
	await_check();
	hear(accepted[0], "unread at the parent");
	hear(accepted[1], "from afar");
	CHECK(kill(near, SIGTERM) == 0);
	hear(accepted[0], "answer");
	say(accepted[1], "verify");
	hear(accepted[1], "still here");
	close(accepted[0]);
	close(accepted[1]);
	CHECK(waitpid(near, &status, 0) == near && status == 0);
	pass();
}

/* One connection shared by dup(2), by several processes after fork, and passed in a message; offsets don't exist, but flags
   are common, and what one has read the others don't get. */
#include "family.h"
#include "net.h"

enum { CHILDREN = 3 };
static int ends[2], copy, turn;

static void reader(void)
{
	char word[8];
	reach(turn);
	await_check();
	CHECK(fcntl(ends[1], F_GETFL) & O_NONBLOCK);
	CHECK(recv(ends[1], word, 5, 0) == 5);
	char wanted[8];
	snprintf(wanted, sizeof wanted, "part%d", turn);
	if (memcmp(word, wanted, 5)) fail("\"%.5s\", not \"%s\"", word, wanted);
	say(ends[1], "read!");
	pass();
}

int main(void)
{
	pid_t pids[CHILDREN];
	int listener;
	start();
	family();
	listener = listening("127.0.0.1", 1);
	connection(listener, "127.0.0.1", ends);
	copy = fcntl(ends[1], F_DUPFD_CLOEXEC, 20);
	CHECK(copy == 20 && dup3(ends[1], 30, 0) == 30);
	for (turn = 1; turn <= CHILDREN; turn++) {
		pids[turn - 1] = child(reader);
		await_step(turn);
	}
	CHECK(fcntl(copy, F_SETFL, O_NONBLOCK) == 0);
	say(ends[0], "part1part2part3rest");
	await_queued(ends[1], 19);
	ready();
	await_check();
	for (int i = 0; i < CHILDREN; i++) {
		check_child(pids[i]);
		hear(ends[0], "read!");
	}
	CHECK(fcntl(30, F_GETFL) & O_NONBLOCK && fcntl(20, F_GETFD) == FD_CLOEXEC && fcntl(30, F_GETFD) == 0);
	hear(30, "rest");
	CHECK(shutdown(20, SHUT_WR) == 0);
	hear_end(ends[0]);
	CHECK(fcntl(ends[1], F_SETFL, 0) == 0 && fcntl(30, F_GETFL) == O_RDWR);
	say(ends[0], "all closed but one");
	close(ends[1]), close(20);
	hear(30, "all closed but one");
	pass();
}

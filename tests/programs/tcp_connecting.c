/* LDFLAGS: -pthread */
/* Connects in progress towards a listener whose backlog is full: one that does not block, and threads that are blocked in
   connect(2); all get through when there is room. A connect that is done, but whose result was not asked for, tells it. */
#include "net.h"
#include <pthread.h>

enum { BACKLOG = 3, FILLERS = BACKLOG + 1, THREADS = 2 };
static int listener, fillers[FILLERS], waiting, done, results[THREADS], blocked[THREADS];
static address to;
static volatile int begun;

static void *connect_blocked(void *argument)
{
	long i = (long)argument;
	blocked[i] = new_socket("127.0.0.1", SOCK_STREAM);
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	results[i] = connect(blocked[i], (void *)&to.name, to.length) == 0 ? 1 : -errno;
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	address name;
	start();
	listener = listening("127.0.0.1", BACKLOG);
	to = name_of(listener);
	for (int i = 0; i < FILLERS; i++) fillers[i] = connected_to(listener, "127.0.0.1");
	waiting = new_socket("127.0.0.1", SOCK_STREAM | SOCK_NONBLOCK);
	CHECK(connect(waiting, (void *)&to.name, to.length) == -1 && errno == EINPROGRESS);
	name = name_of(waiting);
	for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, connect_blocked, (void *)i) == 0);
	while (begun < THREADS) usleep(500);
	for (int i = 0; i < THREADS; i++) await_state(blocked[i], TCP_SYN_SENT);
	int idle = listening("127.0.0.1", 1);
	address there = name_of(idle);
	done = new_socket("127.0.0.1", SOCK_STREAM | SOCK_NONBLOCK);
	CHECK(connect(done, (void *)&there.name, there.length) == -1 && errno == EINPROGRESS);
	await_state(done, TCP_ESTABLISHED);
	int accepted = accept(idle, NULL, NULL);
	ready();
	await_check();
	CHECK(state_of(waiting) == TCP_SYN_SENT && events_of(waiting) == 0);
	CHECK(connect(waiting, (void *)&to.name, to.length) == -1 && errno == EALREADY);
	CHECK(connect(done, (void *)&there.name, there.length) == 0);
	CHECK(connect(done, (void *)&there.name, there.length) == -1 && errno == EISCONN);
	say(done, "done");
	hear(accepted, "done");
	for (int i = 0; i < FILLERS + 1 + THREADS; i++) {
		int fd = accept(listener, NULL, NULL);
		CHECK(fd >= 0);
		say(fd, "welcome");
	}
	struct pollfd one = {waiting, POLLOUT, 0};
	CHECK(poll(&one, 1, 20000) == 1 && error_of(waiting) == 0);
	address now = name_of(waiting);
	CHECK(same(&now, &name));
	CHECK(fcntl(waiting, F_SETFL, 0) == 0);
	hear(waiting, "welcome");
	for (int i = 0; i < THREADS; i++) {
		CHECK(pthread_join(threads[i], NULL) == 0);
		if (results[i] != 1) fail("a blocked connect ended with %d", results[i]);
		hear(blocked[i], "welcome");
	}
	pass();
}

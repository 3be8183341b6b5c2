/* Threads that wait on terminals: reads and polls on either side, with lines and without, a write to a full master, a
   timed read (VTIME) with something to read that is less than VMIN. None is disturbed; each ends when it is due. */
/* LDFLAGS: -lpthread */
#include "terminal.h"
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum {READS_LINES, READS_RAW, READS_MASTER, POLLS, SELECTS, EPOLLS, WRITES, KINDS};
static int master[KINDS], slave[KINDS], done[KINDS], entering;

static void *wait_for_it(void *argument)
{
	int kind = (int)(intptr_t)argument;
	char room[64];
	struct pollfd p = {.fd = slave[kind], .events = POLLIN};
	struct epoll_event event = {.events = EPOLLIN};
	fd_set set;
	FD_ZERO(&set);
	FD_SET(slave[kind], &set);
	int poller = epoll_create1(0);
	CHECK(poller >= 0 && epoll_ctl(poller, EPOLL_CTL_ADD, slave[kind], &event) == 0);
	__atomic_add_fetch(&entering, 1, __ATOMIC_SEQ_CST);
	switch (kind) {
	case READS_LINES: CHECK(read(slave[kind], room, sizeof room) == 10 && memcmp(room, "half line\n", 10) == 0); break;
	case READS_RAW: CHECK(read(slave[kind], room, sizeof room) == 6 && memcmp(room, "sixsix", 6) == 0); break;
	case READS_MASTER: CHECK(read(master[kind], room, sizeof room) == 4); break;
	case POLLS: CHECK(poll(&p, 1, -1) == 1); break;
	case SELECTS: CHECK(select(slave[kind] + 1, &set, NULL, NULL, NULL) == 1); break;
	case EPOLLS: CHECK(epoll_wait(poller, &event, 1, -1) == 1); break;
	default: CHECK(write(master[kind], "last", 4) == 4);
	}
	__atomic_store_n(&done[kind], 1, __ATOMIC_SEQ_CST);
	return NULL;
}

int main(void)
{
	pthread_t thread[KINDS];
	struct termios t;
	long written = 0;
	char room[4096];
	start();
	for (int i = 0; i < KINDS; i++) {
		master[i] = open_master();
		slave[i] = open_slave(master[i], O_RDWR);
		set_modes(slave[i], 0, 0, i == READS_LINES || i == POLLS ? ICANON : 0);
	}
	CHECK(tcgetattr(slave[READS_RAW], &t) == 0);
	t.c_cc[VMIN] = 6;
	t.c_cc[VTIME] = 0;
	CHECK(tcsetattr(slave[READS_RAW], TCSANOW, &t) == 0);
	say(master[READS_LINES], "half ");
	say(master[READS_RAW], "six");
	say(master[POLLS], "no line");
	CHECK(fcntl(master[WRITES], F_SETFL, O_RDWR | O_NONBLOCK) == 0);
	for (int idle = 0; idle < 20;) {
		ssize_t n = write(master[WRITES], room, sizeof room);
		idle = n > 0 ? 0 : idle + 1;
		written += n > 0 ? n : 0;
		if (idle) usleep(1000);
	}
	CHECK(fcntl(master[WRITES], F_SETFL, O_RDWR) == 0);
	for (int i = 0; i < KINDS; i++) CHECK(pthread_create(&thread[i], NULL, wait_for_it, (void *)(intptr_t)i) == 0);
	while (__atomic_load_n(&entering, __ATOMIC_SEQ_CST) < KINDS) usleep(1000);
	usleep(50000);
	ready();
	await_check();
	for (int i = 0; i < KINDS; i++)
		if (i != WRITES && __atomic_load_n(&done[i], __ATOMIC_SEQ_CST)) fail("call %d has ended", i);
	say(master[READS_LINES], "line\n");
	say(master[READS_RAW], "six");
	say(slave[READS_MASTER], "four");
	say(master[POLLS], "\n");
	say(master[SELECTS], "x");
	say(master[EPOLLS], "x");
	for (written += 4; written > 0;) {
		CHECK(poll(&(struct pollfd){.fd = slave[WRITES], .events = POLLIN}, 1, 5000) == 1);
		ssize_t n = read(slave[WRITES], room, sizeof room);
		CHECK(n > 0);
		written -= n;
		if (written <= 0) CHECK(written == 0 && memcmp(room + n - 4, "last", 4) == 0);
	}
	for (int i = 0; i < KINDS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
	pass();
}

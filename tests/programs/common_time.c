/* Threads that wait for one common time-out, in calls that are watched after a checkpoint: what is changed for one of
   them, while it waits for the rest, is not seen by the others, nor by who reads it. */
#include "timer.h"
#include <poll.h>
#include <pthread.h>
#include <sys/select.h>
#include <sys/syscall.h>

enum { SIGNALS, POLL, SELECT, SLEEP, READER, WAYS };
static struct timespec common = {0, 30 * MS};
static volatile int over;

static void *work_on(void *argument)
{
	int way = (int)(intptr_t)argument;
	sigset_t set, blocked;
	sigemptyset(&set);
	sigaddset(&set, 50);
	blocked = set;
	sigaddset(&blocked, SIGTERM);   /* that is for the first thread alone, also where it is just not waiting */
	while (!over) {
		int64_t begun = now(CLOCK_MONOTONIC), passed;
		switch (way) {
		case SIGNALS: CHECK(sigtimedwait(&set, NULL, &common) == -1 && errno == EAGAIN); break;
		case POLL: CHECK(ppoll(NULL, 0, &common, &blocked) == 0); break;
		case SELECT: CHECK(pselect(0, NULL, NULL, NULL, &common, &blocked) == 0); break;
		case SLEEP: CHECK(nanosleep(&common, NULL) == 0); break;
		case READER: if (ns(*(volatile struct timespec *)&common) != 30 * MS) fail("the time is another now"); else usleep(50);
		}
		passed = now(CLOCK_MONOTONIC) - begun;
		if (way != READER && passed < 30 * MS) fail("way %d: %ld ns", way, (long)passed);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[WAYS];
	start();
	for (int i = 0; i < WAYS; i++) CHECK(pthread_create(&threads[i], NULL, work_on, (void *)(intptr_t)i) == 0);
	usleep(40000);
	ready();
	await_check();
	usleep(40000);
	over = 1;
	for (int i = 0; i < WAYS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

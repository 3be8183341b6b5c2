/* Processes stopped by job control in the midst of calls: sleeping, polling, writing to a full pipe, waiting for events.
   They stay stopped, and go on like any that were stopped for a while; one thread in a stopped process of two is not lost. */
#include "family.h"
#include "timer.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>

enum { SLEEP, POLL, WRITE, EPOLL, THREADS, WAYS };
static int way, pipes[2];
static char content[200000];

static void *sleep_a_little(void *argument)
{
	int64_t begin = now(CLOCK_MONOTONIC);
	CHECK(usleep(300000) == 0 && now(CLOCK_MONOTONIC) - begin >= 300 * MS);
	return argument;
}

static void stand_still(void)
{
	struct epoll_event event;
	pthread_t thread;
	int64_t begin = now(CLOCK_MONOTONIC);
	ssize_t result;
	reach(2 * way + 1);
	switch (way) {
	case SLEEP: sleep_a_little(NULL); break;
	case POLL: CHECK(poll(NULL, 0, 300) == 0 && now(CLOCK_MONOTONIC) - begin >= 300 * MS); break;
	case WRITE:
		result = write(pipes[1], content, sizeof content);   /* the kernel ends it where it was when it was stopped */
		if (result != 65536 && result != sizeof content) fail("%zd bytes written", result);
		break;
	case EPOLL: CHECK(epoll_wait(epoll_create1(0), &event, 1, -1) == -1 && errno == EINTR); break;   /* signal(7) */
	case THREADS:
		CHECK(pthread_create(&thread, NULL, sleep_a_little, NULL) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
	}
	reach(2 * way + 2);
	await_check();
	pass();
}

int main(void)
{
	pid_t children[WAYS];
	int status;
	start();
	family();
	CHECK(pipe(pipes) == 0);
	for (way = 0; way < WAYS; way++) {
		children[way] = child(stand_still);
		await_step(2 * way + 1);
		usleep(20000);
		CHECK(kill(children[way], SIGSTOP) == 0);
		if (way % 2) CHECK(waitpid(children[way], &status, WUNTRACED) == children[way] && WIFSTOPPED(status));
	}
	ready();
	await_check();
	for (way = 0; way < WAYS; way++) {
		if (way % 2) {
			CHECK(waitpid(children[way], &status, WUNTRACED | WNOHANG) == 0);   /* told once */
		} else {
			CHECK(waitpid(children[way], &status, WUNTRACED) == children[way]);
			CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
		}
		CHECK(kill(children[way], SIGCONT) == 0);
		await_step(2 * way + 2);
		check_child(children[way]);
	}
	pass();
}

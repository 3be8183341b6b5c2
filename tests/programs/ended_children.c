/* Threads that wait for some time, in calls that a signal would end with EINTR, while children end all the time: SIGCHLD
   is ignored, so nobody is to be woken by it, not even while a checkpoint is being taken. */
#include "timer.h"
#include <pthread.h>
#include <sys/epoll.h>

#define WAITING 12
static volatile int over;

static void *wait_again(void *argument)
{
	int way = (int)(intptr_t)argument, ep = epoll_create1(0);
	struct timespec some = {0, 5 * MS};
	struct epoll_event event;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, 50);
	while (!over)
		if (way % 2) CHECK(sigtimedwait(&set, NULL, &some) == -1 && errno == EAGAIN);
		else CHECK(epoll_wait(ep, &event, 1, 5) == 0);
	return NULL;
}

static void *bear(void *unused)
{
	while (!over) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) _exit(0);
		CHECK(waitpid(pid, NULL, 0) == pid);
	}
	return unused;
}

int main(void)
{
	pthread_t threads[WAITING + 1];
	start();
	for (int i = 0; i < WAITING; i++) CHECK(pthread_create(&threads[i], NULL, wait_again, (void *)(intptr_t)i) == 0);
	CHECK(pthread_create(&threads[WAITING], NULL, bear, NULL) == 0);
	usleep(20000);
	ready();
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	CHECK(sigwaitinfo(&set, NULL) == SIGTERM);
	usleep(10000);
	over = 1;
	for (int i = 0; i <= WAITING; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

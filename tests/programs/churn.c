/* Threads that begin and end all the time, and processes that are forked, spawned and exec'd all the time: whatever they
   were in the midst of, all end as they should and nobody is lost. */
#include "program.h"
#include <pthread.h>
#include <spawn.h>
#include <sys/syscall.h>

static volatile int over;
static volatile int rounds[3];
extern char **environ;

static void *short_lived(void *argument)
{
	int tid = syscall(SYS_gettid), *there = argument;
	__atomic_add_fetch(there, 1, __ATOMIC_SEQ_CST);
	return (void *)(intptr_t)tid;
}

static void *make_threads(void *argument)
{
	while (!over) {
		pthread_t threads[4];
		int there = 0;
		void *tid;
		for (int i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, short_lived, &there) == 0);
		for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], &tid) == 0 && (intptr_t)tid > 0);
		CHECK(there == 4);
		rounds[0]++;
	}
	return argument;
}

static void *fork_children(void *argument)
{
	while (!over) {
		int status, code = rounds[1] % 100;
		pid_t child = fork();
		if (child == 0) _exit(code);
		CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == code);
		rounds[1]++;
	}
	return argument;
}

static void *spawn_programs(void *argument)   /* by vfork, which can't be stopped on its own */
{
	char *exit_7[] = {"sh", "-c", "exit 7", NULL};
	while (!over) {
		int status;
		pid_t child;
		CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, exit_7, environ) == 0);
		CHECK(waitpid(child, &status, 0) == child);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) fail("wait status %#x", status);
		rounds[2]++;
	}
	return argument;
}

int main(void)
{
	void *(*const work[3])(void *) = {make_threads, fork_children, spawn_programs};
	pthread_t threads[3];
	int before[3];
	sigset_t children;
	start();
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);   /* posix_spawn(3) blocks it for a moment: it would come to another thread then */
	CHECK(sigprocmask(SIG_BLOCK, &children, NULL) == 0);
	for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, work[i], NULL) == 0);
	for (int i = 0; i < 3; i++) while (rounds[i] < 2) usleep(1000);
	ready();
	await_check();
	for (int i = 0; i < 3; i++) before[i] = rounds[i];
	for (int i = 0; i < 3; i++) while (rounds[i] < before[i] + 2) usleep(1000);
	over = 1;
	for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	pass();
}

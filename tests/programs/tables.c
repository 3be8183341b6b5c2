/* Processes that share their descriptors or their working directory and umask: parent and child, siblings whose parent does
   not, and three generations. What one does after the restart, all that share see, and nobody else; a thread has left its
   process's directory for one of its own. */
#include "family.h"
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

#define FD 60
static pthread_barrier_t barrier;

static pid_t bear(int flags, void (*body)(void))
{
	pid_t pid = syscall(SYS_clone, flags | (flags & CLONE_PARENT ? 0 : SIGCHLD), NULL, NULL, NULL, 0);
	CHECK(pid >= 0);
	if (pid == 0) {
		body();
		pass();
	}
	return pid;
}

static int is_in(const char *name)
{
	char path[PATH_MAX];
	CHECK(getcwd(path, sizeof path));
	return strcmp(strrchr(path, '/') + 1, name) == 0;
}

static int has_mask(mode_t wanted)
{
	mode_t got = umask(0);
	umask(got);
	return got == wanted;
}

/* Steps 1 to 9 are reached before the checkpoint, 10 and on after it. */
static void child_with_descriptors(void)
{
	reach(1);
	await_step(10);
	CHECK(dup2(1, FD) == FD && chdir("one") == 0);
	reach(11);
	await_step(20);
}

static void sibling(void)
{
	reach(3);
	await_step(12);
	CHECK(fcntl(FD + 1, F_GETFD) == -1 && close(FD) == 0 && chdir("two") == 0);
	umask(0111);
	reach(13);
	await_step(20);
	CHECK(fcntl(FD + 1, F_GETFD) >= 0 && is_in("one") && has_mask(0122));
}

static void elder_sibling(void)
{
	setsid();
	CHECK(dup2(1, FD) == FD);
	bear(CLONE_PARENT | CLONE_FILES | CLONE_FS, sibling);
	await_step(13);
	CHECK(fcntl(FD, F_GETFD) == -1 && is_in("two") && has_mask(0111) && dup2(1, FD + 1) == FD + 1);
	CHECK(chdir("../one") == 0);
	umask(0122);
	reach(14);
	await_step(20);
}

static void grandchild(void)
{
	reach(5);
	await_step(15);
	CHECK(fcntl(FD, F_GETFD) == -1 && is_in("two") && chdir("..") == 0);
	reach(16);
	await_step(20);
}

static void child_with_directory(void)
{
	bear(CLONE_FS, grandchild);
	await_step(14);
	CHECK(chdir("two") == 0);
	reach(15);
	await_step(20);
	CHECK(wait(NULL) > 0);
}

static void *wanderer(void *unused)
{
	CHECK(unshare(CLONE_FS) == 0 && chdir("two") == 0);
	umask(0077);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	CHECK(is_in("two") && has_mask(0077));
	return unused;
}

int main(void)
{
	pthread_t thread;
	int status;
	start();
	family();
	umask(0022);
	CHECK(mkdir("one", 0755) == 0 && mkdir("two", 0755) == 0 && mkdir("home", 0755) == 0);
	bear(CLONE_FILES, child_with_descriptors);
	await_step(1);
	bear(0, elder_sibling);
	await_step(3);
	bear(CLONE_FS, child_with_directory);
	await_step(5);
	CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0 && pthread_create(&thread, NULL, wanderer, NULL) == 0);
	pthread_barrier_wait(&barrier);
	ready();
	await_check();
	CHECK(fcntl(FD, F_GETFD) == -1);
	reach(10);
	await_step(11);
	CHECK(fcntl(FD, F_GETFD) == 0 && has_mask(0022));
	reach(12);
	await_step(16);
	CHECK(fcntl(FD, F_GETFD) == 0 && has_mask(0022) && access("home", F_OK) == 0);
	reach(20);
	pthread_barrier_wait(&barrier);
	CHECK(pthread_join(thread, NULL) == 0);
	for (int i = 0; i < 4; i++) CHECK(wait(&status) > 0 && status == 0);   /* with the sibling, whose pid nobody knows */
	pass();
}

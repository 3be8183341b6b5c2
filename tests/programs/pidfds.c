/* Descriptors of processes: of a child that lives, of one that nobody has waited for, of two that are gone, of itself, its
   parent, and a thread; with O_NONBLOCK, and watched by epoll. They are ready when they were, and signals and waits go
   through them to the same processes. */
#include "family.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#define PIDFD_THREAD O_EXCL

static int open_of(pid_t pid, int flags) { return syscall(SYS_pidfd_open, pid, flags); }
static int send(int fd, int number) { return syscall(SYS_pidfd_send_signal, fd, number, NULL, 0); }

static int ready_of(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};
	CHECK(poll(&p, 1, 0) >= 0);
	return p.revents;
}

static ino_t inode_of(int fd)
{
	struct stat st;
	CHECK(fstat(fd, &st) == 0);
	return st.st_ino;
}

static pid_t ends_with(int code)
{
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) _exit(code);
	return pid;
}

static void waits(void)
{
	await_check();
	_exit(42);
}

static pid_t tid;
static int end_now;
static void *thread(void *unused)
{
	tid = syscall(SYS_gettid);
	reach(1);
	while (!__atomic_load_n(&end_now, __ATOMIC_SEQ_CST)) usleep(1000);
	return unused;
}

int main(void)
{
	int fds[7], gone[3], poller, of_thread, status, in_group;
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = 77};
	siginfo_t info = {0};
	pid_t lives, zombie, first, second;
	pthread_t other;
	start();
	family();
	CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
	await_step(1);
	lives = child(waits);
	zombie = ends_with(3), first = ends_with(4), second = ends_with(5);
	fds[0] = open_of(lives, 0), fds[1] = open_of(lives, O_NONBLOCK), fds[2] = open_of(zombie, 0);
	fds[3] = open_of(getpid(), 0), fds[4] = open_of(getppid(), 0), fds[5] = dup(fds[0]), fds[6] = open_of(lives, 0);
	gone[0] = open_of(first, 0), gone[1] = open_of(first, 0), gone[2] = open_of(second, O_NONBLOCK);
	CHECK(waitpid(first, &status, 0) == first && waitpid(second, &status, 0) == second);
	CHECK(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT) == 0);
	poller = epoll_create1(0);
	CHECK(poller >= 0 && epoll_ctl(poller, EPOLL_CTL_ADD, fds[6], &event) == 0);
	of_thread = open_of(tid, PIDFD_THREAD);   /* since Linux 6.9 */
	in_group = inode_of(gone[0]) != inode_of(gone[2]);   /* since 6.9 each process has an inode */
	ready();
	await_check();
	for (int i = 0; i < 7; i++) CHECK(fds[i] >= 0 && (ready_of(fds[i]) != 0) == (i == 2));
	for (int i = 0; i < 3; i++) CHECK((ready_of(gone[i]) & POLLIN) && send(gone[i], 0) == -1 && errno == ESRCH);
	if (in_group) CHECK(inode_of(gone[0]) == inode_of(gone[1]) && inode_of(gone[0]) != inode_of(gone[2]));
	if (in_group) CHECK(inode_of(fds[0]) == inode_of(fds[1]) && inode_of(fds[0]) != inode_of(fds[2]));
	CHECK((fcntl(fds[1], F_GETFL) & O_NONBLOCK) && !(fcntl(fds[0], F_GETFL) & O_NONBLOCK));
	CHECK(fcntl(gone[2], F_GETFL) & O_NONBLOCK);
	CHECK(waitid(P_PIDFD, fds[2], &info, WEXITED) == 0 && info.si_pid == zombie && info.si_status == 3);
	CHECK(waitid(P_PIDFD, fds[1], &info, WEXITED) == -1 && errno == EAGAIN);
	CHECK(send(fds[3], 0) == 0 && epoll_wait(poller, &event, 1, 0) == 0);
	if (of_thread >= 0) CHECK(ready_of(of_thread) == 0);
	__atomic_store_n(&end_now, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(other, NULL) == 0);
	for (int i = 0; of_thread >= 0 && i < 1000 && ready_of(of_thread) == 0; i++) usleep(1000);
	if (of_thread >= 0) CHECK(ready_of(of_thread) & POLLIN);
	CHECK(send(fds[5], SIGTERM) == 0 && epoll_wait(poller, &event, 1, 20000) == 1 && event.data.u32 == 77);
	CHECK(waitid(P_PIDFD, fds[0], &info, WEXITED) == 0 && info.si_pid == lives && info.si_status == 42);
	pass();
}

/* What belongs to a descriptor and what to the open file: close-on-exec, O_NONBLOCK, O_APPEND, O_ASYNC with its owner and
   signal, which must come with the right number in si_fd. Owners: a process, a thread, a group. */
#include "family.h"
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static int pair[2], grouped[2], threaded[2], unowned[2];

static int take(int number, int seconds, siginfo_t *info)
{
	struct timespec patience = {seconds, 0};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	return sigtimedwait(&set, info, &patience);
}

static void child_body(void)
{
	siginfo_t info;
	await_check();
	/* the parent's group gets the signal for ``grouped``, so this one too */
	CHECK(take(SIGRTMIN + 1, 10, &info) == SIGRTMIN + 1 && info.si_fd == grouped[0]);
	pass();
}

int main(void)
{
	struct f_owner_ex owner, got;
	siginfo_t info;
	sigset_t set;
	int copy, fds[2];
	pid_t pid;
	start();
	setpgid(0, 0);
	family();
	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	for (int i = 0; i < 4; i++) sigaddset(&set, SIGRTMIN + i);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	copy = fcntl(pair[0], F_DUPFD, 40);
	CHECK(copy == 40 && fcntl(pair[1], F_SETFD, 0) == 0);
	CHECK(fcntl(pair[0], F_SETOWN, getpid()) == 0 && fcntl(pair[0], F_SETSIG, SIGRTMIN) == 0);
	CHECK(fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, grouped) == 0);
	CHECK(fcntl(grouped[0], F_SETOWN, -getpgrp()) == 0 && fcntl(grouped[0], F_SETSIG, SIGRTMIN + 1) == 0);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, threaded) == 0);
	owner = (struct f_owner_ex){F_OWNER_TID, syscall(SYS_gettid)};
	CHECK(fcntl(threaded[0], F_SETOWN_EX, &owner) == 0 && fcntl(threaded[0], F_SETSIG, SIGRTMIN + 2) == 0);
	CHECK(fcntl(threaded[0], F_SETFL, O_ASYNC) == 0);

	/* a signal but no owner yet */
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, unowned) == 0);
	CHECK(fcntl(unowned[0], F_SETSIG, SIGRTMIN + 3) == 0 && fcntl(unowned[0], F_SETFL, O_ASYNC) == 0);

	CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
	CHECK(fcntl(fds[1], F_SETFL, 0) == 0 && fcntl(fds[1], F_SETFD, 0) == 0);
	pid = child(child_body);
	CHECK(fcntl(grouped[0], F_SETFL, O_ASYNC) == 0);
	ready();
	await_check();
	CHECK(fcntl(pair[0], F_GETFD) == FD_CLOEXEC && fcntl(pair[1], F_GETFD) == 0 && fcntl(copy, F_GETFD) == 0);
	CHECK((fcntl(pair[0], F_GETFL) & (O_ASYNC | O_NONBLOCK)) == (O_ASYNC | O_NONBLOCK));
	CHECK((fcntl(pair[1], F_GETFL) & (O_ASYNC | O_NONBLOCK)) == 0);
	CHECK(fcntl(pair[0], F_GETOWN) == getpid() && fcntl(pair[0], F_GETSIG) == SIGRTMIN);
	CHECK(fcntl(grouped[0], F_GETOWN_EX, &got) == 0 && got.type == F_OWNER_PGRP && got.pid == getpgrp());
	CHECK(fcntl(threaded[0], F_GETOWN_EX, &got) == 0 && got.type == F_OWNER_TID && got.pid == owner.pid);
	CHECK(fcntl(unowned[0], F_GETSIG) == SIGRTMIN + 3 && fcntl(unowned[0], F_GETOWN) == 0);
	CHECK(fcntl(fds[0], F_GETFD) == FD_CLOEXEC && (fcntl(fds[0], F_GETFL) & O_NONBLOCK));
	CHECK(fcntl(fds[1], F_GETFD) == 0 && !(fcntl(fds[1], F_GETFL) & O_NONBLOCK));

	CHECK(take(SIGRTMIN, 0, &info) == -1 && take(SIGRTMIN + 1, 0, &info) == -1 && take(SIGRTMIN + 2, 0, &info) == -1);
	CHECK(write(pair[1], "x", 1) == 1);
	CHECK(take(SIGRTMIN, 10, &info) == SIGRTMIN && info.si_fd == pair[0] && info.si_code == POLL_IN);
	CHECK(write(threaded[1], "x", 1) == 1);
	CHECK(take(SIGRTMIN + 2, 10, &info) == SIGRTMIN + 2 && info.si_fd == threaded[0]);
	CHECK(fcntl(unowned[0], F_SETOWN, getpid()) == 0 && write(unowned[1], "x", 1) == 1);
	CHECK(take(SIGRTMIN + 3, 10, &info) == SIGRTMIN + 3 && info.si_fd == unowned[0]);
	CHECK(write(grouped[1], "x", 1) == 1);
	CHECK(take(SIGRTMIN + 1, 10, &info) == SIGRTMIN + 1 && info.si_fd == grouped[0]);
	check_child(pid);
	pass();
}

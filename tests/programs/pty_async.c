/* Signals of terminals (O_ASYNC): with an owner that is set, with the one that the kernel chooses, with none, and with
   a signal of its own that tells the descriptor. What waits unread does not send them again; what comes later does. */
#include "terminal.h"

static int took(int number, siginfo_t *info)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	return sigtimedwait(&set, info, &(struct timespec){5, 0});
}

static void none_waits(void)
{
	sigset_t set;
	CHECK(sigpending(&set) == 0);
	if (sigismember(&set, SIGIO) || sigismember(&set, SIGRTMIN)) fail("a signal came");
}

int main(void)
{
	struct f_owner_ex owner;
	sigset_t set;
	siginfo_t info;
	int master[3], slave[3];
	start();
	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	sigaddset(&set, SIGRTMIN);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < 3; i++) {
		master[i] = open_master();
		slave[i] = open_slave(master[i], O_RDWR);
		set_modes(slave[i], 0, 0, i ? ICANON : 0);
		say(master[i], "waits\nhalf");
		say(slave[i], "output");
		CHECK(poll(&(struct pollfd){.fd = slave[i], .events = POLLIN}, 1, 5000) == 1);
		CHECK(poll(&(struct pollfd){.fd = master[i], .events = POLLIN}, 1, 5000) == 1);
	}
	CHECK(fcntl(slave[0], F_SETOWN, getpid()) == 0 && fcntl(slave[0], F_SETSIG, SIGRTMIN) == 0);
	CHECK(fcntl(slave[0], F_SETFL, O_RDWR | O_ASYNC) == 0);
	CHECK(fcntl(slave[1], F_SETFL, O_RDWR | O_ASYNC) == 0);
	CHECK(fcntl(master[1], F_SETFL, O_RDWR | O_ASYNC) == 0);
	CHECK(fcntl(slave[2], F_SETFL, O_RDWR | O_ASYNC) == 0 && fcntl(slave[2], F_SETOWN, 0) == 0);
	usleep(20000);
	while (sigtimedwait(&set, &info, &(struct timespec){0, 0}) > 0) continue;
	ready();
	await_check();
	none_waits();
	for (int i = 0; i < 3; i++) CHECK(fcntl(slave[i], F_GETFL) & O_ASYNC);
	CHECK(fcntl(slave[0], F_GETOWN_EX, &owner) == 0 && owner.type == F_OWNER_PID && owner.pid == getpid());
	CHECK(fcntl(slave[1], F_GETOWN_EX, &owner) == 0 && owner.pid == getpid());
	CHECK(fcntl(slave[2], F_GETOWN_EX, &owner) == 0 && owner.pid == 0);
	say(master[2], "\n");
	EXPECT(slave[2], "waits\n");
	EXPECT(slave[2], "half\n");
	none_waits();
	say(master[0], "more");
	CHECK(took(SIGRTMIN, &info) == SIGRTMIN && info.si_fd == slave[0]);
	EXPECT_ALL(slave[0], "waits\nhalfmore");
	say(master[1], "\n");
	CHECK(took(SIGIO, &info) == SIGIO);
	EXPECT(slave[1], "waits\n");
	EXPECT(slave[1], "half\n");
	while (sigtimedwait(&set, &info, &(struct timespec){0, 0}) > 0) continue;
	say(slave[1], "!");
	CHECK(took(SIGIO, &info) == SIGIO);
	EXPECT_ALL(master[1], "output!");
	pass();
}

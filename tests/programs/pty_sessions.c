/* A session with a controlling terminal: a foreground and a background group, a child from before there was a terminal
   and one that has left it; in another session the foreground group is one of which nobody is left. ^C, a change of
   size and the end of the leader reach whom they must, and nobody is told anything before. */
#include "family.h"
#include "terminal.h"

static int master, slave, leader_group, signals[65];

static void note(int number) { signals[number]++; }

static void listen_to(void)
{
	struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
	int which[] = {SIGINT, SIGWINCH, SIGHUP, SIGTTOU, SIGTTIN, SIGCONT, SIGTSTP, SIGQUIT};
	for (int i = 0; i < 8; i++) CHECK(sigaction(which[i], &action, NULL) == 0);
}

static void nobody_told(void)
{
	for (int i = 1; i < 65; i++)
		if (signals[i]) fail("signal %d came", i);
}

static void await_signal(int number)
{
	for (int i = 0; !signals[number] && i < 5000; i++) usleep(1000);
	if (!signals[number]) fail("signal %d does not come", number);
	signals[number] = 0;
}

static void foreground(void)
{
	CHECK(setpgid(0, 0) == 0 && prctl(PR_SET_PDEATHSIG, 0) == 0);   /* it outlives its leader */
	listen_to();
	reach(3);
	await_check();
	nobody_told();
	CHECK(tcgetpgrp(slave) == getpgrp() && tcgetsid(slave) == leader_group);
	reach(10);   /* ^C */
	await_signal(SIGINT);
	reach(11);   /* another size */
	await_signal(SIGWINCH);
	reach(12);   /* its leader ends */
	await_signal(SIGHUP);
	CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
	nobody_told();
	pass();
}

static void background(void)
{
	CHECK(setpgid(0, 0) == 0);
	listen_to();
	reach(4);
	await_check();
	nobody_told();
	CHECK(tcgetpgrp(slave) != getpgrp() && open("/dev/tty", O_RDWR) >= 0);
	pass();
}

static void before(void)   /* born before its session had a terminal */
{
	listen_to();
	reach(1);
	await_check();
	nobody_told();
	CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO && getsid(0) == leader_group);
	pass();
}

static void without(void)
{
	CHECK(ioctl(slave, TIOCNOTTY) == 0);
	before();
}

static pid_t groups[4];

static void leader(void)
{
	CHECK((leader_group = setsid()) == getpid());
	groups[0] = child(before);
	await_step(1);
	CHECK(ioctl(slave, TIOCSCTTY, 0) == 0);
	reach(0);
	groups[1] = child(without);
	await_step(1);
	groups[2] = child(foreground);
	await_step(3);
	groups[3] = child(background);
	await_step(4);
	CHECK(signal(SIGTTOU, SIG_IGN) != SIG_ERR && tcsetpgrp(slave, groups[2]) == 0);
	listen_to();
	reach(5);
	await_check();
	nobody_told();
	CHECK(tcgetpgrp(slave) == groups[2]);
	check_child(groups[0]);
	check_child(groups[1]);
	check_child(groups[3]);
	for (int i = 0; i < 4; i++) signals[SIGCHLD] = 0;
	CHECK(kill(groups[2], SIGTERM) == 0);
	await_step(12);
	_exit(0);   /* the foreground group gets SIGHUP */
}

static void lonely_leader(void)   /* its foreground group is gone */
{
	int other = open_master(), own = open_slave(other, O_RDWR), status;
	CHECK(setsid() == getpid() && ioctl(own, TIOCSCTTY, 0) == 0 && signal(SIGTTOU, SIG_IGN) != SIG_ERR);
	pid_t gone = fork();
	CHECK(gone >= 0);
	if (gone == 0) {
		CHECK(setpgid(0, 0) == 0);
		pause();
	}
	while (tcsetpgrp(own, gone)) usleep(500);
	CHECK(kill(gone, SIGKILL) == 0 && waitpid(gone, &status, 0) == gone);
	CHECK(tcgetpgrp(own) == gone);
	reach(6);
	await_check();
	if (tcgetpgrp(own) != gone) fail("the foreground group is %d, not %d", tcgetpgrp(own), gone);
	CHECK(tcsetpgrp(own, getpgrp()) == 0 && tcgetpgrp(own) == getpid());
	pass();
}

int main(void)
{
	int status;
	start();
	family();
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	master = open_master();
	slave = open_slave(master, O_RDWR);
	pid_t first = child(leader);
	await_step(5);
	pid_t second = child(lonely_leader);
	await_step(6);
	ready();
	await_check();
	check_child(second);
	CHECK(kill(first, SIGTERM) == 0);
	for (int ended = 0; ended < 2;) {
		static int step = 10;
		int now = __atomic_load_n(family_step, __ATOMIC_SEQ_CST);
		if (now == step && now < 12) {
			if (step++ == 10) say(master, "\003");
			else CHECK(ioctl(master, TIOCSWINSZ, &(struct winsize){50, 90, 0, 0}) == 0);
		}
		pid_t pid = waitpid(-1, &status, WNOHANG);
		if (pid > 0 && status) fail("child %d ended with %#x", pid, status);
		ended += pid > 0;
		usleep(500);
	}
	pass();
}

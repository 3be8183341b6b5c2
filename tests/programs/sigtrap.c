/* SIGTRAP, which a checkpoint could reset by its own traps: in a process each it is ignored, handled, blocked with one
   waiting, blocked and ignored, and left alone; its action and what waits stay as they are. */
#include "family.h"
#include <sys/syscall.h>

enum { DEFAULT, IGNORED, HANDLED, WAITING, BLOCKED_IGNORED, WAYS };
static int way;
static volatile int trapped;

static void handle(int number, siginfo_t *info, void *context)
{
	(void)context;
	CHECK(number == SIGTRAP);
	trapped = info->si_code == SI_QUEUE ? info->si_value.sival_int : -1;
}

static void check(void)
{
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
	uint64_t before[4], after[4];
	sigset_t trap, now;
	pid_t child;
	int status;
	sigemptyset(&trap);
	sigaddset(&trap, SIGTRAP);
	if (way == IGNORED || way == BLOCKED_IGNORED) action = (struct sigaction){.sa_handler = SIG_IGN};
	if (way != DEFAULT) CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
	if (way == WAITING || way == BLOCKED_IGNORED) CHECK(sigprocmask(SIG_BLOCK, &trap, NULL) == 0);
	if (way == WAITING) CHECK(sigqueue(getpid(), SIGTRAP, (union sigval){44}) == 0);
	CHECK(syscall(SYS_rt_sigaction, SIGTRAP, NULL, before, 8) == 0);
	reach(way + 1);
	await_check();
	CHECK(syscall(SYS_rt_sigaction, SIGTRAP, NULL, after, 8) == 0);
	if (memcmp(before, after, sizeof before)) fail("way %d: the action differs", way);
	CHECK(sigprocmask(SIG_BLOCK, NULL, &now) == 0 && sigismember(&now, SIGTRAP) == (way == WAITING || way == BLOCKED_IGNORED));
	CHECK(sigpending(&now) == 0 && sigismember(&now, SIGTRAP) == (way == WAITING) && trapped == 0);
	if (way == WAITING) CHECK(sigprocmask(SIG_UNBLOCK, &trap, NULL) == 0 && trapped == 44);
	if (way == HANDLED) CHECK(raise(SIGTRAP) == 0 && trapped == -1);
	if (way == IGNORED) CHECK(raise(SIGTRAP) == 0);
	if (way == DEFAULT) {
		if ((child = fork()) == 0) {
			raise(SIGTRAP);
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTRAP);
	}
	pass();
}

int main(void)
{
	pid_t children[WAYS];
	start();
	family();
	for (way = 0; way < WAYS; way++) {
		children[way] = child(check);
		await_step(way + 1);
	}
	usleep(5000);
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) check_child(children[i]);
	pass();
}

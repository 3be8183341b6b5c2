/* What a process does at each signal: handlers with all flags, masks and the restorer, ignored ones and defaults, as
   the kernel has them; one that was reset by SA_RESETHAND. Handlers are called with the masks that they ask for. */
#include "program.h"
#include <sys/syscall.h>

struct kernel_action { uint64_t handler, flags, restorer, mask; };
static struct kernel_action before[65], after[65];
static volatile int called;

static int special(int signal) { return signal == SIGKILL || signal == SIGSTOP || signal == SIGTERM || signal == 32 || signal == 33; }

static void look(struct kernel_action *actions)
{
	for (int i = 1; i < 65; i++) CHECK(syscall(SYS_rt_sigaction, i, NULL, &actions[i], 8) == 0);
}

static void plain(int number) { called = number; }

static void informed(int number, siginfo_t *info, void *context)
{
	sigset_t mask;
	(void)context;
	CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && info->si_signo == number);
	CHECK(sigismember(&mask, SIGTERM) && sigismember(&mask, number == 64 ? 34 : number + 1) == 1);
	CHECK(sigismember(&mask, number) == (number % 2 == 0));
	called = number;
}

static void once(int number) { called = number; }

int main(void)
{
	static const int flags[] = {0, SA_RESTART, SA_ONSTACK, SA_NODEFER, SA_RESTART | SA_NODEFER | SA_ONSTACK};
	struct sigaction action;
	start();
	for (int i = 1; i < 65; i++) {
		if (special(i)) continue;
		sigemptyset(&action.sa_mask);
		action.sa_flags = 0;
		action.sa_handler = i % 5 == 0 ? SIG_IGN : i % 5 == 1 ? SIG_DFL : plain;
		if (i % 5 >= 2) action.sa_flags = flags[i % 7 % 5];
		if (i % 5 == 4 || i == 64) {
			action.sa_sigaction = informed;
			action.sa_flags = SA_SIGINFO | (i % 2 ? SA_NODEFER : 0);
			sigaddset(&action.sa_mask, i == 64 ? 34 : i + 1);
		}
		if (i == SIGCHLD) action.sa_flags |= SA_NOCLDSTOP | SA_NOCLDWAIT;
		CHECK(sigaction(i, &action, NULL) == 0);
	}
	action.sa_handler = once;
	action.sa_flags = SA_RESETHAND | SA_RESTART;
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && raise(SIGUSR1) == 0 && called == SIGUSR1);
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
	look(before);
	ready();
	await_check();
	look(after);
	for (int i = 1; i < 65; i++)
		if (memcmp(&before[i], &after[i], sizeof before[i])) fail("the action of signal %d differs", i);
	for (int i = 1; i < 65; i++) {
		called = 0;
		if (special(i) || before[i].handler <= 1) continue;
		CHECK(raise(i) == 0);
		if (called != i) fail("the handler of signal %d is not called", i);
	}
	look(after);
	CHECK(after[SIGUSR2].handler == 0 && after[SIGUSR1].handler == 0);
	for (int i = 1; i < 65; i++) if (!special(i) && before[i].handler == 1) CHECK(raise(i) == 0);
	pass();
}

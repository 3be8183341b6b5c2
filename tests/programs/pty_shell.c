/* An interactive bash on a terminal, with a job that was stopped by ^Z, one in the background, one in the foreground,
   half a command typed ahead, and history. The command is finished, ^C ends the one in the foreground, fg takes the
   stopped one up, and the shell's variables are there. */
#include "terminal.h"

static int master;
static char seen[1 << 16];
static size_t length;

/* What the shell answers, up to a text, and forget it. */
static void await_text(const char *text)
{
	while (!strstr(seen, text)) {
		struct pollfd p = {.fd = master, .events = POLLIN};
		if (poll(&p, 1, 10000) != 1) fail("no \"%s\" in \"%s\"", text, seen);
		ssize_t n = read(master, seen + length, sizeof seen - 1 - length);
		CHECK(n > 0);
		length += (size_t)n;
		seen[length] = 0;
	}
	size_t used = (size_t)(strstr(seen, text) - seen) + strlen(text);
	memmove(seen, seen + used, length - used + 1);
	length -= used;
}

int main(void)
{
	int status;
	start();
	if (access("/bin/bash", X_OK)) {   /* nothing to try it with */
		ready();
		await_check();
		pass();
	}
	master = open_master();
	int slave = open_slave(master, O_RDWR);
	pid_t shell = fork();
	CHECK(shell >= 0);
	if (shell == 0) {
		sigset_t none;
		sigemptyset(&none);
		CHECK(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0);
		for (int fd = 0; fd < 3; fd++) CHECK(dup2(slave, fd) == fd);
		CHECK(sigprocmask(SIG_SETMASK, &none, NULL) == 0);
		execle("/bin/bash", "bash", "--norc", "--noprofile", "-i", NULL,
		       (char *[]){"PS1=<prompt>", "TERM=dumb", "PATH=/usr/bin:/bin", "HISTFILE=", "LC_ALL=C", NULL});
		_exit(9);
	}
	CHECK(close(slave) == 0);
	await_text("<prompt>");
	say(master, "kept=so$((6*7)); set +o emacs\n");
	await_text("<prompt>");
	say(master, "sleep 1000 &\n");
	await_text("<prompt>");
	say(master, "sh -c 'kill -STOP $$; echo went on'\n");
	await_text("Stopped");
	await_text("<prompt>");
	say(master, "sleep 2000\n");
	await_text("sleep 2000");
	for (int i = 0; tcgetpgrp(master) == shell; i++) {
		CHECK(i < 5000);
		usleep(2000);
	}
	usleep(100000);
	say(master, "echo $ke");   /* typed ahead, to be finished */
	await_text("echo $ke");
	ready();
	await_check();
	CHECK(tcgetpgrp(master) != shell && kill(shell, 0) == 0);
	say(master, "\025\003");   /* ^U: the line would go with ^C anyway */
	await_text("<prompt>");
	say(master, "echo $kept=\n");
	await_text("so42=");
	await_text("<prompt>");
	say(master, "jobs\n");
	await_text("Running");
	await_text("Stopped");
	await_text("<prompt>");
	say(master, "fg\n");
	await_text("went on");
	await_text("<prompt>");
	say(master, "kill %1; wait; exit 3\n");
	CHECK(waitpid(shell, &status, 0) == shell);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 3) fail("the shell ended with %#x", status);
	pass();
}

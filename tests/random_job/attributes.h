/* Where a process stands among others, and what it is like. */
#ifndef ATTRIBUTES_H
#define ATTRIBUTES_H
#include "job.h"
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static int attribute_step(int letter, int a, int b, int c)
{
	char name[16];
	struct rlimit limit;
	switch (letter) {
	case 'g':
		if (a % 3 == 0) setsid();
		else setpgid(0, a % 3 == 1 ? 0 : getpgid(shared->pids[b % shared->actors]));
		break;
	case 'j': prctl(PR_SET_CHILD_SUBREAPER, a & 1); break;
	case 'y':
		switch (a % 8) {
		case 0: snprintf(name, sizeof name, "actor %d,%d", b, c), prctl(PR_SET_NAME, name); break;
		case 1: umask(b & 0077); break;   /* what its owner may not write is not opened for that again */
		case 2: snprintf(name, sizeof name, "dir%d", b % 3), mkdir(name, 0755); if (b & 4 && chdir(name)) {} if (b & 8) rmdir(name); break;
		case 3: setpriority(PRIO_PROCESS, 0, b % 20); break;
		case 4: prctl(PR_SET_TIMERSLACK, 1000 * (1 + b)); break;
		case 5: getrlimit(RLIMIT_STACK, &limit), limit.rlim_cur = 8 << 20 | b << 12, setrlimit(RLIMIT_STACK, &limit); break;
		case 6: prctl(PR_SET_PDEATHSIG, b & 1 ? 35 : 0); block(35); break;
		case 7: if (fork() == 0) _exit(b); usleep(3000); break;   /* a zombie, or none where the end of children is ignored */
		}
		break;
	default: return 0;
	}
	return 1;
}
#endif

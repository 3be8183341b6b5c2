/* Grows the process tree that its argument says, for tests/test_trees.py: steps as "actor operation argument", separated
   by commas; actors are numbered in the order of their birth, 0 is this program. Each process does its own steps; then all
   note where they are in the tree and what they know of their children, and at SIGTERM must find it so. */
#include "programs/waiting.h"
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define MOST 512
#define CHILDREN 260
enum { GROW, NOTE, VERIFY };

static struct shared {
	atomic_int step, phase, noted, verified, wrong, pids[MOST], dead[MOST], stopped[MOST];
} *shared;
static struct step { int actor, argument; char operation; } steps[4 * MOST];
static int count, self;

struct child { int pid, thread, code, status; };
struct place { int parent, group, session, children; struct child child[CHILDREN]; };

static void advance(atomic_int *word)
{
	atomic_fetch_add(word, 1);
	syscall(SYS_futex, word, FUTEX_WAKE, 1000, NULL, NULL, 0);
}

static int by_pid(const void *a, const void *b)
{
	return ((const struct child *)a)->pid - ((const struct child *)b)->pid;
}

/* -- what each knows ------------------------------------------------------------------------------------------- */
static void look(struct place *p)
{
	char path[300], list[8192], *word;
	struct dirent *entry;
	DIR *tasks = opendir("/proc/self/task");
	CHECK(tasks);
	memset(p, 0, sizeof *p);
	p->parent = getppid(), p->group = getpgrp(), p->session = getsid(0);
	while ((entry = readdir(tasks))) {
		int fd, got;
		snprintf(path, sizeof path, "/proc/self/task/%s/children", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (entry->d_name[0] == '.' || fd < 0) continue;
		got = read(fd, list, sizeof list - 1);
		list[got > 0 ? got : 0] = 0;
		close(fd);
		for (word = strtok(list, " "); word && p->children < CHILDREN; word = strtok(NULL, " ")) {
			siginfo_t info = {0};
			struct child *c = &p->child[p->children++];
			CHECK(waitid(P_PID, atoi(word), &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT | __WALL) == 0);
			*c = (struct child){atoi(word), atoi(entry->d_name), info.si_code, info.si_status};
		}
	}
	closedir(tasks);
	qsort(p->child, p->children, sizeof p->child[0], by_pid);   /* who came by the end of another comes last */
}

static void complain(const struct place *a, const struct place *b)
{
	dprintf(1, "process %d (%d): parent %d group %d session %d children %d, was %d %d %d %d\n", self, getpid(), b->parent,
	        b->group, b->session, b->children, a->parent, a->group, a->session, a->children);
	for (int i = 0; i < a->children || i < b->children; i++)
		dprintf(1, "  child %d of %d: code %d status %#x, was %d of %d: %d %#x\n", b->child[i].pid, b->child[i].thread,
		        b->child[i].code, b->child[i].status, a->child[i].pid, a->child[i].thread, a->child[i].code,
		        a->child[i].status);
}

/* -- growing --------------------------------------------------------------------------------------------------- */
static void serve(void);

static void born(int number)
{
	self = number;
	shared->pids[number] = getpid();
	advance(&shared->step);
	serve();
	_exit(0);
}

static pid_t bear(int flags)
{
	return syscall(SYS_clone, flags, NULL, NULL, NULL, 0);
}

static void *bear_and_stay(void *number)
{
	pid_t pid = bear(SIGCHLD);
	if (pid == 0) born((int)(intptr_t)number);
	for (;;) pause();
	return NULL;
}

static void do_step(int at)
{
	const struct step *s = &steps[at];
	int pid = s->argument >= 0 && s->argument < MOST ? shared->pids[s->argument] : 0;
	pthread_t thread;
	siginfo_t info;
	switch (s->operation) {
	case 'f': if (bear(SIGCHLD) == 0) born(s->argument); break;
	case 'u': if (bear(SIGUSR1) == 0) born(s->argument); break;
	case 'p': if (bear(CLONE_PARENT | SIGCHLD) == 0) born(s->argument); break;
	case 't': CHECK(pthread_create(&thread, NULL, bear_and_stay, (void *)(intptr_t)s->argument) == 0); break;
	case 's': setsid(); break;
	case 'g': setpgid(0, getpgid(pid)); break;
	case 'G': setpgid(0, 0); break;
	case 'r': waitpid(-1, NULL, WNOHANG | __WALL); break;
	case 'w': waitid(P_PID, pid, &info, WSTOPPED | WCONTINUED | WNOHANG | __WALL); break;
	case 'S': CHECK(prctl(PR_SET_CHILD_SUBREAPER, s->argument) == 0); break;
	case 'x': _exit(s->argument);
	case 'k': signal(s->argument, SIG_DFL); kill(getpid(), s->argument); pause(); break;
	case 'z': kill(pid, SIGSTOP); await_process(pid, 'T', 'T'); shared->stopped[s->argument] = 1; break;
	case 'c': kill(pid, SIGCONT); await_process(pid, 'S', 'S'); shared->stopped[s->argument] = 0; break;
	default: fail("unknown operation %c", s->operation);
	}
	if (!strchr("fupt", s->operation)) advance(&shared->step);
	else while (shared->step == at) settle(&shared->step, at);   /* the child says that it is there */
}

/* The program itself sees to those that end: they can't say so. */
static void await_end(const struct step *s)
{
	await_process(shared->pids[s->actor], 'Z', 0);
	if (process_state(shared->pids[s->actor]) == 'Z') usleep(2000);   /* unless the pod's first process is about to reap it */
	shared->dead[s->actor] = 1;
	advance(&shared->step);
}

static void serve(void)
{
	static struct place before, now;
	int at, noted = 0;
	for (;;) {
		at = shared->step;
		if (at < count && steps[at].actor == self) do_step(at);
		else if (at < count && self == 0 && strchr("xk", steps[at].operation)) await_end(&steps[at]);
		else if (self == 0 && at >= count) return;
		else if (shared->phase == NOTE && !noted) noted = 1, look(&before), advance(&shared->noted);
		else if (shared->phase == VERIFY) {
			look(&now);
			if (memcmp(&before, &now, sizeof now)) complain(&before, &now), advance(&shared->wrong);
			advance(&shared->verified);
			for (;;) pause();
		} else settle(&shared->step, at);
	}
}

static void await_count(atomic_int *word, int wanted)
{
	for (int i = 0; i < 20000 && *word < wanted; i++) usleep(1000);
	if (*word < wanted) fail("%d of %d have come so far", *word, wanted);
}

int main(int argc, char **argv)
{
	static struct place before, now;
	int running = 0;
	start();
	CHECK(argc == 2 && signal(SIGUSR1, SIG_IGN) != SIG_ERR);   /* the exit signal of some */
	CHECK(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}) == 0);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	for (char *word = strtok(argv[1], ","); word && count < 4 * MOST; word = strtok(NULL, ",")) {
		struct step *s = &steps[count++];
		CHECK(sscanf(word, "%d %c %d", &s->actor, &s->operation, &s->argument) == 3);
	}
	shared->pids[0] = getpid();
	serve();
	shared->phase = NOTE;
	for (int i = 1; i < MOST; i++) running += shared->pids[i] && !shared->dead[i] && !shared->stopped[i];
	advance(&shared->step);
	await_count(&shared->noted, running);
	look(&before);
	ready();
	await_check();
	shared->phase = VERIFY;
	advance(&shared->step);
	await_count(&shared->verified, running);
	look(&now);
	if (memcmp(&before, &now, sizeof now)) complain(&before, &now), fail("the tree is not what it was");
	if (shared->wrong) fail("%d processes are not where they were", shared->wrong);
	pass();
}

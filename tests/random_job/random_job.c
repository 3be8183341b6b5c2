/* Does what its argument says, for tests/test_random_jobs.py: steps as "letter.actor.a.b.c", separated by commas. The
   processes of the job (actors) do them one after the other; numbers choose among what there is at that moment, and what
   can't be done is left. At SIGTERM all report what they have, contents too, in an order that depends on nothing but
   the script: whatever has happened to the job meanwhile, the report must be the same. */
#include "job.h"
#include "memory.h"
#include "descriptors.h"
#include "sockets.h"
#include "signals.h"
#include "attributes.h"
#include "threads.h"
#include "report.h"

static struct step { char letter; int actor, a, b, c; } steps[MOST_STEPS];
static int count;
enum { GROW, WAIT, REPORT };

/* -- whose turn it is --------------------------------------------------------------------------------------------- */
static void pass_turn(void)
{
	int step = (shared->turn >> 8) + 1, able[ACTORS], n = 0;
	for (int i = 0; i < shared->actors; i++)
		if (!shared->dead[i] && !shared->stopped[i]) able[n++] = i;
	shared->turn = step << 8 | (step < count ? able[steps[step].actor % n] : 0);
	wake(&shared->turn);
}

static void serve(void);

static void born(int number, int shares_files)
{
	self = number;
	shared->pids[number] = getpid();
	shared->actors = number + 1;
	threads_are_gone(shares_files);
	pass_turn();
	serve();
	_exit(0);
}

static void do_fork(const struct step *s)
{
	int flags = SIGCHLD, number = shared->actors, turn = shared->turn;
	if (number == ACTORS || count_fds() > 60) { pass_turn(); return; }
	if (s->letter == 'F') flags |= (s->a & 1 ? CLONE_FILES : 0) | (s->a & 2 ? CLONE_FS : 0);
	if (syscall(SYS_clone, flags, NULL, NULL, NULL, 0) == 0) born(number, flags & CLONE_FILES);
	while (shared->turn == turn) settle(&shared->turn, turn);
}

static void await_end(int actor)
{
	await_process(shared->pids[actor], 'Z', 0);
	if (process_state(shared->pids[actor]) == 'Z') usleep(2000);   /* the pod's first process may be about to reap it */
	shared->dead[actor] = 1;
	pass_turn();
}

/* By the first process, of another one. */
static void do_stop(const struct step *s)
{
	int actor = s->a % shared->actors;
	if (actor && !shared->dead[actor] && !shared->stopped[actor]) {
		kill(shared->pids[actor], SIGSTOP);
		await_process(shared->pids[actor], 'T', 'T');
		shared->stopped[actor] = 1;
	}
}

static void do_step(const struct step *s)
{
	if (strchr("fF", s->letter)) { do_fork(s); return; }
	if (s->letter == 'x' && self) _exit(s->a);
	if (s->letter == 'x') { pass_turn(); return; }
	if (s->letter == 'z') do_stop(s);   /* the script gives it to the first process */
	else if (!descriptor_step(s->letter, s->a, s->b, s->c) && !socket_step(s->letter, s->a, s->b, s->c)
	    && !memory_step(s->letter, s->a, s->b, s->c) && !signal_step(s->letter, s->a, s->b, s->c)
	    && !attribute_step(s->letter, s->a, s->b, s->c)) thread_step(s->letter, s->a, s->b, s->c);
	pass_turn();
}

/* -- waiting and reporting ---------------------------------------------------------------------------------------- */
static void next_reporter(void)
{
	int next = shared->reporter + 1;
	while (next < shared->actors && shared->dead[next]) next++;
	shared->reporter = next;
	wake(&shared->phase);
}

static void serve(void)
{
	int reported = 0;
	for (;;) {
		int turn = shared->turn, at = turn >> 8, phase = shared->phase;
		if (at >= count) {
			if (self == 0 && phase == GROW) return;
			if (phase >= REPORT && shared->reporter == self && reported < phase) {
				reported = phase;
				report(phase - REPORT);
				next_reporter();
				continue;
			}
			if (self % 3 == 1) wait_for_change(&shared->phase, phase);
			else if (self % 3 == 2) poll(NULL, 0, 50);
			else settle(&shared->phase, phase);
			continue;
		}
		if (steps[at].letter == 'z' ? self == 0 : (turn & 255) == self) step_number = at, do_step(&steps[at]);
		else if (self == 0 && steps[at].letter == 'x' && (turn & 255)) await_end(turn & 255);
		else settle(&shared->turn, turn);
	}
}

static void report_all(int part)
{
	shared->reporter = 0;
	shared->phase = REPORT + part;
	wake(&shared->phase);
	report(part);
	next_reporter();
	for (int i = 0; shared->reporter < shared->actors; i++) {
		if (i == 40000) fail("actor %d does not report", shared->reporter);
		usleep(500);
	}
}

int main(int argc, char **argv)
{
	start();
	CHECK(argc == 2 && signal(SIGPIPE, SIG_IGN) != SIG_ERR && signal(SIGIO, SIG_IGN) != SIG_ERR);
	close_range(3, ~0u, 0);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	for (char *word = strtok(argv[1], ","); word && count < MOST_STEPS; word = strtok(NULL, ",")) {
		struct step *s = &steps[count++];
		CHECK(sscanf(word, "%c.%d.%d.%d.%d", &s->letter, &s->actor, &s->a, &s->b, &s->c) == 5);
	}
	prepare_names();
	shared->pids[0] = getpid();
	shared->actors = 1;
	serve();
	shared->phase = WAIT;
	wake(&shared->phase);
	usleep(20000);
	ready();
	await_check();
	for (int i = 1; i < shared->actors; i++) {
		int state;
		if (shared->stopped[i]) await_process(shared->pids[i], 'T', 'T');   /* it may just be on its way back there */
		state = process_state(shared->pids[i]);
		dprintf(1, "actor %d: %c\n", i, state == 'Z' || state == 'T' ? state : state ? 'R' : '-');
		if (shared->stopped[i]) kill(shared->pids[i], SIGCONT), await_process(shared->pids[i], 'S', 'R');
	}
	for (int part = 0; part < PARTS; part++) report_all(part);
	report_files();
	dprintf(1, "done\n");
	pass();
}

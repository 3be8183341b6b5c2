/* Four processes that never stop talking: each sends numbered messages of odd sizes to the next over its own connections,
   over IPv4 and IPv6, and verifies number and content of what comes; until all are told to stop. */
#include "family.h"
#include "net.h"

enum { PROCESSES = 4, LINKS = 2, MOST = 9000 };
static const char *const hosts[LINKS] = {"127.0.0.1", "::1"};
static int links[PROCESSES][LINKS][2], me;

struct state {
	unsigned sent, got;
	int out_at, in_at;   /* within the message */
	char out[MOST], in[MOST];
};
static struct state states[LINKS];
static pid_t children[PROCESSES];

static int size_of(unsigned number) { return 4 + number * 7919 % (MOST - 4); }

/* As much as goes without waiting. */
static int move(struct state *s, int out, int in, int last)
{
	int moved = 0, size = size_of(s->sent);
	if (s->out_at == 0 && !last) {
		memcpy(s->out, &s->sent, 4);
		fill(s->out + 4, size - 4, s->sent);
	}
	ssize_t n = last && s->out_at == 0 ? 0 : send(out, s->out + s->out_at, size - s->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0 && (moved = 1, s->out_at += n) == size) s->out_at = 0, s->sent++;
	size = size_of(s->got);
	n = recv(in, s->in + s->in_at, size - s->in_at, MSG_DONTWAIT);
	if (n > 0 && (moved = 1, s->in_at += n) == size) {
		unsigned number;
		memcpy(&number, s->in, 4);
		if (number != s->got) fail("message %u instead of %u", number, s->got);
		check_filled(s->in + 4, size - 4, number, "a message");
		s->in_at = 0, s->got++;
	}
	return n == 0 ? -1 : moved;
}

static int told_to_stop(void)
{
	sigset_t pending;
	return sigpending(&pending) == 0 && sigismember(&pending, SIGTERM);
}

/* A stream of which something can be said. */
static int has_talked(const struct state *s) { return s->sent >= 3 && s->got >= 3; }

static void talk(void)
{
	int next = (me + 1) % PROCESSES, open = LINKS, told = 0, closed[LINKS] = {0}, ended[LINKS] = {0};
	while (open || !told) {
		int moved = 0;
		if (!told && (told = has_talked(&states[0]) && has_talked(&states[1]) && told_to_stop()) && me == 0)
			for (int p = 1; p < PROCESSES; p++) CHECK(kill(children[p], SIGTERM) == 0);
		for (int l = 0; l < LINKS; l++) {
			if (told && states[l].out_at == 0 && !closed[l]) closed[l] = shutdown(links[next][l][0], SHUT_WR) == 0;
			if (ended[l]) continue;
			int result = move(&states[l], links[next][l][0], links[me][l][1], told);
			if (result < 0) ended[l] = 1, open--;
			else moved |= result;
		}
		if (!moved) usleep(100);
	}
	for (int l = 0; l < LINKS; l++)
		if (states[l].in_at) fail("a stream ends within message %u", states[l].got);
	for (int l = 0; l < LINKS; l++)
		while (!closed[l]) {
			move(&states[l], links[next][l][0], links[me][l][1], 1);
			if (states[l].out_at == 0) closed[l] = shutdown(links[next][l][0], SHUT_WR) == 0;
		}
}

static void run(void)
{
	talk();
	pass();
}

int main(void)
{
	start();
	family();
	for (int l = 0; l < LINKS; l++) {
		int listener = listening(hosts[l], PROCESSES);
		for (int p = 0; p < PROCESSES; p++) connection(listener, hosts[l], links[p][l]);
		close(listener);
	}
	for (me = 1; me < PROCESSES; me++) children[me] = child(run);
	me = 0;
	usleep(100000);
	ready();
	talk();
	for (int p = 1; p < PROCESSES; p++) {
		int status;
		CHECK(waitpid(children[p], &status, 0) == children[p]);
		if (status != 0) fail("child %d: wait status %#x", p, status);
	}
	pass();
}

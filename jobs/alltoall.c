/* Large messages from everybody to everybody: all numbers of all ranks change places in every step, by MPI_Alltoallv and
 * by its non-blocking form in turn, and each is changed on the way. One wrong word shows in all that follows.
 *
 *   mpirun -n 4 ./alltoall [--size NUMBERS] [--steps N] [--report N] [--pause MICROSECONDS] [--output FILE] [--log FILE]
 *
 * Build: mpicc -O2 -o alltoall alltoall.c
 */
#include "job.h"

static uint64_t *now, *then;
static int *counts_out, *counts_in, *at_out, *at_in;

/* How many numbers rank a sends to rank b: of all shapes, but all that there is leaves. */
static int share(const struct options *o, int a, int b, long step)
{
	int even = (int)(o->size / ranks), more = (int)(mix((uint64_t)step, (uint64_t)((a + b) % ranks), 1) % 1000);

	/* what a gives to b beyond its even share, it gets back from b */
	return a == b || even < 1000 ? even : even - 1000 + more;
}

static void plan(const struct options *o, long step)
{
	int out = 0, in = 0;

	for (int r = 0; r < ranks; r++) {
		counts_out[r] = share(o, rank, r, step);
		counts_in[r] = share(o, r, rank, step);
		at_out[r] = out;
		at_in[r] = in;
		out += counts_out[r];
		in += counts_in[r];
	}
}

static int total(void)
{
	return at_out[ranks - 1] + counts_out[ranks - 1];
}

static void change_places(const struct options *o, long step)
{
	MPI_Request request;
	uint64_t *old = now;

	plan(o, step);
	if (step % 2) {
		MPI_Alltoallv(now, counts_out, at_out, MPI_UINT64_T, then, counts_in, at_in, MPI_UINT64_T, MPI_COMM_WORLD);
		rest(o->pause);
	} else {
		MPI_Ialltoallv(now, counts_out, at_out, MPI_UINT64_T, then, counts_in, at_in, MPI_UINT64_T, MPI_COMM_WORLD,
			       &request);
		rest(o->pause);
		MPI_Wait(&request, MPI_STATUS_IGNORE);
	}
	now = then;
	then = old;
	for (int i = 0; i < total(); i++)
		now[i] = now[i] * 0x9E3779B97F4A7C15u + (uint64_t)step;
}

static uint64_t weighted_sum(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < total(); i++)
		sum += now[i] * (2 * (uint64_t)i + 1) * (uint64_t)(2 * rank + 1);
	return sum;
}

int main(int argc, char **argv)
{
	struct options o = parse(argc, argv, (struct options){.size = 400000, .steps = 300, .report = 10});
	FILE *log;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	log = open_log(&o);
	now = room((size_t)o.size * sizeof *now);
	then = room((size_t)o.size * sizeof *then);
	counts_out = room((size_t)ranks * sizeof(int));
	counts_in = room((size_t)ranks * sizeof(int));
	at_out = room((size_t)ranks * sizeof(int));
	at_in = room((size_t)ranks * sizeof(int));
	for (long i = 0; i < o.size; i++)
		now[i] = mix((uint64_t)rank, (uint64_t)i, 7);
	for (long step = 1; step <= o.steps; step++) {
		change_places(&o, step);
		if (step % o.report == 0)
			report_sum(step, weighted_sum(), log);
	}
	report_sum(o.steps, weighted_sum(), log);
	if (o.output)
		write_all(o.output, now, (int)(o.size / ranks));
	if (log)
		fclose(log);
	leave(ranks);
	return 0;
}

/* Messages in flight at every moment: each rank sends on several lanes round the ring, several steps ahead of what
 * it waits for, in sizes from nothing to --size bytes; every word that arrives is checked.
 *
 *   mpirun -n 4 ./ring [--size BYTES] [--steps N] [--report N] [--pause MICROSECONDS] [--output FILE] [--log FILE]
 *
 * Build: mpicc -O2 -o ring ring.c
 */
#include "job.h"

enum { LANES = 5, DEPTH = 4 };

struct flight {
	uint64_t *out[LANES], *in[LANES];
	MPI_Request requests[2 * LANES];
};

static struct flight flights[DEPTH];
static uint64_t sum, trace[64];

/* How many words rank `from` sends on a lane in a step: often few, at times all that there is room for. */
static int length(const struct options *o, int from, long step, int lane)
{
	uint64_t x = mix((uint64_t)from, (uint64_t)step, (uint64_t)lane), most = (uint64_t)o->size / 8;

	switch (x & 7) {
	case 0: return 0;
	case 1: case 2: case 3: return (int)(x >> 8 & 63);
	case 4: return (int)most;
	default: return (int)((x >> 8) % (most + 1));
	}
}

static int partner(int lane, int direction)
{
	int distance = (lane + 1) % ranks;

	return (rank + direction * distance + ranks) % ranks;
}

static void send_and_expect(const struct options *o, long step)
{
	struct flight *f = &flights[step % DEPTH];

	for (int lane = 0; lane < LANES; lane++) {
		int to = partner(lane, 1), from = partner(lane, -1), count = length(o, rank, step, lane);

		MPI_Irecv(f->in[lane], length(o, from, step, lane), MPI_UINT64_T, from, lane, MPI_COMM_WORLD,
			  &f->requests[lane]);
		for (int i = 0; i < count; i++)
			f->out[lane][i] = mix((uint64_t)rank << 8 | (uint64_t)lane, (uint64_t)step, (uint64_t)i);
		MPI_Isend(f->out[lane], count, MPI_UINT64_T, to, lane, MPI_COMM_WORLD, &f->requests[LANES + lane]);
	}
}

static void take(const struct options *o, long step)
{
	struct flight *f = &flights[step % DEPTH];
	MPI_Status statuses[2 * LANES];   /* gcc takes MPICH's MPI_STATUSES_IGNORE for an array too small */

	MPI_Waitall(2 * LANES, f->requests, statuses);
	for (int lane = 0; lane < LANES; lane++) {
		int from = partner(lane, -1), count = length(o, from, step, lane);

		for (int i = 0; i < count; i++) {
			if (f->in[lane][i] != mix((uint64_t)from << 8 | (uint64_t)lane, (uint64_t)step, (uint64_t)i))
				die("a message has arrived", "damaged");
			sum += f->in[lane][i] * (uint64_t)(2 * i + 1);
		}
		trace[(step * LANES + lane) % 64] ^= sum;
	}
}

int main(int argc, char **argv)
{
	struct options o = parse(argc, argv, (struct options){.size = 300000, .steps = 1000, .report = 20});
	FILE *log;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	log = open_log(&o);
	for (int d = 0; d < DEPTH; d++)
		for (int lane = 0; lane < LANES; lane++) {
			flights[d].out[lane] = room((size_t)o.size);
			flights[d].in[lane] = room((size_t)o.size);
		}
	for (long step = 1; step < o.steps + DEPTH; step++) {
		if (step >= DEPTH)
			take(&o, step - DEPTH + 1);
		if (step <= o.steps)
			send_and_expect(&o, step);
		if (step >= DEPTH && (step - DEPTH + 1) % o.report == 0)
			report_sum(step - DEPTH + 1, sum, log);
		rest(o.pause);
	}
	report_sum(o.steps, sum, log);
	if (o.output)
		write_all(o.output, trace, 64);
	if (log)
		fclose(log);
	leave(ranks);
	return 0;
}

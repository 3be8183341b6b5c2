/* Heat spreading over a square plate: a whole MPI job whose answer is the same bit for bit in every run.
 *
 *   mpirun -n 4 ./heat [--size N] [--steps N] [--report N] [--pause MICROSECONDS] [--output FILE] [--log FILE]
 *
 * Rank 0 prints a line of results every --report steps, and nothing else, so that the output of a run that
 * was interrupted and resumed can be compared byte for byte with that of one that was not. jobs/heat.py
 * prints the same bytes. Floating-point sums are made in a fixed order and everything else is reduced
 * exactly (maxima, sums of integers), so neither the MPI nor the order of arrival matters.
 *
 * Build: mpicc -O2 -ffp-contract=off -o heat heat.c
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <math.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "leave.h"

struct options {
	long size, steps, report, pause;
	const char *output, *log;
};

/* One rank's share of the plate: rows [first, first + rows), with a ghost row above and below. */
struct block {
	int rank, ranks;
	long size, first, rows;
	double *now, *next, *visitor;
};

static void die(const char *what, const char *which)
{
	fprintf(stderr, "heat: %s %s\n", what, which);
	MPI_Abort(MPI_COMM_WORLD, 2);
}

static void misused(const char *why, const char *which)
{
	fprintf(stderr, "heat: %s %s (the top of heat.c shows the usage)\n", why, which);
	exit(2);
}

static long number(const char *text, long least)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (*text == '\0' || *end != '\0' || value < least)
		misused("not a number that makes sense here:", text);
	return value;
}

static struct options parse(int argc, char **argv)
{
	static const struct option known[] = {
		{"size", required_argument, NULL, 'n'},   {"steps", required_argument, NULL, 's'},
		{"report", required_argument, NULL, 'r'}, {"pause", required_argument, NULL, 'p'},
		{"output", required_argument, NULL, 'o'}, {"log", required_argument, NULL, 'l'},
		{NULL, 0, NULL, 0},
	};
	struct options o = {.size = 512, .steps = 1000, .report = 50};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'n': o.size = number(optarg, 3); break;
		case 's': o.steps = number(optarg, 1); break;
		case 'r': o.report = number(optarg, 1); break;
		case 'p': o.pause = number(optarg, 0); break;
		case 'o': o.output = optarg; break;
		case 'l': o.log = optarg; break;
		default: misused("unknown", "option");
		}
	}
	if (optind != argc)
		misused("unknown argument", argv[optind]);
	return o;
}

static double *cells(long count)
{
	double *p = calloc((size_t)count, sizeof *p);

	if (!p)
		die("out of", "memory");
	return p;
}

static long first_row(const struct block *b, int rank)
{
	return rank * b->size / b->ranks;
}

static struct block set_up(const struct options *o)
{
	struct block b = {.size = o->size};
	long most = 0, n = o->size;

	MPI_Comm_rank(MPI_COMM_WORLD, &b.rank);
	MPI_Comm_size(MPI_COMM_WORLD, &b.ranks);
	if (b.ranks > n)
		die("more ranks than rows:", "--size is too small");
	b.first = first_row(&b, b.rank);
	b.rows = first_row(&b, b.rank + 1) - b.first;
	for (int r = 0; r < b.ranks; r++)
		if (first_row(&b, r + 1) - first_row(&b, r) > most)
			most = first_row(&b, r + 1) - first_row(&b, r);
	b.now = cells((b.rows + 2) * n);
	b.next = cells((b.rows + 2) * n);
	b.visitor = cells(most * n);
	for (long i = 0; i < b.rows; i++)
		for (long j = 0; j < n; j++)
			b.now[(i + 1) * n + j] = (double)(((b.first + i) * 31 + j * 17) % 101) / 101.0;
	memcpy(b.next, b.now, (size_t)((b.rows + 2) * n) * sizeof *b.now);
	return b;
}

/* The neighbours' edge rows, by both of MPI's usual ways in turn. */
static void exchange(struct block *b, long step)
{
	int up = b->rank ? b->rank - 1 : MPI_PROC_NULL;
	int down = b->rank + 1 < b->ranks ? b->rank + 1 : MPI_PROC_NULL;
	int n = (int)b->size;
	double *top = b->now, *bottom = b->now + (b->rows + 1) * b->size;
	MPI_Request request[4];
	MPI_Status status[4];   /* gcc takes MPICH's MPI_STATUSES_IGNORE for an array too small */

	if (step % 2) {
		MPI_Sendrecv(top + n, n, MPI_DOUBLE, up, 1, bottom, n, MPI_DOUBLE, down, 1, MPI_COMM_WORLD,
			     MPI_STATUS_IGNORE);
		MPI_Sendrecv(bottom - n, n, MPI_DOUBLE, down, 2, top, n, MPI_DOUBLE, up, 2, MPI_COMM_WORLD,
			     MPI_STATUS_IGNORE);
		return;
	}
	MPI_Irecv(top, n, MPI_DOUBLE, up, 3, MPI_COMM_WORLD, &request[0]);
	MPI_Irecv(bottom, n, MPI_DOUBLE, down, 4, MPI_COMM_WORLD, &request[1]);
	MPI_Isend(bottom - n, n, MPI_DOUBLE, down, 3, MPI_COMM_WORLD, &request[2]);
	MPI_Isend(top + n, n, MPI_DOUBLE, up, 4, MPI_COMM_WORLD, &request[3]);
	MPI_Waitall(4, request, status);
}

/* One time step; the plate's edge keeps its temperature. */
static void advance(struct block *b)
{
	long n = b->size;
	double *old;

	for (long i = 1; i <= b->rows; i++) {
		const double *u = b->now + i * n;

		if (b->first + i - 1 == 0 || b->first + i == n)
			continue;
		for (long j = 1; j < n - 1; j++)
			b->next[i * n + j] = u[j] + 0.2 * (((u[j - n] + u[j + n]) + (u[j - 1] + u[j + 1])) - 4.0 * u[j]);
	}
	old = b->now;
	b->now = b->next;
	b->next = old;
}

/* A sum over the bits of all cells, each weighted with its place: exact, in whatever order it is made. */
static uint64_t checksum(const double *u, long size, long first, long rows)
{
	uint64_t sum = 0, bits;

	for (long k = 0; k < rows * size; k++) {
		memcpy(&bits, &u[k], sizeof bits);
		sum += bits * (2 * (uint64_t)(first * size + k) + 1);
	}
	return sum;
}

/* The checksum of the whole plate, taken of each block after it has travelled to the next rank: a large
 * message that arrives damaged shows in the result. */
static uint64_t travelled_checksum(struct block *b)
{
	int to = (b->rank + 1) % b->ranks, from = (b->rank + b->ranks - 1) % b->ranks;
	long first = first_row(b, from), rows = first_row(b, from + 1) - first;
	uint64_t mine, all;

	MPI_Sendrecv(b->now + b->size, (int)(b->rows * b->size), MPI_DOUBLE, to, 5, b->visitor,
		     (int)(rows * b->size), MPI_DOUBLE, from, 5, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
	mine = checksum(b->visitor, b->size, first, rows);
	MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	return all;
}

/* All heat on the plate, summed in the order of the ranks; on rank 0. */
static double heat(const struct block *b)
{
	double mine = 0.0, sum = 0.0, *parts = cells(b->ranks);

	for (long k = 0; k < b->rows * b->size; k++)
		mine += b->now[b->size + k];
	MPI_Gather(&mine, 1, MPI_DOUBLE, parts, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
	for (int r = 0; r < b->ranks; r++)
		sum += parts[r];
	free(parts);
	return sum;
}

static void report(struct block *b, long step, FILE *log)
{
	double mine = 0.0, change, sum;
	uint64_t sums;

	for (long k = b->size; k < (b->rows + 1) * b->size; k++)
		mine = fmax(mine, fabs(b->now[k] - b->next[k]));
	MPI_Allreduce(&mine, &change, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
	sum = heat(b);
	sums = travelled_checksum(b);
	if (b->rank)
		return;
	printf("step %ld change %.17g heat %.17g checksum %016llx\n", step, change, sum, (unsigned long long)sums);
	fflush(stdout);
	if (log) {
		fprintf(log, "step %ld checksum %016llx\n", step, (unsigned long long)sums);
		fflush(log);
	}
}

/* The whole plate into a file, by rank 0. */
static void write_plate(struct block *b, const char *path)
{
	FILE *file;

	if (b->rank) {
		MPI_Send(b->now + b->size, (int)(b->rows * b->size), MPI_DOUBLE, 0, 6, MPI_COMM_WORLD);
		return;
	}
	file = fopen(path, "wb");
	if (!file || fwrite(b->now + b->size, sizeof *b->now, (size_t)(b->rows * b->size), file) == 0)
		die("can't write", path);
	for (int r = 1; r < b->ranks; r++) {
		long count = (first_row(b, r + 1) - first_row(b, r)) * b->size;

		MPI_Recv(b->visitor, (int)count, MPI_DOUBLE, r, 6, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		if (fwrite(b->visitor, sizeof *b->visitor, (size_t)count, file) != (size_t)count)
			die("can't write", path);
	}
	if (fclose(file))
		die("can't write", path);
}

int main(int argc, char **argv)
{
	struct options o;
	struct block b;
	struct timespec pause;
	FILE *log = NULL;

	o = parse(argc, argv);   /* before MPI_Init: a rank that ends after it would have to abort the job */
	MPI_Init(&argc, &argv);
	b = set_up(&o);
	pause = (struct timespec){.tv_sec = o.pause / 1000000, .tv_nsec = o.pause % 1000000 * 1000};
	if (o.log && b.rank == 0 && !(log = fopen(o.log, "a")))
		die("can't write", o.log);
	for (long step = 1; step <= o.steps; step++) {
		exchange(&b, step);
		advance(&b);
		if (step % o.report == 0)
			report(&b, step, log);
		if (o.pause)
			nanosleep(&pause, NULL);
	}
	if (b.rank == 0)
		printf("after %ld steps:\n", o.steps);
	report(&b, o.steps, log);
	if (o.output)
		write_plate(&b, o.output);
	if (log)
		fclose(log);
	leave(b.ranks);
	return 0;
}

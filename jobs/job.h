/* What the jobs ring.c and alltoall.c share: options, exact sums, and the output that is compared byte for byte. */
#ifndef JOB_H
#define JOB_H
#define _GNU_SOURCE
#include <getopt.h>
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

static int rank, ranks;

static void die(const char *what, const char *which)
{
	fprintf(stderr, "rank %d: %s %s\n", rank, what, which);
	MPI_Abort(MPI_COMM_WORLD, 2);
}

static void misused(const char *why, const char *which)
{
	fprintf(stderr, "%s %s (the top of the source shows the usage)\n", why, which);
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

static struct options parse(int argc, char **argv, struct options o)
{
	static const struct option known[] = {
		{"size", required_argument, NULL, 'n'},   {"steps", required_argument, NULL, 's'},
		{"report", required_argument, NULL, 'r'}, {"pause", required_argument, NULL, 'p'},
		{"output", required_argument, NULL, 'o'}, {"log", required_argument, NULL, 'l'},
		{NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'n': o.size = number(optarg, 1); break;
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

static void *room(size_t bytes)
{
	void *p = calloc(bytes ? bytes : 1, 1);

	if (!p)
		die("out of", "memory");
	return p;
}

/* A number that depends on all bits of three (splitmix64). */
static inline uint64_t mix(uint64_t a, uint64_t b, uint64_t c)
{
	uint64_t x = a * 0x9E3779B97F4A7C15u ^ (b + 0xD1B54A32D192ED03u) * 0xBF58476D1CE4E5B9u ^ c << 17;

	x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
	x = (x ^ x >> 27) * 0x94D049BB133111EBu;
	return x ^ x >> 31;
}

static FILE *open_log(const struct options *o)
{
	FILE *log = NULL;

	if (o->log && rank == 0 && !(log = fopen(o->log, "a")))
		die("can't write", o->log);
	return log;
}

/* A line of all ranks' sums, by rank 0; sums of integers are exact in whatever order they are made. */
static void report_sum(long step, uint64_t mine, FILE *log)
{
	uint64_t all;

	MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	if (rank)
		return;
	printf("step %ld checksum %016llx\n", step, (unsigned long long)all);
	fflush(stdout);
	if (log) {
		fprintf(log, "step %ld checksum %016llx\n", step, (unsigned long long)all);
		fflush(log);
	}
}

static void rest(long microseconds)
{
	struct timespec pause = {.tv_sec = microseconds / 1000000, .tv_nsec = microseconds % 1000000 * 1000};

	if (microseconds)
		nanosleep(&pause, NULL);
}

/* Every rank's numbers into one file, by rank 0. */
static void write_all(const char *path, const uint64_t *mine, int count)
{
	FILE *file;
	uint64_t *theirs;

	if (rank) {
		MPI_Send(mine, count, MPI_UINT64_T, 0, 999, MPI_COMM_WORLD);
		return;
	}
	file = fopen(path, "wb");
	if (!file || fwrite(mine, sizeof *mine, (size_t)count, file) != (size_t)count)
		die("can't write", path);
	theirs = room((size_t)count * sizeof *theirs);
	for (int r = 1; r < ranks; r++) {
		MPI_Recv(theirs, count, MPI_UINT64_T, r, 999, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		if (fwrite(theirs, sizeof *theirs, (size_t)count, file) != (size_t)count)
			die("can't write", path);
	}
	free(theirs);
	if (fclose(file))
		die("can't write", path);
}
#endif

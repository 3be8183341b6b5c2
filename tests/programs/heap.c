/* The heap: what malloc has given out, its growth by brk afterwards, freed and large blocks, a deep stack that grows
   on, alloca below it. */
#include "smaps.h"
#include <alloca.h>

#define BLOCKS 3000
static struct { char *at; size_t size; } blocks[BLOCKS];

static void allocate(int i)
{
	blocks[i].size = i % 50 == 49 ? 300000 + i : 8 + i * 37 % 5000;
	blocks[i].at = malloc(blocks[i].size);
	CHECK(blocks[i].at != NULL);
	fill(blocks[i].at, blocks[i].size, i);
}

static void check_block(int i) { check_filled(blocks[i].at, blocks[i].size, i, "a block of malloc"); }

static int deep(int depth, int turn)
{
	char room[1000];
	fill(room, sizeof room, depth);
	if (depth > 0) CHECK(deep(depth - 1, turn) == depth - 1);
	else if (turn) {
		ready();
		await_check();
	}
	check_filled(room, sizeof room, depth, "a frame");
	return depth;
}

int main(void)
{
	char *end, *more;
	start();
	for (int i = 0; i < BLOCKS; i++) allocate(i);
	for (int i = 0; i < BLOCKS; i += 3) free(blocks[i].at);
	end = sbrk(10000);
	CHECK(end != (char *)-1);
	fill(end, 10000, 7);
	deep(300, 1);
	CHECK(sbrk(0) == end + 10000);
	check_filled(end, 10000, 7, "memory of sbrk");
	more = sbrk(1 << 20);
	CHECK(more == end + 10000 && strcmp(smap_at(more).name, "[heap]") == 0);
	for (int i = 0; i < 1 << 20; i++) CHECK(more[i] == 0);
	memset(more, 1, 1 << 20);
	CHECK(brk(more) == 0 && sbrk(0) == more);
	for (int i = 0; i < BLOCKS; i++) if (i % 3) check_block(i);
	for (int i = 0; i < BLOCKS; i += 3) allocate(i);
	for (int i = 0; i < BLOCKS; i++) check_block(i), free(blocks[i].at);
	CHECK(strcmp(smap_at(&end).name, "[stack]") == 0);
	deep(3000, 0);
	memset(alloca(200000), 5, 200000);
	pass();
}

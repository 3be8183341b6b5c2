/* Stacks: the main one grown by megabytes and then left shallow again, threads' stacks by malloc, by mmap with a guard
   of their own and by pthread, each with frames in use; all of them grow on afterwards. */
#include "smaps.h"
#include <pthread.h>

#define PAGE 4096UL
#define SIZE (1UL << 20)
enum { BY_LIBC, BY_MMAP, BY_MALLOC, THREADS };

static pthread_barrier_t barrier;
static char *own[THREADS];

static int frames(int depth, int seed, void (*deepest)(void))
{
	char room[2000];
	fill(room, sizeof room, seed + depth);
	if (depth > 0) CHECK(frames(depth - 1, seed, deepest) == depth - 1);
	else if (deepest) deepest();
	check_filled(room, sizeof room, seed + depth, "a frame");
	return depth;
}

static void wait_there(void)
{
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
}

static void *thread(void *number)
{
	int seed = 1000 * (int)(intptr_t)number;
	frames(40, seed, wait_there);
	frames(200, seed + 500, NULL);   /* deeper than it was */
	return number;
}

static void begin(pthread_t *id, int which)
{
	pthread_attr_t attributes;
	CHECK(pthread_attr_init(&attributes) == 0);
	if (which == BY_LIBC) CHECK(pthread_attr_setguardsize(&attributes, 5 * PAGE) == 0);
	if (which == BY_MALLOC) own[which] = malloc(SIZE);
	if (which == BY_MMAP) {
		own[which] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
		CHECK(own[which] != MAP_FAILED && mprotect(own[which], PAGE, PROT_NONE) == 0);
	}
	if (own[which]) CHECK(pthread_attr_setstack(&attributes, own[which], SIZE) == 0);
	CHECK(pthread_create(id, &attributes, thread, (void *)(intptr_t)which) == 0);
}

static pthread_t ids[THREADS];
static uintptr_t low;

static void main_part(void)
{
	for (int i = 0; i < THREADS; i++) begin(&ids[i], i);
	pthread_barrier_wait(&barrier);
	low = smap_at(&barrier).start ? smap_at(__builtin_frame_address(0)).start : 0;
	ready();
	await_check();
	CHECK(smap_at(__builtin_frame_address(0)).start == low);
	CHECK(strcmp(smap_at(__builtin_frame_address(0)).name, "[stack]") == 0);
	check_flag(__builtin_frame_address(0), "gd", 1);
	check_protection(own[BY_MMAP], "---p");
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(ids[i], NULL) == 0);
}

int main(void)
{
	start();
	CHECK(pthread_barrier_init(&barrier, NULL, THREADS + 1) == 0);
	frames(1500, 7, NULL);            /* 3 MB, left again */
	frames(100, 8, main_part);
	frames(2500, 9, NULL);            /* 5 MB: it grows */
	CHECK(smap_at(&barrier).start && smap_at(__builtin_frame_address(0)).start < low);
	pass();
}

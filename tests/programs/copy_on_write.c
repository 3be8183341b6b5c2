/* Memory that a family shares copy-on-write, huge pages among it: each has its own changes, none sees another's. */
#include "family.h"

#define SIZE (6UL << 20)
#define PAGE 4096UL
static char *memory;
static unsigned me;

static void change(void)
{
	for (size_t page = me; page < SIZE / PAGE; page += 4) fill(memory + page * PAGE, PAGE, 100 + me);
}

/* Every fourth page was written by the process 1, every fourth by its child 2. */
static void verify(void)
{
	for (size_t page = 0; page < SIZE / PAGE; page++) {
		unsigned writer = page % 4;
		check_filled(memory + page * PAGE, PAGE, writer && writer <= me ? 100 + writer : 50, "memory");
	}
}

static void grandchild(void)
{
	me = 2;
	change();
	reach(1);
	await_check();
	verify();
	pass();
}

static void first(void)
{
	pid_t pid;
	me = 1;
	change();
	pid = child(grandchild);
	await_check();
	check_child(pid);
	verify();
	pass();
}

int main(void)
{
	pid_t pid;
	start();
	family();
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	madvise(memory, SIZE, MADV_HUGEPAGE);
	for (size_t page = 0; page < SIZE / PAGE; page++) fill(memory + page * PAGE, PAGE, 50);
	pid = child(first);
	await_step(1);
	ready();
	await_check();
	check_child(pid);
	verify();
	pass();
}

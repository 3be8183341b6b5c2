/* /dev/zero mapped: privately, by two processes apart; shared, by both together; in part; without a page touched. */
#include "family.h"
#include "smaps.h"

#define PAGE 4096UL
#define SIZE (8 * PAGE)

static char *private, *shared, *untouched, *part;

static char *map(int flags)
{
	int fd = open("/dev/zero", O_RDWR);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(fd >= 0 && at != MAP_FAILED && close(fd) == 0);
	return at;
}

static void brother(void)
{
	fill(private, PAGE, 20);
	reach(1);
	await_check();
	check_filled(private, PAGE, 20, "what the child wrote");
	check_filled(private + 2 * PAGE, PAGE, 1, "what was there before");
	check_filled(shared + PAGE, PAGE, 2, "what is shared");
	strcpy(shared + 5 * PAGE, "from the child");
	strcpy(untouched, "first");
	pass();
}

int main(void)
{
	pid_t pid;
	start();
	family();
	private = map(MAP_PRIVATE), shared = map(MAP_SHARED), untouched = map(MAP_SHARED);
	part = map(MAP_SHARED);
	fill(private + 2 * PAGE, PAGE, 1), fill(shared + PAGE, PAGE, 2), fill(part + PAGE, PAGE, 3);
	CHECK(((volatile char *)private)[4 * PAGE] == 0 && ((volatile char *)shared)[4 * PAGE] == 0);
	CHECK(munmap(part, PAGE) == 0);
	pid = child(brother);
	await_step(1);
	fill(private, PAGE, 10);
	ready();
	await_check();
	check_child(pid);
	check_filled(private, PAGE, 10, "own memory");
	check_filled(private + 2 * PAGE, PAGE, 1, "what was there before");
	for (size_t i = 3 * PAGE; i < SIZE; i++) CHECK(private[i] == 0);
	CHECK(strcmp(shared + 5 * PAGE, "from the child") == 0 && shared[0] == 0 && strcmp(untouched, "first") == 0);
	check_filled(part + PAGE, PAGE, 3, "a part");
	CHECK(smap_at(part).start == 0 && strcmp(smap_at(private).name, "/dev/zero") == 0);
	pass();
}

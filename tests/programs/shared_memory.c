/* Shared mappings: anonymous ones, of a file, of /dev/shm files with a name and without, of a memfd; in whole, in part
   and at an offset, one object twice, side by side, read-only, without access; seen by a child. A thread counts in all
   of them all the time: what it did after the checkpoint must be undone in all of them alike. */
#include "family.h"
#include "smaps.h"
#include <pthread.h>

#define PAGE 4096UL
#define SIZE (20 * PAGE)
enum { ANONYMOUS, FILE_, NAMED, UNNAMED, MEMFD, OBJECTS };

struct object { int fd; char *whole, *part, *fixed, *closed; };
static struct object objects[OBJECTS];
static char named[64], unnamed[64], *adjacent;
static volatile int stop;
static unsigned long counted;

static char *map(int fd, size_t offset, size_t size, int protection)
{
	char *at = mmap(NULL, size, protection, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, offset);
	CHECK(at != MAP_FAILED);
	return at;
}

static int new_file(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	return fd;
}

static void set_up(int i, int fd)
{
	struct object *o = &objects[i];
	o->fd = fd;
	o->whole = map(fd, 0, SIZE, PROT_READ | PROT_WRITE);
	fill(o->whole + PAGE, 10 * PAGE, i);
	strcpy(o->whole + 19 * PAGE, "the last page");
	if (fd < 0) return;
	o->part = map(fd, 5 * PAGE, 3 * PAGE, PROT_READ | PROT_WRITE);
	o->fixed = map(fd, 0, SIZE, PROT_READ);
	o->closed = map(fd, PAGE, PAGE, PROT_NONE);
}

static volatile unsigned long *counter(int i) { return (volatile unsigned long *)objects[i].whole; }

static void *count(void *unused)
{
	while (!stop) {
		counted++;
		for (int i = 0; i < OBJECTS; i++) *counter(i) = counted;
	}
	return unused;
}

static void check_contents(int i)
{
	struct object *o = &objects[i];
	check_filled(o->whole + PAGE, 4 * PAGE, i, "shared memory");
	CHECK(strcmp(o->whole + 19 * PAGE, "the last page") == 0);
	for (size_t k = 11 * PAGE; k < 19 * PAGE; k++) CHECK(o->whole[k] == 0);
	if (!o->part) return;
	CHECK(memcmp(o->part, o->whole + 5 * PAGE, 3 * PAGE) == 0 && memcmp(o->fixed, o->whole, SIZE) == 0);
	check_protection(o->fixed, "r--s");
	check_protection(o->closed, "---s");
	CHECK(smap_at(o->part).offset == 5 * PAGE);
}

static void check_joined(int i)
{
	struct object *o = &objects[i];
	o->whole[6 * PAGE] ^= 0x55;
	if (o->part) {
		CHECK(o->part[PAGE] == o->whole[6 * PAGE] && o->fixed[6 * PAGE] == o->whole[6 * PAGE]);
		CHECK(mprotect(o->fixed, SIZE, PROT_READ | PROT_WRITE) == 0);
		CHECK(mprotect(o->closed, PAGE, PROT_READ) == 0 && memcmp(o->closed, o->whole + PAGE, PAGE) == 0);
	}
	CHECK(*counter(i) == counted);
}

static void brother(void)
{
	ready();
	reach(1);
	await_check();
	for (int i = 0; i < OBJECTS; i++) {
		check_contents(i);
		fill(objects[i].whole + 12 * PAGE, PAGE, 70 + i);
	}
	pass();
}

static void check_file_contents(const char *name, int i)
{
	char byte;
	int fd = open(name, O_RDONLY);
	CHECK(fd >= 0 && pread(fd, &byte, 1, 6 * PAGE) == 1 && byte == objects[i].whole[6 * PAGE]);
	close(fd);
}

int main(void)
{
	pthread_t thread;
	pid_t pid;
	int memory;
	start();
	family();
	sprintf(named, "/dev/shm/shared_memory-named-%d", (int)getpid());
	sprintf(unnamed, "/dev/shm/shared_memory-unnamed-%d", (int)getpid());
	set_up(ANONYMOUS, -1);
	set_up(FILE_, new_file("shared"));
	set_up(NAMED, new_file(named));
	set_up(UNNAMED, new_file(unnamed));
	CHECK(unlink(unnamed) == 0);
	memory = memfd_create("of its own", MFD_CLOEXEC);
	CHECK(memory >= 0 && ftruncate(memory, SIZE) == 0);
	set_up(MEMFD, memory);
	adjacent = map(-1, 0, 8 * PAGE, PROT_READ | PROT_WRITE);
	for (int i = 0; i < 4; i++) {
		CHECK(mmap(adjacent + 2 * i * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, objects[i + 1].fd,
			   (9 - 2 * i) * PAGE) == adjacent + 2 * i * PAGE);
	}
	close(objects[UNNAMED].fd);
	close(objects[NAMED].fd);
	pid = child(brother);
	await_step(1);
	CHECK(pthread_create(&thread, NULL, count, NULL) == 0);
	while (*counter(OBJECTS - 1) == 0) usleep(100);
	await_check();
	stop = 1;
	pthread_join(thread, NULL);
	check_child(pid);
	for (int i = 0; i < OBJECTS; i++) {
		check_filled(objects[i].whole + 12 * PAGE, PAGE, 70 + i, "what the child wrote");
		memset(objects[i].whole + 12 * PAGE, 0, PAGE);
		check_contents(i);
		check_joined(i);
	}
	for (int i = 0; i < 4; i++) CHECK(memcmp(adjacent + 2 * i * PAGE, objects[i + 1].whole + (9 - 2 * i) * PAGE, 2 * PAGE) == 0);
	check_file_contents("shared", FILE_);
	check_file_contents(named, NAMED);
	CHECK(access(unnamed, F_OK) != 0 && unlink(named) == 0 && unlink("shared") == 0);
	pass();
}

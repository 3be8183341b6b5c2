/* Files mapped to be read only: shared and private, by a descriptor that may not write, of a file that nobody may write,
   of the C library itself and of a directory's file on another file system; they are not in the image. */
#include "family.h"
#include "smaps.h"

#define PAGE 4096UL
#define SIZE (9 * PAGE)
enum { SHARED, PRIVATE, CLOSED, PART, KINDS };

static char *at[KINDS], *system_file;
static struct stat system_stat;

static void check(void)
{
	char *content;
	int fd = open("/etc/passwd", O_RDONLY);
	for (int i = 0; i < CLOSED; i++) check_filled(at[i], SIZE, 1, "a file");
	check_filled(at[CLOSED], SIZE, 2, "a file without rights");
	CHECK(memcmp(at[PART], at[SHARED] + 3 * PAGE, 2 * PAGE) == 0);
	check_protection(at[SHARED], "r--s"), check_protection(at[PRIVATE], "r--p"), check_protection(at[CLOSED], "r--s");
	CHECK(mprotect(at[SHARED], PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
	content = malloc(system_stat.st_size);
	CHECK(fd >= 0 && content && read(fd, content, system_stat.st_size) == system_stat.st_size && close(fd) == 0);
	CHECK(memcmp(system_file, content, system_stat.st_size) == 0);
	free(content);
}

static char *map(const char *name, int flags, size_t offset, size_t size)
{
	int fd = open(name, O_RDONLY);
	char *place = mmap(NULL, size, PROT_READ, flags, fd, offset);
	CHECK(fd >= 0 && place != MAP_FAILED && close(fd) == 0);
	return place;
}

static void make(const char *name, unsigned seed)
{
	char content[SIZE];
	int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	fill(content, SIZE, seed);
	CHECK(fd >= 0 && write(fd, content, SIZE) == SIZE && close(fd) == 0);
}

static void brother(void)
{
	reach(1);
	await_check();
	check();
	pass();
}

int main(void)
{
	pid_t pid;
	start();
	family();
	make("file", 1), make("closed", 2);
	at[SHARED] = map("file", MAP_SHARED, 0, SIZE), at[PRIVATE] = map("file", MAP_PRIVATE, 0, SIZE);
	at[PART] = map("file", MAP_SHARED, 3 * PAGE, 2 * PAGE);
	at[CLOSED] = map("closed", MAP_SHARED, 0, SIZE);
	CHECK(chmod("file", 0444) == 0 && chmod("closed", 0400) == 0);
	CHECK(stat("/etc/passwd", &system_stat) == 0);
	system_file = map("/etc/passwd", MAP_SHARED, 0, system_stat.st_size);
	pid = child(brother);
	await_step(1);
	check();
	ready();
	await_check();
	check_child(pid);
	check();
	pass();
}

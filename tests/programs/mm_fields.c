/* A process that has told the kernel other places of its arguments, environment, heap and auxiliary vector (prctl(2),
   PR_SET_MM_MAP): /proc shows them, the heap grows from its new end. */
#include "smaps.h"
#include <elf.h>
#include <linux/prctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define PAGE 4096UL
#define HEAP_PAGES 16

static char *area, *heap;
static Elf64_auxv_t auxv[8] = {{AT_PAGESZ, {4096}}, {AT_UID, {1234}}, {AT_SECURE, {0}}, {AT_NULL, {0}}};

static size_t read_all(const char *name, char *to, size_t room)
{
	int fd = open(name, O_RDONLY);
	ssize_t size = read(fd, to, room);
	CHECK(fd >= 0 && size >= 0 && close(fd) == 0);
	return size;
}

static unsigned long field(int wanted)
{
	char text[2000] = "", *at;
	read_all("/proc/self/stat", text, sizeof text - 1);
	at = strrchr(text, ')') + 2;
	for (int i = 3; i < wanted; i++) at = strchr(at, ' ') + 1;
	return strtoul(at, NULL, 10);
}

static void check(void)
{
	char text[sizeof auxv + 4096];
	CHECK(read_all("/proc/self/cmdline", text, sizeof text) == 12 && memcmp(text, "other\0title", 12) == 0);
	CHECK(read_all("/proc/self/environ", text, sizeof text) == 4 && memcmp(text, "A=B", 4) == 0);
	CHECK(read_all("/proc/self/auxv", text, sizeof text) >= 4 * sizeof *auxv);
	CHECK(memcmp(text, auxv, 4 * sizeof *auxv) == 0);
	CHECK(field(47) == (uintptr_t)heap && field(45) == (uintptr_t)area && field(46) == (uintptr_t)area + PAGE);
	CHECK(syscall(SYS_brk, 0) == (long)(heap + 2 * PAGE));
}

int main(void)
{
	struct prctl_mm_map map = {0};
	start();
	area = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	heap = mmap(NULL, (HEAP_PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED && heap != MAP_FAILED && munmap(heap + 2 * PAGE, (HEAP_PAGES - 1) * PAGE) == 0);
	memcpy(area, "other\0title", 12), memcpy(area + 100, "A=B", 4);
	fill(heap, 2 * PAGE, 3);
	map.start_code = field(26), map.end_code = field(27), map.start_stack = field(28);
	map.start_data = (uintptr_t)area, map.end_data = (uintptr_t)area + PAGE;
	map.start_brk = (uintptr_t)heap, map.brk = (uintptr_t)heap + 2 * PAGE;
	map.arg_start = (uintptr_t)area, map.arg_end = map.arg_start + 12;
	map.env_start = (uintptr_t)area + 100, map.env_end = map.env_start + 4;
	map.auxv = (void *)auxv, map.auxv_size = sizeof auxv, map.exe_fd = -1;
	if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0) != 0) fail("PR_SET_MM_MAP");
	check();
	ready();
	await_check();
	check();
	check_filled(heap, 2 * PAGE, 3, "the new heap");
	CHECK(syscall(SYS_brk, heap + 5 * PAGE) == (long)(heap + 5 * PAGE));
	CHECK(heap[3 * PAGE] == 0 && strcmp(smap_at(heap).name, "[heap]") == 0);
	CHECK(syscall(SYS_brk, heap + 40 * PAGE) == (long)(heap + 5 * PAGE));   /* something is in the way */
	pass();
}

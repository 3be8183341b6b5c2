/* One mapping, larger than all memory, that may be written: it grew piece by piece out of a closed reservation, as
   the heaps of some runtimes do. The kernel would not give so much in one go (Documentation/mm/overcommit-accounting). */
#include "smaps.h"
#include <sys/sysinfo.h>

#define PAGE 4096UL

int main(void)
{
	struct sysinfo info;
	size_t piece, size;
	char *at;
	start();
	CHECK(sysinfo(&info) == 0);
	piece = ((info.totalram + info.totalswap) * info.mem_unit / 2) & ~(PAGE - 1);
	size = 5 * piece;
	at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	for (int i = 0; i < 5; i++) CHECK(mprotect(at + i * piece, piece, PROT_READ | PROT_WRITE) == 0);
	CHECK(smap_at(at).start <= (uintptr_t)at && smap_at(at).end >= (uintptr_t)at + size);
	for (int i = 0; i < 5; i++) fill(at + i * piece + piece / 3 / PAGE * PAGE, PAGE, i);
	ready();
	await_check();
	CHECK(smap_at(at).start <= (uintptr_t)at && smap_at(at).end >= (uintptr_t)at + size);
	check_flag(at, "nr", 0);
	for (int i = 0; i < 5; i++) check_filled(at + i * piece + piece / 3 / PAGE * PAGE, PAGE, i, "a page of the heap");
	at[size - 1] = 1;
	pass();
}

/* Restartable sequences, in glibc's area and in one that a thread registered itself: a section that is left in the
   middle must be aborted, never gone on with as if nothing had been; the CPU number in the area must be true. */
#include "program.h"
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

static int stop;
static volatile int inside[2];
static struct rseq own __attribute__((aligned(64)));

struct spinner { struct rseq *area; int aborts, stale, commits; };

static struct rseq *glibc_area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

/* Spins in a section until stop; 1 where it came to its end, 0 where it was aborted. *stale is set where the kernel
   no longer knew of the section at its end. */
static int section(struct rseq *area, int *stale)
{
	int result;
	__asm__ volatile(
		".pushsection .data\n\t.balign 32\n"
		"3:\t.long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
		"leaq 3b(%%rip), %%rax; movq %%rax, %1\n"
		"1:\tpause; cmpl $0, %3; je 1b\n\t"
		"xorl %%ecx, %%ecx; cmpq %%rax, %1; setne %%cl; movl %%ecx, %2\n"
		"2:\tmovl $1, %0; jmp 5f\n\t"
		".byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
		"4:\tmovl $0, %0\n"
		"5:" : "=&r"(result), "+m"(area->rseq_cs), "+m"(*stale) : "m"(stop) : "rax", "rcx", "memory", "cc");
	return result;
}

static void *spin(void *argument)
{
	struct spinner *s = argument;
	if (s->area == NULL) s->area = glibc_area();
	else {
		CHECK(syscall(SYS_rseq, glibc_area(), 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0);
		CHECK(syscall(SYS_rseq, s->area, sizeof *s->area, 0, RSEQ_SIG) == 0);
	}
	inside[s->area == &own] = 1;
	while (!s->commits) {
		if (section(s->area, &s->stale)) s->commits++;
		else s->aborts++;
	}
	return s;
}

static void check_cpu(int wanted)
{
	cpu_set_t one;
	unsigned cpu;
	CPU_ZERO(&one);
	CPU_SET(wanted, &one);
	CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
	CHECK(syscall(SYS_getcpu, &cpu, NULL, NULL) == 0 && (int)cpu == wanted);
	if (sched_getcpu() != wanted) fail("sched_getcpu is %d on CPU %d", sched_getcpu(), wanted);
	CHECK((int)glibc_area()->cpu_id == wanted && (int)glibc_area()->cpu_id_start == wanted);
}

int main(void)
{
	struct spinner spinners[2] = {{NULL, 0, 0, 0}, {&own, 0, 0, 0}};
	pthread_t threads[2];
	cpu_set_t all;
	start();
	CHECK(__rseq_size > 0 && sched_getaffinity(0, sizeof all, &all) == 0);
	for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, spin, &spinners[i]) == 0);
	while (!inside[0] || !inside[1]) usleep(1000);
	ready();
	await_check();
	for (int i = 0; i < CPU_SETSIZE; i++) if (CPU_ISSET(i, &all)) check_cpu(i);
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	for (int i = 0; i < 2; i++)
		if (spinners[i].stale || spinners[i].commits != 1)
			fail("spinner %d: stale %d after %d aborts", i, spinners[i].stale, spinners[i].aborts);
	CHECK(own.cpu_id_start == own.cpu_id);
	pass();
}

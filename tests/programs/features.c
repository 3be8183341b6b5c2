/* What threads have asked for by prctl(2): no TSC, memory failures told early or late, control of speculation where the
   processor has it; and barriers of other threads (membarrier(2)), which must be possible without registering again. */
#include "program.h"
#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { USUAL, NO_TSC, EARLY, LATE, THREADS };
static pthread_barrier_t set, checked;
static __thread sigjmp_buf out;

static void fault(int number) { (void)number; siglongjmp(out, 1); }

static int tsc_works(void)
{
	unsigned low, high;
	if (sigsetjmp(out, 1)) return 0;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return 1;
}

static int barrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

static void *work(void *argument)
{
	int me = (int)(intptr_t)argument, tsc = 0, before[3], usual = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
	if (me == NO_TSC) CHECK(prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0);
	if (me == EARLY) CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
	if (me == LATE) CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0) == 0);
	for (int i = 0; i < 3; i++) {
		before[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
		if (me == EARLY && before[i] > 0 && before[i] & PR_SPEC_PRCTL)
			prctl(PR_SET_SPECULATION_CTRL, i, before[i] & PR_SPEC_ENABLE ? PR_SPEC_DISABLE : PR_SPEC_ENABLE, 0, 0);
		before[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
	}
	pthread_barrier_wait(&set);
	pthread_barrier_wait(&checked);
	CHECK(prctl(PR_GET_TSC, &tsc) == 0 && tsc == (me == NO_TSC ? PR_TSC_SIGSEGV : PR_TSC_ENABLE));
	CHECK(tsc_works() == (me != NO_TSC));
	CHECK(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == (me == EARLY ? PR_MCE_KILL_EARLY : me == LATE ? PR_MCE_KILL_LATE : usual));
	for (int i = 0; i < 3; i++)
		if (prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0) != before[i]) fail("speculation %d differs in thread %d", i, me);
	return argument;
}

int main(void)
{
	struct sigaction action = {.sa_handler = fault};
	pthread_t threads[THREADS];
	start();
	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	CHECK(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == -1 && errno == EPERM);
	CHECK(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0);
	CHECK(barrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) == 0);
	pthread_barrier_init(&set, NULL, THREADS + 1);
	pthread_barrier_init(&checked, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
	pthread_barrier_wait(&set);
	ready();
	await_check();
	pthread_barrier_wait(&checked);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0 && barrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) == 0);
	errno = 0;
	if (barrier(1 << 9) >= 0)   /* MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3 */
		CHECK(barrier(1 << 9) == (MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED));
	pass();
}

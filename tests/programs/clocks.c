/* Clocks never go back: monotonic, boot-time and coarse ones, as told by the kernel and by the vdso, looked at without a
   pause by two threads. What has passed of one has passed of the other. */
#include "timer.h"
#include <pthread.h>
#include <sys/syscall.h>

static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW};
#define CLOCKS (int)(sizeof clocks / sizeof *clocks)
static volatile int over, looks[2];

static int64_t by_kernel(clockid_t clock)
{
	struct timespec time;
	CHECK(syscall(SYS_clock_gettime, clock, &time) == 0);
	return ns(time);
}

static void *watch(void *argument)
{
	int me = (int)(intptr_t)argument;
	int64_t last[CLOCKS] = {0}, tick;
	struct timespec resolution;
	CHECK(clock_getres(CLOCK_MONOTONIC_COARSE, &resolution) == 0);
	tick = ns(resolution);
	while (!over) {
		for (int i = 0; i < CLOCKS; i++) {
			int64_t time = me ? by_kernel(clocks[i]) : now(clocks[i]);
			if (time < last[i]) fail("clock %d went back by %lld ns", (int)clocks[i], (long long)(last[i] - time));
			last[i] = time;
		}
		int64_t coarse = now(CLOCK_MONOTONIC_COARSE), fine = now(CLOCK_MONOTONIC), kernels = by_kernel(CLOCK_MONOTONIC);
		if (kernels < fine || coarse > fine) fail("the vdso and the kernel differ");
		if (now(CLOCK_MONOTONIC) < kernels || tick <= 0) fail("the kernel and the vdso differ");
		looks[me]++;
	}
	return argument;
}

int main(void)
{
	pthread_t threads[2];
	int64_t begin[2], passed[2], asleep = now(CLOCK_BOOTTIME) - now(CLOCK_MONOTONIC);
	start();
	for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, watch, (void *)(intptr_t)i) == 0);
	begin[0] = now(CLOCK_MONOTONIC);
	begin[1] = now(CLOCK_BOOTTIME);
	while (!looks[0] || !looks[1]) usleep(1000);
	ready();
	await_check();
	passed[0] = now(CLOCK_MONOTONIC) - begin[0];
	passed[1] = now(CLOCK_BOOTTIME) - begin[1];
	CHECK(passed[0] > 0 && passed[1] > 0);
	if (llabs(now(CLOCK_BOOTTIME) - now(CLOCK_MONOTONIC) - asleep) > NS / 10) fail("the clocks have come apart");
	for (int before = looks[0], i = 1; looks[0] == before && i < 10000; i++) usleep(1000);
	over = 1;
	for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

/* Timers that fire faster than anybody can look at them: each goes on, however often it has fired at that moment. */
#include "timer.h"
#include <sys/timerfd.h>

#define TIMERS 6

int main(void)
{
	int timers[TIMERS];
	uint64_t count;
	start();
	for (int i = 0; i < TIMERS; i++) {
		int64_t interval = 5000ll << 2 * i;
		CHECK((timers[i] = timerfd_create(i & 1 ? CLOCK_REALTIME : CLOCK_MONOTONIC, 0)) >= 0);
		CHECK(timerfd_settime(timers[i], 0, &(struct itimerspec){spec(interval), spec(interval)}, NULL) == 0);
	}
	ready();
	await_check();
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < TIMERS; i++) CHECK(read(timers[i], &count, sizeof count) == sizeof count && count > 0);
	pass();
}

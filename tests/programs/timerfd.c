/* Timers as descriptors: relative, absolute and periodic ones of all clocks with time left, flags and unread expirations;
   none fires early, and of a periodic one no expiration is lost or counted twice by the job's own clock. */
#include "timer.h"
#include <sys/timerfd.h>

#ifndef TFD_TIMER_CANCEL_ON_SET
#define TFD_TIMER_CANCEL_ON_SET 2
#endif
enum { FAR, FAR_BOOTTIME, FAR_REALTIME, CANCELLED, DISARMED, ONCE, ONCE_READ, UNTIL, SOON, BEAT, BEAT_UNTIL, BEAT_WORLD, BEAT_BOOT, LAST };
static const clockid_t clocks[LAST] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME, CLOCK_REALTIME, CLOCK_MONOTONIC,
	CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
static int fds[LAST];
static int64_t first[LAST], interval[LAST];   /* when each fires first, by its clock */

static void arm(int i, int64_t when, int64_t every, int flags)
{
	struct itimerspec value = {spec(every), spec(when)};
	first[i] = flags ? when : now(clocks[i]) + when;
	interval[i] = every;
	CHECK((fds[i] = timerfd_create(clocks[i], TFD_NONBLOCK)) >= 0 && timerfd_settime(fds[i], flags, &value, NULL) == 0);
}

static uint64_t fired(int i)
{
	uint64_t count;
	ssize_t got = read(fds[i], &count, 8);
	CHECK(got == 8 || (got == -1 && errno == EAGAIN));
	return got == 8 ? count : 0;
}

/* All that have been due by the job's clock, and no more. */
static void check_beat(int i)
{
	int64_t least = now(clocks[i]) - first[i], most;
	uint64_t count = fired(i);
	most = now(clocks[i]) - first[i];
	least = least < 0 ? 0 : least / interval[i] + 1;
	most = most < 0 ? 0 : most / interval[i] + 1;
	if ((int64_t)count < least - 1 || (int64_t)count > most)
		fail("timer %d fired %llu times instead of %lld to %lld", i, (unsigned long long)count, (long long)least, (long long)most);
}

static void check_far(int i, int64_t most)
{
	struct itimerspec value;
	CHECK(timerfd_gettime(fds[i], &value) == 0 && fired(i) == 0 && ns(value.it_interval) == interval[i]);
	if (ns(value.it_value) > most || ns(value.it_value) < most - 100 * NS) fail("timer %d has %lld ns left", i, (long long)ns(value.it_value));
}

static void await(int i)
{
	CHECK(fcntl(fds[i], F_SETFL, 0) == 0 && fired(i) == 1);
	CHECK(now(clocks[i]) >= first[i]);
}

int main(void)
{
	struct itimerspec none = {{5, 0}, {0, 0}};
	start();
	arm(FAR, 1000 * NS, 7 * NS, 0);
	arm(FAR_BOOTTIME, now(CLOCK_BOOTTIME) + 1000 * NS, 0, TFD_TIMER_ABSTIME);
	arm(FAR_REALTIME, 1000 * NS, 0, 0);
	arm(CANCELLED, now(CLOCK_REALTIME) + 1000 * NS, 0, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
	arm(DISARMED, NS, 0, 0);
	CHECK(timerfd_settime(fds[DISARMED], 0, &none, NULL) == 0);
	arm(ONCE, 1, 0, 0);
	arm(ONCE_READ, now(CLOCK_MONOTONIC) - 1, 0, TFD_TIMER_ABSTIME);
	arm(UNTIL, now(CLOCK_MONOTONIC) + 500 * MS, 0, TFD_TIMER_ABSTIME);
	arm(SOON, 400 * MS, 0, 0);
	arm(BEAT, 3 * MS, 10 * MS, 0);
	arm(BEAT_UNTIL, now(CLOCK_MONOTONIC) + 2 * MS, 7 * MS, TFD_TIMER_ABSTIME);
	arm(BEAT_WORLD, now(CLOCK_REALTIME) - 100 * MS, 11 * MS, TFD_TIMER_ABSTIME);
	arm(BEAT_BOOT, 300 * MS, 5 * MS, 0);
	usleep(60000);
	CHECK(fired(ONCE_READ) == 1);
	ready();
	await_check();
	check_far(FAR, 1000 * NS);
	check_far(FAR_BOOTTIME, 1000 * NS);
	check_far(FAR_REALTIME, 1000 * NS);
	check_far(CANCELLED, 1000 * NS);
	CHECK(timerfd_gettime(fds[DISARMED], &none) == 0 && ns(none.it_value) == 0 && ns(none.it_interval) == 5 * NS);
	CHECK(fired(DISARMED) == 0 && fired(ONCE) == 1 && fired(ONCE) == 0 && fired(ONCE_READ) == 0);
	for (int i = BEAT; i < LAST; i++) check_beat(i);
	await(SOON);
	await(UNTIL);
	pass();
}

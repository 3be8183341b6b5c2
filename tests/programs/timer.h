/* Times for programs that hold timers. */
#ifndef TIMER_H
#define TIMER_H
#include "program.h"
#include <sys/time.h>
#include <time.h>

#define NS 1000000000ll
#define MS 1000000ll

static inline int64_t ns(struct timespec time) { return time.tv_sec * NS + time.tv_nsec; }
static inline struct timespec spec(int64_t time) { return (struct timespec){time / NS, time % NS}; }

static inline int64_t now(clockid_t clock)
{
	struct timespec time;
	CHECK(clock_gettime(clock, &time) == 0);
	return ns(time);
}

/* Burn processor time of this thread. */
static inline void work(int64_t amount)
{
	int64_t end = now(CLOCK_THREAD_CPUTIME_ID) + amount;
	while (now(CLOCK_THREAD_CPUTIME_ID) < end) ;
}
#endif

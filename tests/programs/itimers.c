/* Interval timers: real, virtual and profiling ones with interval and time left, one that is not armed but has an interval,
   one whose signal waits (it must go on when that is taken), and one that fires once, not before its time. */
#include "family.h"
#include "timer.h"

enum { LONG, WAITING, ONCE, CPU, BEATING, WAYS };
static int way;
static volatile int ticks;

static void tick(int number) { (void)number; ticks++; }

static struct itimerval left_of(int which)
{
	struct itimerval value;
	CHECK(getitimer(which, &value) == 0);
	return value;
}

static int64_t us(struct timeval value) { return value.tv_sec * 1000000ll + value.tv_usec; }

static void take_alarm(void)
{
	sigset_t alarm;
	int number;
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	CHECK(sigwait(&alarm, &number) == 0 && number == SIGALRM);
}

static void await_between_ticks(void)
{
	sigset_t term;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	while (sigwaitinfo(&term, NULL) != SIGTERM) CHECK(errno == EINTR);
}

static void check(void)
{
	struct itimerval timer = {{0, 0}, {0, 0}}, set;
	int64_t begin = now(CLOCK_MONOTONIC);
	sigset_t block;
	sigemptyset(&block);
	sigaddset(&block, SIGALRM);
	if (way == WAITING || way == ONCE) CHECK(sigprocmask(SIG_BLOCK, &block, NULL) == 0);
	CHECK(signal(SIGALRM, tick) != SIG_ERR && signal(SIGVTALRM, tick) != SIG_ERR && signal(SIGPROF, tick) != SIG_ERR);
	if (way == LONG) timer = (struct itimerval){{3, 500000}, {1000, 0}};
	if (way == WAITING) timer = (struct itimerval){{0, 7000}, {0, 1}};
	if (way == ONCE) timer = (struct itimerval){{0, 0}, {0, 600000}};
	if (way == BEATING) timer = (struct itimerval){{0, 5000}, {0, 5000}};
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
	set = (struct itimerval){{0, 20000}, {0, 300000}};
	if (way == CPU) CHECK(setitimer(ITIMER_PROF, &set, NULL) == 0);
	set = (struct itimerval){{0, 20000}, {0, 0}};
	if (way == CPU) CHECK(setitimer(ITIMER_VIRTUAL, &set, NULL) == 0);
	if (way == WAITING) usleep(3000);
	if (way == BEATING) while (!ticks) pause();
	reach(way + 1);
	if (way == BEATING) await_between_ticks();
	else await_check();
	timer = left_of(ITIMER_REAL);
	if (way == LONG) CHECK(us(timer.it_interval) == 3500000 && us(timer.it_value) <= 1000000000 && us(timer.it_value) > 900000000);
	if (way == CPU) {
		CHECK(us(timer.it_interval) == 0 && us(timer.it_value) == 0 && ticks == 0);
		set = left_of(ITIMER_VIRTUAL);
		CHECK(us(set.it_interval) == 20000 && us(set.it_value) == 0);
		set = left_of(ITIMER_PROF);
		if (us(set.it_interval) != 20000 || us(set.it_value) < 100000 || us(set.it_value) > 304000)
			fail("the profiling timer has %lld us left", (long long)us(set.it_value));
		work(600 * MS);
		CHECK(ticks >= 5 && ticks <= 30);
	}
	if (way == WAITING) for (int i = 0; i < 5; i++) take_alarm();
	if (way == ONCE) {
		take_alarm();
		CHECK(now(CLOCK_MONOTONIC) - begin >= 600 * MS);
		timer = left_of(ITIMER_REAL);
		CHECK(us(timer.it_value) == 0);
	}
	if (way == BEATING) for (int until = ticks + 5; ticks < until;) pause();
	pass();
}

int main(void)
{
	pid_t children[WAYS];
	start();
	family();
	for (way = 0; way < WAYS; way++) {
		children[way] = child(check);
		await_step(way + 1);
	}
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) check_child(children[i]);
	pass();
}

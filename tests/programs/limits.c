/* Resource limits, all sixteen, of processes that use more than theirs by now: a descriptor above RLIMIT_NOFILE, an address
   space above RLIMIT_AS and RLIMIT_DATA, a stack above RLIMIT_STACK, more signals pending than RLIMIT_SIGPENDING, no
   further process, no locked memory, files of a hundred bytes. And oom_score_adj. */
#include "family.h"
#include <sys/resource.h>

static struct rlimit before[RLIM_NLIMITS], now[RLIM_NLIMITS];

static void look(struct rlimit *limits)
{
	for (int i = 0; i < RLIM_NLIMITS; i++) CHECK(getrlimit(i, &limits[i]) == 0);
}

static void limit(int resource, rlim_t soft, rlim_t hard)
{
	struct rlimit l;
	CHECK(getrlimit(resource, &l) == 0);
	if (hard < l.rlim_max) l.rlim_max = hard;
	l.rlim_cur = soft < l.rlim_max ? soft : l.rlim_max;
	if (setrlimit(resource, &l) != 0) fail("limit %d", resource);
}

static void stay_the_same(int step)
{
	look(before);
	reach(step);
	await_check();
	look(now);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		if (memcmp(&before[i], &now[i], sizeof now[i]))
			fail("limit %d was %llx %llx, is %llx %llx", i, (long long)before[i].rlim_cur, (long long)before[i].rlim_max,
			     (long long)now[i].rlim_cur, (long long)now[i].rlim_max);
}

static void many_descriptors(void)
{
	CHECK(dup2(1, 700) == 700);
	limit(RLIMIT_NOFILE, 2, 600);
	limit(RLIMIT_CPU, 3600, 7200);
	limit(RLIMIT_CORE, 12345, 23456);
	limit(RLIMIT_NICE, 3, 7);
	limit(RLIMIT_RTPRIO, 2, 5);
	limit(RLIMIT_RTTIME, 1000001, 2000002);
	limit(RLIMIT_MSGQUEUE, 1234, 4321);
	limit(RLIMIT_LOCKS, 77, 99);
	limit(RLIMIT_RSS, 1 << 20, 1 << 21);
	stay_the_same(1);
	CHECK(dup(700) == -1 && errno == EMFILE && write(700, "", 0) == 0);
}

static void much_memory(void)
{
	char *memory = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	fill(memory, 8 << 20, 1);
	limit(RLIMIT_STACK, 8192, RLIM_INFINITY);
	limit(RLIMIT_DATA, 4096, RLIM_INFINITY);
	limit(RLIMIT_AS, 1 << 20, RLIM_INFINITY);
	stay_the_same(2);
	check_filled(memory, 8 << 20, 1, "memory");
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
}

static void many_signals(void)
{
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < 20; i++) CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i}) == 0);
	limit(RLIMIT_SIGPENDING, 3, 10);
	stay_the_same(3);
	for (int i = 0; i < 20; i++) CHECK(sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == i);
}

static void nothing_more(void)
{
	int fd = open("file", O_CREAT | O_WRONLY | O_TRUNC, 0600);
	CHECK(fd >= 0 && write(fd, "0123456789", 10) == 10);
	signal(SIGXFSZ, SIG_IGN);
	limit(RLIMIT_FSIZE, 5, 100);
	limit(RLIMIT_NPROC, 0, 0);
	limit(RLIMIT_MEMLOCK, 0, 0);
	stay_the_same(4);
	CHECK(write(fd, "x", 1) == -1 && errno == EFBIG);
	if (getuid() != 0) CHECK(fork() == -1 && errno == EAGAIN);
}

int main(void)
{
	void (*const bodies[])(void) = {many_descriptors, much_memory, many_signals, nothing_more};
	pid_t children[4];
	char text[16] = "";
	int fd;
	start();
	family();
	for (int i = 0; i < 4; i++) children[i] = child(bodies[i]), await_step(i + 1);
	CHECK((fd = open("/proc/self/oom_score_adj", O_RDWR)) >= 0 && write(fd, "777", 3) == 3 && close(fd) == 0);
	ready();
	await_check();
	CHECK((fd = open("/proc/self/oom_score_adj", O_RDONLY)) >= 0 && read(fd, text, 15) == 4 && strcmp(text, "777\n") == 0);
	for (int i = 0; i < 4; i++) check_child(children[i]);
	pass();
}

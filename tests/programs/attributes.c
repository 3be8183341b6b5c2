/* What prctl(2) and /proc set for a process: umask, dumpable, child subreaper, transparent huge pages off, memory merging,
   coredump filter, a name with odd bytes; for a thread: personality, and the signal that comes when its parent ends, which
   is a thread. */
#include "family.h"
#include <pthread.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

static const char odd[16] = "a) \n(\xff\x01 b\t\\0\n";
static pthread_barrier_t barrier;
static pid_t orphan;
static int end_now;

static void has_filter(const char *wanted)
{
	char text[32] = "";
	int fd = open("/proc/self/coredump_filter", O_RDONLY);
	CHECK(fd >= 0 && read(fd, text, 31) > 0 && close(fd) == 0);
	if (strcmp(text, wanted) != 0) fail("coredump_filter is %s", text);
}

static void waits_for_parent(void)
{
	siginfo_t info;
	sigset_t set;
	int signal;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
	reach(1);
	CHECK(sigwaitinfo(&set, &info) == SIGUSR2);
	CHECK(prctl(PR_GET_PDEATHSIG, &signal) == 0 && signal == SIGUSR2);
	reach(2);
	pass();
}

static void *thread(void *unused)
{
	CHECK(personality(PER_LINUX | ADDR_COMPAT_LAYOUT) != -1);
	CHECK(prctl(PR_SET_PDEATHSIG, SIGPWR) == 0);
	orphan = child(waits_for_parent);
	await_step(1);
	pthread_barrier_wait(&barrier);
	while (!__atomic_load_n(&end_now, __ATOMIC_SEQ_CST)) usleep(1000);
	CHECK(personality(0xffffffff) == (PER_LINUX | ADDR_COMPAT_LAYOUT));
	return unused;
}

int main(void)
{
	char name[17] = "";
	int got, status, fd, merging;
	pthread_t other;
	start();
	family();
	CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
	umask(0137);
	CHECK(prctl(PR_SET_NAME, odd) == 0 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0 && prctl(PR_SET_DUMPABLE, 0) == 0);
	CHECK(prctl(PR_SET_DUMPABLE, 1) == 0 && prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
	CHECK(personality(PER_LINUX | ADDR_NO_RANDOMIZE | UNAME26) != -1);
	merging = prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0;
	CHECK((fd = open("/proc/self/coredump_filter", O_WRONLY)) >= 0 && write(fd, "0x47", 4) == 4 && close(fd) == 0);
	CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
	pthread_barrier_wait(&barrier);
	ready();
	await_check();
	CHECK(umask(0) == 0137);
	CHECK(prctl(PR_GET_NAME, name) == 0 && memcmp(name, odd, 15) == 0);
	CHECK(prctl(PR_GET_CHILD_SUBREAPER, &got) == 0 && got == 1);
	CHECK(prctl(PR_GET_DUMPABLE) == 1 && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
	if (merging) CHECK(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1);
	CHECK(personality(0xffffffff) == (PER_LINUX | ADDR_NO_RANDOMIZE | UNAME26));
	has_filter("00000047\n");
	__atomic_store_n(&end_now, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(other, NULL) == 0);
	CHECK(waitpid(orphan, &status, 0) == orphan && status == 0 && *family_step == 2);
	pass();
}

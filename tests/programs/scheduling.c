/* How threads are scheduled, each otherwise: CPU affinity, SCHED_BATCH and SCHED_IDLE, reset on fork, nice, timer slack, I/O
   priority, NUMA memory policy. A thread that was made after a change has what it inherited. */
#include "program.h"
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define THREADS 5
struct seen {
	int policy, nice, slack, io, memory_policy;
	struct sched_param param;
	cpu_set_t cpus;
	unsigned long nodes[16];
};
static pthread_barrier_t barrier;

static void look(struct seen *s)
{
	memset(s, 0, sizeof *s);
	s->policy = syscall(SYS_sched_getscheduler, 0);
	CHECK(syscall(SYS_sched_getparam, 0, &s->param) == 0);
	s->nice = getpriority(PRIO_PROCESS, syscall(SYS_gettid));
	s->slack = prctl(PR_GET_TIMERSLACK);
	s->io = syscall(SYS_ioprio_get, 1, 0);
	CHECK(syscall(SYS_sched_getaffinity, 0, sizeof s->cpus, &s->cpus) > 0);
	CHECK(syscall(SYS_get_mempolicy, &s->memory_policy, s->nodes, 1024, 0, 0) == 0);
}

static void differ(int number)
{
	struct sched_param none = {0};
	unsigned long first_node = 1;
	cpu_set_t one;
	pid_t tid = syscall(SYS_gettid);
	switch (number) {
	case 0:
		CHECK(setpriority(PRIO_PROCESS, tid, 7) == 0 && prctl(PR_SET_TIMERSLACK, 123456) == 0);
		break;
	case 1:
		CHECK(syscall(SYS_sched_setscheduler, 0, SCHED_BATCH, &none) == 0 && setpriority(PRIO_PROCESS, tid, 19) == 0);
		CHECK(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6) == 0);
		break;
	case 2:
		CHECK(syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &none) == 0);
		CHECK(syscall(SYS_ioprio_set, 1, 0, 3 << 13) == 0);
		break;
	case 3:
		CHECK(syscall(SYS_sched_setscheduler, 0, SCHED_BATCH | SCHED_RESET_ON_FORK, &none) == 0);
		CHECK(syscall(SYS_set_mempolicy, MPOL_BIND | MPOL_F_STATIC_NODES, &first_node, 1024) == 0);
		break;
	case 4:
		CHECK(sched_getaffinity(0, sizeof one, &one) == 0);
		for (int i = 0, left = 1; i < CPU_SETSIZE; i++)
			if (CPU_ISSET(i, &one) && left-- <= 0) CPU_CLR(i, &one);
		CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
		CHECK(syscall(SYS_set_mempolicy, MPOL_PREFERRED, &first_node, 1024) == 0);
		break;
	}
}

static void *thread(void *number)
{
	struct seen before, now;
	differ((int)(intptr_t)number);
	look(&before);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	look(&now);
	if (memcmp(&before, &now, sizeof now))
		fail("thread %d: policy %d nice %d slack %d io %#x memory %#x, was %d %d %d %#x %#x", (int)(intptr_t)number,
		     now.policy, now.nice, now.slack, now.io, now.memory_policy, before.policy, before.nice, before.slack, before.io,
		     before.memory_policy);
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	struct seen before, now;
	start();
	CHECK(pthread_barrier_init(&barrier, NULL, THREADS + 1) == 0);
	CHECK(setpriority(PRIO_PROCESS, 0, 3) == 0 && prctl(PR_SET_TIMERSLACK, 70000) == 0);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, thread, (void *)(intptr_t)i) == 0);
	pthread_barrier_wait(&barrier);
	look(&before);
	ready();
	await_check();
	look(&now);
	CHECK(memcmp(&before, &now, sizeof now) == 0);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

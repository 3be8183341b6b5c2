/* Credentials: as root, children with other user and group ids (real, effective and saved apart), groups, capabilities
   that outlive a change of user, ambient, inheritable and bounding sets, locked secure bits; a thread that reaches files as
   another user, as file servers do, and one with fewer capabilities; a process that is not dumpable. As anybody:
   no_new_privs of a thread, keep capabilities. */
#include "family.h"
#include "status.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sys/fsuid.h>

#define NAMES " Uid: Gid: Groups: CapInh: CapPrm: CapEff: CapBnd: CapAmb: NoNewPrivs: "
static pthread_barrier_t barrier;

static void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{effective, permitted, inheritable},
		{effective >> 32, permitted >> 32, inheritable >> 32}};
	CHECK(syscall(SYS_capset, &head, data) == 0);
}

static uint64_t permitted(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	CHECK(syscall(SYS_capget, &head, data) == 0);
	return data[0].permitted | (uint64_t)data[1].permitted << 32;
}

static void stay_the_same(int step)
{
	struct status before;
	int bits = prctl(PR_GET_SECUREBITS), dumpable = prctl(PR_GET_DUMPABLE);
	read_status(&before, NAMES);
	reach(step);
	await_check();
	check_status(&before, NAMES);
	if (prctl(PR_GET_SECUREBITS) != bits) fail("secure bits were %#x, are %#x", bits, prctl(PR_GET_SECUREBITS));
	CHECK(prctl(PR_GET_DUMPABLE) == dumpable);
}

static void other_user(void)
{
	gid_t groups[] = {7, 100, 70000, 3000000000};
	CHECK(setgroups(4, groups) == 0 && setresgid(1001, 1002, 1003) == 0 && setresuid(2001, 2002, 2003) == 0);
	stay_the_same(1);
	CHECK(setresuid(-1, 2003, -1) == 0 && geteuid() == 2003);
}

static void powerful_user(void)
{
	CHECK(setgroups(0, NULL) == 0 && prctl(PR_SET_KEEPCAPS, 1) == 0 && setresuid(3000, 3000, 3000) == 0);
	set_capabilities(1 << CAP_CHOWN, permitted() & (1 << CAP_CHOWN | 1 << CAP_SETUID), 0);
	CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0);
	stay_the_same(2);
}

static void heir(void)
{
	uint64_t all = permitted(), some = 1 << CAP_KILL | 1 << CAP_NET_BIND_SERVICE;
	set_capabilities(all, all, some | 1 << CAP_FOWNER);
	CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT) == 0);
	CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0);
	CHECK(prctl(PR_CAPBSET_DROP, CAP_FOWNER) == 0 && prctl(PR_CAPBSET_DROP, CAP_SYS_TIME) == 0);
	CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT
		| SECBIT_NO_CAP_AMBIENT_RAISE) == 0);
	set_capabilities(0, some, some | 1 << CAP_FOWNER);
	stay_the_same(3);
}

static void nobodys_business(void)
{
	CHECK((getuid() != 0 || prctl(PR_SET_DUMPABLE, 0) == 0) && prctl(PR_SET_KEEPCAPS, 1) == 0);
	stay_the_same(4);
}

static void *thread(void *kind)
{
	struct status before;
	if (kind && getuid() == 0) {
		setfsgid(4001), setfsuid(4000);
		set_capabilities(1 << CAP_SYS_NICE, 1 << CAP_SYS_NICE | 1 << CAP_SETUID, 0);
	} else {
		CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	}
	read_status(&before, NAMES);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	check_status(&before, NAMES);
	return NULL;
}

int main(void)
{
	void (*const bodies[])(void) = {other_user, powerful_user, heir, nobodys_business};
	pid_t children[4] = {0};
	pthread_t threads[2];
	struct status before;
	start();
	family();
	CHECK(pthread_barrier_init(&barrier, NULL, 3) == 0);
	for (int i = 0; i < 4; i++)
		if (getuid() == 0 || i == 3) {
			children[i] = child(bodies[i]);
			await_step(i + 1);
		}
	for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, thread, (void *)(intptr_t)i) == 0);
	pthread_barrier_wait(&barrier);
	read_status(&before, NAMES);
	ready();
	await_check();
	check_status(&before, NAMES);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	for (int i = 0; i < 4; i++) if (children[i]) check_child(children[i]);
	pass();
}

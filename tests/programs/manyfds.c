/* Eight hundred descriptors of different files, some shared, with gaps between their numbers; one at the highest number
   that may be. In two processes. */
#include "family.h"
#include <sys/resource.h>

#define COUNT 800

static int fds[COUNT];

static void check_all(void)
{
	char buffer[2];
	for (int i = 0; i < COUNT; i++) {
		if (i % 7 == 3) {
			CHECK(fcntl(fds[i], F_GETFD) == -1 && errno == EBADF);
			continue;
		}
		if (pread(fds[i], buffer, 2, i / 2) != 1 || buffer[0] != (char)('a' + i / 2 % 26)) fail("descriptor %d is wrong", fds[i]);
		CHECK(fcntl(fds[i], F_GETFD) == (i % 5 ? FD_CLOEXEC : 0));
		CHECK(lseek(fds[i], 0, SEEK_CUR) == 10 + (i / 2) % 3);
	}
}

static void child_body(void)
{
	await_check();
	check_all();
	pass();
}

int main(void)
{
	struct rlimit limit;
	int highest, null;
	char name[32];
	pid_t pid;
	start();
	family();
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	if (limit.rlim_max > 100000) limit.rlim_max = 100000;
	limit.rlim_cur = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	for (int i = 0; i < COUNT; i++) {
		if (i % 2 == 0) {
			char content[COUNT];
			snprintf(name, sizeof name, "many-%d", i);
			fds[i] = open(name, O_CREAT | O_TRUNC | O_RDWR, 0600);
			CHECK(fds[i] >= 0);
			memset(content, 'a' + i / 2 % 26, sizeof content);
			CHECK(write(fds[i], content, i / 2 + 1) == i / 2 + 1 && lseek(fds[i], 10 + (i / 2) % 3, SEEK_SET) > 0);
		} else {
			fds[i] = dup(fds[i - 1]);
			CHECK(fds[i] >= 0);
		}
		CHECK(fcntl(fds[i], F_SETFD, i % 5 ? FD_CLOEXEC : 0) == 0);
	}
	null = open("/dev/null", O_RDWR);
	for (int i = 3; i < COUNT; i += 7) CHECK(close(fds[i]) == 0);
	highest = dup2(null, limit.rlim_cur - 1);
	CHECK(highest == (int)limit.rlim_cur - 1);
	pid = child(child_body);
	ready();
	await_check();
	check_all();
	CHECK(write(highest, "x", 1) == 1 && read(highest, name, 1) == 0);
	CHECK(dup(0) == fds[3]);
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == (rlim_t)highest + 1);
	check_child(pid);
	pass();
}

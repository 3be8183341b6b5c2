/* Devices without a state: null, zero, full, random, urandom; the kernel's log for writing; a file of /proc of a thread; a
   directory that is being read, in the working directory. */
#include "program.h"
#include <dirent.h>
#include <pthread.h>
#include <sys/syscall.h>

static int tid;

static void *sleep_on(void *unused)
{
	(void)unused;
	__atomic_store_n(&tid, (int)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;) pause();
	return NULL;
}

int main(void)
{
	static const char *names[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kmsg"};
	int fds[6], of_thread, seen = 0;
	char buffer[64], name[300];
	pthread_t thread;
	DIR *dir;
	start();
	for (int i = 0; i < 6; i++) fds[i] = open(names[i], i < 5 ? O_RDWR : O_WRONLY);
	CHECK(fds[0] >= 0 && fds[1] >= 0 && fds[2] >= 0 && fds[3] >= 0 && fds[4] >= 0);
	CHECK(pthread_create(&thread, NULL, sleep_on, NULL) == 0);
	while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) usleep(100);
	snprintf(name, sizeof name, "/proc/self/task/%d/stat", tid);
	of_thread = open(name, O_RDONLY);
	CHECK(of_thread >= 0 && read(of_thread, buffer, 3) == 3);
	CHECK(mkdir("many", 0700) == 0 || errno == EEXIST);
	for (int i = 0; i < 3000; i++) {
		snprintf(name, sizeof name, "many/a file with a long name, so that a listing takes several calls %d", i);
		int fd = open(name, O_CREAT | O_WRONLY, 0600);
		CHECK(fd >= 0 && close(fd) == 0);
	}
	dir = opendir("many");
	CHECK(dir != NULL);
	for (int i = 0; i < 1000; i++) seen += readdir(dir)->d_name[0] == 'a';
	ready();
	await_check();
	memset(buffer, 1, sizeof buffer);
	CHECK(read(fds[0], buffer, 1) == 0 && write(fds[0], buffer, 64) == 64);
	CHECK(read(fds[1], buffer, 64) == 64 && buffer[0] == 0 && buffer[63] == 0);
	CHECK(write(fds[2], buffer, 1) == -1 && errno == ENOSPC);
	CHECK(read(fds[3], buffer, 16) > 0 && read(fds[4], buffer, 64) == 64);
	if (fds[5] >= 0) CHECK(fcntl(fds[5], F_GETFL) == (O_WRONLY | 0100000));
	CHECK(lseek(of_thread, 0, SEEK_CUR) == 3 && pread(of_thread, buffer, 30, 0) == 30 && atoi(buffer) == tid);
	for (struct dirent *entry; (entry = readdir(dir)); seen += entry->d_name[0] == 'a') {}
	if (seen != 3000) fail("%d entries were listed", seen);
	pass();
}

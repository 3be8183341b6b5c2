/* Files that come and go while the job runs: renamed away and back under another name, replaced by a new file of the
   same name, removed and made again. Whatever the moment, descriptors and names lead to the same files after a
   restart. Files that are not open at the checkpoint are not brought back: the program makes them anew as it goes on. */
#include "program.h"
#include <pthread.h>

static int stop, rounds, last = -1, log_fd;

static void *work(void *unused)
{
	char line[32];
	(void)unused;
	while (rounds != last) {
		int next = rounds + 1, fd;
		if (__atomic_load_n(&stop, __ATOMIC_SEQ_CST) && last < 0) last = next + 1;
		/* a log that is turned over: the old one gets another name, a new one the old name */
		CHECK(rename("log", "log.1") == 0);
		CHECK(write(log_fd, "end\n", 4) == 4 && close(log_fd) == 0);
		log_fd = open("log", O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0600);
		CHECK(log_fd >= 0 && snprintf(line, sizeof line, "%d\n", next) > 0);
		CHECK(write(log_fd, line, strlen(line)) == (ssize_t)strlen(line));
		/* a file that appears whole */
		fd = open("whole.new", O_CREAT | O_TRUNC | O_RDWR, 0600);
		CHECK(fd >= 0 && write(fd, &next, sizeof next) == sizeof next && usleep(100) == 0);
		CHECK(rename("whole.new", "whole") == 0 && close(fd) == 0);
		fd = open("brief", O_CREAT | O_TRUNC | O_RDWR, 0600);
		CHECK(fd >= 0 && usleep(100) == 0 && unlink("brief") == 0 && close(fd) == 0);
		rounds = next;
	}
	return NULL;
}

int main(void)
{
	pthread_t thread;
	char text[32] = {0}, expected[32];
	struct stat st, st2;
	int fd, number = 0;
	start();
	unlink("log"); unlink("log.1"); unlink("whole"); unlink("whole.new"); unlink("brief");
	log_fd = open("log", O_CREAT | O_EXCL | O_WRONLY | O_APPEND, 0600);
	CHECK(log_fd >= 0);
	CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
	while (__atomic_load_n(&rounds, __ATOMIC_SEQ_CST) < 10) usleep(1000);
	ready();
	await_check();
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(fstat(log_fd, &st) == 0 && stat("log", &st2) == 0 && st.st_ino == st2.st_ino);
	snprintf(expected, sizeof expected, "%d\n", rounds);
	fd = open("log", O_RDONLY);
	CHECK(fd >= 0 && read(fd, text, sizeof text - 1) == (ssize_t)strlen(expected) && strcmp(text, expected) == 0);
	fd = open("whole", O_RDONLY);
	CHECK(fd >= 0 && read(fd, &number, sizeof number) == sizeof number && number == rounds);
	CHECK(access("brief", F_OK) == -1 && access("whole.new", F_OK) == -1);
	pass();
}

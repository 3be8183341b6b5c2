/* Regular files: offsets, modes of access, offsets shared by dup and fork, and a log that goes on after the checkpoint:
   its length must always be what the program knows it to be. */
#include "family.h"
#include <pthread.h>

#define LINE 64

static int logged, logfd, stop, shared;

static void *keep_logging(void *unused)
{
	char line[LINE];
	(void)unused;
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
		memset(line, 'a' + logged % 26, LINE - 1);
		line[LINE - 1] = '\n';
		CHECK(write(logfd, line, LINE) == LINE);
		logged++;
		usleep(300);
	}
	return NULL;
}

static void check_log(void)
{
	struct stat st;
	char line[LINE];
	int fd = open("log", O_RDONLY);
	CHECK(fd >= 0 && fstat(fd, &st) == 0);
	if (st.st_size != (off_t)logged * LINE)
		fail("the log has %lld bytes, not %lld", (long long)st.st_size, (long long)logged * LINE);
	for (int i = 0; i < logged; i++) {
		CHECK(read(fd, line, LINE) == LINE);
		for (int k = 0; k < LINE - 1; k++) CHECK(line[k] == 'a' + i % 26);
	}
	CHECK(close(fd) == 0);
}

static void child_body(void)
{
	char buffer[10];
	await_check();
	CHECK(lseek(shared, 0, SEEK_CUR) == 1000);
	CHECK(read(shared, buffer, 10) == 10);
	CHECK(buffer[0] == (char)pattern(5, 1000));
	pass();
}

static int make(const char *name, int flags, size_t size, unsigned seed)
{
	char *content = malloc(size);
	int fd = open(name, O_CREAT | O_EXCL | flags, 0640);
	CHECK(fd >= 0 && content);
	fill(content, size, seed);
	CHECK(write(fd, content, size) == (ssize_t)size);
	free(content);
	return fd;
}

static void reset(void)
{
	unlink("log"); unlink("offset"); unlink("append"); unlink("readonly"); unlink("shared");
}

int main(void)
{
	char buffer[4096];
	int offset, copy, append, readonly, readonly_again, by_itself;
	pthread_t thread;
	pid_t pid;
	start();
	family();
	reset();
	offset = make("offset", O_RDWR, 100000, 1);
	CHECK(lseek(offset, 12345, SEEK_SET) == 12345);
	copy = dup(offset);
	by_itself = open("offset", O_RDWR);
	CHECK(lseek(by_itself, 777, SEEK_SET) == 777);
	append = make("append", O_WRONLY | O_APPEND, 5000, 2);
	CHECK(lseek(append, 17, SEEK_SET) == 17);
	close(make("readonly", O_WRONLY, 4096, 3));
	CHECK(chmod("readonly", 0400) == 0);
	readonly = open("readonly", O_RDONLY);
	readonly_again = open("readonly", O_RDONLY | O_NOATIME);
	shared = make("shared", O_RDWR, 8192, 5);
	CHECK(lseek(shared, 1000, SEEK_SET) == 1000);
	logfd = open("log", O_CREAT | O_WRONLY | O_APPEND, 0600);
	CHECK(copy >= 0 && by_itself >= 0 && readonly >= 0 && readonly_again >= 0 && logfd >= 0);
	pid = child(child_body);
	CHECK(pthread_create(&thread, NULL, keep_logging, NULL) == 0);
	ready();
	await_check();
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(thread, NULL) == 0);
	check_log();

	CHECK(lseek(offset, 0, SEEK_CUR) == 12345 && lseek(copy, 0, SEEK_CUR) == 12345);
	CHECK(read(offset, buffer, 55) == 55 && buffer[0] == (char)pattern(1, 12345));
	CHECK(lseek(copy, 0, SEEK_CUR) == 12400);
	CHECK(lseek(by_itself, 0, SEEK_CUR) == 777);
	CHECK(pwrite(by_itself, "over", 4, 0) == 4 && pread(copy, buffer, 4, 0) == 4 && memcmp(buffer, "over", 4) == 0);

	CHECK(lseek(append, 0, SEEK_CUR) == 17);
	CHECK((fcntl(append, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY));
	CHECK(write(append, "tail", 4) == 4 && lseek(append, 0, SEEK_CUR) == 5004);
	CHECK(read(append, buffer, 1) == -1 && errno == EBADF);

	CHECK(read(readonly, buffer, 4096) == 4096);
	check_filled(buffer, 4096, 3, "the read-only file");
	CHECK(write(readonly, "x", 1) == -1 && errno == EBADF);
	CHECK(lseek(readonly_again, 0, SEEK_CUR) == 0 && (fcntl(readonly_again, F_GETFL) & O_NOATIME));

	check_child(pid);
	CHECK(lseek(shared, 0, SEEK_CUR) == 1010);
	pass();
}

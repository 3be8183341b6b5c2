/* The pod's own directories, $TMPDIR and /dev/shm: what stands there comes back as it was, whatever was done to it after
   the checkpoint. Files, hard links, symbolic links, fifos, modes, directories, a file with holes, one that is open. */
#include "program.h"
#include <dirent.h>
#include <pthread.h>
#include <sys/time.h>

static int stop;
static char *places[2];

static char *in(const char *place, const char *name)
{
	static char paths[4][512];
	static int next;
	char *path = paths[next++ % 4];
	snprintf(path, 512, "%s/%s", place, name);
	return path;
}

static void put(const char *path, const char *text, mode_t mode)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	CHECK(fchmod(fd, mode) == 0 && close(fd) == 0);
}

static void is(const char *path, const char *text, mode_t mode)
{
	char buffer[100] = "";
	struct stat st;
	int fd;
	if (lstat(path, &st) != 0) fail("%s is not there", path);
	if ((st.st_mode & 07777) != mode) fail("%s has mode %o, not %o", path, st.st_mode & 07777, mode);
	CHECK(chmod(path, 0600) == 0);
	fd = open(path, O_RDONLY);
	CHECK(fd >= 0 && read(fd, buffer, 99) == (ssize_t)strlen(text) && strcmp(buffer, text) == 0);
	CHECK(close(fd) == 0 && chmod(path, mode) == 0);
}

/* Changed all the time, but by a thread that stands still at its start when the program verifies. */
static void *disturb(void *shared)
{
	int *memory = shared;
	usleep(1000);
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
		for (int i = 0; i < 2; i++) {
			int fd = open(in(places[i], "counter"), O_WRONLY);
			if (fd >= 0) {
				memory[i]++;
				CHECK(pwrite(fd, &memory[i], 4, 0) == 4);
				close(fd);
			}
		}
		usleep(300);
	}
	return NULL;
}

static void set_up(const char *place)
{
	int fd;
	put(in(place, "plain"), "plain", 0644);
	put(in(place, "closed"), "closed", 0);
	put(in(place, "locked"), "read only", 0400);
	CHECK(link(in(place, "plain"), in(place, "linked")) == 0);
	CHECK(symlink("plain", in(place, "symbolic")) == 0 && symlink("/nowhere/at all", in(place, "dangling")) == 0);
	CHECK(mkfifo(in(place, "fifo"), 0620) == 0 && chmod(in(place, "fifo"), 0620) == 0);
	CHECK(mkdir(in(place, "dir"), 0700) == 0 && mkdir(in(place, "dir/below"), 0700) == 0);
	put(in(place, "dir/below/deep"), "deep", 0640);
	CHECK(chmod(in(place, "dir/below"), 0500) == 0 && chmod(in(place, "dir"), 0555) == 0);
	CHECK(mkdir(in(place, "shut"), 0700) == 0);
	put(in(place, "shut/inside"), "inside", 0600);
	CHECK(chmod(in(place, "shut"), 0) == 0);
	CHECK(mkdir(in(place, "empty"), 0711) == 0 && chmod(in(place, "empty"), 01777) == 0);
	fd = open(in(place, "sparse"), O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && pwrite(fd, "end", 3, 70 << 20) == 3 && close(fd) == 0);
	fd = open(in(place, "counter"), O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && write(fd, "\0\0\0\0", 4) == 4 && close(fd) == 0);
}

static int count(const char *place)
{
	DIR *dir = opendir(place);
	int found = 0;
	CHECK(dir);
	while (readdir(dir)) found++;
	closedir(dir);
	return found;
}

static void verify(const char *place, int counter)
{
	struct stat st, st2;
	char buffer[64];
	int fd, value;
	is(in(place, "plain"), "plain", 0644);
	is(in(place, "closed"), "closed", 0);
	is(in(place, "locked"), "read only", 0400);
	CHECK(stat(in(place, "plain"), &st) == 0 && stat(in(place, "linked"), &st2) == 0);
	CHECK(st.st_ino == st2.st_ino && st.st_nlink == 2);
	CHECK(readlink(in(place, "symbolic"), buffer, 64) == 5 && memcmp(buffer, "plain", 5) == 0);
	CHECK(readlink(in(place, "dangling"), buffer, 64) == 15);
	CHECK(lstat(in(place, "fifo"), &st) == 0 && S_ISFIFO(st.st_mode) && (st.st_mode & 07777) == 0620);
	CHECK(stat(in(place, "dir"), &st) == 0 && (st.st_mode & 07777) == 0555);
	CHECK(stat(in(place, "dir/below"), &st) == 0 && (st.st_mode & 07777) == 0500);
	CHECK(chmod(in(place, "dir"), 0700) == 0 && chmod(in(place, "dir/below"), 0700) == 0);
	is(in(place, "dir/below/deep"), "deep", 0640);
	CHECK(stat(in(place, "shut"), &st) == 0 && (st.st_mode & 07777) == 0);
	CHECK(chmod(in(place, "shut"), 0700) == 0);
	is(in(place, "shut/inside"), "inside", 0600);
	CHECK(stat(in(place, "empty"), &st) == 0 && (st.st_mode & 07777) == 01777);
	CHECK(stat(in(place, "sparse"), &st) == 0 && st.st_size == (70 << 20) + 3 && st.st_blocks < 2000);
	fd = open(in(place, "sparse"), O_RDONLY);
	CHECK(fd >= 0 && pread(fd, buffer, 3, 70 << 20) == 3 && memcmp(buffer, "end", 3) == 0 && close(fd) == 0);
	fd = open(in(place, "counter"), O_RDONLY);
	CHECK(fd >= 0 && read(fd, &value, 4) == 4 && close(fd) == 0);
	if (value != counter) fail("%s/counter is %d, not %d", place, value, counter);
}

int main(void)
{
	struct stat st, st2;
	int counters[2] = {0, 0}, open_file, unnamed, entries[2];
	char shm[] = "/dev/shm/private-XXXXXX", tmp[200], buffer[16];
	pthread_t thread;
	start();
	umask(0);
	snprintf(tmp, sizeof tmp, "%s/private-XXXXXX", getenv("TMPDIR"));
	places[0] = mkdtemp(tmp);
	places[1] = mkdtemp(shm);
	CHECK(places[0] && places[1]);
	for (int i = 0; i < 2; i++) set_up(places[i]);
	open_file = open(in(places[0], "plain"), O_RDWR);
	CHECK(open_file >= 0 && lseek(open_file, 2, SEEK_SET) == 2);
	/* its first name is gone, its second is not */
	unnamed = open(in(places[1], "first"), O_CREAT | O_RDWR, 0600);
	CHECK(unnamed >= 0 && write(unnamed, "content", 7) == 7);
	CHECK(link(in(places[1], "first"), in(places[1], "second")) == 0 && unlink(in(places[1], "first")) == 0);
	for (int i = 0; i < 2; i++) entries[i] = count(places[i]);
	CHECK(pthread_create(&thread, NULL, disturb, counters) == 0);
	ready();
	await_check();
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(thread, NULL) == 0);
	for (int i = 0; i < 2; i++) {
		if (count(places[i]) != entries[i]) fail("%s has %d entries, not %d", places[i], count(places[i]), entries[i]);
		verify(places[i], counters[i]);
	}
	CHECK(fstat(open_file, &st) == 0 && stat(in(places[0], "plain"), &st2) == 0 && st.st_ino == st2.st_ino);
	CHECK(lseek(open_file, 0, SEEK_CUR) == 2 && read(open_file, buffer, 16) == 3 && memcmp(buffer, "ain", 3) == 0);
	CHECK(fstat(unnamed, &st) == 0 && stat(in(places[1], "second"), &st2) == 0 && st.st_ino == st2.st_ino);
	CHECK(st.st_size == 7 && pread(unnamed, buffer, 16, 0) == 7 && memcmp(buffer, "content", 7) == 0);
	pass();
}

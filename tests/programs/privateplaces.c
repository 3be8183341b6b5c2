/* What is in /dev/shm and $TMPDIR, open or not: hard links, links that lead nowhere, fifos, sockets that somebody listens
   at and ones left over, directories that are closed or sticky, modes and times of all. */
#include "program.h"
#include <sys/socket.h>
#include <sys/un.h>

static char place[2][200];

static const char *in(int i, const char *name)
{
	static char paths[8][300];
	static int next;
	char *path = paths[next++ % 8];
	snprintf(path, 300, "%s/%s", place[i], name);
	return path;
}

static int bound(const char *path, int listening)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	CHECK(sock >= 0 && bind(sock, (struct sockaddr *)&address, sizeof address) == 0);
	if (listening) CHECK(listen(sock, 5) == 0);
	return sock;
}

static int reach_socket(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM, 0), result;
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	result = connect(sock, (struct sockaddr *)&address, sizeof address) ? errno : 0;
	close(sock);
	return result;
}

static void dated(const char *path, int day)
{
	struct timespec times[2] = {{day * 86400L, 123}, {day * 86400L, 456789}};
	CHECK(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) == 0);
}

static void check(const char *path, mode_t mode, int day)
{
	struct stat st;
	if (lstat(path, &st) != 0) fail("%s is gone", path);
	if (st.st_mode != mode) fail("mode of %s is %o", path, st.st_mode);
	if (st.st_mtim.tv_sec != day * 86400L || st.st_mtim.tv_nsec != 456789) fail("time of %s", path);
}

int main(void)
{
	struct stat a, b;
	char target[64];
	int fd;
	start();
	umask(0);
	snprintf(place[0], sizeof place[0], "/dev/shm/privateplaces-XXXXXX");
	snprintf(place[1], sizeof place[1], "%s/privateplaces-XXXXXX", getenv("TMPDIR"));
	for (int i = 0; i < 2; i++) {
		CHECK(mkdtemp(place[i]));
		fd = open(in(i, "file"), O_CREAT | O_WRONLY, 0640);
		CHECK(fd >= 0 && write(fd, "content", 7) == 7 && close(fd) == 0);
		CHECK(link(in(i, "file"), in(i, "linked")) == 0 && symlink("nowhere", in(i, "link")) == 0);
		CHECK(mkfifo(in(i, "fifo"), 0620) == 0);
		close(bound(in(i, "left over"), 1));
		CHECK(chmod(in(i, "left over"), 0751) == 0);
		bound(in(i, "at work"), 1);
		CHECK(mkdir(in(i, "sticky"), 01777) == 0 && mkdir(in(i, "closed"), 0700) == 0);
		fd = open(in(i, "closed/inside"), O_CREAT | O_WRONLY, 0);
		CHECK(fd >= 0 && write(fd, "hidden", 6) == 6 && close(fd) == 0);
		dated(in(i, "file"), 1); dated(in(i, "link"), 2); dated(in(i, "fifo"), 3); dated(in(i, "left over"), 4);
		dated(in(i, "sticky"), 5); dated(in(i, "closed/inside"), 6); dated(in(i, "closed"), 7);
		CHECK(chmod(in(i, "closed"), 0) == 0);
	}
	ready();
	await_check();
	for (int i = 0; i < 2; i++) {
		check(in(i, "file"), S_IFREG | 0640, 1);
		check(in(i, "linked"), S_IFREG | 0640, 1);
		CHECK(stat(in(i, "file"), &a) == 0 && stat(in(i, "linked"), &b) == 0 && a.st_ino == b.st_ino && a.st_nlink == 2);
		check(in(i, "link"), S_IFLNK | 0777, 2);
		CHECK(readlink(in(i, "link"), target, sizeof target) == 7 && memcmp(target, "nowhere", 7) == 0);
		check(in(i, "fifo"), S_IFIFO | 0620, 3);
		check(in(i, "left over"), S_IFSOCK | 0751, 4);
		CHECK(reach_socket(in(i, "left over")) == ECONNREFUSED && reach_socket(in(i, "at work")) == 0);
		check(in(i, "sticky"), S_IFDIR | 01777, 5);
		check(in(i, "closed"), S_IFDIR, 7);
		CHECK(chmod(in(i, "closed"), 0700) == 0);
		check(in(i, "closed/inside"), S_IFREG, 6);
		CHECK(chmod(in(i, "closed/inside"), 0400) == 0 && (fd = open(in(i, "closed/inside"), O_RDONLY)) >= 0);
		CHECK(read(fd, target, 20) == 6 && memcmp(target, "hidden", 6) == 0);
	}
	pass();
}

/* Files without a name: contents with holes, opened twice, of a closed mode, made by O_TMPFILE, in a directory that is
   gone too; and a file whose first name is gone while another one is left. */
#include "program.h"

#define BIG (8 << 20)

static off_t check_and_count(int fd)
{
	struct stat st;
	CHECK(fstat(fd, &st) == 0);
	return st.st_blocks * 512;
}

int main(void)
{
	char buffer[8192], other[64];
	int holes, again, closed, temporary, named, lost, renamed;
	struct stat st, st2;
	start();
	unlink("holes"); unlink("closed"); unlink("second"); unlink("first"); unlink("out"); unlink("in");
	holes = open("holes", O_CREAT | O_RDWR | O_EXCL, 0644);
	again = open("holes", O_RDONLY);
	CHECK(holes >= 0 && again >= 0 && unlink("holes") == 0);
	fill(buffer, sizeof buffer, 1);
	CHECK(pwrite(holes, buffer, 8192, 0) == 8192);
	CHECK(pwrite(holes, buffer, 8192, BIG / 2) == 8192);
	CHECK(ftruncate(holes, BIG + 3) == 0);
	CHECK(lseek(holes, 100, SEEK_SET) == 100 && lseek(again, 5, SEEK_SET) == 5);

	closed = open("closed", O_CREAT | O_RDWR | O_EXCL, 0);
	CHECK(closed >= 0 && unlink("closed") == 0 && write(closed, "secret", 6) == 6);

	temporary = open(".", O_TMPFILE | O_RDWR, 0600);
	CHECK(temporary >= 0 && write(temporary, buffer, 5000) == 5000);

	/* the usual way to make a file appear whole: link the second name, drop the first */
	named = open("first", O_CREAT | O_RDWR | O_EXCL, 0644);
	CHECK(named >= 0 && write(named, "named", 5) == 5);
	CHECK(link("first", "second") == 0 && unlink("first") == 0);

	renamed = open("out", O_CREAT | O_RDWR | O_EXCL, 0644);
	CHECK(renamed >= 0 && write(renamed, "renamed", 7) == 7 && rename("out", "in") == 0);

	CHECK(mkdir("gone", 0700) == 0);
	lost = open("gone/lost", O_CREAT | O_RDWR | O_EXCL, 0644);
	CHECK(lost >= 0 && write(lost, "lost", 4) == 4 && unlink("gone/lost") == 0 && rmdir("gone") == 0);
	/* a new file may have the old name */
	close(open("holes", O_CREAT | O_WRONLY, 0600));
	ready();
	await_check();
	CHECK(fstat(holes, &st) == 0 && st.st_size == BIG + 3 && st.st_nlink == 0 && (st.st_mode & 07777) == 0644);
	CHECK(lseek(holes, 0, SEEK_CUR) == 100 && lseek(again, 0, SEEK_CUR) == 5);
	CHECK(pread(again, buffer, 8192, 0) == 8192);
	check_filled(buffer, 8192, 1, "the start");
	CHECK(pread(again, buffer, 8192, BIG / 2) == 8192);
	check_filled(buffer, 8192, 1, "the middle");
	memset(buffer, 1, 3);
	CHECK(pread(again, buffer, 8, BIG) == 3 && buffer[0] == 0 && buffer[2] == 0);
	CHECK(check_and_count(holes) < BIG / 4);
	CHECK(pwrite(holes, "new", 3, 0) == 3 && pread(again, buffer, 3, 0) == 3 && memcmp(buffer, "new", 3) == 0);
	CHECK(write(again, "x", 1) == -1 && errno == EBADF);

	CHECK(fstat(closed, &st) == 0 && (st.st_mode & 07777) == 0);
	CHECK(pread(closed, buffer, 10, 0) == 6 && memcmp(buffer, "secret", 6) == 0 && write(closed, "x", 1) == 1);

	CHECK(lseek(temporary, 0, SEEK_CUR) == 5000);
	CHECK(pread(temporary, buffer, 8192, 0) == 5000);
	check_filled(buffer, 5000, 1, "the O_TMPFILE");
	snprintf(other, sizeof other, "/proc/self/fd/%d", temporary);

	CHECK(fstat(named, &st) == 0 && stat("second", &st2) == 0 && st.st_ino == st2.st_ino && st.st_nlink == 1);
	CHECK(write(named, "!", 1) == 1 && stat("second", &st2) == 0 && st2.st_size == 6);

	CHECK(fstat(renamed, &st) == 0 && stat("in", &st2) == 0 && st.st_ino == st2.st_ino);
	CHECK(pread(renamed, buffer, 10, 0) == 7 && memcmp(buffer, "renamed", 7) == 0);

	CHECK(pread(lost, buffer, 10, 0) == 4 && memcmp(buffer, "lost", 4) == 0);
	CHECK(access("gone", F_OK) == -1);
	/* the restart leaves nothing behind where they were */
	CHECK(stat("holes", &st) == 0 && st.st_size == 0 && access("closed", F_OK) == -1);
	pass();
}

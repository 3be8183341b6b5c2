/* Names that are hard to tell: with newlines, bytes that are no UTF-8, spaces, "(deleted)" at the end of one that is not
   deleted, names and paths of the greatest length, through a symbolic link, a directory's own. */
#include "program.h"

static const char *names[] = {
	"new\nline", "\xff\xfe not utf-8 \xc3", " spaces  and\ttab ", "not (deleted)", " (deleted)", "a=b", "-rf", "~", "%s%n",
	"pipe:[1]", "socket:[2]", "anon_inode:[eventpoll]", "memfd:x", "\\012", "\x1b[31m", "\"'", "//memfd:x (deleted)",
};
#define COUNT ((int)(sizeof names / sizeof *names))

int main(void)
{
	char longest[256], path[5000], name[300], buffer[16];
	int fds[COUNT], long_name, deep, linked, deleted, dir, at = 0;
	struct stat st, st2;
	start();
	for (int i = 0; i < COUNT; i++) {
		const char *base = strrchr(names[i], '/') ? strrchr(names[i], '/') + 1 : names[i];
		fds[i] = open(base, O_CREAT | O_RDWR, 0600);
		CHECK(fds[i] >= 0 && write(fds[i], &i, sizeof i) == sizeof i);
	}
	memset(longest, 'n', 255);
	longest[255] = 0;
	long_name = open(longest, O_CREAT | O_WRONLY, 0600);
	CHECK(long_name >= 0 && write(long_name, "long", 4) == 4);

	/* a path of 4090 bytes */
	CHECK(getcwd(path, sizeof path) != NULL);
	strcpy(name, path);
	at = strlen(path);
	while (at < 4090) {
		int more = 4090 - at - 1 > 200 ? 150 : 4090 - at - 1;
		path[at] = '/';
		memset(path + at + 1, 'd', more);
		path[at += more + 1] = 0;
		if (at < 4090) CHECK(mkdir(path, 0700) == 0 || errno == EEXIST);
	}
	deep = open(path, O_CREAT | O_RDWR, 0600);
	CHECK(deep >= 0 && strlen(path) == 4090 && write(deep, "deep", 4) == 4);

	unlink("link");
	CHECK(symlink(longest, "link") == 0);
	linked = open("link", O_RDONLY);
	deleted = open("gone (deleted)", O_CREAT | O_RDWR, 0600);
	CHECK(linked >= 0 && deleted >= 0 && write(deleted, "gone", 4) == 4 && unlink("gone (deleted)") == 0);
	CHECK(mkdir("dir (deleted)", 0700) == 0 || errno == EEXIST);
	dir = open("dir (deleted)", O_RDONLY | O_DIRECTORY);
	CHECK(dir >= 0);
	ready();
	await_check();
	for (int i = 0; i < COUNT; i++) {
		const char *base = strrchr(names[i], '/') ? strrchr(names[i], '/') + 1 : names[i];
		int number = -1;
		CHECK(pread(fds[i], &number, sizeof number, 0) == sizeof number && number == i);
		CHECK(fstat(fds[i], &st) == 0 && stat(base, &st2) == 0 && st.st_ino == st2.st_ino && st.st_nlink == 1);
	}
	CHECK(fstat(long_name, &st) == 0 && stat(longest, &st2) == 0 && st.st_ino == st2.st_ino);
	CHECK(write(long_name, "er", 2) == 2 && fstat(linked, &st) == 0 && st.st_size == 6);
	CHECK(fstat(deep, &st) == 0 && stat(path, &st2) == 0 && st.st_ino == st2.st_ino && st.st_nlink == 1);
	CHECK(lseek(deep, 0, SEEK_CUR) == 4);
	CHECK(pread(deleted, buffer, 16, 0) == 4 && fstat(deleted, &st) == 0 && st.st_nlink == 0);
	CHECK(faccessat(dir, ".", F_OK, 0) == 0 && fstat(dir, &st) == 0 && st.st_nlink > 0);
	pass();
}

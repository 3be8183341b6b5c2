/* Working directories: one that has been removed, in which two processes are, one whose name another directory has by now,
   one that may not be entered any more, and one whose name ends as the kernel marks those that are removed. */
#include "family.h"
#include <limits.h>

static struct stat before;

static void is_removed(void)
{
	char path[PATH_MAX];
	struct stat st;
	CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT);
	CHECK(open("file", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT);
	CHECK(stat(".", &st) == 0 && S_ISDIR(st.st_mode));
}

static void in_the_same(void)
{
	struct stat st, parents;
	char link[64];
	reach(1);
	await_check();
	is_removed();
	sprintf(link, "/proc/%d/cwd", getppid());
	CHECK(stat(".", &st) == 0 && stat(link, &parents) == 0 && parents.st_ino == st.st_ino);
	pass();
}

static void in_a_namesake(void)
{
	char path[PATH_MAX];
	CHECK(mkdir("../twice", 0700) == 0 && chdir("../twice") == 0);
	CHECK(rmdir("../twice") == 0 && mkdir("../twice", 0700) == 0);
	reach(2);
	await_check();
	CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT);
	pass();
}

static void in_a_closed_one(void)
{
	char path[PATH_MAX];
	struct stat st;
	CHECK(mkdir("closed", 0700) == 0 && chdir("closed") == 0 && stat(".", &before) == 0 && chmod(".", 0) == 0);
	reach(3);
	await_check();
	if (stat(".", &st) == 0) CHECK(st.st_ino == before.st_ino && (st.st_mode & 07777) == 0);
	else CHECK(errno == EACCES && getuid() != 0);
	CHECK(getcwd(path, sizeof path) && strcmp(strrchr(path, '/'), "/closed") == 0);
	pass();
}

static void in_an_odd_one(void)
{
	char path[PATH_MAX];
	CHECK(mkdir("odd (deleted)", 0700) == 0 && chdir("odd (deleted)") == 0);
	reach(4);
	await_check();
	CHECK(getcwd(path, sizeof path) && strcmp(strrchr(path, '/'), "/odd (deleted)") == 0);
	pass();
}

int main(void)
{
	char *place = getcwd(NULL, 0);
	pid_t children[4];
	start();
	family();
	CHECK(mkdir("first", 0700) == 0);
	children[2] = child(in_a_closed_one);
	await_step(3);
	children[3] = child(in_an_odd_one);
	await_step(4);
	CHECK(chdir("first") == 0);
	reach(0);
	children[1] = child(in_a_namesake);
	await_step(2);
	reach(0);
	CHECK(rmdir(place) == -1);
	children[0] = child(in_the_same);
	await_step(1);
	CHECK(rmdir("../first") == 0);
	ready();
	await_check();
	is_removed();
	for (int i = 0; i < 4; i++) check_child(children[i]);
	pass();
}

/* Locks by flock(2), which belong to an open file: exclusive and shared ones, shared by dup and fork, of a directory, of
   a file whose name is gone, of one that is only in a message, taken by a process that has ended. */
#include "family.h"
#include <sys/file.h>
#include <sys/socket.h>

static int exclusive, shared[2], inherited, by_the_dead;

/* 1: can be locked so by another open file; 0: somebody has it */
static int free_for(const char *path, int fd, int operation)
{
	char name[64];
	int other, result;
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	other = open(path ? path : name, O_RDONLY);
	CHECK(other >= 0);
	result = flock(other, operation | LOCK_NB) == 0;
	CHECK(result || errno == EWOULDBLOCK);
	close(other);
	return result;
}

static void child_body(void)
{
	await_check();
	CHECK(flock(inherited, LOCK_EX | LOCK_NB) == 0);   /* it is this one's, too */
	CHECK(!free_for("inherited", -1, LOCK_SH));
	pass();
}

static void dead_body(void)
{
	CHECK(flock(by_the_dead, LOCK_EX) == 0);
	_exit(0);
}

static int make(const char *name)
{
	int fd;
	unlink(name);
	fd = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	return fd;
}

int main(void)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec byte = {"x", 1};
	struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	int dir, nameless, sent, pair[2], copy;
	pid_t pid, dead;
	start();
	family();
	exclusive = make("exclusive");
	CHECK(flock(exclusive, LOCK_EX) == 0 && (copy = dup(exclusive)) >= 0);
	shared[0] = make("shared");
	shared[1] = open("shared", O_RDONLY);
	CHECK(flock(shared[0], LOCK_SH) == 0 && flock(shared[1], LOCK_SH) == 0);
	CHECK(mkdir("locked", 0700) == 0 || errno == EEXIST);
	dir = open("locked", O_RDONLY | O_DIRECTORY);
	CHECK(flock(dir, LOCK_EX) == 0);
	nameless = make("nameless");
	CHECK(flock(nameless, LOCK_EX) == 0 && unlink("nameless") == 0);
	inherited = make("inherited");
	CHECK(flock(inherited, LOCK_EX) == 0);
	pid = child(child_body);
	by_the_dead = make("dead");
	dead = child(dead_body);
	CHECK(waitpid(dead, NULL, 0) == dead && !free_for("dead", -1, LOCK_SH));
	sent = make("sent");
	CHECK(flock(sent, LOCK_EX) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){CMSG_LEN(sizeof sent), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &sent, sizeof sent);
	CHECK(sendmsg(pair[0], &message, 0) == 1 && close(sent) == 0);
	ready();
	await_check();
	CHECK(!free_for("exclusive", -1, LOCK_SH) && !free_for("shared", -1, LOCK_EX) && free_for("shared", -1, LOCK_SH));
	CHECK(!free_for("locked", -1, LOCK_SH) && !free_for(NULL, nameless, LOCK_SH));
	CHECK(!free_for("inherited", -1, LOCK_SH) && !free_for("dead", -1, LOCK_SH) && !free_for("sent", -1, LOCK_SH));
	check_child(pid);
	CHECK(!free_for("inherited", -1, LOCK_SH));
	/* they go where they belong: with the last descriptor, or when one of them lets go */
	close(exclusive);
	CHECK(!free_for("exclusive", -1, LOCK_SH) && flock(copy, LOCK_UN) == 0 && free_for("exclusive", -1, LOCK_EX));
	close(shared[1]);
	CHECK(!free_for("shared", -1, LOCK_EX) && flock(shared[0], LOCK_UN) == 0 && free_for("shared", -1, LOCK_EX));
	close(dir);
	close(by_the_dead);
	close(pair[1]);
	CHECK(free_for("locked", -1, LOCK_EX) && free_for("dead", -1, LOCK_EX) && free_for("sent", -1, LOCK_EX));
	pass();
}

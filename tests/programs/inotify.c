/* Watches of inotify: of directories and files, of the working directory, of one above it, in /dev/shm and $TMPDIR, of a
   file that has no name any more; numbers with gaps between them; all sorts of masks, once only, without what is
   unlinked. A restart leaves no event behind and misses none that comes after it. */
#include "program.h"
#include <sys/inotify.h>
#include <sys/ioctl.h>

static int fd;

static int watch(const char *path, uint32_t mask)
{
	int number = inotify_add_watch(fd, path, mask);
	if (number < 0) fail("cannot watch %s", path);
	return number;
}

/* The next event must be this one. */
static void expect(int number, uint32_t mask, const char *name)
{
	static char room[65536] __attribute__((aligned(8)));
	static ssize_t size, at;
	struct inotify_event *event;
	if (at == size) {
		at = 0;
		size = read(fd, room, sizeof room);
		if (size <= 0) fail("no event %#x of watch %d", mask, number);
	}
	event = (struct inotify_event *)(room + at);
	at += sizeof *event + event->len;
	if (event->wd != number || event->mask != mask || strcmp(event->len ? event->name : "", name))
		fail("event %#x of watch %d (%s), not %#x of %d (%s)", event->mask, event->wd, event->len ? event->name : "", mask,
		     number, name);
}

static void touch(const char *path)
{
	int file = open(path, O_CREAT | O_WRONLY | O_APPEND, 0600);
	CHECK(file >= 0 && write(file, "x", 1) == 1 && close(file) == 0);
}

int main(void)
{
	char shm[64], tmp[300], path[400];
	int dir, deep, file, cwd, above, in_shm, in_tmp, nameless, once, excl, self, holder, others, unread;
	start();
	fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	CHECK(fd >= 0);
	mkdir("dir", 0700); mkdir("dir/deep", 0700); mkdir("many", 0700); mkdir("once", 0700); mkdir("excl", 0700);
	snprintf(shm, sizeof shm, "/dev/shm/inotify-XXXXXX");
	snprintf(tmp, sizeof tmp, "%s/inotify-XXXXXX", getenv("TMPDIR"));
	CHECK(mkdtemp(shm) && mkdtemp(tmp));
	touch("dir/file"); touch("nameless");
	/* gaps: numbers are never given out twice */
	for (int i = 0; i < 3000; i++) CHECK(inotify_rm_watch(fd, watch("many", IN_CREATE)) == 0);
	dir = watch("dir", IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO);
	for (int i = 0; i < 10; i++) CHECK(inotify_rm_watch(fd, watch("many", IN_CREATE)) == 0);
	deep = watch("dir/deep", IN_CREATE);
	file = watch("dir/file", IN_MODIFY | IN_ATTRIB);
	cwd = watch(".", IN_DELETE | IN_ONLYDIR);
	above = watch("..", IN_CREATE);
	in_shm = watch(shm, IN_CREATE);
	in_tmp = watch(tmp, IN_CREATE);
	once = watch("once", IN_CREATE | IN_ONESHOT);
	excl = watch("excl", IN_MODIFY | IN_EXCL_UNLINK);
	self = watch("/proc/self/fd", IN_CREATE);   /* watched, though nothing is ever told of it */
	holder = open("nameless", O_RDWR);
	nameless = watch("nameless", IN_MODIFY);
	CHECK(holder >= 0 && unlink("nameless") == 0);
	others = inotify_init1(0);
	CHECK(others >= 0 && inotify_add_watch(others, "dir", IN_CREATE) == 1);
	while (read(fd, path, sizeof path) > 0) {}
	CHECK(errno == EAGAIN);
	ready();
	await_check();
	CHECK(ioctl(fd, FIONREAD, &unread) == 0 && unread == 0);
	touch("dir/new");
	expect(dir, IN_CREATE, "new");
	CHECK(rename("dir/new", "dir/other") == 0 && unlink("dir/other") == 0);
	expect(dir, IN_MOVED_FROM, "new"); expect(dir, IN_MOVED_TO, "other"); expect(dir, IN_DELETE, "other");
	touch("dir/deep/x");
	expect(deep, IN_CREATE, "x");
	CHECK(chmod("dir/file", 0640) == 0);
	expect(file, IN_ATTRIB, "");
	touch("dir/file");
	expect(file, IN_MODIFY, "");
	touch("in the way"); unlink("in the way");
	expect(cwd, IN_DELETE, "in the way");
	touch("../beside");
	expect(above, IN_CREATE, "beside");
	CHECK(unlink("../beside") == 0);
	snprintf(path, sizeof path, "%s/x", shm); touch(path);
	expect(in_shm, IN_CREATE, "x");
	snprintf(path, sizeof path, "%s/x", tmp); touch(path);
	expect(in_tmp, IN_CREATE, "x");
	CHECK(write(holder, "yy", 2) == 2);
	expect(nameless, IN_MODIFY, "");
	touch("once/a"); touch("once/b");
	expect(once, IN_CREATE, "a"); expect(once, IN_IGNORED, "");
	holder = open("excl/file", O_CREAT | O_WRONLY, 0600);
	CHECK(write(holder, "x", 1) == 1);
	expect(excl, IN_MODIFY, "file");
	CHECK(unlink("excl/file") == 0 && write(holder, "x", 1) == 1);
	CHECK(watch("dir", IN_DELETE) == dir && watch("many", IN_CREATE) > nameless && self > 0);
	CHECK(read(fd, path, sizeof path) == -1 && errno == EAGAIN);
	CHECK(read(others, path, sizeof path) > 0 && ((struct inotify_event *)path)->wd == 1);
	/* it may be checked again, from the same image */
	CHECK(unlink("dir/deep/x") == 0 && unlink("once/a") == 0 && unlink("once/b") == 0);
	pass();
}

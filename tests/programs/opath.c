/* Descriptors that are only a place (O_PATH), of a file, a directory, a link, a socket and a fifo; directories that are
   being read, here and in /dev/shm; devices without state. */
#include "program.h"
#include <dirent.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define ENTRIES 300

struct entry { uint64_t inode; int64_t next; unsigned short size; unsigned char type; char name[]; };

/* Read about so many entries; how many more there are of each name is kept in ``seen``. */
static int read_some(int fd, int calls, unsigned char *seen)
{
	char buffer[1024];
	int total = 0;
	while (calls--) {
		long size = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
		CHECK(size >= 0);
		if (size == 0) break;
		for (long at = 0; at < size;) {
			struct entry *entry = (struct entry *)(buffer + at);
			if (entry->name[0] == 'e') seen[atoi(entry->name + 1)]++;
			at += entry->size;
			total++;
		}
	}
	return total;
}

static int populated(const char *place)
{
	char name[300];
	for (int i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof name, "%s/e%d", place, i);
		int fd = open(name, O_CREAT | O_WRONLY, 0600);
		CHECK(fd >= 0 && close(fd) == 0);
	}
	int fd = open(place, O_RDONLY | O_DIRECTORY);
	CHECK(fd >= 0);
	return fd;
}

int main(void)
{
	static unsigned char seen[3][ENTRIES];
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "sock"};
	int file, dir, lnk, sock, fifo, listing[3], null, zero, urandom, listener, shm_path, opened;
	char buffer[64], shm[] = "/dev/shm/opath-XXXXXX", tmp[200], name[300];
	struct stat st, st2;
	start();
	unlink("file"); unlink("link"); unlink("sock"); unlink("fifo");
	close(open("file", O_CREAT | O_WRONLY, 0));
	mkdir("dir", 0700);
	CHECK(symlink("file", "link") == 0 && mkfifo("fifo", 0600) == 0);
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 5) == 0);
	file = open("file", O_PATH);
	dir = open("dir", O_PATH | O_DIRECTORY | O_CLOEXEC);
	lnk = open("link", O_PATH | O_NOFOLLOW);
	sock = open("sock", O_PATH);
	fifo = open("fifo", O_PATH);
	CHECK(file >= 0 && dir >= 0 && lnk >= 0 && sock >= 0 && fifo >= 0);
	null = open("/dev/null", O_WRONLY | O_APPEND);
	zero = open("/dev/zero", O_RDWR);
	urandom = open("/dev/urandom", O_RDONLY | O_NONBLOCK);
	CHECK(null >= 0 && zero >= 0 && urandom >= 0);
	snprintf(tmp, sizeof tmp, "%s/opath-XXXXXX", getenv("TMPDIR"));
	CHECK(mkdir("many", 0700) == 0 || errno == EEXIST);
	CHECK(mkdtemp(shm) && mkdtemp(tmp));
	listing[0] = populated("many");
	listing[1] = populated(shm);
	listing[2] = populated(tmp);
	snprintf(name, sizeof name, "%s/e7", shm);
	shm_path = open(name, O_PATH);
	CHECK(shm_path >= 0);
	for (int i = 0; i < 3; i++) CHECK(read_some(listing[i], 3, seen[i]) > 20);
	ready();
	await_check();
	for (int i = 0; i < 3; i++) {
		read_some(listing[i], 1000, seen[i]);
		for (int k = 0; k < ENTRIES; k++)
			if (seen[i][k] != 1) fail("entry %d of directory %d was seen %d times", k, i, seen[i][k]);
		CHECK(lseek(listing[i], 0, SEEK_SET) == 0);
		CHECK(read_some(listing[i], 1000, seen[i]) == ENTRIES + 2);
	}
	CHECK((fcntl(file, F_GETFL) & O_PATH) && read(file, buffer, 1) == -1 && errno == EBADF);
	CHECK(fstat(file, &st) == 0 && S_ISREG(st.st_mode) && stat("file", &st2) == 0 && st.st_ino == st2.st_ino);
	CHECK(fstat(dir, &st) == 0 && S_ISDIR(st.st_mode) && fcntl(dir, F_GETFD) == FD_CLOEXEC);
	opened = openat(dir, "new", O_CREAT | O_WRONLY, 0600);
	CHECK(opened >= 0 && access("dir/new", F_OK) == 0 && unlinkat(dir, "new", 0) == 0 && fchdir(dir) == 0 && chdir("..") == 0);
	CHECK(fstat(lnk, &st) == 0 && S_ISLNK(st.st_mode) && readlinkat(lnk, "", buffer, 64) == 4);
	CHECK(fstat(sock, &st) == 0 && S_ISSOCK(st.st_mode) && fstat(fifo, &st) == 0 && S_ISFIFO(st.st_mode));
	snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d", sock);
	opened = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(connect(opened, (struct sockaddr *)&address, sizeof address) == 0);
	CHECK(fstat(shm_path, &st) == 0 && stat(name, &st2) == 0 && st.st_ino == st2.st_ino);
	CHECK(write(null, buffer, 64) == 64 && (fcntl(null, F_GETFL) & O_APPEND));
	memset(buffer, 1, 64);
	CHECK(read(zero, buffer, 64) == 64 && buffer[0] == 0 && buffer[63] == 0);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, zero, 0) != MAP_FAILED);
	CHECK(read(urandom, buffer, 64) == 64 && (fcntl(urandom, F_GETFL) & O_NONBLOCK));
	pass();
}

/* Files of the kernel's own that are open: in /proc of this process, of another one, of the machine; in /sys; directories
   there. After a restart they show what is so by then, from the same place on. */
#include "family.h"
#include <dirent.h>

static int readable(int fd)
{
	char buffer[4096];
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	return read(fd, buffer, sizeof buffer) > 0;
}

static void *mapped;

static void child_body(void)
{
	await_check();
	pass();
}

int main(void)
{
	char name[64], buffer[4096], line[200], expected[200];
	int self, maps, memory, own_fds, other, other_dir, machine, sys, listing, comm, word = 4711;
	pid_t pid;
	start();
	family();
	mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mapped != MAP_FAILED);
	memcpy(mapped, &word, sizeof word);
	pid = child(child_body);
	self = open("/proc/self/status", O_RDONLY);
	CHECK(self >= 0 && read(self, buffer, 10) == 10);
	maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	memory = open("/proc/self/mem", O_RDWR);
	own_fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
	comm = open("/proc/self/task", O_RDONLY | O_DIRECTORY);
	snprintf(name, sizeof name, "/proc/%d/stat", (int)pid);
	other = open(name, O_RDONLY);
	snprintf(name, sizeof name, "/proc/%d", (int)pid);
	other_dir = open(name, O_RDONLY | O_DIRECTORY);
	machine = open("/proc/meminfo", O_RDONLY);
	sys = open("/sys/devices/system/cpu/online", O_RDONLY);
	listing = open("/proc", O_RDONLY | O_DIRECTORY);
	CHECK(maps >= 0 && memory >= 0 && own_fds >= 0 && other >= 0 && other_dir >= 0 && machine >= 0 && listing >= 0);
	CHECK(comm >= 0 && lseek(memory, (off_t)mapped, SEEK_SET) == (off_t)mapped);
	CHECK(read(maps, buffer, 100) == 100 && read(other, buffer, 1000) > 10);
	ready();
	await_check();
	CHECK(lseek(self, 0, SEEK_CUR) == 10 && readable(self));
	CHECK(pread(self, buffer, sizeof buffer - 1, 0) > 0);
	buffer[sizeof buffer - 1] = 0;
	snprintf(expected, sizeof expected, "\nPid:\t%d\n", (int)getpid());
	CHECK(strstr(buffer, expected) != NULL);
	CHECK(lseek(maps, 0, SEEK_CUR) == 100 && readable(maps));
	CHECK(lseek(memory, 0, SEEK_CUR) == (off_t)mapped && read(memory, &word, sizeof word) == sizeof word && word == 4711);
	word = 42;
	CHECK(pwrite(memory, &word, sizeof word, (off_t)mapped) == sizeof word && *(int *)mapped == 42);
	CHECK(faccessat(own_fds, "0", F_OK, AT_SYMLINK_NOFOLLOW) == 0);
	CHECK(lseek(other, 0, SEEK_SET) == 0 && read(other, line, 20) == 20 && atoi(line) == (int)pid);
	CHECK(faccessat(other_dir, "status", R_OK, 0) == 0 && readable(machine));
	if (sys >= 0) CHECK(readable(sys));
	CHECK(faccessat(listing, "meminfo", R_OK, 0) == 0);
	check_child(pid);
	pass();
}

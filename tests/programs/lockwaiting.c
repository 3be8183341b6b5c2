/* Processes that wait for a lock: in flock, F_SETLKW and F_OFD_SETLKW. They go on waiting after a checkpoint and after a
   restart, and get it when it is let go. */
#include "family.h"
#include <sys/file.h>

static int by_flock, by_range, by_open_file;

static int wait_for(int fd, int command)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10};
	return fcntl(fd, command, &lock);
}

static void *told;

static void flock_body(void)
{
	int fd = open("flock", O_RDWR);
	reach(1);
	CHECK(flock(fd, LOCK_EX) == 0);
	CHECK(__atomic_load_n((int *)told, __ATOMIC_SEQ_CST) == 1);
	await_check();
	pass();
}

static void range_body(void)
{
	reach(2);
	CHECK(wait_for(by_range, F_SETLKW) == 0);
	CHECK(__atomic_load_n((int *)told, __ATOMIC_SEQ_CST) == 1);
	await_check();
	pass();
}

static void open_file_body(void)
{
	int fd = open("open_file", O_RDWR);
	reach(3);
	CHECK(wait_for(fd, F_OFD_SETLKW) == 0);
	CHECK(__atomic_load_n((int *)told, __ATOMIC_SEQ_CST) == 1);
	await_check();
	pass();
}

/* Until a process sleeps in the kernel. */
static void await_sleep(pid_t pid)
{
	char name[64], text[512], *state;
	for (;;) {
		snprintf(name, sizeof name, "/proc/%d/stat", (int)pid);
		int fd = open(name, O_RDONLY);
		ssize_t size = read(fd, text, sizeof text - 1);
		CHECK(size > 0 && close(fd) == 0);
		text[size] = 0;
		state = strrchr(text, ')');
		if (state && state[2] == 'S') return;
		usleep(500);
	}
}

int main(void)
{
	void (*bodies[])(void) = {flock_body, range_body, open_file_body};
	pid_t pids[3];
	start();
	family();
	told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(told != MAP_FAILED);
	by_flock = open("flock", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	by_range = open("range", O_CREAT | O_RDWR, 0600);
	by_open_file = open("open_file", O_CREAT | O_RDWR, 0600);
	CHECK(flock(by_flock, LOCK_EX) == 0 && wait_for(by_range, F_SETLK) == 0 && wait_for(by_open_file, F_OFD_SETLK) == 0);
	for (int i = 0; i < 3; i++) {
		pids[i] = child(bodies[i]);
		await_step(i + 1);
		await_sleep(pids[i]);
	}
	ready();
	await_check();
	for (int i = 0; i < 3; i++) CHECK(waitpid(pids[i], NULL, WNOHANG) == 0);
	__atomic_store_n((int *)told, 1, __ATOMIC_SEQ_CST);
	struct flock none = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
	CHECK(flock(by_flock, LOCK_UN) == 0 && fcntl(by_range, F_SETLK, &none) == 0 && fcntl(by_open_file, F_OFD_SETLK, &none) == 0);
	for (int i = 0; i < 3; i++) check_child(pids[i]);
	pass();
}

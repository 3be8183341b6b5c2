/* A program whose file is gone, as after a new build: /proc/self/exe still leads to what it was, can be read and run,
   and so it is for its child; its own code and constants are there, a page of them changed. */
#include "family.h"
#include "smaps.h"
#include <sys/sendfile.h>

static const char text[20000] __attribute__((aligned(4096))) = "a constant";
static const char *volatile constant = text;
static long size_of_program;

static void copy(const char *from, const char *to)
{
	struct stat st;
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0700);
	CHECK(in >= 0 && out >= 0 && fstat(in, &st) == 0);
	for (off_t done = 0; done < st.st_size;) CHECK(sendfile(out, in, &done, st.st_size) > 0);
	CHECK(close(in) == 0 && close(out) == 0);
}

static void check_program(const char *who)
{
	char link[512] = "", head[4];
	struct stat st;
	int fd = open("/proc/self/exe", O_RDONLY), status;
	pid_t pid;
	CHECK(readlink("/proc/self/exe", link, sizeof link - 1) > 0);
	if (!strstr(link, " (deleted)") || strstr(link, "python")) fail("%s is %s", who, link);
	CHECK(fd >= 0 && read(fd, head, 4) == 4 && memcmp(head, "\177ELF", 4) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == size_of_program && st.st_nlink == 0);
	if ((st.st_mode & 07777) != 0700) fail("mode %o", st.st_mode);
	CHECK(close(fd) == 0);
	pid = fork();
	if (pid == 0) {
		execl("/proc/self/exe", "again", "only exit", NULL);
		_exit(9);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 42);
	CHECK(strcmp(constant, "A constant") == 0 && constant[19999] == 0);
}

static void brother(void)
{
	reach(1);
	await_check();
	check_program("the child");
	pass();
}

int main(int argc, char **argv)
{
	struct stat st;
	pid_t pid;
	if (argc == 2 && strcmp(argv[1], "only exit") == 0) return 42;
	if (argc == 1) {
		copy("/proc/self/exe", "program");
		execl("./program", argv[0], "and", "go on", NULL);
		fail("exec");
	}
	start();
	family();
	CHECK(stat("program", &st) == 0 && unlink("program") == 0);
	size_of_program = st.st_size;
	CHECK(mprotect((void *)((uintptr_t)constant & ~4095UL), 4096, PROT_READ | PROT_WRITE) == 0);
	*(volatile char *)constant = 'A';
	copy("/bin/true", "program");   /* another file of that name */
	pid = child(brother);
	await_step(1);
	check_program("the program");
	ready();
	await_check();
	check_child(pid);
	check_program("the program");
	CHECK(access("program", X_OK) == 0);
	pass();
}

/* Files that are changed in place after the checkpoint: one that is rewritten again and again, one that is cut to nothing
   first, one that gets shorter, one that is replaced by a new one of its name, and back, one that is mapped. At every
   moment each must be what the program has made of it. */
#include "program.h"
#include <pthread.h>

static int stop, rounds, state, cut, shrinking, longer;
static char *page;

static void put(int fd, int number)
{
	char text[32];
	CHECK(snprintf(text, sizeof text, "%015d\n", number) == 16 && pwrite(fd, text, 16, 0) == 16);
}

static int get(int fd)
{
	char text[17] = {0};
	CHECK(pread(fd, text, 16, 0) == 16);
	return atoi(text);
}

static void *work(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
		int next = rounds + 1;
		put(state, next);
		CHECK(ftruncate(cut, 0) == 0 && usleep(100) == 0);
		put(cut, next);
		CHECK(ftruncate(shrinking, 100000 - next % 1000) == 0);
		put(shrinking, next);
		*(int *)page = next;
		CHECK(pwrite(longer, &next, sizeof next, next % 5 * 1000000) == sizeof next);
		rounds = next;
		usleep(200);
	}
	return NULL;
}

static int make(const char *name, off_t size)
{
	int fd = open(name, O_CREAT | O_RDWR | O_TRUNC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, size) == 0);
	put(fd, 0);
	return fd;
}

int main(void)
{
	pthread_t thread;
	struct stat st;
	int mapped, number;
	start();
	state = make("state", 16);
	cut = make("cut", 0);
	shrinking = make("shrinking", 100000);
	mapped = make("mapped", 4096);
	longer = make("longer", 5000000);   /* more than is saved of a file that is only added to */
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
	CHECK(page != MAP_FAILED && close(mapped) == 0);
	*(int *)page = 0;
	CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
	while (__atomic_load_n(&rounds, __ATOMIC_SEQ_CST) < 10) usleep(1000);
	ready();
	await_check();
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	CHECK(pthread_join(thread, NULL) == 0);
	if (get(state) != rounds || get(cut) != rounds || get(shrinking) != rounds || *(int *)page != rounds)
		fail("after %d rounds: %d %d %d %d", rounds, get(state), get(cut), get(shrinking), *(int *)page);
	CHECK(fstat(shrinking, &st) == 0 && st.st_size == 100000 - rounds % 1000);
	CHECK(fstat(cut, &st) == 0 && st.st_size == 16);
	for (int i = 0; i < 5; i++) {
		CHECK(pread(longer, &number, sizeof number, i * 1000000) == sizeof number);
		if (rounds - number < 0 || rounds - number > 5 || number % 5 != i) fail("%d at place %d of %d", number, i, rounds);
	}
	mapped = open("mapped", O_RDONLY);
	CHECK(mapped >= 0 && read(mapped, &number, sizeof number) == sizeof number && number == rounds);
	pass();
}

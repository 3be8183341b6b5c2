/* An event counter that is full: a writer waits until there is room, another gets EAGAIN; one that waits for a count. */
#include "program.h"
#include <pthread.h>
#include <sys/eventfd.h>

#define FULL 0xFFFFFFFFFFFFFFFEu

static int full, empty, semaphore, written, taken, counted;

static void *write_more(void *unused)
{
	uint64_t seven = 7;
	(void)unused;
	CHECK(write(full, &seven, 8) == 8);
	__atomic_store_n(&written, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *take(void *unused)
{
	uint64_t value;
	(void)unused;
	CHECK(read(empty, &value, 8) == 8 && value == 3);
	__atomic_store_n(&taken, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *count(void *unused)
{
	uint64_t value;
	(void)unused;
	CHECK(read(semaphore, &value, 8) == 8 && value == 1);
	__atomic_store_n(&counted, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

int main(void)
{
	uint64_t value = FULL, three = 3, four = 4;
	int nonblocking, cloexec;
	pthread_t threads[3];
	start();
	full = eventfd(0, 0);
	nonblocking = eventfd(0, EFD_NONBLOCK);
	cloexec = eventfd(0x7FFFFFFF, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	empty = eventfd(0, EFD_CLOEXEC);
	semaphore = eventfd(0, EFD_SEMAPHORE);
	CHECK(write(full, &value, 8) == 8 && write(nonblocking, &value, 8) == 8);
	CHECK(pthread_create(&threads[0], NULL, write_more, NULL) == 0 && pthread_create(&threads[1], NULL, take, NULL) == 0);
	CHECK(pthread_create(&threads[2], NULL, count, NULL) == 0);
	ready();
	await_check();
	CHECK(!written && !taken && !counted);
	CHECK(write(nonblocking, &three, 8) == -1 && errno == EAGAIN);
	CHECK(read(nonblocking, &value, 8) == 8 && value == FULL && fcntl(nonblocking, F_GETFD) == 0);
	CHECK(read(full, &value, 8) == 8 && value == FULL);
	CHECK(pthread_join(threads[0], NULL) == 0 && read(full, &value, 8) == 8 && value == 7);
	CHECK(write(empty, &three, 8) == 8 && pthread_join(threads[1], NULL) == 0 && taken);
	CHECK(write(semaphore, &four, 8) == 8 && pthread_join(threads[2], NULL) == 0 && counted);
	for (int i = 0; i < 3; i++) CHECK(read(semaphore, &value, 8) == 8 && value == 1);
	CHECK(read(cloexec, &value, 8) == 8 && value == 1 && fcntl(cloexec, F_GETFD) == FD_CLOEXEC);
	CHECK(write(cloexec, &three, 8) == 8 && read(cloexec, &value, 8) == 8 && value == 1);
	pass();
}

/* Event counters: value, semaphore mode, one shared by dup. */
#include "program.h"
#include <sys/eventfd.h>

int main(void)
{
	uint64_t value = 41;
	int plain, semaphore, copy;
	start();
	plain = eventfd(0, EFD_CLOEXEC);
	semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
	copy = dup(plain);
	CHECK(plain >= 0 && semaphore >= 0 && copy >= 0);
	CHECK(write(plain, &value, 8) == 8);
	ready();
	await_check();
	value = 1;
	CHECK(write(copy, &value, 8) == 8);
	CHECK(read(plain, &value, 8) == 8 && value == 42);
	for (int i = 0; i < 3; i++) CHECK(read(semaphore, &value, 8) == 8 && value == 1);
	CHECK(read(semaphore, &value, 8) == -1 && errno == EAGAIN);
	CHECK(fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0);
	CHECK(fcntl(semaphore, F_GETFL) & O_NONBLOCK);
	pass();
}

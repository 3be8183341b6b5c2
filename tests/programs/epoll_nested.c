/* An epoll instance in another one, and in a third; the same file under two numbers, under one that was closed, under one
   that another file has by now; a target that waits for one of several (EPOLLEXCLUSIVE); how it polls the network. */
#include "program.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

/* Linux 6.9, glibc 2.40 */
struct parameters { uint32_t usecs; uint16_t budget; uint8_t prefer, pad; };
#define SET_PARAMETERS _IOW(0x8A, 1, struct parameters)
#define GET_PARAMETERS _IOR(0x8A, 2, struct parameters)

static void watch(int epoll, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {events, {.u64 = data}};
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static uint64_t told(int epoll)
{
	struct epoll_event events[16];
	uint64_t sum = 0;
	int n = epoll_wait(epoll, events, 16, 0);
	CHECK(n >= 0);
	for (int i = 0; i < n; i++) sum |= events[i].data.u64;
	return sum;
}

int main(void)
{
	struct epoll_event event = {EPOLLIN, {.u64 = 0}};
	struct parameters set = {50, 16, 1, 0}, got;
	uint64_t one = 1, value;
	int polls, inner, middle, outer, fd, copy, plain, closed, kept, reused, other, exclusive, also;
	start();
	inner = epoll_create1(0);
	middle = epoll_create1(0);
	outer = epoll_create1(EPOLL_CLOEXEC);
	plain = epoll_create1(0);
	polls = ioctl(plain, SET_PARAMETERS, &set) == 0;
	fd = eventfd(0, EFD_NONBLOCK);
	copy = dup(fd);
	watch(inner, fd, EPOLLIN, 1);
	watch(inner, copy, EPOLLIN, 2);
	watch(middle, inner, EPOLLIN, 4);
	watch(outer, middle, EPOLLIN, 8);
	watch(outer, inner, EPOLLIN | EPOLLET, 16);
	closed = eventfd(0, EFD_NONBLOCK);
	kept = fcntl(closed, F_DUPFD, 100);
	watch(plain, closed, EPOLLIN, 1);
	CHECK(close(closed) == 0);
	reused = eventfd(0, EFD_NONBLOCK);
	CHECK(reused == closed);   /* the lowest that is free */
	other = fcntl(reused, F_DUPFD, 100);
	watch(plain, reused, EPOLLIN, 2);   /* under the same number as one that is still watched */
	CHECK(close(reused) == 0 && (reused = eventfd(7, EFD_NONBLOCK)) == closed);
	exclusive = eventfd(0, EFD_NONBLOCK);
	also = epoll_create1(0);
	watch(plain, exclusive, EPOLLIN | EPOLLEXCLUSIVE, 4);
	watch(also, exclusive, EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 1);
	CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, outer, &event) == -1 && errno == ELOOP);
	CHECK(told(outer) == 0 && told(plain) == 0 && told(also) == 0);
	ready();
	await_check();
	if (polls) CHECK(ioctl(plain, GET_PARAMETERS, &got) == 0 && got.usecs == 50 && got.budget == 16 && got.prefer == 1);
	CHECK(told(outer) == 0 && told(plain) == 0 && told(also) == 0);
	CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, outer, &event) == -1 && errno == ELOOP);
	CHECK(write(fd, &one, 8) == 8 && told(outer) == (8 | 16) && told(outer) == 8 && told(middle) == 4 && told(inner) == 3);
	CHECK(close(copy) == 0 && told(inner) == 3);   /* the file is open still */
	CHECK(read(fd, &value, 8) == 8 && told(outer) == 0);
	CHECK(write(kept, &one, 8) == 8 && told(plain) == 1 && write(other, &one, 8) == 8 && told(plain) == 3);
	CHECK(read(reused, &value, 8) == 8 && value == 7 && told(plain) == 3);
	CHECK(write(exclusive, &one, 8) == 8 && told(plain) == 7 && told(also) == 1 && told(also) == 0);
	CHECK(close(kept) == 0 && told(plain) == 6 && close(other) == 0 && told(plain) == 4);   /* with its last descriptor */
	CHECK(epoll_ctl(plain, EPOLL_CTL_DEL, exclusive, NULL) == 0 && told(plain) == 0);
	CHECK(epoll_ctl(inner, EPOLL_CTL_DEL, fd, NULL) == 0);
	pass();
}

/* A thousand targets: most under their numbers, a third of them closed there, some watched by a second instance. */
#include "program.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#define COUNT 1000
#define HIGH 1500

static int first, second, kept[COUNT];

int main(void)
{
	static struct epoll_event events[COUNT];
	struct rlimit limit;
	uint64_t one = 1;
	int n;
	start();
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max < 4000 ? limit.rlim_max : 4000;
	CHECK(limit.rlim_cur >= HIGH + COUNT && setrlimit(RLIMIT_NOFILE, &limit) == 0);
	first = epoll_create1(0);
	second = epoll_create1(0);
	for (int i = 0; i < COUNT; i++) {
		struct epoll_event event = {EPOLLIN, {.u32 = i}};
		int fd = eventfd(0, 0);
		CHECK(fd >= 0 && epoll_ctl(first, EPOLL_CTL_ADD, fd, &event) == 0);
		kept[i] = fd;
		if (i % 3 == 0) {
			kept[i] = fcntl(fd, F_DUPFD, HIGH);
			CHECK(kept[i] >= HIGH);
		}
		if (i % 5 == 0) CHECK(epoll_ctl(second, EPOLL_CTL_ADD, kept[i], &event) == 0);
		if (i % 3 == 0) CHECK(close(fd) == 0);
	}
	ready();
	await_check();
	CHECK(epoll_wait(first, events, COUNT, 0) == 0 && epoll_wait(second, events, COUNT, 0) == 0);
	for (int i = 0; i < COUNT; i += 7) CHECK(write(kept[i], &one, 8) == 8);
	n = epoll_wait(first, events, COUNT, 0);
	CHECK(n == (COUNT + 6) / 7);
	for (int i = 0; i < n; i++) CHECK(events[i].data.u32 % 7 == 0 && events[i].events == EPOLLIN);
	n = epoll_wait(second, events, COUNT, 0);
	CHECK(n == (COUNT + 34) / 35);
	for (int i = 0; i < n; i++) CHECK(events[i].data.u32 % 35 == 0);
	pass();
}

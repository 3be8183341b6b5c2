/* Targets of epoll(7) that are told once: EPOLLONESHOT armed, fired and armed again; by the edge (EPOLLET) with the edge
   told and not told yet; both. A fired one stays silent until it is armed. */
#include "program.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static int epoll;

static void watch(int operation, int fd, uint32_t events)
{
	struct epoll_event event = {events, {.u64 = 0xABCDEF0000000000u | fd}};
	CHECK(epoll_ctl(epoll, operation, fd, &event) == 0);
}

/* All that is told now, as a sum of bits for the descriptors in ``fds``. */
static unsigned told(const int *fds, int count)
{
	struct epoll_event events[32];
	unsigned found = 0;
	int n = epoll_wait(epoll, events, 32, 0);
	CHECK(n >= 0);
	for (int i = 0; i < n; i++) {
		CHECK((events[i].data.u64 & 0xFFFFFFFF00000000u) == 0xABCDEF0000000000u);
		for (int k = 0; k < count; k++) if ((uint32_t)events[i].data.u64 == (uint32_t)fds[k]) found |= 1u << k;
	}
	return found;
}

int main(void)
{
	enum { ARMED, FIRED, REARMED, SILENT, HUNG_UP, EDGE_TOLD, EDGE_NEW, EDGE_ONCE, EMPTY, COUNT };
	int fds[COUNT], pair[2], pipefds[2], edge[2], fresh[2], again[2];
	uint64_t one = 1;
	unsigned first, second;
	start();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	fds[ARMED] = eventfd(0, EFD_NONBLOCK);
	fds[FIRED] = eventfd(5, EFD_NONBLOCK);
	fds[REARMED] = eventfd(5, EFD_NONBLOCK);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(pipefds) == 0 && pipe(edge) == 0 && pipe(fresh) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, again) == 0);
	fds[SILENT] = pair[0];
	fds[HUNG_UP] = again[0];
	fds[EDGE_TOLD] = edge[0];
	fds[EDGE_NEW] = fresh[0];
	fds[EDGE_ONCE] = eventfd(1, 0);
	fds[EMPTY] = pipefds[0];
	watch(EPOLL_CTL_ADD, fds[FIRED], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_ADD, fds[REARMED], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_ADD, fds[SILENT], EPOLLOUT | EPOLLONESHOT);
	watch(EPOLL_CTL_ADD, fds[HUNG_UP], EPOLLOUT | EPOLLONESHOT | EPOLLET);
	watch(EPOLL_CTL_ADD, fds[EDGE_TOLD], EPOLLIN | EPOLLET);
	watch(EPOLL_CTL_ADD, fds[EDGE_ONCE], EPOLLIN | EPOLLET | EPOLLONESHOT);
	CHECK(write(edge[1], "x", 1) == 1);
	/* ready for nothing by the time of the checkpoint: a pipe that was read empty */
	watch(EPOLL_CTL_ADD, fds[EMPTY], EPOLLIN | EPOLLONESHOT);
	CHECK(write(pipefds[1], "x", 1) == 1);
	CHECK(told(fds, COUNT) == (1 << FIRED | 1 << REARMED | 1 << SILENT | 1 << HUNG_UP | 1 << EDGE_TOLD | 1 << EDGE_ONCE |
		1 << EMPTY));
	CHECK(read(pipefds[0], &first, 1) == 1);
	watch(EPOLL_CTL_MOD, fds[REARMED], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_ADD, fds[ARMED], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_ADD, fds[EDGE_NEW], EPOLLIN | EPOLLET);
	CHECK(write(fresh[1], "x", 1) == 1);
	CHECK(close(again[1]) == 0);   /* not to be told: it has fired */
	ready();
	await_check();
	first = told(fds, COUNT);
	/* an edge that was told before may be told again, once */
	if ((first & ~(1u << EDGE_TOLD)) != (1 << REARMED | 1 << EDGE_NEW)) fail("told are %#x", first);
	second = told(fds, COUNT);
	if (second != 0) fail("told again are %#x", second);
	CHECK(write(fds[ARMED], &one, 8) == 8 && write(fds[FIRED], &one, 8) == 8 && write(edge[1], "y", 1) == 1);
	CHECK(write(pair[1], "z", 1) == 1 && write(pipefds[1], "z", 1) == 1 && write(fds[EDGE_ONCE], &one, 8) == 8);
	first = told(fds, COUNT);
	if (first != (1 << ARMED | 1 << EDGE_TOLD)) fail("then told are %#x", first);
	watch(EPOLL_CTL_MOD, fds[FIRED], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_MOD, fds[SILENT], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_MOD, fds[HUNG_UP], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_MOD, fds[EMPTY], EPOLLIN | EPOLLONESHOT);
	watch(EPOLL_CTL_MOD, fds[EDGE_ONCE], EPOLLIN | EPOLLONESHOT);
	first = told(fds, COUNT);
	if (first != (1 << FIRED | 1 << SILENT | 1 << HUNG_UP | 1 << EMPTY | 1 << EDGE_ONCE)) fail("at last told are %#x", first);
	CHECK(told(fds, COUNT) == 0);
	pass();
}

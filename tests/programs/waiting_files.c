/* Threads that wait in calls on files without end: reads of a pipe, sockets, an eventfd, a timerfd, a signalfd, an
   inotify instance; accept, poll, select, epoll_wait, open of a fifo, locks. Each gets what it waits for afterwards. */
#include "program.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>

enum { READ, READV, RECV, RECVMSG, ACCEPT, EVENT, TIMER, SIGNAL, POLL, PPOLL, SELECT, EPOLL, EPOLL_PWAIT, FIFO, FLOCK, OFD,
       WAYS };
static int pipes[WAYS][2], sockets[WAYS][2], listener, event, timer, signals, locked, other;
static struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "listener"};

static int ready_to_read(int way)   /* the byte that makes it so */
{
	char c;
	return read(pipes[way][0], &c, 1) == 1 && c == 'a' + way;
}

static void *wait_for(void *argument)
{
	int way = (int)(intptr_t)argument, fd;
	char c = 0;
	uint64_t number;
	struct iovec part = {&c, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	struct pollfd poller = {.fd = pipes[way][0], .events = POLLIN};
	struct epoll_event ready = {.events = EPOLLIN, .data.u32 = 77};
	struct signalfd_siginfo info;
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
	fd_set set;
	FD_ZERO(&set);
	FD_SET(pipes[way][0], &set);
	switch (way) {
	case READ: CHECK(read(pipes[way][0], &c, 1) == 1 && c == 'a' + way); break;
	case READV: CHECK(readv(pipes[way][0], &part, 1) == 1 && c == 'a' + way); break;
	case RECV: CHECK(recv(sockets[way][0], &c, 1, 0) == 1 && c == 'a' + way); break;
	case RECVMSG: CHECK(recvmsg(sockets[way][0], &message, 0) == 1 && c == 'a' + way); break;
	case ACCEPT: CHECK((fd = accept(listener, NULL, NULL)) >= 0 && read(fd, &c, 1) == 1 && c == 'a' + way); break;
	case EVENT: CHECK(read(event, &number, 8) == 8 && number == 5); break;
	case TIMER: CHECK(read(timer, &number, 8) == 8 && number == 1); break;
	case SIGNAL: CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == 41 && info.ssi_int == 9); break;
	case POLL: CHECK(poll(&poller, 1, -1) == 1 && poller.revents == POLLIN && ready_to_read(way)); break;
	case PPOLL: CHECK(ppoll(&poller, 1, NULL, NULL) == 1 && poller.revents == POLLIN && ready_to_read(way)); break;
	case SELECT: CHECK(select(FD_SETSIZE, &set, NULL, NULL, NULL) == 1 && FD_ISSET(pipes[way][0], &set) && ready_to_read(way)); break;
	case EPOLL:
	case EPOLL_PWAIT:
		fd = epoll_create1(0);
		CHECK(epoll_ctl(fd, EPOLL_CTL_ADD, pipes[way][0], &ready) == 0);
		ready.data.u32 = 0;
		CHECK((way == EPOLL ? epoll_wait(fd, &ready, 1, -1) : epoll_pwait(fd, &ready, 1, -1, NULL)) == 1);
		CHECK(ready.data.u32 == 77 && ready_to_read(way));
		break;
	case FIFO: CHECK((fd = open("fifo", O_RDONLY)) >= 0 && read(fd, &c, 1) == 1 && c == 'a' + way); break;
	case FLOCK: CHECK(flock(other, LOCK_EX) == 0); break;
	case OFD: CHECK(fcntl(other, F_OFD_SETLKW, &lock) == 0); break;
	}
	return argument;
}

int main(void)
{
	struct itimerspec once = {.it_value.tv_nsec = 1};
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
	pthread_t threads[WAYS];
	sigset_t set;
	int fd;
	start();
	sigemptyset(&set);
	sigaddset(&set, 41);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && (signals = signalfd(-1, &set, 0)) >= 0);
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&name, sizeof name) == 0 && listen(listener, 1) == 0);
	CHECK((event = eventfd(0, 0)) >= 0 && (timer = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0 && mkfifo("fifo", 0600) == 0);
	CHECK((locked = open("locked", O_RDWR | O_CREAT, 0600)) >= 0 && (other = open("locked", O_RDWR)) >= 0);
	CHECK(flock(locked, LOCK_EX) == 0 && fcntl(locked, F_OFD_SETLK, &lock) == 0);
	for (int i = 0; i < WAYS; i++) {
		CHECK(pipe(pipes[i]) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets[i]) == 0);
		CHECK(pthread_create(&threads[i], NULL, wait_for, (void *)(intptr_t)i) == 0);
	}
	usleep(30000);
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) {
		char c = 'a' + i;
		CHECK(write(pipes[i][1], &c, 1) == 1 && write(sockets[i][1], &c, 1) == 1);
		if (i == EVENT) CHECK(eventfd_write(event, 5) == 0);
		if (i == TIMER) CHECK(timerfd_settime(timer, 0, &once, NULL) == 0);
		if (i == SIGNAL) CHECK(sigqueue(getpid(), 41, (union sigval){9}) == 0);
		if (i == FIFO) CHECK((fd = open("fifo", O_WRONLY)) >= 0 && write(fd, &c, 1) == 1);
		if (i == FLOCK) CHECK(flock(locked, LOCK_UN) == 0);
		lock.l_type = F_UNLCK;
		if (i == OFD) CHECK(fcntl(locked, F_OFD_SETLK, &lock) == 0);
		if (i == ACCEPT) {
			fd = socket(AF_UNIX, SOCK_STREAM, 0);
			CHECK(connect(fd, (struct sockaddr *)&name, sizeof name) == 0 && write(fd, &c, 1) == 1);
		}
		CHECK(pthread_join(threads[i], NULL) == 0);
	}
	pass();
}

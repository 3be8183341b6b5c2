/* POSIX message queues: priorities and order, one that is full with a child that waits for room, one whose name is gone,
   one that nobody has open, closed modes, descriptors for reading or writing only, shared ones; who waits for a message
   gets what comes. LDFLAGS: -lrt */
#include "family.h"
#include <mqueue.h>

enum { ORDERED, FULL, EMPTY, GONE, ALONE, QUEUES };
#define SIZE 300

static mqd_t ends[QUEUES], reading, writing, same;
static char names[QUEUES][64], message[SIZE];
static const long most[QUEUES] = {9, 3, 2, 4, 5};

static void send_it(mqd_t queue, unsigned priority, size_t length, unsigned seed)
{
	fill(message, length, seed);
	CHECK(mq_send(queue, message, length, priority) == 0);
}

static void check_it(mqd_t queue, unsigned priority, size_t length, unsigned seed)
{
	unsigned got = 0;
	ssize_t size = mq_receive(queue, message, SIZE, &got);
	if (size != (ssize_t)length || got != priority) fail("a message of %zd bytes with priority %u", size, got);
	check_filled(message, length, seed, "a message");
}

static mqd_t open_it(int queue, int flags, mode_t mode)
{
	struct mq_attr wanted = {0, most[queue], SIZE, 0, {0}};
	mqd_t end = mq_open(names[queue], flags, mode, &wanted);
	CHECK(end >= 0);
	return end;
}

static void check_attributes(mqd_t queue, int which, long flags, long messages)
{
	struct mq_attr now;
	CHECK(mq_getattr(queue, &now) == 0);
	CHECK(now.mq_flags == flags && now.mq_maxmsg == most[which] && now.mq_msgsize == SIZE);
	if (now.mq_curmsgs != messages) fail("queue %d holds %ld messages", which, now.mq_curmsgs);
}

static void sender(void)
{
	fill(message, 30, 99);
	reach(1);
	CHECK(mq_send(ends[FULL], message, 30, 9) == 0);
	pass();
}

static void receiver(void)
{
	reach(2);
	check_it(ends[EMPTY], 4, 11, 44);
	pass();
}

static void await_end(pid_t pid, const char *what)
{
	int status;
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status != 0) fail("%s: wait status %#x", what, status);
}

int main(void)
{
	static const unsigned priorities[] = {1, 0, 7, 1, 32767, 0, 7};
	static const int order[] = {4, 2, 6, 0, 3, 1, 5};
	pid_t sending, receiving;
	struct mq_attr now = {O_NONBLOCK, 0, 0, 0, {0}};
	struct stat status;
	start();
	family();
	for (int i = 0; i < QUEUES; i++) {
		snprintf(names[i], sizeof names[i], "/mqueue-%d-%d", (int)getpid(), i);
		ends[i] = open_it(i, O_RDWR | O_CREAT | O_EXCL, i == EMPTY ? 0 : 0640);
	}
	reading = open_it(ORDERED, O_RDONLY | O_NONBLOCK, 0), writing = open_it(ORDERED, O_WRONLY, 0);
	CHECK((same = dup(writing)) >= 0);
	for (int i = 0; i < 7; i++) send_it(ends[ORDERED], priorities[i], i * 50, i);
	for (int i = 0; i < 3; i++) send_it(ends[FULL], 5, SIZE, i);
	send_it(ends[GONE], 3, 100, 33);
	CHECK(mq_unlink(names[GONE]) == 0);
	send_it(ends[ALONE], 2, 20, 22);
	CHECK(mq_close(ends[ALONE]) == 0 && fchmod(writing, 0200) == 0);
	sending = child(sender);
	await_step(1);
	receiving = child(receiver);
	await_step(2);
	usleep(20000);   /* so that both are in their calls, most likely */
	ready();
	await_check();
	CHECK(waitpid(-1, NULL, WNOHANG) == 0);
	check_attributes(ends[ORDERED], ORDERED, 0, 7), check_attributes(reading, ORDERED, O_NONBLOCK, 7);
	CHECK(fstat(ends[ORDERED], &status) == 0 && (status.st_mode & 0777) == 0200 && status.st_uid == getuid());
	CHECK(mq_receive(writing, message, SIZE, NULL) == -1 && errno == EBADF);
	CHECK(mq_send(reading, message, 1, 0) == -1 && errno == EBADF);
	for (int i = 0; i < 7; i++) check_it(reading, priorities[order[i]], order[i] * 50, order[i]);
	CHECK(mq_receive(reading, message, SIZE, NULL) == -1 && errno == EAGAIN);
	CHECK(mq_setattr(same, &now, NULL) == 0);
	check_attributes(writing, ORDERED, O_NONBLOCK, 0), check_attributes(ends[ORDERED], ORDERED, 0, 0);
	check_attributes(ends[GONE], GONE, 0, 1);
	check_it(ends[GONE], 3, 100, 33);
	CHECK(mq_open(names[GONE], O_RDWR) == -1 && errno == ENOENT);
	ends[ALONE] = open_it(ALONE, O_RDWR, 0);
	CHECK(fstat(ends[ALONE], &status) == 0 && (status.st_mode & 0777) == 0640);
	check_attributes(ends[ALONE], ALONE, 0, 1);
	check_it(ends[ALONE], 2, 20, 22);
	CHECK(fstat(ends[EMPTY], &status) == 0 && (status.st_mode & 0777) == 0);
	send_it(ends[EMPTY], 4, 11, 44);
	await_end(receiving, "who waits for a message");
	check_it(ends[FULL], 5, SIZE, 0);
	await_end(sending, "who waits for room");
	check_it(ends[FULL], 9, 30, 99);
	for (int i = 1; i < 3; i++) check_it(ends[FULL], 5, SIZE, i);
	for (int i = 0; i < QUEUES; i++) if (i != GONE) CHECK(mq_unlink(names[i]) == 0);
	pass();
}

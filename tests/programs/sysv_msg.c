/* System V message queues: ids, keys, modes and sizes; messages of every type and length in their order; one that is
   full with a child that waits for room, an empty one with a child that waits for a message of one type. */
#include "family.h"
#include <sys/ipc.h>
#include <sys/msg.h>

#define LONGEST 8192
#define MESSAGES 40
enum { ORDERED, FULL, EMPTY, PRIVATE, QUEUES };

static int ids[QUEUES];
static key_t keys[QUEUES];
static struct { long type; char data[LONGEST]; } message;

static size_t length_of(int n) { return n == 0 ? 0 : n == 1 ? LONGEST : (size_t)n * 7 % 200; }

static void send_it(int queue, long type, size_t length, unsigned seed)
{
	message.type = type;
	fill(message.data, length, seed);
	CHECK(msgsnd(queue, &message, length, IPC_NOWAIT) == 0);
}

static void check_it(int queue, long wanted, long type, size_t length, unsigned seed)
{
	ssize_t got = msgrcv(queue, &message, LONGEST, wanted, IPC_NOWAIT);
	if (got != (ssize_t)length || message.type != type) fail("a message of %zd bytes, type %ld", got, message.type);
	check_filled(message.data, length, seed, "a message");
}

static void check_settings(void)
{
	struct msqid_ds now;
	for (int i = 0; i < QUEUES; i++) {
		CHECK(msgctl(ids[i], IPC_STAT, &now) == 0);
		CHECK((now.msg_perm.mode & 0777) == (i == ORDERED ? 0640 : 0600));
		CHECK(now.msg_perm.uid == getuid() && now.msg_perm.gid == getgid());
		CHECK(now.msg_qbytes == (i == FULL ? 1000 : i == PRIVATE ? 50 : 16384));
		if (i != PRIVATE) CHECK(msgget(keys[i], 0) == ids[i]);
	}
	CHECK(msgctl(ids[ORDERED], IPC_STAT, &now) == 0 && now.msg_qnum == MESSAGES);
	CHECK(msgctl(ids[EMPTY], IPC_STAT, &now) == 0 && now.msg_qnum == 0);
}

static void sender(void)
{
	message.type = 5;
	fill(message.data, 700, 99);
	reach(1);
	CHECK(msgsnd(ids[FULL], &message, 700, 0) == 0);
	pass();
}

static void receiver(void)
{
	reach(2);
	ssize_t got = msgrcv(ids[EMPTY], &message, LONGEST, 3, 0);
	if (got != 11 || message.type != 3) fail("waited for 11 bytes of type 3, got %zd of %ld", got, message.type);
	check_filled(message.data, 11, 33, "what came at last");
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
	struct msqid_ds now;
	pid_t sending, receiving;
	start();
	family();
	for (int i = 0; i < QUEUES; i++) {   /* none has the id that a first one would get */
		CHECK(msgctl(msgget(IPC_PRIVATE, 0600), IPC_RMID, NULL) == 0);
		keys[i] = i == PRIVATE ? IPC_PRIVATE : (getpid() << 12) + i;
		ids[i] = msgget(keys[i], IPC_CREAT | IPC_EXCL | (i == ORDERED ? 0640 : 0600));
		CHECK(ids[i] >= 0);
	}
	for (int n = 0; n < MESSAGES; n++) send_it(ids[ORDERED], n % 5 + 1 + ((long)n % 3 << 40), length_of(n), n);
	send_it(ids[PRIVATE], 1, 200, 7);   /* more than the queue holds from now on */
	CHECK(msgctl(ids[PRIVATE], IPC_STAT, &now) == 0);
	now.msg_qbytes = 50;
	CHECK(msgctl(ids[PRIVATE], IPC_SET, &now) == 0);
	CHECK(msgctl(ids[FULL], IPC_STAT, &now) == 0);
	now.msg_qbytes = 1000;
	CHECK(msgctl(ids[FULL], IPC_SET, &now) == 0);
	send_it(ids[FULL], 1, 600, 1);
	sending = child(sender);
	await_step(1);
	receiving = child(receiver);
	await_step(2);
	usleep(20000);   /* so that both are in their calls, most likely */
	ready();
	await_check();
	check_settings();
	CHECK(waitpid(-1, NULL, WNOHANG) == 0);
	check_it(ids[ORDERED], 3, 3, length_of(12), 12);   /* the first that has type 3 */
	for (int n = 0; n < MESSAGES; n++)
		if (n != 12) check_it(ids[ORDERED], 0, n % 5 + 1 + ((long)n % 3 << 40), length_of(n), n);
	check_it(ids[PRIVATE], 0, 1, 200, 7);
	CHECK(msgrcv(ids[ORDERED], &message, LONGEST, 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
	send_it(ids[EMPTY], 2, 5, 22), send_it(ids[EMPTY], 3, 11, 33);
	await_end(receiving, "who waits for a message");
	check_it(ids[FULL], 0, 1, 600, 1);
	await_end(sending, "who waits for room");
	check_it(ids[FULL], 0, 5, 700, 99);
	for (int i = 0; i < QUEUES; i++) CHECK(msgctl(ids[i], IPC_RMID, NULL) == 0);
	pass();
}

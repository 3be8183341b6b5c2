/* Classic packet filters that a program has attached (SO_ATTACH_FILTER): one lets packets pass up to a size, one is locked;
   they can be read back and go on to work. */
#include "net.h"
#include <linux/filter.h>

static int udp[2], locked, ends[2];
static struct sock_filter short_only[] = {
	{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0}, {BPF_JMP | BPF_JGT | BPF_K, 1, 0, 8 + 10},   /* with UDP's header */
	{BPF_RET | BPF_K, 0, 0, 0xffff}, {BPF_RET | BPF_K, 0, 0, 0}};
static struct sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, 0xffffffff}};

static void attach(int fd, struct sock_filter *code, int length)
{
	struct sock_fprog program = {length, code};
	CHECK(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
}

static void check_same(int fd, struct sock_filter *code, int length)
{
	struct sock_filter got[8];
	socklen_t count = 8;
	CHECK(getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, got, &count) == 0);
	if ((int)count != length || memcmp(got, code, length * sizeof *code)) fail("a filter of %d instructions", count);
}

int main(void)
{
	char byte;
	start();
	for (int i = 0; i < 2; i++) udp[i] = bound("127.0.0.1", SOCK_DGRAM);
	address to = name_of(udp[1]);
	CHECK(connect(udp[0], (void *)&to.name, to.length) == 0);
	attach(udp[1], short_only, 4);
	locked = new_socket("127.0.0.1", SOCK_STREAM);
	attach(locked, all, 1);
	set_option(locked, SOL_SOCKET, SO_LOCK_FILTER, 1);
	connection(listening("127.0.0.1", 1), "127.0.0.1", ends);
	attach(ends[1], all, 1);
	say(ends[0], "unread");
	say(udp[0], "too long to pass");
	say(udp[0], "passes");
	ready();
	await_check();
	check_same(udp[1], short_only, 4);
	check_same(locked, all, 1);
	check_same(ends[1], all, 1);
	CHECK(option(locked, SOL_SOCKET, SO_LOCK_FILTER) == 1);
	CHECK(setsockopt(locked, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int)) == -1 && errno == EPERM);
	hear(ends[1], "unread");
	say(udp[0], "too long again");
	say(udp[0], "fits");
	hear(udp[1], "passes");
	hear(udp[1], "fits");
	CHECK(recv(udp[1], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	pass();
}

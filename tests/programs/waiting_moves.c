/* Threads that wait to move something: splice, tee and vmsplice, an eventfd that is full, a datagram socket whose reader
   is behind. Each goes on when it can. */
#include "program.h"
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SPLICE, TEE, VMSPLICE, EVENT, DATAGRAM, WAYS };
static int in[WAYS][2], out[WAYS][2], event, datagrams[2];
static char page[4096] = "page";

static void *wait_for(void *argument)
{
	int way = (int)(intptr_t)argument;
	struct iovec part = {page, sizeof page};
	switch (way) {
	case SPLICE: CHECK(splice(in[way][0], NULL, out[way][1], NULL, 100, 0) == 3); break;
	case TEE: CHECK(tee(in[way][0], out[way][1], 100, 0) == 3); break;
	case VMSPLICE: CHECK(vmsplice(out[way][1], &part, 1, 0) == sizeof page); break;
	case EVENT: CHECK(eventfd_write(event, 7) == 0); break;
	case DATAGRAM: CHECK(send(datagrams[1], "last", 4, 0) == 4); break;
	}
	return argument;
}

static void set_up(void)
{
	char full[65536] = {0};
	for (int i = 0; i < WAYS; i++) CHECK(pipe(in[i]) == 0 && pipe(out[i]) == 0);
	CHECK(write(out[VMSPLICE][1], full, sizeof full) == sizeof full);
	CHECK((event = eventfd(0, 0)) >= 0 && eventfd_write(event, UINT64_MAX - 1) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams) == 0);
	while (send(datagrams[1], "first", 5, MSG_DONTWAIT) == 5) ;
}

int main(void)
{
	pthread_t threads[WAYS];
	char room[65536];
	eventfd_t value;
	start();
	set_up();
	for (int i = 0; i < WAYS; i++) CHECK(pthread_create(&threads[i], NULL, wait_for, (void *)(intptr_t)i) == 0);
	usleep(30000);
	ready();
	await_check();
	CHECK(write(in[SPLICE][1], "abc", 3) == 3 && pthread_join(threads[SPLICE], NULL) == 0);
	CHECK(read(out[SPLICE][0], room, 9) == 3 && memcmp(room, "abc", 3) == 0);
	CHECK(write(in[TEE][1], "def", 3) == 3 && pthread_join(threads[TEE], NULL) == 0);
	CHECK(read(out[TEE][0], room, 9) == 3 && memcmp(room, "def", 3) == 0 && read(in[TEE][0], room, 9) == 3);
	CHECK(read(out[VMSPLICE][0], room, sizeof room) == sizeof room && pthread_join(threads[VMSPLICE], NULL) == 0);
	CHECK(read(out[VMSPLICE][0], room, sizeof room) == sizeof page && strcmp(room, "page") == 0);
	CHECK(eventfd_read(event, &value) == 0 && value == UINT64_MAX - 1 && pthread_join(threads[EVENT], NULL) == 0);
	CHECK(eventfd_read(event, &value) == 0 && value == 7);
	while (recv(datagrams[0], room, 9, 0) == 5) ;
	CHECK(memcmp(room, "last", 4) == 0 && pthread_join(threads[DATAGRAM], NULL) == 0);
	pass();
}

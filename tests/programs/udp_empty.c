/* Empty datagrams in a queue: at the front, in the middle, at the end, and alone; each is there as often as it was. */
#include "net.h"

static int fd, alone, senders[2];
static const struct { int from; const char *text; } sent[] = {
	{0, ""}, {1, "first"}, {0, ""}, {1, ""}, {0, "second"}, {1, "third"}, {0, ""}};
enum { COUNT = sizeof sent / sizeof *sent };

static void expect(int receiver, int from, const char *text)
{
	char data[20];
	address sender = {.length = sizeof sender.name}, wanted = name_of(senders[from]);
	ssize_t n = recvfrom(receiver, data, sizeof data, MSG_DONTWAIT, (void *)&sender.name, &sender.length);
	if (n != (ssize_t)strlen(text) || memcmp(data, text, n)) fail("%zd bytes, not \"%s\"", n, text);
	CHECK(same(&sender, &wanted));
}

int main(void)
{
	char byte;
	start();
	fd = bound("127.0.0.1", SOCK_DGRAM);
	alone = bound("127.0.0.1", SOCK_DGRAM);
	address to = name_of(fd), to_alone = name_of(alone);
	for (int i = 0; i < 2; i++) senders[i] = bound("127.0.0.1", SOCK_DGRAM);
	for (int i = 0; i < COUNT; i++)
		CHECK(sendto(senders[sent[i].from], sent[i].text, strlen(sent[i].text), 0, (void *)&to.name, to.length) >= 0);
	CHECK(sendto(senders[1], "", 0, 0, (void *)&to_alone.name, to_alone.length) == 0);
	ready();
	await_check();
	CHECK(events_of(fd) == (POLLIN | POLLOUT) && events_of(alone) == (POLLIN | POLLOUT));
	for (int i = 0; i < COUNT; i++) expect(fd, sent[i].from, sent[i].text);
	expect(alone, 1, "");
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(recv(alone, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	pass();
}

/* What a receiver can see of a datagram that it has not read yet: the address that it was sent to (IP_PKTINFO), TTL and
   TOS, over IPv4 and IPv6; and that options by which it asks for that stay as they are. */
#include "net.h"

static int four, six, blind;
static const int ttl = 77, tos = 0x28;

struct seen {
	char to[INET6_ADDRSTRLEN];
	int ttl, tos, parts;
};

static struct seen receive(int fd, const char *wanted)
{
	struct seen seen = {.ttl = -1, .tos = -1};
	char data[100], control[512];
	struct iovec part = {data, sizeof data};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
	if (n != (ssize_t)strlen(wanted) || memcmp(data, wanted, n)) fail("%zd bytes, not \"%s\"", n, wanted);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		seen.parts++;
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
			inet_ntop(AF_INET, &((struct in_pktinfo *)CMSG_DATA(c))->ipi_addr, seen.to, sizeof seen.to);
		if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
			inet_ntop(AF_INET6, &((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_addr, seen.to, sizeof seen.to);
		if (c->cmsg_type == (c->cmsg_level == IPPROTO_IP ? IP_TTL : IPV6_HOPLIMIT)) seen.ttl = *(int *)CMSG_DATA(c);
		if (c->cmsg_type == (c->cmsg_level == IPPROTO_IP ? IP_TOS : IPV6_TCLASS)) seen.tos = *CMSG_DATA(c);
	}
	return seen;
}

static void send_to(int from, const char *host, int fd, const char *text)
{
	address name = name_of(fd), to = at(host, port_of(&name));
	CHECK(sendto(from, text, strlen(text), 0, (void *)&to.name, to.length) == (ssize_t)strlen(text));
}

int main(void)
{
	start();
	four = bound("0.0.0.0", SOCK_DGRAM);
	set_option(four, IPPROTO_IP, IP_PKTINFO, 1);
	set_option(four, IPPROTO_IP, IP_RECVTTL, 1);
	set_option(four, IPPROTO_IP, IP_RECVTOS, 1);
	six = bound("::", SOCK_DGRAM);
	set_option(six, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	set_option(six, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	set_option(six, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	blind = bound("0.0.0.0", SOCK_DGRAM);
	int from = bound("0.0.0.0", SOCK_DGRAM), from_six = bound("::1", SOCK_DGRAM);
	set_option(from, IPPROTO_IP, IP_TTL, ttl);
	set_option(from, IPPROTO_IP, IP_TOS, tos);
	set_option(from_six, IPPROTO_IPV6, IPV6_UNICAST_HOPS, ttl);
	set_option(from_six, IPPROTO_IPV6, IPV6_TCLASS, tos);
	send_to(from, "127.0.0.5", four, "one");
	send_to(from, own_address(), four, "two");
	send_to(from_six, "::1", six, "three");
	send_to(from, "127.0.0.6", six, "mapped");
	send_to(from, "127.0.0.7", blind, "unseen");
	close(from_six);
	ready();
	await_check();
	struct seen seen = receive(four, "one");
	CHECK(strcmp(seen.to, "127.0.0.5") == 0 && seen.ttl == ttl && seen.tos == tos && seen.parts == 3);
	seen = receive(four, "two");
	CHECK(strcmp(seen.to, own_address()) == 0 && seen.ttl == ttl && seen.tos == tos);
	seen = receive(six, "three");
	CHECK(strcmp(seen.to, "::1") == 0 && seen.ttl == ttl && seen.tos == tos && seen.parts == 3);
	seen = receive(six, "mapped");
	CHECK(strcmp(seen.to, "::ffff:127.0.0.6") == 0);
	seen = receive(blind, "unseen");
	CHECK(seen.parts == 0);
	pass();
}

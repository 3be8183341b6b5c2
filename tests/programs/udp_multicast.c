/* Multicast groups over IPv4 and IPv6, with sources that are wanted and unwanted, and options of multicast and broadcast;
   a datagram to a group that is not read yet; later ones come, and those that are not wanted don't. */
#include "sockopts.h"

static int four, six, picky, sender;
static struct options before[3];

static void join(int fd, int option_name, const char *group, const char *source)
{
	struct group_source_req request = {.gsr_interface = if_nametoindex("lo")};
	address a = at(group, 0), b = at(source, 0);
	request.gsr_group = a.name;
	request.gsr_source = b.name;
	size_t length = option_name == MCAST_JOIN_GROUP ? sizeof(struct group_req) : sizeof request;
	CHECK(setsockopt(fd, strchr(group, ':') ? IPPROTO_IPV6 : IPPROTO_IP, option_name, &request, length) == 0);
}

static int is_member(int fd, const char *group, unsigned *mode, unsigned *sources)
{
	struct group_filter *filter = calloc(1, GROUP_FILTER_SIZE(4));
	socklen_t length = GROUP_FILTER_SIZE(4);
	address a = at(group, 0);
	filter->gf_interface = if_nametoindex("lo");
	filter->gf_group = a.name;
	filter->gf_numsrc = 4;
	int result = getsockopt(fd, strchr(group, ':') ? IPPROTO_IPV6 : IPPROTO_IP, MCAST_MSFILTER, filter, &length);
	*mode = filter->gf_fmode, *sources = filter->gf_numsrc;
	free(filter);
	return result == 0;
}

static void send_to(const char *group, int fd, const char *text)
{
	address name = name_of(fd), to = at(group, port_of(&name));
	CHECK(sendto(sender, text, strlen(text), 0, (void *)&to.name, to.length) == (ssize_t)strlen(text));
}

int main(void)
{
	struct ip_mreqn lo = {.imr_ifindex = if_nametoindex("lo"), .imr_address.s_addr = htonl(INADDR_LOOPBACK)};
	unsigned mode, sources;
	char byte;
	start();
	four = bound("0.0.0.0", SOCK_DGRAM);
	join(four, MCAST_JOIN_GROUP, "239.77.1.2", "127.0.0.1");
	join(four, MCAST_JOIN_GROUP, "239.77.1.3", "127.0.0.1");
	join(four, MCAST_BLOCK_SOURCE, "239.77.1.3", "127.0.0.9");
	picky = bound("0.0.0.0", SOCK_DGRAM);
	join(picky, MCAST_JOIN_SOURCE_GROUP, "232.77.1.4", "127.0.0.8");
	join(picky, MCAST_JOIN_SOURCE_GROUP, "232.77.1.4", "127.0.0.9");
	six = bound("::", SOCK_DGRAM);
	join(six, MCAST_JOIN_GROUP, "ff15::77:1", "::1");
	sender = bound("127.0.0.1", SOCK_DGRAM);
	CHECK(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &lo, sizeof lo) == 0);
	send_to("239.77.1.2", four, "to the group");
	set_option(four, IPPROTO_IP, IP_MULTICAST_TTL, 5);
	set_option(four, IPPROTO_IP, IP_MULTICAST_LOOP, 0);
	set_option(four, IPPROTO_IP, IP_MULTICAST_ALL, 0);
	set_option(four, SOL_SOCKET, SO_BROADCAST, 1);
	set_option(six, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 6);
	set_option(six, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0);
	set_option(six, IPPROTO_IPV6, IPV6_MULTICAST_IF, lo.imr_ifindex);
	set_option(six, IPPROTO_IPV6, IPV6_UNICAST_IF, (int)htonl(lo.imr_ifindex));
	for (int i = 0; i < 3; i++) read_all_options((int[]){four, six, sender}[i], 0, &before[i]);
	ready();
	await_check();
	for (int i = 0; i < 3; i++) check_all_options((int[]){four, six, sender}[i], 0, &before[i], "a socket");
	hear(four, "to the group");
	CHECK(is_member(four, "239.77.1.2", &mode, &sources) && mode == MCAST_EXCLUDE && sources == 0);
	CHECK(is_member(four, "239.77.1.3", &mode, &sources) && mode == MCAST_EXCLUDE && sources == 1);
	CHECK(is_member(picky, "232.77.1.4", &mode, &sources) && mode == MCAST_INCLUDE && sources == 2);
	CHECK(is_member(six, "ff15::77:1", &mode, &sources) && mode == MCAST_EXCLUDE && sources == 0);
	CHECK(!is_member(six, "ff15::77:2", &mode, &sources) && !is_member(picky, "239.77.1.2", &mode, &sources));
	send_to("239.77.1.2", four, "again");
	send_to("239.77.1.3", four, "and to the other");
	send_to("232.77.1.4", picky, "from the wrong one");
	hear(four, "again");
	hear(four, "and to the other");
	CHECK(recv(picky, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	pass();
}

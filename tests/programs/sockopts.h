/* All that getsockopt(2) tells of a socket, but for what changes by itself; to be compared later. */
#ifndef SOCKOPTS_H
#define SOCKOPTS_H
#include "net.h"

enum { LEVELS = 5, NAMES = 128, VALUE = 64 };
static const int levels[LEVELS] = {SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP};
struct options {
	int length[LEVELS][NAMES];
	char value[LEVELS][NAMES][VALUE];
};

/* What the kernel does by itself, what is read once, and what a connection has negotiated. */
static inline int changes(int level, int name, int connected)
{
	static const int by_itself[][2] = {
		{SOL_SOCKET, SO_ERROR}, {SOL_SOCKET, 55}, {SOL_SOCKET, 56}, {SOL_SOCKET, 57},   /* MEMINFO, NAPI_ID, COOKIE */
		{SOL_SOCKET, 26}, {SOL_SOCKET, 31}, {SOL_SOCKET, 59},   /* GET_FILTER, PEERSEC, PEERGROUPS */
		{IPPROTO_IP, 9}, {IPPROTO_IP, 14}, {IPPROTO_IPV6, 6}, {IPPROTO_IPV6, 24}, {IPPROTO_IPV6, 61},   /* MTU */
		{IPPROTO_TCP, TCP_INFO}, {IPPROTO_TCP, 24}, {IPPROTO_TCP, 26}, {IPPROTO_TCP, 28}, {IPPROTO_TCP, 33},
		{IPPROTO_TCP, 35}, {IPPROTO_TCP, 29}};
	static const int negotiated[][2] = {{SOL_SOCKET, SO_SNDBUF}, {SOL_SOCKET, SO_RCVBUF}, {SOL_SOCKET, 49},
		{IPPROTO_TCP, TCP_MAXSEG}, {IPPROTO_TCP, TCP_WINDOW_CLAMP}};
	for (unsigned i = 0; i < sizeof by_itself / sizeof *by_itself; i++)
		if (by_itself[i][0] == level && by_itself[i][1] == name) return 1;
	for (unsigned i = 0; connected && i < sizeof negotiated / sizeof *negotiated; i++)
		if (negotiated[i][0] == level && negotiated[i][1] == name) return 1;
	return 0;
}

static inline void read_all_options(int fd, int connected, struct options *into)
{
	memset(into, 0, sizeof *into);
	for (int l = 0; l < LEVELS; l++)
		for (int n = 1; n < NAMES; n++) {
			socklen_t length = VALUE;
			if (changes(levels[l], n, connected)) continue;
			int result = getsockopt(fd, levels[l], n, into->value[l][n], &length);
			into->length[l][n] = result == 0 ? (int)length : -errno;
		}
}

static inline void check_all_options(int fd, int connected, const struct options *before, const char *what)
{
	static struct options now;
	read_all_options(fd, connected, &now);
	for (int l = 0; l < LEVELS; l++)
		for (int n = 1; n < NAMES; n++)
			if (now.length[l][n] != before->length[l][n] || memcmp(now.value[l][n], before->value[l][n], VALUE))
				fail("%s: option %d of level %d is %d (length %d), was %d (%d)", what, n, levels[l],
				     *(int *)now.value[l][n], now.length[l][n], *(int *)before->value[l][n],
				     before->length[l][n]);
}

/* An option of another value than it has by itself, if this system knows it and allows that. */
static inline void change(int fd, int level, int name, int value)
{
	socklen_t length = sizeof value;
	int now = 0;
	if (setsockopt(fd, level, name, &value, sizeof value) != 0 && errno != EPERM && errno != ENOPROTOOPT
	    && errno != EOPNOTSUPP)
		fail("option %d of level %d", name, level);
	CHECK(getsockopt(fd, level, name, &now, &length) == 0 || errno == ENOPROTOOPT || errno == EOPNOTSUPP);
}

static inline void change_common(int fd)
{
	struct linger linger = {1, 7};
	struct timeval patience = {3, 500000};
	unsigned long pace = 123456789;
	CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
	patience.tv_sec = 9;
	CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2) == 0 || errno == EPERM);
	setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &pace, sizeof pace);
	change(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	change(fd, SOL_SOCKET, SO_OOBINLINE, 1);
	change(fd, SOL_SOCKET, SO_RCVLOWAT, 3);
	change(fd, SOL_SOCKET, SO_PASSCRED, 0);
	change(fd, SOL_SOCKET, SO_TIMESTAMP, 1);
	change(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
	change(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
	change(fd, SOL_SOCKET, SO_BUSY_POLL, 20);
	change(fd, SOL_SOCKET, SO_MARK, 0x1234);
	change(fd, SOL_SOCKET, 42, 0);   /* SO_PEEK_OFF */
	change(fd, SOL_SOCKET, 70, 4);   /* SO_BUSY_POLL_BUDGET */
	change(fd, SOL_SOCKET, 75, 1);   /* SO_RCVMARK */
	change(fd, IPPROTO_IP, IP_TOS, 0x10);
	change(fd, SOL_SOCKET, SO_PRIORITY, 3);   /* IP_TOS has changed it, too */
	change(fd, IPPROTO_IP, IP_TTL, 33);
	change(fd, IPPROTO_IP, IP_RECVTTL, 1);
	change(fd, IPPROTO_IP, IP_RECVTOS, 1);
	change(fd, IPPROTO_IP, IP_PKTINFO, 1);
	change(fd, IPPROTO_IP, IP_FREEBIND, 1);
	change(fd, IPPROTO_IP, IP_TRANSPARENT, 1);
	change(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT);
	change(fd, IPPROTO_IP, IP_MINTTL, 5);
	change(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
	change(fd, IPPROTO_IP, 51, 40000 | 45000 << 16);   /* IP_LOCAL_PORT_RANGE */
}

static inline void change_six(int fd)
{
	change(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44);
	change(fd, IPPROTO_IPV6, IPV6_TCLASS, 0x20);
	change(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
	change(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
	change(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	change(fd, IPPROTO_IPV6, IPV6_DONTFRAG, 1);
	change(fd, IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0);
	change(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO);
	change(fd, IPPROTO_IPV6, 73, 3);   /* IPV6_MINHOPCOUNT */
}
#endif

/* All options that a program can set on UDP sockets over IPv4 and IPv6, bound, connected and neither. */
#include "sockopts.h"

enum { PLAIN, FRESH, BOUND, CONNECTED, KINDS };
static int fds[2][KINDS];
static struct options before[2][KINDS];

int main(void)
{
	static const char *const hosts[2] = {"127.0.0.1", "::1"};
	static const char *const names[KINDS] = {"untouched", "fresh", "bound", "connected"};
	start();
	for (int six = 0; six < 2; six++) {
		int *fd = fds[six];
		fd[PLAIN] = new_socket(hosts[six], SOCK_DGRAM);
		fd[FRESH] = new_socket(hosts[six], SOCK_DGRAM);
		for (int k = BOUND; k < KINDS; k++) fd[k] = bound(hosts[six], SOCK_DGRAM);
		address to = name_of(fd[BOUND]);
		CHECK(connect(fd[CONNECTED], (void *)&to.name, to.length) == 0);
		for (int k = FRESH; k < KINDS; k++) {
			change_common(fd[k]);
			if (six) change_six(fd[k]);
			change(fd[k], SOL_SOCKET, SO_BROADCAST, 1);
			change(fd[k], SOL_SOCKET, SO_NO_CHECK, 1);
			change(fd[k], SOL_SOCKET, SO_SNDBUF, 30000);
			change(fd[k], SOL_SOCKET, SO_RCVBUF, 40000);
			change(fd[k], IPPROTO_IP, IP_RECVERR, 1);
			change(fd[k], IPPROTO_IP, IP_RECVORIGDSTADDR, 1);
			change(fd[k], IPPROTO_IP, IP_MULTICAST_TTL, 9);
			change(fd[k], IPPROTO_IP, IP_MULTICAST_LOOP, 0);
			change(fd[k], IPPROTO_UDP, 103, 1000);   /* UDP_SEGMENT */
			change(fd[k], IPPROTO_UDP, 104, 1);      /* UDP_GRO */
			if (six) change(fd[k], IPPROTO_IPV6, IPV6_RECVERR, 1);
			if (six) change(fd[k], IPPROTO_UDP, 101, 1);   /* UDP_NO_CHECK6_TX */
			if (k == FRESH) change(fd[k], SOL_SOCKET, SO_REUSEADDR, 1), change(fd[k], SOL_SOCKET, SO_REUSEPORT, 1);
		}
		for (int k = 0; k < KINDS; k++) read_all_options(fd[k], 0, &before[six][k]);
	}
	ready();
	await_check();
	for (int six = 0; six < 2; six++)
		for (int k = 0; k < KINDS; k++) check_all_options(fds[six][k], 0, &before[six][k], names[k]);
	pass();
}

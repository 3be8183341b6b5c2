/* All options that a program can set on TCP sockets: never connected, listening, at both ends of a connection, over IPv4
   and IPv6, and such that nobody has touched; each has the value that it had. */
#include "sockopts.h"

enum { PLAIN, FRESH, LISTENING, CLIENT, SERVER, KINDS };
static int fds[2][KINDS];
static struct options before[2][KINDS];

static void change_tcp(int fd, int connected)
{
	change(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	change(fd, IPPROTO_TCP, TCP_CORK, 1);
	change(fd, IPPROTO_TCP, TCP_KEEPIDLE, 99);
	change(fd, IPPROTO_TCP, TCP_KEEPINTVL, 17);
	change(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
	change(fd, IPPROTO_TCP, TCP_SYNCNT, 3);
	change(fd, IPPROTO_TCP, TCP_LINGER2, 12);
	change(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 77000);
	change(fd, IPPROTO_TCP, 25, 8192);   /* TCP_NOTSENT_LOWAT */
	change(fd, IPPROTO_TCP, 16, 1);      /* TCP_THIN_LINEAR_TIMEOUTS */
	change(fd, IPPROTO_TCP, 36, 1);      /* TCP_INQ */
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0 || errno == ENOENT || errno == EPERM);
	if (connected) return;
	change(fd, IPPROTO_TCP, TCP_MAXSEG, 900);
	change(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, 50000);
	change(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
	change(fd, IPPROTO_TCP, 27, 1);      /* TCP_SAVE_SYN */
	change(fd, SOL_SOCKET, SO_SNDBUF, 30000);
	change(fd, SOL_SOCKET, SO_RCVBUF, 40000);
	change(fd, SOL_SOCKET, SO_INCOMING_CPU, 0);
}

int main(void)
{
	static const char *const hosts[2] = {"127.0.0.1", "::1"};
	start();
	for (int six = 0; six < 2; six++) {
		int *fd = fds[six], listener = listening(hosts[six], 5), ends[2];
		fd[PLAIN] = new_socket(hosts[six], SOCK_STREAM);
		fd[FRESH] = new_socket(hosts[six], SOCK_STREAM);
		fd[LISTENING] = listening(hosts[six], 5);
		connection(listener, hosts[six], ends);
		fd[CLIENT] = ends[0], fd[SERVER] = ends[1];
		for (int k = FRESH; k < KINDS; k++) {
			change_common(fd[k]);
			if (six) change_six(fd[k]);
			change_tcp(fd[k], k >= CLIENT);
			if (k == FRESH) change(fd[k], SOL_SOCKET, SO_REUSEADDR, 1), change(fd[k], SOL_SOCKET, SO_REUSEPORT, 1);
			if (six && k == FRESH) change(fd[k], IPPROTO_IPV6, IPV6_V6ONLY, 1);
		}
		for (int k = 0; k < KINDS; k++) read_all_options(fd[k], k >= CLIENT, &before[six][k]);
	}
	ready();
	await_check();
	for (int six = 0; six < 2; six++) {
		static const char *const names[KINDS] = {"untouched", "fresh", "listening", "client", "server"};
		for (int k = 0; k < KINDS; k++) check_all_options(fds[six][k], k >= CLIENT, &before[six][k], names[k]);
		say(fds[six][CLIENT], "hello");
		set_option(fds[six][CLIENT], IPPROTO_TCP, TCP_CORK, 0);
		hear(fds[six][SERVER], "hello");
	}
	pass();
}

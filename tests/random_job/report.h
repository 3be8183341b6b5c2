/* What each actor has. First what can be told without a change, by all; then contents, which are taken out. */
#ifndef REPORT_H
#define REPORT_H
#include "sockets.h"
#include <dirent.h>

#define PARTS 2
#define DEEP 4

static const char *kind_of(int fd)
{
	static char text[64];
	const char *link = link_of(fd), *end = strchr(link, '[');
	if (strncmp(link, "pipe:", 5) == 0) return "pipe";
	if (strncmp(link, "socket:", 7) == 0) return "socket";
	if (strncmp(link, "anon_inode:", 11) == 0) return end ? end : link;
	link = strrchr(link, '/') ? strrchr(link, '/') + 1 : link;
	if (link[0] == '#' || strstr(link, " (deleted)")) link = strstr(link_of(fd), "/memfd:") ? "memfd" : "a file without a name";
	snprintf(text, sizeof text, "%.60s", link);
	return text;
}

/* Whom a number belongs to; of one that has ended nothing is expected. */
static const char *who(int pid)
{
	static char text[20];
	int actor = actor_of(pid);
	snprintf(text, sizeof text, "%d", actor);
	return actor < ACTORS && shared->dead[actor] ? "one that has ended" : text;
}

static const char *name_of(int fd, int peer)
{
	static char text[2][200];
	union name name = {0};
	socklen_t size = sizeof name;
	const char *last;
	if ((peer ? getpeername : getsockname)(fd, &name.any, &size)) return "none";
	if (name.any.sa_family != AF_UNIX) return name.any.sa_family == AF_INET ? "inet" : "inet6";
	if (size <= sizeof(sa_family_t)) return "unnamed";
	if (name.un.sun_path[0]) return strcpy(text[peer], name.un.sun_path);
	last = strrchr(name.un.sun_path + 1, '-');
	return last && strlen(name.un.sun_path + 1) > 5 ? strcpy(text[peer], last) : "autobound";
}

static void report_epoll(int fd)
{
	struct epoll_event ready[100];
	int n = epoll_wait(fd, ready, 100, 0);
	for (int again = 1; again;) {
		again = 0;
		for (int i = 0; i + 1 < n; i++) if (ready[i].data.u64 > ready[i + 1].data.u64) {
			struct epoll_event other = ready[i];
			ready[i] = ready[i + 1], ready[i + 1] = other, again = 1;
		}
	}
	for (int i = 0; i < n; i++) dprintf(1, " %lx:%x", (long)ready[i].data.u64, ready[i].events & ~EPOLLOUT);
}

static void report_socket(int fd)
{
	static const int names[] = {SO_TYPE, SO_DOMAIN, SO_ACCEPTCONN, SO_KEEPALIVE, SO_PASSCRED, SO_PRIORITY, SO_REUSEADDR, SO_OOBINLINE, SO_TIMESTAMP, SO_MARK, SO_LINGER};
	struct ucred peer = {0};
	socklen_t size = sizeof peer;
	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) dprintf(1, " %d", option_of(fd, names[i]));
	dprintf(1, " name %s", name_of(fd, 0));
	if (option_of(fd, SO_DOMAIN) == AF_UNIX && option_of(fd, SO_TYPE) == SOCK_DGRAM) return;   /* theirs may be closed: who they were is lost */
	dprintf(1, " peer %s", name_of(fd, 1));
	if (option_of(fd, SO_DOMAIN) == AF_UNIX && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) dprintf(1, " of %s", who(peer.pid));
}

static void report_descriptors(void)
{
	for (int fd = FIRST; fd < LAST; fd++) {
		struct pollfd one = {fd, POLLIN | POLLPRI | POLLRDHUP, 0};
		struct f_owner_ex owner = {0};
		int fdflags = fcntl(fd, F_GETFD), flags = fcntl(fd, F_GETFL);
		if (fdflags < 0) continue;
		dprintf(1, "%d fd %d: %s %o %d", self, fd, kind_of(fd), flags & ~O_TMPFILE, fdflags);
		if (!(flags & O_PATH)) {
			poll(&one, 1, 0);
			fcntl(fd, F_GETOWN_EX, &owner);
			dprintf(1, " at %ld ready %x owner of %s signal %d", is(fd, "/") ? (long)lseek(fd, 0, SEEK_CUR) : 0L, one.revents, who(owner.pid), fcntl(fd, F_GETSIG));
		}
		if (is(fd, "pipe:") || is(fd, "fifo")) dprintf(1, " size %d", fcntl(fd, F_GETPIPE_SZ));
		if (is(fd, "memfd")) dprintf(1, " seals %x", fcntl(fd, F_GET_SEALS));
		if (is(fd, "eventpoll")) report_epoll(fd);
		if (is(fd, "socket:") && !(flags & O_PATH)) report_socket(fd);
		dprintf(1, "\n");
	}
}

/* -- contents ----------------------------------------------------------------------------------------------------- */
static void take_out(int fd, int depth);

static int receive(int fd, int depth, uint64_t *total, uint64_t *hash)
{
	char control[CMSG_SPACE(sizeof(int) * 16) + CMSG_SPACE(sizeof(struct ucred)) + 256];
	union name from = {0};
	struct iovec part = {data, sizeof data};
	struct msghdr message = {&from, sizeof from, &part, 1, control, sizeof control, 0};
	ssize_t got;
	/* little at a time, to learn where in a stream descriptors come */
	if (option_of(fd, SO_DOMAIN) == AF_UNIX && option_of(fd, SO_TYPE) == SOCK_STREAM) part.iov_len = 64;
	got = recvmsg(fd, &message, MSG_DONTWAIT);
	if (got < 0) return errno;
	*hash = hash_more(*hash, data, got), *total += got;
	if (option_of(fd, SO_TYPE) != SOCK_STREAM) dprintf(1, " message %zd:%x", got, (unsigned)(hash_more(NO_HASH, data, got) >> 32));
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		int fds[16], n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		struct ucred who;
		if (c->cmsg_level != SOL_SOCKET) continue;
		if (c->cmsg_type == SCM_CREDENTIALS) memcpy(&who, CMSG_DATA(c), sizeof who), dprintf(1, " by %d", actor_of(who.pid));
		if (c->cmsg_type != SCM_RIGHTS) continue;
		memcpy(fds, CMSG_DATA(c), n * sizeof(int));
		for (int i = 0; i < n; i++) {
			dprintf(1, " [behind %ld: %s", (long)(*total - got), kind_of(fds[i]));
			if (depth < DEEP) take_out(fds[i], depth + 1);
			dprintf(1, "]");
			close(fds[i]);
		}
	}
	return got == 0 && option_of(fd, SO_TYPE) != SOCK_DGRAM ? -1 : 0;
}

static void take_out_socket(int fd, int depth)
{
	struct stream *stream = is_tcp(fd) ? stream_of(fd, 1) : NULL;
	uint64_t total = 0, hash = NO_HASH;
	int error = 0, accepted;
	if (option_of(fd, SO_ACCEPTCONN) == 1) {
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		while ((accepted = accept(fd, NULL, NULL)) >= 0) {
			dprintf(1, " [accepted");
			if (depth < DEEP) take_out(accepted, depth + 1);
			dprintf(1, "]");
			close(accepted);
		}
		return;
	}
	for (int i = 0; i < 10000 && (error = receive(fd, depth, &total, &hash)) != -1; i++) {
		if (error == EAGAIN && stream && total < stream->sent && i < 4000) usleep(1000);   /* it is on its way */
		else if (error) break;
	}
	dprintf(1, " %ld bytes %lx, then %d, error %d", (long)total, (long)hash, error, option_of(fd, SO_ERROR));
	if (stream) stream->sent -= total;
}

static void take_out_stream(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	uint64_t hash = NO_HASH, total = 0;
	ssize_t n = -2;
	if ((flags & O_ACCMODE) == O_WRONLY) return;
	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	for (int i = 0; i < 10000 && (n = read(fd, data, sizeof data)) > 0; i++) hash = hash_more(hash, data, n), total += n;
	dprintf(1, " %ld bytes %lx, then %d", (long)total, (long)hash, n < 0 ? errno : (int)n);
}

static void take_out_file(int fd)
{
	uint64_t hash = NO_HASH, total = 0;
	char path[64];
	struct stat st;
	ssize_t n;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) return;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while ((n = pread(fd, data, sizeof data, total)) > 0) hash = hash_more(hash, data, n), total += n;
	close(fd);
	dprintf(1, " mode %o links %d size %ld %lx", st.st_mode, (int)st.st_nlink, (long)total, (long)hash);
}

static void take_out(int fd, int depth)
{
	uint64_t value = 0;
	struct itimerspec timer;
	if (fcntl(fd, F_GETFL) & O_PATH) return;
	if (is(fd, "pipe:") || is(fd, "fifo")) take_out_stream(fd);
	else if (is(fd, "socket:")) take_out_socket(fd, depth);
	else if (is(fd, "eventfd")) {
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		for (int i = 0; i < 3 && read(fd, &value, 8) == 8; i++) dprintf(1, " value %ld", (long)value);
	} else if (is(fd, "signalfd")) {
		struct signalfd_siginfo info;
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
		while (read(fd, &info, sizeof info) == sizeof info)
			dprintf(1, " signal %u code %d from %d with %d;", info.ssi_signo, info.ssi_code, actor_of(info.ssi_pid), info.ssi_code < 0 && info.ssi_code != SI_TKILL ? info.ssi_int : 0);
	} else if (is(fd, "timerfd") && timerfd_gettime(fd, &timer) == 0)
		dprintf(1, " in %ld every %ld.%ld", far_of(&timer.it_value), timer.it_interval.tv_sec, timer.it_interval.tv_nsec);
	else take_out_file(fd);
}

static void report_contents(void)
{
	for (int fd = FIRST; fd < LAST; fd++) {
		if (fcntl(fd, F_GETFD) < 0) continue;
		dprintf(1, "%d contents of %d:", self, fd);
		take_out(fd, 0);
		dprintf(1, "\n");
	}
}

static void report_task(void)
{
	struct rlimit stack;
	char *cwd = getcwd(NULL, 0), name[16];
	sigset_t mask;
	uint64_t bits;
	getrlimit(RLIMIT_STACK, &stack);
	prctl(PR_GET_NAME, name);
	sigprocmask(SIG_SETMASK, NULL, &mask);
	memcpy(&bits, &mask, sizeof bits);
	dprintf(1, "%d is %s in %s group %d session %d parent %d nice %d stack %ld mask %lx\n", self, name, cwd ? strrchr(cwd, '/') : "none", actor_of(getpgrp()) % 99,
	        actor_of(getsid(0)) % 99, self ? actor_of(getppid()) : -1, getpriority(PRIO_PROCESS, 0), (long)stack.rlim_cur, (long)bits);
	for (int i = 0; i < NUMBERS; i++) {
		struct sigaction action;
		sigaction(numbers[i], NULL, &action);
		if (action.sa_handler || action.sa_flags) dprintf(1, "%d action %d: %d %x\n", self, numbers[i], action.sa_handler == SIG_IGN ? 1 : action.sa_handler ? 2 : 0, action.sa_flags);
	}
	free(cwd);
}

static void report(int part)
{
	if (part == 0) report_task(), report_timers(), report_descriptors();
	else report_contents(), report_memory(), report_threads(), report_signals();
}

/* The job's directory, in the end. */
static void report_files(void)
{
	char *names[200];
	int n = 0;
	struct dirent *entry;
	DIR *directory = opendir(".");
	while (directory && (entry = readdir(directory)) && n < 200) names[n++] = strdup(entry->d_name);
	for (int again = 1; again;) {
		again = 0;
		for (int i = 0; i + 1 < n; i++) if (strcmp(names[i], names[i + 1]) > 0) {
			char *other = names[i];
			names[i] = names[i + 1], names[i + 1] = other, again = 1;
		}
	}
	for (int i = 0; i < n; i++) {
		int fd = open(names[i], O_PATH | O_NOFOLLOW | O_CLOEXEC);
		dprintf(1, "file %s:", names[i]);
		take_out_file(fd);
		dprintf(1, "\n");
		close(fd);
	}
}
#endif

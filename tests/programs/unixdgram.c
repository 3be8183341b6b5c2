/* Unix datagram sockets: servers with names of all kinds and what waits in them, from senders with a name, without one,
   and gone; clients that are connected, one to a server whose name is gone, one to a server that is gone. */
#include "family.h"
#include <sys/socket.h>
#include <stddef.h>
#include <sys/un.h>
#include <time.h>

static socklen_t named(struct sockaddr_un *address, const char *name)
{
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path + (*name == '@'), name + (*name == '@'));
	return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (*name != '@');
}

static int bound(const char *name)
{
	struct sockaddr_un address;
	socklen_t length = named(&address, name);
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (*name != '@') unlink(name);
	if (bind(fd, (struct sockaddr *)&address, length) != 0) fail("cannot bind %s", name);
	return fd;
}

static void connect_to(int fd, const char *name)
{
	struct sockaddr_un address;
	CHECK(connect(fd, (struct sockaddr *)&address, named(&address, name)) == 0);
}

static void send_to(int fd, const char *name, const char *text)
{
	struct sockaddr_un address;
	socklen_t length = named(&address, name);
	CHECK(sendto(fd, text, strlen(text), 0, (struct sockaddr *)&address, length) == (ssize_t)strlen(text));
}

/* The next datagram is this text from a sender of this name. */
static void comes(int fd, const char *text, const char *from)
{
	struct sockaddr_un address, expected;
	socklen_t length = sizeof address, wanted = named(&expected, from);
	char buffer[200] = "";
	ssize_t got = recvfrom(fd, buffer, 199, MSG_DONTWAIT, (struct sockaddr *)&address, &length);
	if (got != (ssize_t)strlen(text) || strcmp(buffer, text) != 0) fail("%zd bytes: '%s', not '%s'", got, buffer, text);
	if (!*from) CHECK(length == 0 || length == sizeof(sa_family_t));
	else if (length != wanted || memcmp(&address, &expected, wanted) != 0) fail("'%s' does not come from %s", text, from);
}

static void nothing(int fd)
{
	char buffer[1];
	CHECK(recv(fd, buffer, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

int main(void)
{
	static char shm[] = "/dev/shm/unixdgram-XXXXXX", in_shm[100], abstract[64];
	int server, lost, private, gone, abstract_fd, sender, sender2, client, lost_client, gone_client, unnamed, mutual[2], pair[2];
	char text[20];
	start();
	CHECK(mkdtemp(shm));
	snprintf(in_shm, sizeof in_shm, "%s/server", shm);
	snprintf(abstract, sizeof abstract, "@dgram %d", (int)time(NULL) ^ getpid() << 8);
	server = bound("server");
	lost = bound("lost");
	private = bound(in_shm);
	abstract_fd = bound(abstract);
	gone = bound("gone");
	sender = bound("sender");
	sender2 = bound("sender2");
	unnamed = socket(AF_UNIX, SOCK_DGRAM, 0);
	client = socket(AF_UNIX, SOCK_DGRAM, 0);
	connect_to(client, "server");
	lost_client = socket(AF_UNIX, SOCK_DGRAM, 0);
	connect_to(lost_client, "lost");
	gone_client = socket(AF_UNIX, SOCK_DGRAM, 0);
	connect_to(gone_client, "gone");
	/* both ways: each has the other as its peer */
	mutual[0] = bound("mutual0");
	mutual[1] = bound("mutual1");
	connect_to(mutual[0], "mutual1");
	connect_to(mutual[1], "mutual0");
	CHECK(send(mutual[0], "to one", 6, 0) == 6 && send(mutual[1], "to zero", 7, 0) == 7);
	/* a pair, one end of which was named later */
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	CHECK(bind(pair[1], (struct sockaddr *)&(struct sockaddr_un){AF_UNIX, "late"}, sizeof(sa_family_t) + 5) == 0);
	CHECK(send(pair[0], "in", 2, 0) == 2 && send(pair[1], "out", 3, 0) == 3);

	send_to(sender, "server", "first");
	CHECK(send(client, "second", 6, 0) == 6);
	send_to(sender2, "server", "third");
	send_to(unnamed, "server", "fourth");
	send_to(sender, "server", "fifth");
	int passing = socket(AF_UNIX, SOCK_DGRAM, 0);
	send_to(passing, "server", "sixth");
	CHECK(close(passing) == 0);
	passing = bound("passing");
	send_to(passing, "server", "seventh");
	CHECK(close(passing) == 0 && unlink("passing") == 0);
	send_to(sender, "lost", "to the lost");
	send_to(unnamed, in_shm, "to shm");
	for (int i = 0; i < 8; i++) {
		snprintf(text, sizeof text, "number %d", i);
		send_to(sender, abstract, text);
	}
	CHECK(unlink("lost") == 0 && close(gone) == 0);
	ready();
	await_check();
	comes(server, "first", "sender");
	comes(server, "second", "");
	comes(server, "third", "sender2");
	comes(server, "fourth", "");
	comes(server, "fifth", "sender");
	comes(server, "sixth", "");
	comes(server, "seventh", "passing");
	nothing(server);
	CHECK(access("passing", F_OK) == -1);
	comes(lost, "to the lost", "sender");
	comes(private, "to shm", "");
	for (int i = 0; i < 8; i++) {
		snprintf(text, sizeof text, "number %d", i);
		comes(abstract_fd, text, "sender");
	}
	nothing(abstract_fd);
	CHECK(send(client, "anew", 4, 0) == 4);
	comes(server, "anew", "");
	CHECK(access("lost", F_OK) == -1 && send(lost_client, "anew", 4, 0) == 4);
	comes(lost, "anew", "");
	CHECK(send(gone_client, "x", 1, MSG_NOSIGNAL) == -1 && errno == ECONNREFUSED);
	send_to(sender, in_shm, "anew");
	comes(private, "anew", "sender");
	send_to(unnamed, abstract, "anew");
	comes(abstract_fd, "anew", "");
	send_to(abstract_fd, "sender", "back");
	comes(sender, "back", abstract);
	comes(mutual[1], "to one", "mutual0");
	comes(mutual[0], "to zero", "mutual1");
	CHECK(send(mutual[0], "again", 5, 0) == 5);
	comes(mutual[1], "again", "mutual0");
	comes(pair[1], "in", "");
	comes(pair[0], "out", "late");
	CHECK(send(pair[1], "again", 5, 0) == 5);
	comes(pair[0], "again", "late");
	/* only its peer may send to a connected one */
	CHECK(sendto(sender, "x", 1, 0, (struct sockaddr *)&(struct sockaddr_un){AF_UNIX, "mutual0"}, sizeof(sa_family_t) + 8) == -1);
	CHECK(errno == EPERM);
	pass();
}

/* Names of unix sockets: a path, one in the pod's own /dev/shm, a relative one of a directory that was left since, one
   that is unlinked, abstract and automatic ones. Listeners and what was accepted from them, clients with a name,
   listeners that are closed, peers that are gone; connecting anew. */
#include "family.h"
#include <sys/socket.h>
#include <stddef.h>
#include <sys/un.h>
#include <time.h>

static char here[300], shm_path[] = "/dev/shm/unixnames-XXXXXX";

static socklen_t named(struct sockaddr_un *address, const char *name)
{
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path + (*name == '@'), name + (*name == '@'));
	return *name == '@' ? offsetof(struct sockaddr_un, sun_path) + strlen(name) : sizeof *address;
}

static int bound(int type, const char *name)
{
	struct sockaddr_un address;
	socklen_t length = named(&address, name);
	int fd = socket(AF_UNIX, type, 0);
	CHECK(fd >= 0);
	if (*name != '@') unlink(name);
	if (bind(fd, (struct sockaddr *)&address, length) != 0) fail("cannot bind %s", name);
	return fd;
}

static void connect_to(int fd, const char *name)
{
	struct sockaddr_un address;
	socklen_t length = named(&address, name);
	if (connect(fd, (struct sockaddr *)&address, length) != 0) fail("cannot connect to %s", name);
}

static int connected(int type, const char *name)
{
	int fd = socket(AF_UNIX, type, 0);
	CHECK(fd >= 0);
	connect_to(fd, name);
	return fd;
}

static void is_named(int fd, const char *own, const char *peer)
{
	struct sockaddr_un address, expected;
	socklen_t length = sizeof address, wanted;
	for (int i = 0; i < 2; i++) {
		const char *name = i ? peer : own;
		if (!name) continue;
		length = sizeof address;
		memset(&address, 0, sizeof address);
		CHECK((i ? getpeername : getsockname)(fd, (struct sockaddr *)&address, &length) == 0);
		if (!*name) {
			if (length != sizeof(sa_family_t)) fail("%d has a name: %s", fd, address.sun_path);
			continue;
		}
		wanted = named(&expected, name);
		if (*name != '@') wanted = offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
		if (length != wanted || memcmp(&address, &expected, wanted) != 0)
			fail("%d has the %sname %s (%d), not %s", fd, i ? "peer's " : "", address.sun_path + (*name == '@'), length, name);
	}
}

static void talk(int a, int b)
{
	char buffer[8];
	CHECK(send(a, "ping", 4, MSG_NOSIGNAL) == 4 && recv(b, buffer, 8, 0) == 4 && memcmp(buffer, "ping", 4) == 0);
	CHECK(send(b, "pong!", 5, MSG_NOSIGNAL) == 5 && recv(a, buffer, 8, 0) == 5 && memcmp(buffer, "pong!", 5) == 0);
}

struct service { const char *name; int type, listener, client, server; };

static struct service services[] = {
	{.type = SOCK_STREAM}, {.type = SOCK_SEQPACKET}, {"inner.sock", SOCK_STREAM, 0, 0, 0},
	{"@abstract/of the program", SOCK_STREAM, 0, 0, 0}, {.type = SOCK_STREAM}, {.type = SOCK_SEQPACKET},
};

int main(void)
{
	static char path[400], path2[400], lost[400], shm[400], client_name[400], abstract[40], abstract2[64], automatic[16];
	int client, bare_client, bare_server, orphan_client, orphan_server, unbound, unlistened, auto_fd, number = sizeof services / sizeof *services;
	char buffer[10];
	struct sockaddr_un address;
	socklen_t length;
	struct stat st;
	start();
	CHECK(getcwd(here, sizeof here));
	CHECK(strlen(here) < 80);
	CHECK(mkdtemp(shm_path));
	snprintf(path, sizeof path, "%s/s", here);
	snprintf(path2, sizeof path2, "%s/q", here);
	snprintf(shm, sizeof shm, "%s/in shm", shm_path);
	snprintf(lost, sizeof lost, "%s/u", here);
	snprintf(client_name, sizeof client_name, "%s/c", here);
	snprintf(abstract, sizeof abstract, "@abstract %d", (int)time(NULL) ^ getpid() << 8);
	snprintf(abstract2, sizeof abstract2, "%s/2", abstract);
	services[0].name = path;
	services[1].name = path2;
	services[3].name = abstract;
	services[4].name = shm;
	services[5].name = lost;
	mkdir("inner", 0700);
	CHECK(chdir("inner") == 0);
	for (int i = 0; i < number; i++) {
		struct service *s = &services[i];
		s->listener = bound(s->type, s->name);
		CHECK(listen(s->listener, 3 + i) == 0);
		s->client = connected(s->type, s->name);
		s->server = accept(s->listener, NULL, NULL);
		CHECK(s->server >= 0);
	}
	CHECK(chmod(path, 0604) == 0 && unlink(lost) == 0);

	client = bound(SOCK_STREAM, client_name);   /* with a name on both sides */
	connect_to(client, path);
	unbound = accept(services[0].listener, NULL, NULL);
	CHECK(unbound >= 0);

	int other = bound(SOCK_STREAM, abstract2);   /* the listener goes, the connection stays */
	CHECK(listen(other, 1) == 0);
	bare_client = connected(SOCK_STREAM, abstract2);
	bare_server = accept(other, NULL, NULL);
	CHECK(bare_server >= 0 && close(other) == 0);

	orphan_client = connected(SOCK_STREAM, path);   /* the other side is gone */
	CHECK(send(orphan_client, "from the dead", 13, 0) == 13);
	orphan_server = accept(services[0].listener, NULL, NULL);
	CHECK(orphan_server >= 0 && close(orphan_client) == 0);
	orphan_client = connected(SOCK_STREAM, path);
	other = accept(services[0].listener, NULL, NULL);
	CHECK(other >= 0 && send(other, "goodbye", 7, 0) == 7 && close(other) == 0);

	unlistened = bound(SOCK_STREAM, "only bound");
	auto_fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	address.sun_family = AF_UNIX;
	CHECK(bind(auto_fd, (struct sockaddr *)&address, sizeof(sa_family_t)) == 0);
	length = sizeof address;
	CHECK(getsockname(auto_fd, (struct sockaddr *)&address, &length) == 0 && length == sizeof(sa_family_t) + 6);
	snprintf(automatic, sizeof automatic, "@%.5s", address.sun_path + 1);
	CHECK(chdir("..") == 0);
	ready();
	await_check();
	for (int i = 0; i < number; i++) {
		struct service *s = &services[i];
		is_named(s->listener, s->name, NULL);
		is_named(s->client, "", s->name);
		is_named(s->server, s->name, "");
		talk(s->client, s->server);
		if (s->name == lost) {
			CHECK(stat(lost, &st) == -1);
			continue;
		}
		if (s->name[0] == 'i') CHECK(chdir("inner") == 0);
		int again = connected(s->type, s->name), accepted = accept(s->listener, NULL, NULL);
		if (s->name[0] == 'i') CHECK(chdir("..") == 0);
		is_named(accepted, s->name, "");
		talk(again, accepted);
		CHECK(close(again) == 0 && close(accepted) == 0);
	}
	CHECK(stat(path, &st) == 0 && (st.st_mode & 07777) == 0604);
	is_named(client, client_name, path);
	is_named(unbound, path, client_name);
	talk(client, unbound);
	is_named(bare_client, "", abstract2);
	is_named(bare_server, abstract2, "");
	talk(bare_client, bare_server);
	is_named(orphan_server, path, NULL);
	CHECK(recv(orphan_server, buffer, 4, 0) == 4 && memcmp(buffer, "from", 4) == 0);
	CHECK(recv(orphan_server, buffer, 10, 0) == 9 && recv(orphan_server, buffer, 10, 0) == 0);
	is_named(orphan_client, "", path);
	CHECK(recv(orphan_client, buffer, 10, 0) == 7 && recv(orphan_client, buffer, 10, 0) == 0);
	is_named(unlistened, "only bound", NULL);
	CHECK(chdir("inner") == 0);
	other = socket(AF_UNIX, SOCK_STREAM, 0);
	length = named(&address, "only bound");
	CHECK(connect(other, (struct sockaddr *)&address, length) == -1 && errno == ECONNREFUSED);
	CHECK(listen(unlistened, 1) == 0 && connect(other, (struct sockaddr *)&address, length) == 0);
	is_named(auto_fd, automatic, NULL);
	/* a name that is free again is free */
	CHECK(close(services[3].listener) == 0 && close(services[3].server) == 0 && close(services[3].client) == 0);
	CHECK(close(bound(SOCK_STREAM, abstract)) == 0 && close(bare_server) == 0 && close(bound(SOCK_STREAM, abstract2)) == 0);
	pass();
}

/* Writes to full pipes, by write(2) and writev(2): interrupted half-way, each must return the whole count
   to a program without signal handlers, and every byte must arrive once. */
#include "program.h"
#include <pthread.h>
#include <sys/uio.h>

#define SIZE 300000
enum { WRITE, WRITEV, WAYS };
static char *content[WAYS];
static int pipes[WAYS][2];

static void *send_all(void *argument)
{
	int way = (int)(intptr_t)argument, out = pipes[way][1];
	ssize_t sent = -1;
	if (way == WRITE) sent = write(out, content[way], SIZE);
	if (way == WRITEV) {
		struct iovec parts[4] = {{content[way], 1000}, {content[way] + 1000, 0}, {content[way] + 1000, 149000},
					 {content[way] + 150000, 150000}}, same[4];
		memcpy(same, parts, sizeof parts);
		sent = writev(out, parts, 4);
		CHECK(memcmp(same, parts, sizeof parts) == 0);
	}
	if (sent != SIZE) fail("way %d: %zd of %d bytes", way, sent, SIZE);
	return argument;
}

int main(void)
{
	pthread_t threads[WAYS];
	static char got[SIZE];
	start();
	for (int i = 0; i < WAYS; i++) {
		content[i] = malloc(SIZE);
		fill(content[i], SIZE, i);
		CHECK(pipe(pipes[i]) == 0);
		CHECK(pthread_create(&threads[i], NULL, send_all, (void *)(intptr_t)i) == 0);
	}
	usleep(50000);
	ready();
	await_check();
	for (int i = 0; i < WAYS; i++) {
		for (size_t done = 0; done < SIZE;) {
			ssize_t n = read(pipes[i][0], got + done, SIZE - done > 5000 ? 5000 : SIZE - done);
			CHECK(n > 0);
			done += n;
		}
		check_filled(got, SIZE, i, "what came through a pipe");
		CHECK(pthread_join(threads[i], NULL) == 0);
		CHECK(fcntl(pipes[i][0], F_SETFL, O_NONBLOCK) == 0 && read(pipes[i][0], got, 1) == -1 && errno == EAGAIN);
	}
	pass();
}

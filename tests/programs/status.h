/* What /proc says of the calling thread, to be the same later: lines of its status file. */
#ifndef STATUS_H
#define STATUS_H
#include "program.h"
#include <sys/syscall.h>

struct status { char text[4000]; };

/* The lines whose names stand in the list, each name with its colon and all separated by spaces. */
static inline void read_status(struct status *s, const char *names)
{
	char path[64], line[1000];
	FILE *file;
	memset(s, 0, sizeof *s);
	snprintf(path, sizeof path, "/proc/self/task/%ld/status", syscall(SYS_gettid));
	file = fopen(path, "r");
	CHECK(file != NULL);
	while (fgets(line, sizeof line, file)) {
		char name[40] = " ";
		CHECK(sscanf(line, "%30[^:\t]", name + 1) == 1);
		strcat(name, ": ");
		if (strstr(names, name)) strncat(s->text, line, sizeof s->text - strlen(s->text) - 1);
	}
	fclose(file);
	CHECK(s->text[0]);
}

static inline void check_status(const struct status *before, const char *names)
{
	struct status now;
	read_status(&now, names);
	if (strcmp(now.text, before->text)) fail("process %d was\n%s\nand is\n%s", getpid(), before->text, now.text);
}
#endif

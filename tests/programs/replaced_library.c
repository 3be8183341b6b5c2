/* LDFLAGS: -ldl */
/* A library whose file was replaced while it is in use, as by a package upgrade: its code goes on as it was, its data
   are the process's, and what is loaded anew is the new one. */
#include "smaps.h"
#include <dlfcn.h>

static char *build(const char *name, int answer)
{
	static char path[300];
	char command[700], here[200];
	FILE *file = fopen("library.c", "w");
	CHECK(file && getcwd(here, sizeof here));
	fprintf(file, "int counter = %d; int answer(void) { return %d; } int count(void) { return ++counter; }\n"
		"const char filler[30000] = \"filler\"; const char *text(void) { return filler; }\n", answer, answer);
	CHECK(fclose(file) == 0);
	snprintf(path, sizeof path, "%s/%s", here, name);
	snprintf(command, sizeof command, "gcc -O1 -shared -fPIC -o %s library.c", path);
	CHECK(system(command) == 0);
	return path;
}

int main(void)
{
	int (*answer)(void), (*count)(void);
	const char *(*text)(void);
	void *library, *other;
	start();
	library = dlopen(build("library.so", 7), RTLD_NOW);
	CHECK(library != NULL);
	answer = (int (*)(void))dlsym(library, "answer"), count = (int (*)(void))dlsym(library, "count");
	text = (const char *(*)(void))dlsym(library, "text");
	CHECK(answer && count && text && answer() == 7 && count() == 8);
	build("new.so", 1000);
	CHECK(link("new.so", "other.so") == 0 && rename("new.so", "library.so") == 0);
	ready();
	await_check();
	CHECK(answer() == 7 && count() == 9 && strcmp(text(), "filler") == 0 && text()[29999] == 0);
	other = dlopen("./other.so", RTLD_NOW);
	CHECK(other && other != library && ((int (*)(void))dlsym(other, "answer"))() == 1000);
	CHECK(dlclose(other) == 0 && dlclose(library) == 0);
	pass();
}

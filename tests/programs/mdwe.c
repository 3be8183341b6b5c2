/* A process that has given up to execute what it has written (PR_SET_MDWE): so must be whoever looks into it. */
#include "program.h"
#include <sys/prctl.h>
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

int main(void)
{
	char *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int supported;
	start();
	CHECK(memory != MAP_FAILED);
	fill(memory, 8192, 1);
	supported = prctl(PR_SET_MDWE, 1, 0, 0, 0) == 0;   /* since Linux 6.3 */
	ready();
	await_check();
	check_filled(memory, 8192, 1, "memory");
	if (supported) {
		CHECK(prctl(PR_GET_MDWE, 0, 0, 0, 0) == 1);
		CHECK(mprotect(memory, 4096, PROT_READ | PROT_EXEC) == -1 && errno == EACCES);
		CHECK(mmap(NULL, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EACCES);
	}
	pass();
}

/* What /proc/self/smaps says of the mapping at an address. */
#ifndef SMAPS_H
#define SMAPS_H
#include "program.h"

struct smap { uintptr_t start, end; char protection[5]; unsigned long offset; char name[256], flags[256]; };

static inline struct smap smap_at(const void *address)
{
	struct smap s = {0};
	char line[512];
	FILE *file = fopen("/proc/self/smaps", "r");
	int found = 0;
	CHECK(file != NULL);
	while (fgets(line, sizeof line, file)) {
		unsigned long start, end;
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
			found = (uintptr_t)address >= start && (uintptr_t)address < end;
			if (!found) continue;
			s.start = start, s.end = end;
			s.name[0] = 0;
			CHECK(sscanf(line, "%*s %4s %lx %*s %*s %255[^\n]", s.protection, &s.offset, s.name) >= 2);
		} else if (found && strncmp(line, "VmFlags: ", 9) == 0) {
			snprintf(s.flags, sizeof s.flags, " %.250s", line + 9);
			break;
		}
	}
	fclose(file);
	return s;
}

/* Whether the mapping at an address has a flag of VmFlags, two letters. */
static inline int has_flag(const void *address, const char *flag)
{
	struct smap s = smap_at(address);
	char word[5] = {' ', flag[0], flag[1], ' ', 0};
	return strstr(s.flags, word) != NULL;
}

static inline void check_flag(const void *address, const char *flag, int wanted)
{
	if (has_flag(address, flag) != wanted) fail("flag %s of %p is %d: %s", flag, address, !wanted, smap_at(address).flags);
}

static inline void check_protection(const void *address, const char *wanted)
{
	struct smap s = smap_at(address);
	if (strcmp(s.protection, wanted) != 0) fail("%p is %s instead of %s", address, s.protection, wanted);
}
#endif

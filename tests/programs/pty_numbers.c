/* Numbers with gaps between them are kept, and new pseudo-terminals get the free ones, lowest first. */
#include "terminal.h"
#define MOST 40

int main(void)
{
	int master[MOST], kept[MOST];
	start();
	for (int i = 0; i < MOST; i++) kept[i] = number_of(master[i] = open_master());
	for (int i = 0; i < MOST; i++)
		if (i % 7 != 3) CHECK(close(master[i]) == 0);
	int slave = open_slave(master[17], O_RDWR);
	say(slave, "seventeen");
	ready();
	await_check();
	for (int i = 3; i < MOST; i += 7) CHECK(number_of(master[i]) == kept[i]);
	EXPECT(master[17], "seventeen");
	for (int i = 0; i < MOST; i++)
		if (i % 7 != 3) {
			char path[40];
			snprintf(path, sizeof path, "/dev/pts/%d", kept[i]);
			CHECK(access(path, F_OK) == -1);
		}
	for (int i = 0; i < MOST; i++)
		if (i % 7 != 3) CHECK(number_of(open_master()) == kept[i]);
	pass();
}

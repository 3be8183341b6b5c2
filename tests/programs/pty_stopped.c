/* Terminals whose output is stopped, by TCOOFF, by ^S, and one by both that is started by TCOON: what had been written
   before waits for its reader, what was typed meanwhile is still to be echoed; and one where ^V waits for the
   character that it quotes. */
#include "terminal.h"

static int stopped(int slave) { return !(events(slave) & POLLOUT); }

int main(void)
{
	int master[4], slave[4];
	start();
	for (int i = 0; i < 4; i++) {
		master[i] = open_master();
		slave[i] = open_slave(master[i], O_RDWR);
		say(slave[i], "before\n");
	}
	CHECK(tcflow(slave[0], TCOOFF) == 0);
	say(master[1], "\023");
	CHECK(tcflow(slave[2], TCOOFF) == 0);
	set_modes(slave[3], ICRNL | IXON, 0, ICANON | IEXTEN);
	for (int i = 0; i < 2; i++) {
		say(master[i], "typed \002\377 a\tline\nhalf");
		while (!stopped(slave[i])) usleep(1000);
	}
	say(master[3], "line\nquoted \026");
	usleep(20000);
	ready();
	await_check();

	for (int i = 0; i < 3; i++) CHECK(stopped(slave[i]));
	CHECK(!stopped(slave[3]));
	for (int i = 0; i < 4; i++) {
		EXPECT_ALL(master[i], "before\r\n");
		EXPECT_NONE(master[i]);
	}
	CHECK(tcflow(slave[0], TCOON) == 0 && !stopped(slave[0]));
	CHECK(tcflow(slave[1], TCOON) == 0 && stopped(slave[1]));   /* that undoes no ^S */
	say(master[1], "\021");
	say(master[0], " more\n");
	EXPECT(slave[1], "typed \002\377 a\tline\n");
	EXPECT_ALL(master[1], "typed ^B\377 a\tline\r\nhalf");
	EXPECT(slave[0], "typed \002\377 a\tline\n");
	EXPECT(slave[0], "half more\n");
	EXPECT_ALL(master[0], "typed ^B\377 a\tline\r\nhalf more\r\n");
	CHECK(tcflow(slave[2], TCOON) == 0 && !stopped(slave[2]));
	EXPECT_NONE(slave[2]);
	say(master[3], "\025\n");   /* ^U, which would kill the line */
	EXPECT(slave[3], "line\n");
	EXPECT(slave[3], "quoted \025\n");
	pass();
}

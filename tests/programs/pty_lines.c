/* A terminal that gives whole lines: several unread ones, one with a newline that was quoted, ends of file, one behind
   half a line, a line ended by VEOL, one of which a part has been read, and at the end half a line that can still be
   corrected. Reads return the same pieces. */
#include "terminal.h"

int main(void)
{
	struct termios t;
	char room[8];
	int count;
	start();
	int master = open_master(), slave = open_slave(master, O_RDWR);
	CHECK(tcgetattr(slave, &t) == 0);
	t.c_cc[VEOL] = '!';
	t.c_lflag &= ~ECHO;
	CHECK(tcsetattr(slave, TCSANOW, &t) == 0);

	say(master, "partly read\n" "one\n" "two\026\nand half\n" "\004" "no newline\004" "hey!" "\026\004quoted end\n" "\n");
	put(master, "\026\026nul \0 \377\r", 10);   /* the carriage return ends it: ICRNL */
	say(master, "half a line to be coorect");
	CHECK(read(slave, room, 7) == 7);
	do CHECK(ioctl(slave, FIONREAD, &count) == 0);
	while (count < 58);   /* all lines but their ends of file: they take a moment */

	/* with half a line and nothing else */
	int second = open_master(), other = open_slave(second, O_RDWR);
	set_modes(other, 0, 0, ICANON);
	say(second, "beg");

	/* an end of file and nothing else */
	int third = open_master(), ended = open_slave(third, O_RDWR);
	set_modes(ended, 0, 0, ICANON);
	say(third, "\004");

	/* bytes that had come before lines were asked for: they count as one */
	int fourth = open_master(), pushed = open_slave(fourth, O_RDWR);
	set_modes(pushed, 0, 0, 0);
	say(fourth, "not a line");
	CHECK(poll(&(struct pollfd){.fd = pushed, .events = POLLIN}, 1, 1000) == 1);
	set_modes(pushed, 0, 0, ICANON);

	ready();
	await_check();

	int again;
	CHECK(ioctl(slave, FIONREAD, &again) == 0);
	if (again != count) fail("%d bytes in lines, it were %d", again, count);
	EXPECT(slave, "read\n");
	EXPECT(slave, "one\n");
	EXPECT(slave, "two\nand half\n");
	EXPECT(slave, "");
	EXPECT(slave, "no newline");
	EXPECT(slave, "hey!");
	EXPECT(slave, "\004quoted end\n");
	EXPECT(slave, "\n");
	EXPECT(slave, "\026nul \0 \377\n");
	EXPECT_NONE(slave);
	say(master, "\177\177\177\177\177rrect\n");
	EXPECT(slave, "half a line to be correct\n");
	EXPECT_NONE(master);

	CHECK(!(events(other) & POLLIN));
	say(second, "in\n");
	EXPECT(other, "begin\n");
	CHECK(events(ended) & POLLIN);
	EXPECT(ended, "");
	EXPECT_NONE(ended);
	EXPECT(pushed, "not a line");
	EXPECT_NONE(pushed);
	pass();
}

/* Settings of pseudo-terminals: every flag by itself that the kernel keeps, speeds that have no name, the line
   discipline's byte, all control characters, window size, mode of the file, exclusive mode, and the lock. */
#include "program.h"
#include <asm/termbits.h>
#include <sys/ioctl.h>
#define PAIRS 12

struct seen {
	struct termios2 termios;
	struct winsize size;
	int packet, locked, exclusive, exclusive_master;
	mode_t mode;
};

static int master[PAIRS], slave[PAIRS], number[PAIRS];

static struct seen look(int i)
{
	struct seen s;
	struct stat st;
	memset(&s, 0, sizeof s);
	CHECK(ioctl(slave[i], TCGETS2, &s.termios) == 0);
	CHECK(ioctl(slave[i], TIOCGWINSZ, &s.size) == 0);
	CHECK(ioctl(master[i], TIOCGPKT, &s.packet) == 0);
	CHECK(ioctl(master[i], TIOCGPTLCK, &s.locked) == 0);
	CHECK(ioctl(slave[i], TIOCGEXCL, &s.exclusive) == 0);
	CHECK(ioctl(master[i], TIOCGEXCL, &s.exclusive_master) == 0);
	CHECK(fstat(slave[i], &st) == 0);
	s.mode = st.st_mode;
	return s;
}

static void vary(int i)
{
	struct termios2 t;
	CHECK(ioctl(slave[i], TCGETS2, &t) == 0);
	t.c_iflag = i == 1 ? ~0u : i == 2 ? 0 : 0x5555u << (i % 2);
	t.c_oflag = i == 1 ? ~0u : i == 2 ? 0 : 0x2AAAu >> (i % 3);
	t.c_lflag = i == 1 ? ~0u : i == 2 ? 0 : 0x13579u * (unsigned)i;
	t.c_cflag = (t.c_cflag & ~(CBAUD | CBAUD << IBSHIFT)) | CSTOPB | PARODD | (i % 2 ? HUPCL | CRTSCTS : CLOCAL);
	t.c_cflag |= i == 3 ? B0 : i == 4 ? BOTHER | B9600 << IBSHIFT : BOTHER | BOTHER << IBSHIFT;
	t.c_ispeed = 123456 + (unsigned)i;
	t.c_ospeed = 654321 + (unsigned)i;
	t.c_line = (unsigned char)i;
	for (int n = 0; n < 19; n++) t.c_cc[n] = (unsigned char)(i * 20 + n);
	CHECK(ioctl(slave[i], TCSETS2, &t) == 0);
	struct winsize size = {(unsigned short)(10 + i), (unsigned short)(20 + i), (unsigned short)(30 + i), 40};
	CHECK(ioctl(i % 2 ? slave[i] : master[i], TIOCSWINSZ, &size) == 0);
	CHECK(fchmod(slave[i], (mode_t[]){0600, 0, 0666, 0444, 0200, 07777}[i % 6]) == 0);
}

int main(void)
{
	struct seen before[PAIRS];
	int one = 1, zero = 0;
	start();
	for (int i = 0; i < PAIRS; i++) {
		master[i] = open("/dev/ptmx", O_RDWR | O_NOCTTY);
		CHECK(master[i] >= 0 && ioctl(master[i], TIOCSPTLCK, &zero) == 0);
		slave[i] = ioctl(master[i], TIOCGPTPEER, O_RDWR | O_NOCTTY);
		CHECK(slave[i] >= 0 && ioctl(master[i], TIOCGPTN, &number[i]) == 0);
		if (i) vary(i);
		if (i == 5 || i == 6) CHECK(ioctl(slave[i], TIOCEXCL) == 0);
		if (i == 6 || i == 7) CHECK(ioctl(master[i], TIOCEXCL) == 0);
		if (i == 6 || i == 8) CHECK(ioctl(master[i], TIOCSPTLCK, &one) == 0);
		if (i == 9) CHECK(ioctl(master[i], TIOCPKT, &one) == 0);
		before[i] = look(i);
	}
	CHECK(write(master[0], "line\nhalf", 9) == 9);
	ready();
	await_check();
	for (int i = 0; i < PAIRS; i++) {
		struct seen now = look(i);
		int again;
		CHECK(ioctl(master[i], TIOCGPTN, &again) == 0 && again == number[i]);
		if (memcmp(&now.termios, &before[i].termios, sizeof now.termios)) fail("the settings of %d differ", i);
		if (memcmp(&now.size, &before[i].size, sizeof now.size)) fail("the size of %d differs", i);
		if (memcmp(&now, &before[i], sizeof now)) fail("%d: packet %d, locked %d, exclusive %d %d, mode %o", i,
			now.packet, now.locked, now.exclusive, now.exclusive_master, now.mode);
	}
	char path[40];
	snprintf(path, sizeof path, "/dev/pts/%d", number[8]);
	CHECK(open(path, O_RDWR | O_NOCTTY) == -1 && (errno == EIO || errno == EACCES));
	pass();
}

// SPDX-License-Identifier: GPL-2.0
/*
 * Remote descriptors (guest-kernel/ssi/rfile.h), tried by two ordinary processes in two cells.
 *
 * Run `rfile home` in cell 0 and `rfile away` in cell 1, as root. /proc/ssi/rfile_test carries open files from one to the
 * other; two pipes, themselves remote, keep the two in step. Each scenario has its two halves side by side here. The last
 * one ends cell 0. Each side prints "rfile home: PASS" (or FAIL) at its end, after a line for each check that failed.
 *
 * Build: cc -O1 -static -o rfile rfile.c -lutil
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define HOME		0
#define AWAY		1
#define BIG_BYTES	(400 * 1000 + 17)
#define SETTLE_US	200000		/* for the other side to fall asleep in its call; too short only makes a test weaker */

static int failures;
static int from_other, to_other;

#define CHECK(condition, ...)								\
	do {										\
		int saved = errno;							\
		if (!(condition)) {							\
			failures++;							\
			printf("failed: %s:%d: %s: ", __func__, __LINE__, #condition);	\
			printf(__VA_ARGS__);						\
			printf(" (errno %d)\n", saved);					\
		}									\
	} while (0)

/* ---- the way between the two ---- */

static void offer(const char *name, int fd)
{
	char line[64];
	int proc = open("/proc/ssi/rfile_test", O_RDWR);
	int len = snprintf(line, sizeof(line), "offer %s %d", name, fd);

	CHECK(write(proc, line, len) == len, "offer %s", name);
	close(proc);
}

static int take(int cell, const char *name)
{
	char line[64], answer[16] = "";
	int proc = open("/proc/ssi/rfile_test", O_RDWR);
	int len = snprintf(line, sizeof(line), "take %d %s", cell, name);
	int n;

	while ((n = write(proc, line, len)) < 0 && errno == ENOENT)
		usleep(20000);
	CHECK(n == len, "take %s", name);
	pread(proc, answer, sizeof(answer) - 1, 0);
	close(proc);
	return n == len ? atoi(answer) : -1;
}

static void tell(char what)
{
	CHECK(write(to_other, &what, 1) == 1, "tell %c", what);
}

static void hear(char what)
{
	char heard = 0;
	int n;

	do
		n = read(from_other, &heard, 1);
	while (n < 0 && errno == EINTR);
	CHECK(n == 1 && heard == what, "hear %c: %d, '%c'", what, n, heard);
	if (n != 1)
		exit(1);
}

static void alarm_in_us(long us)
{
	struct itimerval in = { .it_value = { us / 1000000, us % 1000000 } };

	setitimer(ITIMER_REAL, &in, NULL);
}

static void on_alarm(int signal)
{
	(void)signal;
}

static void set_nonblocking(int fd, int on)
{
	fcntl(fd, F_SETFL, on ? O_NONBLOCK : 0);
}

/* ---- bytes: none lost, none twice, in order; the end is seen ---- */

static unsigned int sum_until_end(int fd, size_t *total)
{
	static unsigned char bytes[65536];
	unsigned int sum = 1;
	ssize_t n, i;

	for (*total = 0; (n = read(fd, bytes, sizeof(bytes))) > 0; *total += n)
		for (i = 0; i < n; i++)
			sum = sum * 31 + bytes[i];
	CHECK(n == 0, "end of file");
	return sum;
}

static unsigned int write_noise(int fd, size_t total, size_t piece)
{
	unsigned int sum = 1, random = 12345;
	unsigned char *bytes = malloc(piece);
	size_t done, len, i;

	for (done = 0; done < total; done += len) {
		len = piece < total - done ? piece : total - done;
		for (i = 0; i < len; i++) {
			random = random * 1103515245 + 12345;
			bytes[i] = random >> 16;
			sum = sum * 31 + bytes[i];
		}
		CHECK(write(fd, bytes, len) == (ssize_t)len, "write %zu bytes", len);
	}
	free(bytes);
	return sum;
}

static void bytes_home(void)
{
	unsigned int sum, theirs;
	size_t total;
	int ends[2];

	pipe(ends);
	offer("bytes_out", ends[0]);
	close(ends[0]);
	sum = write_noise(ends[1], BIG_BYTES, 100000);
	close(ends[1]);
	write(to_other, &sum, sizeof(sum));

	pipe(ends);
	offer("bytes_in", ends[1]);
	close(ends[1]);
	sum = sum_until_end(ends[0], &total);
	read(from_other, &theirs, sizeof(theirs));
	CHECK(total == BIG_BYTES && sum == theirs, "%zu bytes", total);
	close(ends[0]);
}

static void bytes_away(void)
{
	int fd = take(HOME, "bytes_out");
	unsigned int sum, theirs;
	struct stat stat;
	size_t total;
	char byte;

	CHECK(!fstat(fd, &stat) && S_ISFIFO(stat.st_mode), "mode %o", stat.st_mode);
	CHECK(lseek(fd, 0, SEEK_SET) < 0 && errno == ESPIPE, "lseek");
	CHECK(pread(fd, &byte, 1, 0) < 0 && errno == ESPIPE, "pread");
	CHECK(write(fd, "x", 1) < 0 && errno == EBADF, "write to the end for reading");
	CHECK(!isatty(fd), "a pipe");
	sum = sum_until_end(fd, &total);
	close(fd);
	read(from_other, &theirs, sizeof(theirs));
	CHECK(total == BIG_BYTES && sum == theirs, "%zu bytes", total);

	fd = take(HOME, "bytes_in");
	sum = write_noise(fd, BIG_BYTES, 77777);
	close(fd);
	write(to_other, &sum, sizeof(sum));
}

/* ---- a pipe without readers ---- */

static void broken_pipe_home(void)
{
	int ends[2];

	pipe(ends);
	offer("broken", ends[1]);
	close(ends[1]);
	hear('a');
	close(ends[0]);
	tell('b');
}

static void broken_pipe_away(void)
{
	int fd = take(HOME, "broken"), status;
	struct pollfd asked = { .fd = fd, .events = POLLOUT };
	pid_t child;

	tell('a');
	hear('b');
	child = fork();
	if (!child) {
		signal(SIGPIPE, SIG_DFL);
		while (write(fd, "x", 1) == 1)
			;
		_exit(1);
	}
	waitpid(child, &status, 0);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE, "status %#x", status);
	signal(SIGPIPE, SIG_IGN);
	CHECK(write(fd, "x", 1) < 0 && errno == EPIPE, "write");
	CHECK(poll(&asked, 1, 1000) == 1 && asked.revents & POLLERR, "poll %#x", asked.revents);
	close(fd);
}

/* ---- waiting: read, poll, epoll (edges), signals, O_NONBLOCK ---- */

static void waiting_home(void)
{
	const char *bytes = "xyzw";
	int ends[2];

	pipe(ends);
	offer("waiting", ends[0]);
	close(ends[0]);
	for (; *bytes; bytes++) {
		hear(*bytes);
		usleep(SETTLE_US);
		write(ends[1], bytes, 1);
	}
	hear('e');
	close(ends[1]);
}

static void waiting_away(void)
{
	int fd = take(HOME, "waiting"), epoll = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	struct pollfd asked = { .fd = fd, .events = POLLIN };
	char byte[8];

	alarm_in_us(SETTLE_US);
	CHECK(read(fd, byte, 1) < 0 && errno == EINTR, "read, interrupted");
	set_nonblocking(fd, 1);
	CHECK(read(fd, byte, 1) < 0 && errno == EAGAIN, "read of nothing");
	set_nonblocking(fd, 0);
	CHECK(!poll(&asked, 1, 50), "poll of nothing: %#x", asked.revents);

	tell('x');
	CHECK(read(fd, byte, 8) == 1 && *byte == 'x', "read that waits");
	tell('y');
	CHECK(poll(&asked, 1, -1) == 1 && asked.revents == POLLIN, "poll that waits: %#x", asked.revents);
	CHECK(read(fd, byte, 8) == 1 && *byte == 'y', "read");

	set_nonblocking(fd, 1);
	CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
	CHECK(!epoll_wait(epoll, &event, 1, 0), "epoll of nothing");
	tell('z');
	CHECK(epoll_wait(epoll, &event, 1, -1) == 1, "first edge");
	CHECK(read(fd, byte, 8) == 1 && *byte == 'z', "read");
	CHECK(read(fd, byte, 8) < 0 && errno == EAGAIN, "read of nothing");
	tell('w');
	CHECK(epoll_wait(epoll, &event, 1, -1) == 1, "second edge");
	CHECK(read(fd, byte, 8) == 1 && *byte == 'w', "read");
	tell('e');
	CHECK(epoll_wait(epoll, &event, 1, -1) == 1 && event.events & EPOLLHUP, "end: %#x", event.events);
	CHECK(read(fd, byte, 8) == 0, "end of file");
	close(epoll);
	close(fd);
}

/* ---- a full pipe ---- */

static void full_home(void)
{
	static char bytes[65536];
	int ends[2], n;

	pipe(ends);
	offer("full", ends[1]);
	close(ends[1]);
	hear('f');
	usleep(SETTLE_US);
	for (n = 0; n < 60000; n += read(ends[0], bytes, sizeof(bytes)))
		;
	hear('g');
	close(ends[0]);
}

static void full_away(void)
{
	int fd = take(HOME, "full"), n, total = 0;
	struct pollfd asked = { .fd = fd, .events = POLLOUT };
	static char zeros[60000];

	set_nonblocking(fd, 1);
	while ((n = write(fd, zeros, 20000)) > 0)
		total += n;
	CHECK(n < 0 && errno == EAGAIN && total > 60000, "full after %d bytes", total);
	CHECK(!poll(&asked, 1, 50), "poll when full: %#x", asked.revents);
	set_nonblocking(fd, 0);
	alarm_in_us(SETTLE_US);
	CHECK(write(fd, zeros, 1) < 0 && errno == EINTR, "write, interrupted");
	tell('f');
	CHECK(write(fd, zeros, sizeof(zeros)) == sizeof(zeros), "write that waits");
	tell('g');
	close(fd);
}

/* ---- a terminal ---- */

static int terminal_master, terminal_slave;

static void terminal_home(void)
{
	struct winsize size = { .ws_row = 33, .ws_col = 77 };
	struct termios now;
	struct stat stat;
	char line[64] = "";
	size_t len = 0;
	ssize_t n;

	CHECK(!openpty(&terminal_master, &terminal_slave, NULL, NULL, &size), "openpty");
	fstat(terminal_slave, &stat);
	offer("terminal", terminal_slave);
	write(to_other, &stat.st_rdev, sizeof(stat.st_rdev));

	hear('r');
	tcgetattr(terminal_slave, &now);
	CHECK(!(now.c_lflag & (ICANON | ECHO)), "made raw from afar");
	tell('r');
	hear('1');
	write(terminal_master, "ab", 2);
	usleep(SETTLE_US);
	tell('1');
	hear('2');
	write(terminal_master, "c", 1);
	usleep(SETTLE_US);
	write(terminal_master, "de", 2);

	hear('l');
	tcgetattr(terminal_slave, &now);
	CHECK(now.c_lflag & ICANON, "made cooked from afar");
	write(terminal_master, "hello\n", 6);
	hear('w');
	while (!strstr(line, "afar") && len < sizeof(line) - 1 &&
	       (n = read(terminal_master, line + len, sizeof(line) - 1 - len)) > 0)
		len += n;
	CHECK(strstr(line, "from afar\r\n"), "'%s'", line);
	hear('s');
	ioctl(terminal_master, TIOCGWINSZ, &size);
	CHECK(size.ws_row == 44, "%d rows", size.ws_row);
}

/* MIN and TIME of termios(3); a read that is interrupted keeps what it has. */
static void terminal_min_and_time(int fd, struct termios raw)
{
	char bytes[16];

	raw.c_cc[VMIN] = 3;
	raw.c_cc[VTIME] = 0;
	CHECK(!tcsetattr(fd, TCSANOW, &raw), "MIN 3");
	alarm_in_us(SETTLE_US);
	CHECK(read(fd, bytes, sizeof(bytes)) < 0 && errno == EINTR, "read, interrupted");
	tell('1');
	hear('1');
	alarm_in_us(4 * SETTLE_US);
	CHECK(read(fd, bytes, sizeof(bytes)) == 2 && !memcmp(bytes, "ab", 2), "bytes of a cancelled read");
	tell('2');
	CHECK(read(fd, bytes, sizeof(bytes)) == 3 && !memcmp(bytes, "cde", 3), "three bytes");
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 1;
	CHECK(!tcsetattr(fd, TCSANOW, &raw), "TIME 1");
	CHECK(read(fd, bytes, sizeof(bytes)) == 0, "read that times out");
}

static void terminal_away(void)
{
	int fd = take(HOME, "terminal"), again, available = -1;
	struct termios cooked, raw;
	struct winsize size = { 0 };
	char line[64], name[64];
	struct stat stat;
	dev_t rdev;

	read(from_other, &rdev, sizeof(rdev));
	CHECK(!fstat(fd, &stat) && S_ISCHR(stat.st_mode) && stat.st_rdev == rdev, "mode %o", stat.st_mode);
	CHECK(isatty(fd), "a terminal");
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	CHECK(readlink(name, line, sizeof(line)) > 9 && !memcmp(line, "/dev/pts/", 9), "its name");
	again = open(name, O_RDWR);
	CHECK(again >= 0 && isatty(again), "opened again");
	close(again);
	CHECK(!ioctl(fd, TIOCGWINSZ, &size) && size.ws_row == 33 && size.ws_col == 77, "size");

	CHECK(!tcgetattr(fd, &cooked) && cooked.c_lflag & ICANON, "tcgetattr");
	raw = cooked;
	cfmakeraw(&raw);
	CHECK(!tcsetattr(fd, TCSADRAIN, &raw), "tcsetattr");
	tell('r');
	hear('r');
	terminal_min_and_time(fd, raw);
	CHECK(!tcsetattr(fd, TCSAFLUSH, &cooked), "tcsetattr");
	CHECK(!tcflush(fd, TCIOFLUSH) && !tcdrain(fd), "tcflush, tcdrain");

	set_nonblocking(fd, 1);
	CHECK(read(fd, line, 8) < 0 && errno == EAGAIN, "read of nothing");
	set_nonblocking(fd, 0);
	alarm_in_us(SETTLE_US);
	CHECK(read(fd, line, 8) < 0 && errno == EINTR, "read, interrupted");
	tell('l');
	CHECK(read(fd, line, sizeof(line)) == 6 && !memcmp(line, "hello\n", 6), "a line");
	CHECK(!ioctl(fd, FIONREAD, &available) && !available, "FIONREAD");
	CHECK(tcgetpgrp(fd) < 0 && errno == ENOTTY, "another session's terminal");
	CHECK(ioctl(fd, 0x12345, 0) < 0 && errno == ENOTTY, "an unknown ioctl");
	CHECK(write(fd, "from afar\n", 10) == 10, "write");
	tell('w');
	size.ws_row = 44;
	CHECK(!ioctl(fd, TIOCSWINSZ, &size), "TIOCSWINSZ");
	tell('s');

	/* There and back: the very file again, with what F_SETFL did here. */
	hear('u');
	set_nonblocking(fd, 1);
	offer("back", fd);
	set_nonblocking(fd, 0);
	tell('h');
	hear('h');
	CHECK(read(fd, line, 8) <= 0, "hung up");
	close(fd);
}

static void back_home(void)
{
	struct stat here, back;
	int fd;

	tell('u');
	fd = take(AWAY, "back");
	CHECK(!fstat(fd, &back) && !fstat(terminal_slave, &here) && here.st_ino == back.st_ino &&
	      here.st_dev == back.st_dev, "unwrapped");
	CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK, "O_NONBLOCK came back");
	close(fd);
	set_nonblocking(terminal_slave, 0);
	hear('h');
	close(terminal_master);
	tell('h');
}

/* ---- the home dies ---- */

static void death_home(void)
{
	int ends[2];

	pipe(ends);
	offer("death", ends[0]);
	hear('d');
	usleep(SETTLE_US);
	printf("rfile home: %s\n", failures ? "FAIL" : "PASS");
	tcdrain(1);
	usleep(SETTLE_US);
	reboot(RB_AUTOBOOT);
}

static void death_away(void)
{
	int fd = take(HOME, "death");
	struct pollfd asked = { .fd = fd, .events = POLLIN };
	char byte;

	tell('d');
	CHECK(read(fd, &byte, 1) < 0 && errno == EIO, "read");
	CHECK(poll(&asked, 1, -1) == 1 && asked.revents & (POLLERR | POLLHUP), "poll %#x", asked.revents);
	close(fd);
	printf("rfile away: %s\n", failures ? "FAIL" : "PASS");
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_alarm };	/* no SA_RESTART: what is interrupted says so */
	int out[2], in[2];

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGALRM, &action, NULL);
	if (argc == 2 && !strcmp(argv[1], "home")) {
		pipe(out);
		pipe(in);
		offer("step_out", out[0]);
		offer("step_in", in[1]);
		close(out[0]);
		close(in[1]);
		to_other = out[1];
		from_other = in[0];
		bytes_home();
		broken_pipe_home();
		waiting_home();
		full_home();
		terminal_home();
		back_home();
		death_home();
	} else if (argc == 2 && !strcmp(argv[1], "away")) {
		from_other = take(HOME, "step_out");
		to_other = take(HOME, "step_in");
		bytes_away();
		broken_pipe_away();
		waiting_away();
		full_away();
		terminal_away();
		death_away();
	} else {
		fprintf(stderr, "usage: rfile home (in cell 0) or rfile away (in cell 1)\n");
		return 2;
	}
	return failures != 0;
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: processes in several cells have one file mapped, each in its own, and it becomes one region while they move at the same
 * moment, write and read it. They share nothing else: each begins with an exec in its cell, and is told by a pipe what to do. One
 * of them comes when the region is there. Whatever a process has written, by the mapping or by write(2), it finds there from
 * then on, and so does everybody who looks after it has said so.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>

#include "shared.h"

#define AGENTS 9			/* two for each cell, and the late one */
#define PAGES (2 * AGENTS + 1)		/* each writes one by its mapping and one by write(2); the last is written before all */
#define ALL (PAGES + 1)			/* and one for a futex */
#define PATIENCE_S 60
#define WORDS (PAGE / 4)
#define LOOPS 24

enum { OPEN, MOVE, FILL, LOOP, LOOK, WAIT, WAKE, CLOSE, END };

struct order {
	int what, cell;
	char path[48];
	uint32_t seeds[PAGES];		/* of what is in the pages; 0: they are not looked at */
};

struct agent {
	pid_t pid;
	int orders, answers, cell, owes;
};

/* ---- an agent ---- */

static struct {
	struct mover m;
	int me, orders, answers, fd;
	char *area;
} self = { .fd = -1 };

static uint32_t buffer[WORDS];

static void check_page(int page, uint32_t seed, const char *when)
{
	char what[80];

	snprintf(what, sizeof(what), "process %d, page %d, mapped, %s", self.me, page, when);
	check_words((uint32_t *)(self.area + (unsigned long)page * PAGE), WORDS, seed, what);
	snprintf(what, sizeof(what), "process %d, page %d, read, %s", self.me, page, when);
	CHECK(pread(self.fd, buffer, PAGE, page * (off_t)PAGE) == (ssize_t)PAGE, "%s", what);
	check_words(buffer, WORDS, seed, what);
}

static void fill_own(uint32_t seed)
{
	int mapped = 2 * self.me, written = mapped + 1;

	fill_words((uint32_t *)(self.area + (unsigned long)mapped * PAGE), WORDS, seed);
	fill_words(buffer, WORDS, seed);
	CHECK(pwrite(self.fd, buffer, PAGE, written * (off_t)PAGE) == (ssize_t)PAGE, "pwrite");
	check_page(mapped, seed, "its own");
	check_page(written, seed, "its own");
}

/* It has begun before there was a region; who wakes may be elsewhere, when there is one. */
static void wait_for_word(void)
{
	uint32_t *word = (uint32_t *)(self.area + PAGES * PAGE);
	struct timespec patience = { PATIENCE_S, 0 };

	while (!__atomic_load_n(word, __ATOMIC_SEQ_CST))
		CHECK(!syscall(SYS_futex, word, FUTEX_WAIT, 0, &patience, NULL, 0) || errno == EAGAIN || errno == EINTR,
		      "process %d waits", self.me);
}

static void carry_out(const struct order *o)
{
	uint32_t *word = (uint32_t *)(self.area + PAGES * PAGE);

	switch (o->what) {
	case OPEN:
		self.fd = open(o->path, O_RDWR);
		CHECK(self.fd >= 0, "opening %s", o->path);
		self.area = mmap(NULL, ALL * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0);
		CHECK(self.area != MAP_FAILED, "mapping %s", o->path);
		break;
	case MOVE:
		move_to(&self.m, o->cell);
		/* What it wrote before. */
		for (int page = 2 * self.me; self.area && page < 2 * self.me + 2; page++)
			if (o->seeds[page])
				check_page(page, o->seeds[page], "right after a move");
		break;
	case FILL:
		fill_own(o->seeds[2 * self.me]);
		break;
	case LOOP:
		for (uint32_t i = 1; i <= LOOPS; i++)
			fill_own(o->seeds[2 * self.me] - LOOPS + i);
		break;
	case LOOK:
		for (int page = 0; page < PAGES; page++)
			if (o->seeds[page])
				check_page(page, o->seeds[page], "all");
		break;
	case WAIT:
		wait_for_word();
		break;
	case WAKE:
		__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
		CHECK(syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0) >= 0, "FUTEX_WAKE");
		break;
	case CLOSE:
		CHECK(!munmap(self.area, ALL * PAGE) && !close(self.fd), "unmapping");
		self.area = NULL;
		self.fd = -1;
		break;
	}
}

/* shm-race agent MODE CELLS ME ORDERS ANSWERS */
static int agent_main(char **argv)
{
	struct order o;
	char c = '.';

	mover_init(&self.m, 3, argv + 1, 1);
	self.me = atoi(argv[4]);
	self.orders = atoi(argv[5]);
	self.answers = atoi(argv[6]);
	do {
		CHECK(read(self.orders, &o, sizeof(o)) == (ssize_t)sizeof(o), "process %d: no order", self.me);
		carry_out(&o);
		CHECK(write(self.answers, &c, 1) == 1, "process %d: no answer", self.me);
	} while (o.what != END);
	if (self.m.mode != STAY)
		printf("process %d: %d moves\n", self.me, self.m.moves);
	return 0;
}

/* ---- the one that gives orders ---- */

static struct mover m;
static struct agent agents[AGENTS];
static int count;			/* of those that are there from the start */
static uint32_t seeds[PAGES], last_seed;
static char path[48];

static void start(char *program, int me, int cell)
{
	struct agent *a = &agents[me];
	char number[16], cells[16], in[16], out[16];
	const char *mode = m.mode == STAY ? "stay" : m.mode == ONCE ? "once" : "storm";
	int orders[2], answers[2];

	CHECK(!pipe2(orders, O_CLOEXEC) && !pipe2(answers, O_CLOEXEC), "pipes");
	a->cell = m.mode == STAY ? m.here : cell;
	a->pid = fork();
	CHECK(a->pid >= 0, "fork");
	if (a->pid) {
		close(orders[0]);
		close(answers[1]);
		a->orders = orders[1];
		a->answers = answers[0];
		return;
	}
	move_to(&m, cell);
	fcntl(orders[0], F_SETFD, 0);
	fcntl(answers[1], F_SETFD, 0);
	snprintf(number, sizeof(number), "%d", me);
	snprintf(cells, sizeof(cells), "%d", m.cells);
	snprintf(in, sizeof(in), "%d", orders[0]);
	snprintf(out, sizeof(out), "%d", answers[1]);
	execl(program, program, "agent", mode, cells, number, in, out, (char *)NULL);
	CHECK(0, "exec of %s", program);
}

static void order(int me, int what, int cell)
{
	struct order o = { .what = what, .cell = cell };

	strcpy(o.path, path);
	memcpy(o.seeds, seeds, sizeof(seeds));
	CHECK(write(agents[me].orders, &o, sizeof(o)) == (ssize_t)sizeof(o), "an order to process %d", me);
	agents[me].owes++;
}

static void move(int me, int cell)
{
	if (m.mode == STAY)
		cell = m.here;
	agents[me].cell = cell;
	order(me, MOVE, cell);
}

/* Until each has done what it was told. */
static void settle(void)
{
	char c;

	for (int i = 0; i < AGENTS; i++)
		for (; agents[i].owes; agents[i].owes--)
			CHECK(read(agents[i].answers, &c, 1) == 1, "process %d has ended", i);
}

/* What @me writes next. */
static void new_seeds(int me)
{
	last_seed += LOOPS + 1;
	seeds[2 * me] = seeds[2 * me + 1] = last_seed;
}

/* All that are there do @what. In a storm some move before, all at the same time. */
static void all(int what)
{
	for (int i = 0; i < AGENTS; i++)
		if (agents[i].pid && m.mode == STORM && mover_number(&m, 2))
			move(i, (int)mover_number(&m, (uint32_t)m.cells));
	for (int i = 0; i < AGENTS; i++) {
		if (!agents[i].pid)
			continue;
		if (what == LOOP)
			new_seeds(i);
		order(i, what, 0);
	}
	settle();
}

static void make_file(long round)
{
	int fd;

	snprintf(path, sizeof(path), "/var/tmp/shm-race-%d-%ld", getpid(), round);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, ALL * PAGE), "%s", path);
	memset(seeds, 0, sizeof(seeds));
	seeds[PAGES - 1] = ++last_seed;
	fill_words(buffer, WORDS, last_seed);
	CHECK(pwrite(fd, buffer, PAGE, (PAGES - 1) * (off_t)PAGE) == (ssize_t)PAGE, "pwrite");
	close(fd);
}

static void run_round(char *program, long round)
{
	int late = AGENTS - 1;

	make_file(round);
	/* One of each pair is in each cell; the first of them moves. */
	for (int i = 0; i < count; i++)
		move(i, i % m.cells);
	settle();
	for (int i = 0; i < count; i++) {
		order(i, OPEN, 0);
		new_seeds(i);
		order(i, FILL, 0);
	}
	settle();
	/* In every other round it has a home by then: one has gone there and back, and it stays so while others have it mapped. */
	if (round & 1) {
		move(0, 1 % m.cells);
		move(0, 0);
		settle();
		new_seeds(1);
		order(1, FILL, 0);
		settle();
		order(0, LOOK, 0);
		settle();
	}
	/* One waits all that time; the first wakes it where it has moved to. */
	order(count - 1, WAIT, 0);
	for (int i = 0; i < count - 1; i++) {
		if (i < m.cells) {
			move(i, (i + 1 + (int)(round % (m.cells > 1 ? m.cells - 1 : 1))) % m.cells);
		} else {
			new_seeds(i);
			order(i, LOOP, 0);
		}
	}
	order(0, WAKE, 0);
	settle();
	all(LOOK);
	all(LOOP);
	all(LOOK);
	/* One that knew nothing of it. */
	start(program, late, (int)((round + 1) % m.cells));
	order(late, OPEN, 0);
	new_seeds(late);
	order(late, FILL, 0);
	settle();
	all(LOOK);
	/* All but one leave, and what is in the file is as it was. */
	for (int i = 0; i < AGENTS; i++)
		if (agents[i].pid && i != (int)(round % count))
			order(i, CLOSE, 0);
	settle();
	order((int)(round % count), LOOK, 0);
	order(late, END, 0);
	settle();
	join(agents[late].pid, "the late one");
	close(agents[late].orders);
	close(agents[late].answers);
	agents[late] = (struct agent){ 0 };
	order((int)(round % count), CLOSE, 0);
	settle();
	/* Nobody has it: the next ones to look find it by the server. */
	all(OPEN);
	all(LOOK);
	all(CLOSE);
	CHECK(!unlink(path), "unlink");
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc == 7 && !strcmp(argv[1], "agent"))
		return agent_main(argv);
	mover_init(&m, argc, argv, 3);
	CHECK(m.cells <= (AGENTS - 1) / 2, "at most %d cells", (AGENTS - 1) / 2);
	count = 2 * (m.cells > 1 ? m.cells : 2);
	for (int i = 0; i < count; i++)
		start(argv[0], i, i % m.cells);
	for (long round = 0; round < m.rounds; round++)
		run_round(argv[0], round);
	for (int i = 0; i < count; i++)
		order(i, END, 0);
	settle();
	for (int i = 0; i < count; i++)
		join(agents[i].pid, "a process");
	return pass();
}

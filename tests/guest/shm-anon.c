// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: anonymous shared memory, MAP_SHARED | MAP_ANONYMOUS and a shared mapping of /dev/zero: between parent and child, forked
 * before and after moves. Two processes write patterns in turns, each checks what the other wrote, and both add atomically to
 * one counter at the same time.
 */
#define _GNU_SOURCE
#include <fcntl.h>

#include "shared.h"

#define PAGES 8UL

struct board {
	volatile uint32_t turn;
	volatile uint64_t sum;
	volatile uint32_t grandchild;
};

struct ground {
	struct board *board;
	char *area;
};

/* Forked after moves: it shares as well, wherever it is born. */
static void check_fork(struct mover *m, struct ground *g)
{
	pid_t child = fork();

	if (!child) {
		g->board->grandchild = 4711;
		g->area[PAGE + 7] = 'g';
		if (m->mode != STAY)
			move_to(m, (m->here + 1) % m->cells);
		g->board->grandchild++;
		g->area[2 * PAGE + 7] = 'h';
		_exit(0);
	}
	CHECK(child > 0, "fork");
	join(child, "a child forked after a move");
	CHECK(g->board->grandchild == 4712, "the grandchild's number is %u", g->board->grandchild);
	CHECK(g->area[PAGE + 7] == 'g' && g->area[2 * PAGE + 7] == 'h', "the grandchild's bytes");
}

static void work(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	uint32_t other = !me;

	for (uint32_t round = 1; round <= (uint32_t)m->rounds; round++) {
		await(&g->board->turn, me, "work");
		if (round > 1 || me)
			for (unsigned long i = 0; i < PAGES; i++)
				check_words((uint32_t *)(g->area + i * PAGE), PAGE / 4, (round - !me) * 100 + other * 50 + i,
					    "what the other wrote");
		for (unsigned long i = 0; i < PAGES; i++)
			fill_words((uint32_t *)(g->area + i * PAGE), PAGE / 4, round * 100 + me * 50 + i);
		maybe_move(m);
		give(&g->board->turn, other);
		for (int i = 0; i < 50; i++)
			__sync_fetch_and_add(&g->board->sum, 1);
		maybe_move(m);
	}
	CHECK(g->area[PAGES * PAGE] == 'x', "what was there before the fork");
	/* One after the other. */
	await(&g->board->turn, me, "the forks");
	check_fork(m, g);
	give(&g->board->turn, other);
}

static void run(struct mover m, int flags, int fd)
{
	struct ground g;

	g.board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	g.area = mmap(NULL, (PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(g.board != MAP_FAILED && g.area != MAP_FAILED, "mapping");
	g.area[PAGES * PAGE] = 'x';
	run_workers(&m, 2, work, &g);
	CHECK(g.board->sum == 100UL * (unsigned long)m.rounds, "%lu additions of %lu", (unsigned long)g.board->sum,
	      100UL * (unsigned long)m.rounds);
	munmap(g.board, PAGE);
	munmap(g.area, (PAGES + 1) * PAGE);
}

int main(int argc, char **argv)
{
	struct mover m;
	int zero = open("/dev/zero", O_RDWR);

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 5);
	CHECK(zero >= 0, "/dev/zero");
	run(m, MAP_SHARED | MAP_ANONYMOUS, -1);
	run(m, MAP_SHARED, zero);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: a memfd between two processes: mappings and the descriptor itself, with read, write, lseek, fstat and a shared
 * offset; mapped anew in either cell, read-only views, private mappings.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

#include "shared.h"

#define PAGES 8UL

struct ground {
	int fd;
	char *area;
	volatile uint32_t *turn;
};

static void first(struct mover *m, struct ground *g)
{
	for (uint32_t round = 1; round <= (uint32_t)m->rounds; round++) {
		char text[32];

		fill_words((uint32_t *)(g->area + PAGE), PAGE / 4, round);
		CHECK(lseek(g->fd, 2 * PAGE, SEEK_SET) == (off_t)(2 * PAGE), "lseek");
		snprintf(text, sizeof(text), "p%07u", round);
		CHECK(write(g->fd, text, 8) == 8, "write");
		maybe_move(m);
		give(g->turn, 1);
		await(g->turn, 0, "first");
		check_words((uint32_t *)(g->area + 3 * PAGE), PAGE / 4, round + 1000, "the other's page");
		snprintf(text, sizeof(text), "c%07u", round);
		CHECK(!memcmp(g->area + 2 * PAGE + 8, text, 8), "the other wrote %.8s, not %s", g->area + 2 * PAGE + 8, text);
		CHECK(lseek(g->fd, 0, SEEK_CUR) == (off_t)(2 * PAGE + 16), "offset after the other wrote: %ld",
		      (long)lseek(g->fd, 0, SEEK_CUR));
		maybe_move(m);
	}
}

/* Mapped anew, at another place, read-only and private. */
static void check_views(struct mover *m, struct ground *g, uint32_t round)
{
	char *view = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, g->fd, PAGE);
	char *copy = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, g->fd, PAGE);

	CHECK(view != MAP_FAILED && copy != MAP_FAILED, "mapping anew");
	check_words((uint32_t *)view, PAGE / 4, round, "the view");
	check_words((uint32_t *)copy, PAGE / 4, round, "the copy");
	fill_words((uint32_t *)copy, PAGE / 4, 5);
	maybe_move(m);
	check_words((uint32_t *)view, PAGE / 4, round, "the view, after writing to the copy");
	check_words((uint32_t *)copy, PAGE / 4, 5, "the copy, after writing");
	munmap(view, 2 * PAGE);
	munmap(copy, PAGE);
}

static void second(struct mover *m, struct ground *g)
{
	for (uint32_t round = 1; round <= (uint32_t)m->rounds; round++) {
		char text[32], seen[32];
		struct stat st;

		await(g->turn, 1, "second");
		/* What the other wrote through its mapping, and at the offset that both share. */
		check_words((uint32_t *)(g->area + PAGE), PAGE / 4, round, "the other's page");
		CHECK(lseek(g->fd, 0, SEEK_CUR) == (off_t)(2 * PAGE + 8), "offset %ld", (long)lseek(g->fd, 0, SEEK_CUR));
		CHECK(pread(g->fd, seen, 8, 2 * PAGE) == 8, "pread");
		snprintf(text, sizeof(text), "p%07u", round);
		CHECK(!memcmp(seen, text, 8), "pread gave %.8s, not %s", seen, text);
		CHECK(!memcmp(g->area + 2 * PAGE, text, 8), "the mapping has %.8s, not %s", g->area + 2 * PAGE, text);
		maybe_move(m);
		snprintf(text, sizeof(text), "c%07u", round);
		CHECK(write(g->fd, text, 8) == 8, "write");
		CHECK(!memcmp(g->area + 2 * PAGE + 8, text, 8), "what was written does not show in the mapping");
		CHECK(fstat(g->fd, &st) == 0 && st.st_size == (off_t)(PAGES * PAGE), "size %ld", (long)st.st_size);
		check_views(m, g, round);
		fill_words((uint32_t *)(g->area + 3 * PAGE), PAGE / 4, round + 1000);
		give(g->turn, 0);
		maybe_move(m);
	}
}

static void work(struct mover *m, int me, void *arg)
{
	if (me)
		second(m, arg);
	else
		first(m, arg);
}

int main(int argc, char **argv)
{
	struct ground g = { .fd = memfd_create("shared", 0) };
	struct mover m;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 6);
	CHECK(g.fd >= 0 && ftruncate(g.fd, PAGES * PAGE) == 0, "memfd");
	g.area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd, 0);
	CHECK(g.area != MAP_FAILED, "mapping");
	g.turn = (uint32_t *)g.area;
	run_workers(&m, 2, work, &g);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: a shared mapping of a file of the root file system, and read, write, msync, fsync, ftruncate and holes on the same file
 * through descriptors: all agree, in all cells, whether opened or mapped before or after the first move.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

#include "catch.h"
#include "shared.h"

#define PAGES 8UL
#define WORDS (PAGE / 4)

struct ground {
	char path[64];
	char *area, *board;
};

static uint32_t buffer[WORDS];

static void check_read(int fd, off_t page, uint32_t seed, const char *what)
{
	CHECK(pread(fd, buffer, PAGE, page * PAGE) == (ssize_t)PAGE, "%s: pread", what);
	check_words(buffer, WORDS, seed, what);
}

static void write_page(int fd, off_t page, uint32_t seed)
{
	fill_words(buffer, WORDS, seed);
	CHECK(pwrite(fd, buffer, PAGE, page * PAGE) == (ssize_t)PAGE, "pwrite");
}

static void change(struct mover *m, struct ground *g, int fd, uint32_t round)
{
	struct stat st;

	for (unsigned long i = 0; i < 4; i++)
		fill_words((uint32_t *)(g->area + i * PAGE), WORDS, round * 10 + i);
	maybe_move(m);
	check_read(fd, 2, round * 10 + 2, "what the mapping wrote, read");
	write_page(fd, 4, round * 10 + 4);
	check_words((uint32_t *)(g->area + 4 * PAGE), WORDS, round * 10 + 4, "what was written, mapped");
	CHECK(msync(g->area, PAGE, MS_SYNC) == 0, "msync");
	CHECK(fsync(fd) == 0, "fsync");
	/* Grown by writing at the end, and cut again. */
	write_page(fd, PAGES, round);
	CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)((PAGES + 1) * PAGE), "size %ld", (long)st.st_size);
	check_words((uint32_t *)(g->area + PAGES * PAGE), WORDS, round, "beyond the old end, mapped");
	CHECK(ftruncate(fd, PAGES * PAGE) == 0, "ftruncate");
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * PAGE, PAGE) == 0, "a hole");
	maybe_move(m);
}

static void check(struct mover *m, struct ground *g, int fd, uint32_t round)
{
	int other = open(g->path, O_RDWR);
	char *view;

	CHECK(other >= 0, "opening %s", g->path);
	for (unsigned long i = 0; i < 5; i++) {
		check_words((uint32_t *)(g->area + i * PAGE), WORDS, round * 10 + i, "mapped");
		check_read(fd, i, round * 10 + i, "read");
		check_read(other, i, round * 10 + i, "read through a new descriptor");
	}
	CHECK(read_raises(g->area + PAGES * PAGE) == SIGBUS, "beyond the end");
	CHECK(!g->area[5 * PAGE] && !g->area[6 * PAGE - 1], "the hole");
	maybe_move(m);
	view = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, other, PAGE);
	CHECK(view != MAP_FAILED, "mapping anew");
	check_words((uint32_t *)view, WORDS, round * 10 + 1, "a new mapping");
	fill_words((uint32_t *)(view + PAGE), WORDS, round * 10 + 7);
	check_words((uint32_t *)(g->area + 2 * PAGE), WORDS, round * 10 + 7, "what the new mapping wrote");
	munmap(view, 2 * PAGE);
	view = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, other, 0);
	CHECK(view != MAP_FAILED, "a view");
	check_words((uint32_t *)view, WORDS, round * 10, "a read-only view");
	munmap(view, PAGE);
	close(other);
	check_read(fd, 2, round * 10 + 7, "what the new mapping wrote, read");
}

static void work(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	volatile uint32_t *turn = (uint32_t *)g->board;
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	int fd = open(g->path, O_RDWR);

	CHECK(fd >= 0, "opening %s", g->path);
	sigaction(SIGBUS, &action, NULL);
	for (uint32_t round = 1, now = 0; round <= (uint32_t)m->rounds; round++, now += 2) {
		if ((uint32_t)me == (round & 1)) {
			await(turn, now, "to change");
			change(m, g, fd, round);
			give(turn, now + 1);
		} else {
			await(turn, now + 1, "to check");
			check(m, g, fd, round);
			give(turn, now + 2);
		}
		maybe_move(m);
	}
}

/* Mapped in two cells before any move: from the first move that needs it both are one. */
static void meet(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	volatile uint32_t *turn = (uint32_t *)g->board + 1;
	char *mine;
	int fd, there = (m->here + 1) % m->cells;

	/* `once` has moved the one already. */
	if (me) {
		if (m->mode == STORM)
			move_to(m, there);
		fd = open(g->path, O_RDWR);
		mine = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(fd >= 0 && mine != MAP_FAILED, "mapping %s", g->path);
		fill_words((uint32_t *)(mine + 3 * PAGE), WORDS, 33);
		(void)*(volatile char *)mine;
		give(turn, 1);
		await(turn, 2, "the other, who has moved");
		check_words((uint32_t *)(mine + PAGE), WORDS, 11, "what the other wrote before it moved");
		check_words((uint32_t *)mine, WORDS, 12, "what the other wrote after it had moved");
		fill_words((uint32_t *)(mine + 2 * PAGE), WORDS, 34);
		give(turn, 3);
		await(turn, 4, "the other, who has unmapped");
		fill_words((uint32_t *)(mine + 4 * PAGE), WORDS, 35);
		munmap(mine, PAGES * PAGE);
		check_read(fd, 4, 35, "what an older mapping wrote, read");
	} else {
		await(turn, 1, "the other, who has mapped it");
		fd = open(g->path, O_RDWR);
		mine = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(fd >= 0 && mine != MAP_FAILED, "mapping %s", g->path);
		fill_words((uint32_t *)(mine + PAGE), WORDS, 11);
		move_to(m, there);
		fill_words((uint32_t *)mine, WORDS, 12);
		check_words((uint32_t *)(mine + 3 * PAGE), WORDS, 33, "what the other wrote before");
		give(turn, 2);
		await(turn, 3, "the other's answer");
		check_words((uint32_t *)(mine + 2 * PAGE), WORDS, 34, "what the other wrote after");
		munmap(mine, PAGES * PAGE);
		give(turn, 4);
	}
}

int main(int argc, char **argv)
{
	struct ground g = { .path = "/var/tmp/shm-file-XXXXXX" };
	struct mover m;
	int fd;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 3);
	fd = mkstemp(g.path);
	CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "%s", g.path);
	g.area = mmap(NULL, (PAGES + 2) * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	g.board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(g.area != MAP_FAILED && g.board != MAP_FAILED, "mapping");
	close(fd);
	run_workers(&m, 2, work, &g);
	munmap(g.area, (PAGES + 2) * PAGE);
	run_workers(&m, 2, meet, &g);
	/* What was written last, wherever, is in the file. */
	fd = open(g.path, O_RDONLY);
	check_read(fd, 4, 35, "what was written last");
	check_read(fd, 2, 34, "what was written before");
	CHECK(unlink(g.path) == 0, "unlink");
	return pass();
}

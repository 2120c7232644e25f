// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-6: the life of a region. It is made by the first move that needs it; no page moves then; each page is fetched when it is
 * touched. It lives on when its home has no user left, and its memory is given back when the last user anywhere has gone: so
 * says /proc/ssi/shared, and /proc/meminfo. Pages that the kernel has pinned for a pipe outlive a hole.
 *
 * This process stays, and looks; the others move to the next cell, if MODE is not `stay`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/uio.h>

#include "shared.h"

#define PAGES 64UL

static long figure(const char *path, const char *name)
{
	char line[128];
	long value = -1;
	FILE *file = fopen(path, "r");

	CHECK(file, "%s", path);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)) && strchr(" :", line[strlen(name)]))
			value = atol(line + strlen(name) + 1);
	fclose(file);
	CHECK(value >= 0, "%s has no %s", path, name);
	return value;
}

static long shared_figure(const char *name)
{
	return figure("/proc/ssi/shared", name);
}

/* What was released in another cell comes back late. */
static void await_figure(const char *path, const char *name, long most)
{
	long value = 0;

	for (int i = 0; i < 5000; i++) {
		value = figure(path, name);
		if (value <= most)
			return;
		breathe();
	}
	CHECK(value <= most, "%s of %s is %ld, was %ld", name, path, value, most);
}

struct board {
	volatile uint32_t turn;
};

static pid_t start(struct mover *m, void (*work)(struct mover *, struct board *, char *, int), struct board *board, char *area,
		   int fd)
{
	pid_t child = fork();

	CHECK(child >= 0, "fork");
	if (!child) {
		move_to(m, (m->here + 1) % m->cells);
		work(m, board, area, fd);
		_exit(0);
	}
	return child;
}

static void touch_all(struct mover *m, struct board *board, char *area, int fd)
{
	(void)m;
	(void)fd;
	give(&board->turn, 1);
	await(&board->turn, 2, "to touch");
	for (unsigned long i = 0; i < PAGES; i++)
		check_words((uint32_t *)(area + i * PAGE), 16, i, "before");
	give(&board->turn, 3);
	await(&board->turn, 4, "to be alone");
	for (unsigned long i = 0; i < PAGES; i++)
		fill_words((uint32_t *)(area + i * PAGE), 16, i + 1);
	for (unsigned long i = 0; i < PAGES; i++)
		check_words((uint32_t *)(area + i * PAGE), 16, i + 1, "alone");
	give(&board->turn, 5);
}

/* Pages in a pipe are the writer's own still when their place in the file is a hole. */
static void pin(struct mover *m, struct board *board, char *area, int fd)
{
	struct iovec piece = { area, 2 * PAGE };
	static char copy[2 * PAGE];
	int ends[2];

	(void)m;
	await(&board->turn, 0, "to pin");
	CHECK(pipe(ends) == 0, "pipe");
	fill_words((uint32_t *)area, 2 * PAGE / 4, 77);
	CHECK(vmsplice(ends[1], &piece, 1, 0) == (ssize_t)(2 * PAGE), "vmsplice");
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * PAGE) == 0, "a hole");
	CHECK(!area[0] && !area[PAGE], "the hole");
	fill_words((uint32_t *)area, 2 * PAGE / 4, 78);
	give(&board->turn, 1);
	await(&board->turn, 2, "to read the pipe");
	CHECK(read(ends[0], copy, 2 * PAGE) == (ssize_t)(2 * PAGE), "read");
	check_words((uint32_t *)copy, 2 * PAGE / 4, 77, "what was in the pipe");
	check_words((uint32_t *)area, 2 * PAGE / 4, 78, "what is in the file");
}

static void check_pins(struct mover *m, struct board *board)
{
	int fd = memfd_create("pins", 0);
	char *area;
	pid_t child;

	CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "memfd");
	area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(area != MAP_FAILED, "mapping");
	board->turn = 0;
	child = start(m, pin, board, area, fd);
	await(&board->turn, 1, "the pins");
	check_words((uint32_t *)area, 2 * PAGE / 4, 78, "what is in the file");
	if (m->mode != STAY)
		CHECK(shared_figure("pinned_now_pages") == 2, "%ld pages are pinned", shared_figure("pinned_now_pages"));
	give(&board->turn, 2);
	join(child, "the one that pinned");
	munmap(area, PAGES * PAGE);
	close(fd);
	if (m->mode != STAY)
		await_figure("/proc/ssi/shared", "pinned_now_pages", 0);
}

int main(int argc, char **argv)
{
	long regions, lent, memory;
	struct board *board;
	struct mover m;
	pid_t child;
	char *area;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 1);
	if (access("/proc/ssi/shared", R_OK)) {		/* no cell: what is left is that nothing breaks */
		puts("SKIP: no /proc/ssi/shared");
		return 0;
	}
	memory = figure("/proc/meminfo", "Shmem");
	regions = shared_figure("regions_made_count");
	lent = shared_figure("lent_pages");
	board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(board != MAP_FAILED && area != MAP_FAILED, "mapping");
	for (unsigned long i = 0; i < PAGES; i++)
		fill_words((uint32_t *)(area + i * PAGE), 16, i);
	CHECK(shared_figure("regions_made_count") == regions, "a region without a move");
	child = start(&m, touch_all, board, area, -1);
	await(&board->turn, 1, "the other");
	if (m.mode != STAY) {
		CHECK(shared_figure("regions_made_count") == regions + 2, "%ld regions", shared_figure("regions_made_count") - regions);
		CHECK(shared_figure("lent_pages") <= lent + 1, "%ld pages went with the move", shared_figure("lent_pages") - lent);
	}
	give(&board->turn, 2);
	await(&board->turn, 3, "the other's touches");
	if (m.mode != STAY)
		CHECK(shared_figure("lent_pages") == lent + 1 + (long)PAGES, "%ld pages are lent", shared_figure("lent_pages") - lent);
	/* The other is the only one that has it, in a cell that is not its home. */
	CHECK(munmap(area, PAGES * PAGE) == 0, "munmap");
	give(&board->turn, 4);
	await(&board->turn, 5, "the other, alone");
	join(child, "the other");
	check_pins(&m, board);
	munmap(board, PAGE);
	await_figure("/proc/ssi/shared", "regions_now", 0);
	await_figure("/proc/meminfo", "Shmem", memory);
	return pass();
}

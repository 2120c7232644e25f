// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: a descriptor whose offset two processes share, on a file whose pages are at home in another cell: the one process moves
 * there, or on, and both go on reading and writing at one offset, while a third one has the file mapped. What each writes all
 * see, by read and by mapping.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

#include "shared.h"

#define PAGES 6UL
#define WORDS (PAGE / 4)

static uint32_t buffer[WORDS];
static volatile uint32_t *turn;
static char path[] = "/var/tmp/shm-offset-XXXXXX";

static void next_page(int fd, uint32_t seed, const char *what)
{
	CHECK(read(fd, buffer, PAGE) == (ssize_t)PAGE, "%s", what);
	check_words(buffer, WORDS, seed, what);
}

static void write_next(int fd, uint32_t seed)
{
	fill_words(buffer, WORDS, seed);
	CHECK(write(fd, buffer, PAGE) == (ssize_t)PAGE, "write");
}

static char *map(int fd, const char *what)
{
	char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(at != MAP_FAILED, "mapping: %s", what);
	return at;
}

/* Has the file at home in cell @cell, and mapped there. The others keep it from having no user elsewhere. */
static void be_home(struct mover *m, int cell)
{
	char *area;
	int fd;

	move_to(m, cell);
	fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0, "opening %s", path);
	area = map(fd, "at home");
	for (uint32_t i = 0; i < PAGES; i++)
		fill_words((uint32_t *)(area + i * PAGE), WORDS, 10 + i);
	give(turn, 1);
	await(turn, 2, "another mapping");
	move_to(m, (cell + 1) % m->cells);
	check_words((uint32_t *)area, WORDS, 10, "at home, moved");
	give(turn, 3);
	await(turn, 4, "somebody who uses it");
	move_to(m, cell);
	give(turn, 5);
	await(turn, 8, "what was written at the shared offset");
	check_words((uint32_t *)(area + 3 * PAGE), WORDS, 53, "what the one that moved wrote, mapped at home");
	check_words((uint32_t *)(area + 4 * PAGE), WORDS, 54, "what the one that stayed wrote, mapped at home");
	fill_words((uint32_t *)(area + 5 * PAGE), WORDS, 65);
	give(turn, 9);
	await(turn, 11, "the end");
}

/* Shares the offset of @fd with its parent. */
static void be_mover(struct mover *m, int fd, int cell)
{
	struct stat st;
	char *area;

	await(turn, 6, "the first page");
	move_to(m, cell);
	next_page(fd, 11, "the second page, by the one that moved");
	CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)(2 * PAGE), "it is at %ld", (long)lseek(fd, 0, SEEK_CUR));
	CHECK(pread(fd, buffer, PAGE, 4 * PAGE) == (ssize_t)PAGE, "pread");
	check_words(buffer, WORDS, 14, "pread");
	CHECK(lseek(fd, PAGE, SEEK_CUR) == (off_t)(3 * PAGE), "lseek");
	write_next(fd, 53);
	area = map(fd, "by a descriptor that is at home elsewhere");
	check_words((uint32_t *)(area + 3 * PAGE), WORDS, 53, "what it wrote itself, mapped");
	fill_words((uint32_t *)(area + 2 * PAGE), WORDS, 52);
	/* On, and back: mapped and open. */
	move_to(m, (cell + 1) % m->cells);
	check_words((uint32_t *)(area + 2 * PAGE), WORDS, 52, "its mapping in another cell");
	move_to(m, cell);
	CHECK(!fstat(fd, &st) && st.st_size == (off_t)(PAGES * PAGE), "size %ld", (long)st.st_size);
	CHECK(!fsync(fd), "fsync");
	give(turn, 7);
	await(turn, 9, "the others");
	next_page(fd, 65, "the last page, by the one that moved");
	CHECK(!ftruncate(fd, 2 * PAGE), "ftruncate");
	CHECK(!munmap(area, PAGES * PAGE), "munmap");
	give(turn, 10);
	await(turn, 11, "the end");
	printf("process 1: %d moves\n", m->moves);
}

static void run(struct mover *m, int home, int to)
{
	pid_t owner, mover;
	struct stat st;
	char *area;
	int fd;

	*turn = 0;
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, PAGES * PAGE) && !close(fd), "%s", path);
	owner = fork();
	CHECK(owner >= 0, "fork");
	if (!owner) {
		be_home(m, home);
		_exit(0);
	}
	await(turn, 1, "the file in another cell");
	fd = open(path, O_RDWR);
	CHECK(fd >= 0, "opening %s", path);
	area = map(fd, "before it has a home");
	give(turn, 2);
	await(turn, 3, "the file at home");
	check_words((uint32_t *)area, WORDS, 10, "mapped before it had a home");
	give(turn, 4);
	await(turn, 5, "the one at home");
	mover = fork();
	CHECK(mover >= 0, "fork");
	if (!mover) {
		be_mover(m, fd, to);
		exit(0);
	}
	next_page(fd, 10, "the first page");
	give(turn, 6);
	await(turn, 7, "the one that moves");
	CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)(4 * PAGE), "it is at %ld", (long)lseek(fd, 0, SEEK_CUR));
	CHECK(pread(fd, buffer, PAGE, 2 * PAGE) == (ssize_t)PAGE, "pread");
	check_words(buffer, WORDS, 52, "what the one that moved wrote by its mapping");
	write_next(fd, 54);
	give(turn, 8);
	await(turn, 10, "the truncation");
	CHECK(!fstat(fd, &st) && st.st_size == (off_t)(2 * PAGE), "size %ld", (long)st.st_size);
	CHECK(!read(fd, buffer, PAGE), "beyond the end");
	give(turn, 11);
	join(mover, "the one that moves");
	join(owner, "the one at home");
	munmap(area, PAGES * PAGE);
	close(fd);
}

int main(int argc, char **argv)
{
	struct mover m;
	int fd;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 2);
	fd = mkstemp(path);
	CHECK(fd >= 0, "%s", path);
	close(fd);
	turn = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(turn != MAP_FAILED, "mapping");
	for (long round = 0; round < m.rounds; round++)
		for (int to = 0; to < m.cells; to++)
			run(&m, (m.here + 1) % m.cells, (m.here + 1 + to) % m.cells);
	CHECK(!unlink(path), "unlink");
	return pass();
}

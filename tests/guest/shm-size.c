// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: a shared file in memory (POSIX shared memory, then a memfd) whose size and pages change under the mappings of two
 * processes: ftruncate to less and to more, holes (fallocate, MADV_REMOVE), preallocation, seals: by one, seen by the other.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

#include "catch.h"
#include "shared.h"

#define PAGES 12UL

struct ground {
	int fd;
	char *area;		/* of the object */
	char *copy;		/* of the object, private */
	char *board;		/* of its own */
};

static off_t size_of(int fd)
{
	struct stat st;

	CHECK(fstat(fd, &st) == 0, "fstat");
	return st.st_size;
}

/* What one does, and the other checks; the step is on the board. */
static void change(struct mover *m, struct ground *g, uint32_t step, uint32_t round)
{
	switch (step) {
	case 0:
		for (unsigned long i = 0; i < PAGES; i++)
			fill_words((uint32_t *)(g->area + i * PAGE), PAGE / 4, round + i);
		break;
	case 1:		/* the second half goes, and half a page more */
		CHECK(ftruncate(g->fd, (PAGES / 2 - 1) * PAGE + PAGE / 2) == 0, "ftruncate to less");
		break;
	case 2:
		CHECK(ftruncate(g->fd, PAGES * PAGE) == 0, "ftruncate to more");
		break;
	case 3:
		CHECK(fallocate(g->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, 2 * PAGE) == 0, "a hole");
		break;
	case 4:
		g->area[PAGE + 5] = 'n';
		CHECK(madvise(g->area + 3 * PAGE, PAGE, MADV_REMOVE) == 0, "MADV_REMOVE");
		break;
	case 5:
		CHECK(fallocate(g->fd, 0, 0, (PAGES + 2) * PAGE) == 0, "fallocate");
		break;
	case 6:
		CHECK(ftruncate(g->fd, 0) == 0, "ftruncate to nothing");
		break;
	case 7:
		CHECK(ftruncate(g->fd, PAGES * PAGE) == 0, "ftruncate");
		CHECK(pwrite(g->fd, "written", 7, 2 * PAGE) == 7, "pwrite");
		break;
	}
	maybe_move(m);
}

static void check_zero(const char *page, const char *what)
{
	for (unsigned long i = 0; i < PAGE; i++)
		CHECK(!page[i], "%s: byte %lu is %d", what, i, page[i]);
}

static void check(struct ground *g, uint32_t step, uint32_t round)
{
	switch (step) {
	case 0:
		for (unsigned long i = 0; i < PAGES; i++)
			check_words((uint32_t *)(g->area + i * PAGE), PAGE / 4, round + i, "what was filled");
		/* A page of its own, which goes with the file's all the same. */
		g->copy[(PAGES - 1) * PAGE] = 'c';
		g->copy[PAGE] = 'c';
		break;
	case 1:
		CHECK(size_of(g->fd) == (off_t)((PAGES / 2 - 1) * PAGE + PAGE / 2), "size %ld", (long)size_of(g->fd));
		for (unsigned long i = 0; i < PAGES; i++)
			CHECK(read_raises(g->area + i * PAGE) == (i < PAGES / 2 ? 0 : SIGBUS), "page %lu after ftruncate to less", i);
		CHECK(read_raises(g->copy + (PAGES - 1) * PAGE) == SIGBUS, "a private page beyond the end");
		CHECK(g->copy[PAGE] == 'c', "a private page within the file has %d", g->copy[PAGE]);
		check_words((uint32_t *)(g->area + (PAGES / 2 - 2) * PAGE), PAGE / 4, round + PAGES / 2 - 2, "a page that stayed");
		CHECK(!g->area[(PAGES / 2 - 1) * PAGE + PAGE - 1], "the rest of the last page is not zero");
		break;
	case 2:
		for (unsigned long i = PAGES / 2; i < PAGES; i++)
			check_zero(g->area + i * PAGE, "a page that is there again");
		break;
	case 3:
		check_zero(g->area + PAGE, "the hole");
		check_zero(g->area + 2 * PAGE, "the hole");
		check_words((uint32_t *)g->area, PAGE / 4, round, "before the hole");
		break;
	case 4:
		CHECK(g->area[PAGE + 5] == 'n', "written into the hole");
		check_zero(g->area + 3 * PAGE, "the page that was removed");
		break;
	case 5:
		CHECK(size_of(g->fd) == (off_t)((PAGES + 2) * PAGE), "size %ld", (long)size_of(g->fd));
		break;
	case 6:
		for (unsigned long i = 0; i < PAGES; i++)
			CHECK(read_raises(g->area + i * PAGE) == SIGBUS, "page %lu of an empty object", i);
		break;
	case 7:
		CHECK(!strcmp(g->area + 2 * PAGE, "written"), "the mapping has %s", g->area + 2 * PAGE);
		break;
	}
}

static void work(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	volatile uint32_t *turn = (uint32_t *)g->board;
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &action, NULL);
	for (uint32_t round = 1, now = 0; round <= (uint32_t)m->rounds; round++) {
		for (uint32_t step = 0; step < 8; step++, now += 2) {
			/* Who changes and who checks takes turns too. */
			if ((uint32_t)me == ((round + step) & 1)) {
				await(turn, now, "to change");
				change(m, g, step, round);
				check(g, step, round);
				give(turn, now + 1);
			} else {
				await(turn, now + 1, "to check");
				maybe_move(m);
				check(g, step, round);
				give(turn, now + 2);
			}
		}
	}
}

static void seal_work(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	volatile uint32_t *turn = (uint32_t *)g->board;

	if (me) {	/* away, in a move */
		await(turn, 0, "to map");
		maybe_move(m);
		char *mine = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);

		CHECK(mine != MAP_FAILED, "mapping");
		give(turn, 1);
		await(turn, 2, "to unmap");
		maybe_move(m);
		munmap(mine, PAGE);
		CHECK(fcntl(g->fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "a seal");
		give(turn, 3);
		await(turn, 4, "to be refused");
		CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0) == MAP_FAILED && errno == EPERM,
		      "a sealed memfd was mapped writable");
		CHECK(fcntl(g->fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_WRITE), "seals %#x", fcntl(g->fd, F_GET_SEALS));
		CHECK(ftruncate(g->fd, 0) < 0 && errno == EPERM, "a sealed memfd was cut");
		CHECK(pwrite(g->fd, "x", 1, 0) < 0 && errno == EPERM, "a sealed memfd was written");
		return;
	}
	await(turn, 1, "to fail to seal");
	CHECK(fcntl(g->fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EBUSY, "sealed while mapped writable in another process");
	give(turn, 2);
	await(turn, 3, "to seal");
	maybe_move(m);
	CHECK(fcntl(g->fd, F_GET_SEALS) == F_SEAL_SHRINK, "seals %#x", fcntl(g->fd, F_GET_SEALS));
	/* The end of the other's mapping may be told late. */
	for (int i = 0; fcntl(g->fd, F_ADD_SEALS, F_SEAL_WRITE); i++) {
		CHECK(errno == EBUSY && i < 2000, "F_SEAL_WRITE");
		breathe();
	}
	give(turn, 4);
}

static void run(struct mover *m, int fd)
{
	struct ground g = { .fd = fd };

	CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "the object");
	g.area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	g.copy = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	g.board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(g.area != MAP_FAILED && g.copy != MAP_FAILED && g.board != MAP_FAILED, "mapping");
	run_workers(m, 2, work, &g);
	munmap(g.area, PAGES * PAGE);
	munmap(g.copy, PAGES * PAGE);
	munmap(g.board, PAGE);
	close(fd);
}

int main(int argc, char **argv)
{
	struct ground sealed = { .fd = memfd_create("sealed", MFD_ALLOW_SEALING) };
	char name[32];
	struct mover m;
	int fd;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 2);
	snprintf(name, sizeof(name), "/shm-size-%d", getpid());
	fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	run(&m, fd);
	CHECK(shm_unlink(name) == 0, "shm_unlink");
	run(&m, memfd_create("size", 0));
	CHECK(sealed.fd >= 0 && ftruncate(sealed.fd, PAGE) == 0, "memfd");
	sealed.board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(sealed.board != MAP_FAILED, "mapping");
	run_workers(&m, 2, seal_work, &sealed);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: what mapping calls do to shared memory that is somewhere else: partial mappings, one object at two addresses, read-only
 * views, mprotect, mremap (moving and growing), munmap of parts, private mappings of a shared object, MADV_DONTNEED, reads and
 * writes of the kernel into it (pipe, process_vm_readv), /proc/self/maps.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <sys/uio.h>

#include "shared.h"

#define PAGES 16UL

struct ground {
	int fd;
	char *area, *private;
	volatile uint32_t *turn;
};

static sigjmp_buf back;

static void on_fault(int signal)
{
	siglongjmp(back, signal);
}

static int write_raises(volatile char *at)
{
	int signal = sigsetjmp(back, 1);

	if (!signal)
		*at = *at;
	return signal;
}

static void check_protection(struct mover *m, struct ground *g)
{
	CHECK(mprotect(g->area + 2 * PAGE, PAGE, PROT_READ) == 0, "mprotect");
	CHECK(write_raises(g->area + 2 * PAGE) == SIGSEGV, "a write-protected page took a write");
	maybe_move(m);
	CHECK(write_raises(g->area + 2 * PAGE) == SIGSEGV, "a write-protected page took a write after a move");
	CHECK(mprotect(g->area + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect back");
	CHECK(write_raises(g->area + 2 * PAGE) == 0, "a page refused a write");
}

static void check_addresses(struct mover *m, struct ground *g, uint32_t round)
{
	char *low = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 4 * PAGE);
	char *view, *grown;

	CHECK(low != MAP_FAILED, "a part at another address");
	fill_words((uint32_t *)low, PAGE / 4, round + 31);
	maybe_move(m);
	check_words((uint32_t *)(g->area + 4 * PAGE), PAGE / 4, round + 31, "the same page at its first address");
	/* It grows over pages that it did not have. */
	grown = mremap(low, 2 * PAGE, 6 * PAGE, MREMAP_MAYMOVE);
	CHECK(grown != MAP_FAILED, "mremap");
	check_words((uint32_t *)grown, PAGE / 4, round + 31, "after mremap");
	fill_words((uint32_t *)(g->area + 8 * PAGE), PAGE / 4, round + 32);
	maybe_move(m);
	check_words((uint32_t *)(grown + 4 * PAGE), PAGE / 4, round + 32, "a page that it grew over");
	CHECK(munmap(grown + PAGE, 4 * PAGE) == 0, "munmap of the middle");
	check_words((uint32_t *)grown, PAGE / 4, round + 31, "the first page, alone");
	maybe_move(m);
	grown[5 * PAGE] = 'z';
	CHECK(g->area[9 * PAGE] == 'z', "the last page, alone");
	munmap(grown, PAGE);
	munmap(grown + 5 * PAGE, PAGE);
	view = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, g->fd, 4 * PAGE);
	CHECK(view != MAP_FAILED, "a read-only view");
	maybe_move(m);
	CHECK(write_raises(view) == SIGSEGV, "a read-only view took a write");
	g->area[4 * PAGE] = 'v';
	CHECK(view[0] == 'v', "the view shows %d", view[0]);
	munmap(view, PAGE);
}

/* Private pages of a shared object: what was written stays, what was not shows the object. */
static void check_private(struct mover *m, struct ground *g, uint32_t round)
{
	check_words((uint32_t *)g->private, PAGE / 4, round > 1 ? round - 1 : 1000, "the private copy");
	fill_words((uint32_t *)g->private, PAGE / 4, round);
	g->area[11 * PAGE + 9] = (char)round;
	CHECK(g->private[PAGE + 9] == (char)round, "an untouched private page shows %d", g->private[PAGE + 9]);
	maybe_move(m);
	CHECK(g->private[PAGE + 9] == (char)round, "after a move an untouched private page shows %d", g->private[PAGE + 9]);
	CHECK(madvise(g->area + 11 * PAGE, PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	CHECK(g->area[11 * PAGE + 9] == (char)round, "MADV_DONTNEED lost what was shared");
}

/* The kernel reads and writes in these pages itself. */
static void check_kernel(struct mover *m, struct ground *g, uint32_t round)
{
	char copy[64];
	struct iovec local = { copy, sizeof(copy) }, remote = { g->area + 13 * PAGE, sizeof(copy) };
	int ends[2];

	CHECK(pipe(ends) == 0, "pipe");
	snprintf(g->area + 12 * PAGE, 64, "round %u", round);
	CHECK(write(ends[1], g->area + 12 * PAGE, 64) == 64, "write from shared memory");
	memset(g->area + 13 * PAGE, 0, 64);
	CHECK(read(ends[0], g->area + 13 * PAGE, 64) == 64, "read into shared memory");
	CHECK(!strcmp(g->area + 12 * PAGE, g->area + 13 * PAGE), "it has %s", g->area + 13 * PAGE);
	close(ends[0]);
	close(ends[1]);
	maybe_move(m);
	CHECK(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 64, "process_vm_readv");
	CHECK(!strcmp(copy, g->area + 12 * PAGE), "process_vm_readv gave %s", copy);
}

static void check_maps(struct ground *g)
{
	char line[512], begin[32];
	FILE *file = fopen("/proc/self/maps", "r");
	int found = 0;

	CHECK(file, "/proc/self/maps");
	snprintf(begin, sizeof(begin), "%lx-", (unsigned long)g->area);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, begin, strlen(begin))) {
			CHECK(strstr(line, " rw-s ") && strstr(line, "/memfd:maps (deleted)"), "the mapping shows as %s", line);
			found = 1;
		}
	fclose(file);
	CHECK(found, "the mapping is not in /proc/self/maps");
}

static void work(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGSEGV, &action, NULL);
	for (uint32_t round = 1; round <= (uint32_t)m->rounds; round++) {
		await(g->turn, (uint32_t)me, "maps");
		if (round > 1 || me)
			check_words((uint32_t *)(g->area + PAGE), PAGE / 4, (round - !me) * 2 + !me, "what the other wrote");
		check_protection(m, g);
		check_addresses(m, g, round);
		check_private(m, g, round);
		check_kernel(m, g, round);
		check_maps(g);
		fill_words((uint32_t *)(g->area + PAGE), PAGE / 4, round * 2 + me);
		give(g->turn, !me);
		maybe_move(m);
	}
}

int main(int argc, char **argv)
{
	struct ground g = { .fd = memfd_create("maps", 0) };
	struct mover m;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 3);
	CHECK(g.fd >= 0 && ftruncate(g.fd, PAGES * PAGE) == 0, "memfd");
	g.area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd, 0);
	g.private = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, g.fd, 10 * PAGE);
	CHECK(g.area != MAP_FAILED && g.private != MAP_FAILED, "mapping");
	fill_words((uint32_t *)g.private, PAGE / 4, 1000);
	g.turn = (uint32_t *)g.area;
	run_workers(&m, 2, work, &g);
	return pass();
}

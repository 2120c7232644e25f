// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * faults [ROUNDS [CELLS]]: what accesses to memory that other cells have cost, for `ssivmm bench dsm --cells`. The home of the
 * memory stays in cell 0, the one that measures goes to cell 1, with three cells or more an owner to steal from to cell 2.
 * Each prints nothing but lines of a word and numbers:
 *
 *	page NS...		round trips of 4096 bytes between the kernels of cells 1 and 0
 *	short NS...		the same of 64 bytes
 *	read NS...		first reads of pages that the home has written
 *	upgrade NS...		first writes after that
 *	steal NS...		first writes of pages that the owner has written (with three cells)
 *	stream PAGES NS...	reads of so many pages in order, all that the home has written; a time each round
 *	write N MS HOME OTHER	writes of home and measurer in so many milliseconds: N 0 the same word, 1 different lines of
 *				one page, 2 different pages
 *
 * and PASS. Round trips and accesses take turns.
 */
#define _GNU_SOURCE
#include <fcntl.h>

#include "shared.h"

#define BATCH 64
#define STREAM 1024
#define ROUNDS_MAX 100
#define WRITE_MS 500

enum { HOME, MEASURER, OWNER, STEP_BITS = 8 };
enum { READS = 0, STEALS = BATCH, RUNS = 2 * BATCH, WORDS = RUNS + STREAM, PAGES = WORDS + 4 };

struct part {
	volatile uint32_t turn;		/* step << 8 | whose it is */
	volatile uint64_t home_writes;
};

struct times {
	const char *name;
	long count;
	uint64_t ns[3 * BATCH * ROUNDS_MAX];
};

static struct part *part;
static uint8_t *memory;
static long rounds, cells;
static struct times page_trip = { .name = "page" }, short_trip = { .name = "short" }, reads = { .name = "read" },
		    upgrades = { .name = "upgrade" }, steals = { .name = "steal" }, streams = { .name = "stream 1024" };

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static volatile uint64_t *word(long page)
{
	return (volatile uint64_t *)(memory + page * (long)PAGE);
}

/* No two in a row are neighbours, so that none is fetched ahead. */
static long scattered(long first, long i)
{
	return first + i * 37 % BATCH;
}

static void write_pages(long first, long count, uint64_t value)
{
	for (long page = first; page < first + count; page++)
		*word(page) = value + (uint64_t)page;
}

static void note(struct times *times, uint64_t start)
{
	times->ns[times->count++] = now() - start;
}

/* Kernel to kernel and back, with so many bytes each way. */
static void round_trip(int selftest, struct times *times, int bytes)
{
	char line[40];
	int len = snprintf(line, sizeof(line), "ping %d 1 %d", HOME, bytes);
	uint64_t start = now();

	CHECK(write(selftest, line, (size_t)len) == len, "a round trip of %d bytes", bytes);
	note(times, start);
}

static void read_page(struct times *times, long page, uint64_t value)
{
	uint64_t start = now(), found = *word(page);

	if (times)
		note(times, start);
	CHECK(found == value + (uint64_t)page, "page %ld has %lu", page, (unsigned long)found);
}

static void write_page(struct times *times, long page)
{
	uint64_t start = now();

	*word(page) = 1;
	note(times, start);
}

static uint64_t write_for(int me, int pattern)
{
	static const struct {
		int page[2], offset[2];
	} where[] = { { { 0, 0 }, { 0, 0 } }, { { 1, 1 }, { 0, 256 } }, { { 2, 3 }, { 0, 0 } } };
	volatile uint64_t *mine = word(WORDS + where[pattern].page[me]) + where[pattern].offset[me];
	uint64_t end = now() + WRITE_MS * 1000000ull, count = 0;

	for (; now() < end; count++)
		__atomic_fetch_add(mine, 1, __ATOMIC_RELAXED);
	return count;
}

/* Has @who do its next step, and waits for that. */
static void tell(uint32_t *step, uint32_t who)
{
	give(&part->turn, ++*step << STEP_BITS | who);
	await(&part->turn, *step << STEP_BITS | MEASURER, "the measurer");
}

static void measure(void)
{
	int selftest = open("/proc/ssi/selftest", O_WRONLY | O_CLOEXEC);
	uint32_t step = 0;

	CHECK(selftest >= 0, "/proc/ssi/selftest");
	/* Once, so that this kernel maps it all: what is measured then is the memory, not the page tables. */
	for (long page = 0; page < PAGES; page++)
		*word(page) = 1;
	for (long round = 0; round < rounds; round++) {
		uint64_t value = (uint64_t)round << 32;

		tell(&step, HOME);
		for (long i = 0; i < BATCH; i++) {
			round_trip(selftest, &page_trip, PAGE);
			read_page(&reads, scattered(READS, i), value);
		}
		for (long i = 0; i < BATCH; i++) {
			round_trip(selftest, &short_trip, 64);
			write_page(&upgrades, scattered(READS, i));
		}
		if (cells > 2) {
			tell(&step, OWNER);
			for (long i = 0; i < BATCH; i++) {
				round_trip(selftest, &page_trip, PAGE);
				write_page(&steals, scattered(STEALS, i));
			}
		}
		uint64_t start = now();

		for (long page = RUNS; page < RUNS + STREAM; page++)
			read_page(NULL, page, value);
		note(&streams, start);
	}
	for (int pattern = 0; pattern < 3; pattern++) {
		uint64_t mine;

		give(&part->turn, ++step << STEP_BITS | HOME);
		mine = write_for(1, pattern);
		await(&part->turn, step << STEP_BITS | MEASURER, "the measurer");
		printf("write %d %d %lu %lu\n", pattern, WRITE_MS, (unsigned long)part->home_writes, (unsigned long)mine);
	}
}

/* The home's steps: all its pages each round, then the patterns. */
static void serve_home(void)
{
	uint32_t step = 0;

	for (long round = 0; round < rounds + 3; round++) {
		step++;
		await(&part->turn, step << STEP_BITS | HOME, "the home");
		if (round < rounds) {
			write_pages(0, WORDS, (uint64_t)round << 32);
			/* The owner has a step of its own in between. */
			give(&part->turn, step << STEP_BITS | MEASURER);
			step += cells > 2;
		} else {
			part->home_writes = write_for(0, (int)(round - rounds));
			give(&part->turn, step << STEP_BITS | MEASURER);
		}
	}
}

static void serve_owner(void)
{
	for (uint32_t step = 2; step <= 2 * rounds; step += 2) {
		await(&part->turn, step << STEP_BITS | OWNER, "the owner");
		write_pages(STEALS, BATCH, 7);
		give(&part->turn, step << STEP_BITS | MEASURER);
	}
}

static void print_times(const struct times *times)
{
	fputs(times->name, stdout);
	for (long i = 0; i < times->count; i++)
		printf(" %lu", (unsigned long)times->ns[i]);
	putchar('\n');
}

static void *shared(size_t bytes)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(start != MAP_FAILED, "shared memory");
	return start;
}

/* Forks one that goes to @cell and works there. */
static pid_t start(int cell, void (*work)(void))
{
	pid_t child = fork();

	CHECK(child >= 0, "fork");
	if (child)
		return child;
	CHECK(!syscall(NR_MIGRATE, 0, (unsigned long)cell), "moving to cell %d", cell);
	work();
	fflush(stdout);
	_exit(0);
}

static void measure_and_print(void)
{
	measure();
	print_times(&page_trip);
	print_times(&short_trip);
	print_times(&reads);
	print_times(&upgrades);
	if (cells > 2)
		print_times(&steals);
	print_times(&streams);
}

int main(int argc, char **argv)
{
	pid_t measurer, owner;

	rounds = argc > 1 ? atol(argv[1]) : 5;
	cells = argc > 2 ? atol(argv[2]) : 2;
	if (rounds < 1 || rounds > ROUNDS_MAX || cells < 2) {
		fprintf(stderr, "usage: %s [ROUNDS (1 to %d) [CELLS (2 or more)]]\n", argv[0], ROUNDS_MAX);
		return 2;
	}
	memory = shared(PAGES * PAGE);
	part = shared(PAGE);
	part->turn = MEASURER;
	/* Its own pages first: this cell is their home. */
	write_pages(0, PAGES, 0);
	fflush(stdout);
	measurer = start(1, measure_and_print);
	owner = cells > 2 ? start(2, serve_owner) : 0;
	serve_home();
	join(measurer, "the measurer");
	if (owner)
		join(owner, "the owner");
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * window [MIB [CELL]]: a process here and one in CELL share MIB of memory, more than a node need keep of another one's. Each
 * writes all of it in turn, and checks all that the other has written.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define PAGE 4096UL
#define ROUNDS 2

static volatile uint32_t *turn;
static uint64_t *words;
static unsigned long pages;

static void await(uint32_t mine)
{
	struct timespec pause = { 0, 2000000 };

	for (long i = 0; *turn != mine; i++) {
		CHECK(i < 60000, "turn is %u and does not become %u", *turn, mine);
		nanosleep(&pause, NULL);
	}
}

/* A word at each end of a page. */
static void write_all(uint64_t round)
{
	for (unsigned long page = 0; page < pages; page++) {
		words[page * PAGE / 8] = round << 32 | page;
		words[(page + 1) * PAGE / 8 - 1] = ~(round << 32 | page);
	}
}

static void check_all(uint64_t round)
{
	for (unsigned long page = 0; page < pages; page++) {
		uint64_t first = words[page * PAGE / 8], last = words[(page + 1) * PAGE / 8 - 1];

		CHECK(first == (round << 32 | page) && last == ~first, "round %lu page %lu: %#lx %#lx", (unsigned long)round,
		      page, (unsigned long)first, (unsigned long)last);
	}
}

static void work(uint32_t me)
{
	for (uint32_t round = 1; round <= ROUNDS; round++) {
		await(2 * round - 2 + me);
		if (round > 1 || me)
			check_all(2 * round - 3 + me);
		write_all(2 * round - 2 + me);
		__atomic_store_n(turn, 2 * round - 1 + me, __ATOMIC_SEQ_CST);
	}
}

int main(int argc, char **argv)
{
	long mib = argc > 1 ? atol(argv[1]) : 32, cell = argc > 2 ? atol(argv[2]) : 1;
	int status;
	pid_t child;

	if (mib < 1 || cell < 0) {
		fprintf(stderr, "usage: %s [MIB [CELL]]\n", argv[0]);
		return 2;
	}
	pages = (unsigned long)mib << 8;
	words = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	turn = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(words != MAP_FAILED && turn != MAP_FAILED, "shared memory");
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		CHECK(!syscall(NR_MIGRATE, 0, (unsigned long)cell), "moving to cell %ld", cell);
		work(1);
		_exit(0);
	}
	work(0);
	CHECK(wait(&status) == child && !status, "the other ended with status %#x", (unsigned)status);
	check_all(2 * ROUNDS - 1);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * MIG-6, MIG-7: memory mappings with ranges and attributes, and their contents: heap, stack, anonymous pages, pages that
 * were never touched, private file pages that were and were not modified, mremap, mprotect, madvise, MAP_GROWSDOWN, fork-free.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "resource.h"

#define PAGE 4096UL
#define PAGES 512UL

static sigjmp_buf back;

static void on_fault(int signal)
{
	siglongjmp(back, signal);
}

/* The signal that a write of one byte raises, 0 if it succeeds. */
static int write_raises(volatile char *at)
{
	int signal = sigsetjmp(back, 1);

	if (!signal)
		*at = *at;
	return signal;
}

static void fill(uint32_t *page, unsigned long number, uint32_t round)
{
	for (unsigned long i = 0; i < PAGE / 4; i++)
		page[i] = number * 2654435761u + i + round;
}

static void compare(const uint32_t *page, unsigned long number, uint32_t round, const char *what)
{
	for (unsigned long i = 0; i < PAGE / 4; i++)
		CHECK(page[i] == (uint32_t)(number * 2654435761u + i + round), "%s: page %lu word %lu is %#x, round %u", what,
		      number, i, page[i], round);
}

static uint32_t deep(int depth, uint32_t seed)
{
	volatile uint32_t frame[256];

	for (int i = 0; i < 256; i++)
		frame[i] = seed + i;
	uint32_t below = depth ? deep(depth - 1, seed + 1) : 0;

	for (int i = 0; i < 256; i++)
		CHECK(frame[i] == seed + i, "stack frame %d word %d", depth, i);
	return below + frame[7];
}

int main(int argc, char **argv)
{
	long rounds = rounds_of(argc, argv);
	int file = open("/proc/self/exe", O_RDONLY);
	char path[] = "/var/tmp/res-memory-XXXXXX";
	int temp = mkstemp(path);
	struct sigaction action = { .sa_handler = on_fault };

	sigaction(SIGSEGV, &action, NULL);
	CHECK(file >= 0 && temp >= 0, "opening files");
	char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *untouched = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (unsigned long i = 0; i < 8; i++) {
		static uint32_t page[PAGE / 4];

		fill(page, i, 77);
		CHECK(write(temp, page, PAGE) == (ssize_t)PAGE, "writing %s", path);
	}
	char *mapped = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, temp, 0);

	CHECK(area != MAP_FAILED && untouched != MAP_FAILED && mapped != MAP_FAILED, "mapping");
	for (long round = 0; round < rounds; round++) {
		/* A third of the pages changes in each round; holes stay holes. */
		for (unsigned long i = round % 3; i < PAGES; i += 3) {
			if (i % 7 == 0)
				madvise(area + i * PAGE, PAGE, MADV_DONTNEED);
			else
				fill((uint32_t *)(area + i * PAGE), i, round);
		}
		if (round >= 2) {
			for (unsigned long i = 0; i < PAGES; i++) {
				uint32_t when = round - (round - i % 3 + 3) % 3;

				if (i % 7 == 0)
					CHECK(area[i * PAGE + 5] == 0, "a page given back holds %d", area[i * PAGE + 5]);
				else
					compare((uint32_t *)(area + i * PAGE), i, when, "anonymous");
			}
		}
		CHECK(untouched[(round * 31 % PAGES) * PAGE] == 0, "a page never written is not zero");
		/* Private file pages: even ones are modified, odd ones show the file. */
		for (unsigned long i = 0; i < 8; i += 2)
			fill((uint32_t *)(mapped + i * PAGE), i, round);
		for (unsigned long i = 0; i < 8; i++)
			compare((uint32_t *)(mapped + i * PAGE), i, i % 2 ? 77 : round, "private file");
		/* Attributes: read-only raises SIGSEGV, wherever it runs; a guard page too. */
		CHECK(mprotect(area + PAGE, PAGE, PROT_READ) == 0, "mprotect");
		breathe();
		CHECK(write_raises(area + PAGE) == SIGSEGV, "a write-protected page took a write");
		CHECK(mprotect(area + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
		CHECK(write_raises(area + PAGE) == 0, "an unprotected page refused a write");
		/* Moving a mapping moves its pages, those that are still elsewhere too. */
		char *place = mremap(area, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				     untouched + (round % 2 ? 64 : 192) * 0x100000UL + 0x10000000UL);

		CHECK(place != MAP_FAILED, "mremap");
		area = place;
		/* The heap grows and shrinks. */
		char *old = sbrk(0);

		CHECK(sbrk(64 * 1024) == old, "sbrk");
		memset(old, 0x5a, 64 * 1024);
		breathe();
		for (int i = 0; i < 64 * 1024; i += 512)
			CHECK(old[i] == 0x5a, "heap byte %d", i);
		sbrk(-64 * 1024);
		deep(20, round);
	}
	unlink(path);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * fork-lazy: forks as soon as it runs in another cell, while its memory is still on its way. The child has all of it, and
 * moves as any process: home and back, at the first request.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define PAGE 4096UL
#define PAGES 4096UL

static void check_all(const volatile uint64_t *memory, const char *who)
{
	for (unsigned long i = 0; i < PAGES; i++)
		CHECK(memory[i * PAGE / 8] == i + 1, "page %lu of %s", i, who);
}

int main(void)
{
	volatile uint64_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t child;

	CHECK(memory != MAP_FAILED, "mapping");
	for (unsigned long i = 0; i < PAGES; i++)
		memory[i * PAGE / 8] = i + 1;
	CHECK(!syscall(NR_MIGRATE, 0, 1UL), "the move to cell 1");
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		for (unsigned long cell = 0; cell < 2; cell++) {
			CHECK(!syscall(NR_MIGRATE, 0, cell), "the child's move to cell %lu", cell);
			check_all(memory, "the child");
		}
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status, "the child ended with status %#x", status);
	check_all(memory, "the parent");
	return pass();
}

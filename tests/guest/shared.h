/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the programs about shared memory share: `shm-NAME [MODE [CELLS [SEED [ROUNDS]]]]`. Two processes or more work on one
 * object and move themselves: MODE `stay` never, `once` one of them to another cell, `storm` all of them about every 50 ms, to
 * random cells, from the seed. Each checks what the others did; the first prints PASS or FAIL with what was wrong.
 */
#ifndef SHARED_H
#define SHARED_H

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "random.h"
#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define PAGE 4096UL

enum { STAY, ONCE, STORM };

struct mover {
	int mode, cells, here, moves;
	long rounds;
	uint64_t seed;
	struct timespec next;
};

static inline uint32_t mover_number(struct mover *m, uint32_t below)
{
	return random_below(&m->seed, below);
}

static inline void mover_arm(struct mover *m)
{
	long ns = 25000000L + mover_number(m, 50000000);

	clock_gettime(CLOCK_MONOTONIC, &m->next);
	m->next.tv_nsec += ns;
	if (m->next.tv_nsec >= 1000000000L) {
		m->next.tv_nsec -= 1000000000L;
		m->next.tv_sec++;
	}
}

static inline void mover_init(struct mover *m, int argc, char **argv, long rounds)
{
	const char *mode = argc > 1 ? argv[1] : "stay";

	memset(m, 0, sizeof(*m));
	m->mode = !strcmp(mode, "storm") ? STORM : !strcmp(mode, "once") ? ONCE : STAY;
	m->cells = argc > 2 ? atoi(argv[2]) : 2;
	m->seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
	m->rounds = argc > 4 ? atol(argv[4]) : rounds;
	if (m->cells < 1 || !m->seed || m->rounds <= 0 || (m->mode == STAY && strcmp(mode, "stay"))) {
		fprintf(stderr, "usage: %s [stay|once|storm [CELLS [SEED [ROUNDS]]]]\n", argv[0]);
		exit(2);
	}
	FILE *cell = fopen("/proc/ssi/cell", "r");

	if (cell) {
		if (fscanf(cell, "%d", &m->here) != 1)
			m->here = 0;
		fclose(cell);
	}
	mover_arm(m);
}

static inline void tell_why(int error)
{
	char why[200] = "";
	char path[48];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/ssi/%d/why", getpid());
	file = fopen(path, "r");
	if (file) {
		if (!fgets(why, sizeof(why), file))
			why[0] = 0;
		fclose(file);
	}
	printf("FAIL: a move was refused with errno %d: %s\n", error, why);
	fflush(stdout);
	_exit(1);
}

/* This process goes to @cell. */
static inline void move_to(struct mover *m, int cell)
{
	if (m->mode == STAY || cell == m->here)
		return;
	/* It may be about to arrive from the last move still. */
	while (syscall(NR_MIGRATE, 0, (unsigned long)cell)) {
		if (errno != EBUSY && errno != EINTR && errno != EAGAIN)
			tell_why(errno);
	}
	m->here = cell;
	m->moves++;
}

/* Once per round, in each process: moves in a storm when it is time. */
static inline void maybe_move(struct mover *m)
{
	struct timespec now;

	if (m->mode != STORM || m->cells < 2)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec < m->next.tv_sec || (now.tv_sec == m->next.tv_sec && now.tv_nsec < m->next.tv_nsec))
		return;
	move_to(m, (m->here + 1 + (int)mover_number(m, m->cells - 1)) % m->cells);
	mover_arm(m);
}

/* In a new process: another seed, and in a storm the first move at once, so that a short run has one. */
static inline void mover_fork(struct mover *m, int number)
{
	m->seed = m->seed * 6364136223846793005ULL + 1442695040888963407ULL * (uint64_t)(number + 1);
	m->seed |= 1;
	clock_gettime(CLOCK_MONOTONIC, &m->next);
}

/* The processes take turns: each waits until *turn is its own number. */
static inline void await(volatile uint32_t *turn, uint32_t mine, const char *what)
{
	struct timespec pause = { 0, 1000000 };

	for (long i = 0; *turn != mine; i++) {
		CHECK(i < 60000, "%s: turn is %u and does not become %u", what, *turn, mine);
		if (i > 20)
			nanosleep(&pause, NULL);
		else
			sched_yield();
	}
	__sync_synchronize();
}

static inline void give(volatile uint32_t *turn, uint32_t to)
{
	__sync_synchronize();
	*turn = to;
}

static inline void fill_words(uint32_t *words, size_t count, uint32_t seed)
{
	for (size_t i = 0; i < count; i++)
		words[i] = seed * 2654435761u + (uint32_t)i;
}

static inline void check_words(const uint32_t *words, size_t count, uint32_t seed, const char *what)
{
	for (size_t i = 0; i < count; i++)
		CHECK(words[i] == seed * 2654435761u + (uint32_t)i, "%s: word %zu is %#x, seed %u", what, i, words[i], seed);
}

/* Waits for @child, which has to end well. */
static inline void join(pid_t child, const char *what)
{
	int status = 0;

	CHECK(waitpid(child, &status, 0) == child, "waiting for %s", what);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "%s ended with status %#x", what, status);
}

/*
 * Runs @work as processes 0 to @count - 1, which move as MODE says (`once`: the last one does), and waits for all. The caller
 * stays: a process with children cannot move.
 */
static inline void run_workers(struct mover *m, int count, void (*work)(struct mover *m, int me, void *arg), void *arg)
{
	pid_t children[16];
	int status, failed = 0;

	for (int i = 0; i < count; i++) {
		children[i] = fork();
		CHECK(children[i] >= 0, "fork");
		if (!children[i]) {
			mover_fork(m, i);
			if (m->mode == ONCE && i == count - 1)
				move_to(m, (m->here + 1) % m->cells);
			work(m, i, arg);
			if (m->mode != STAY)
				printf("process %d: %d moves\n", i, m->moves);
			_exit(0);
		}
	}
	for (int left = count; left; left--) {
		pid_t ended = wait(&status);

		CHECK(ended > 0, "waiting");
		for (int i = 0; i < count; i++)
			if (children[i] == ended)
				children[i] = 0;
		if (WIFEXITED(status) && !WEXITSTATUS(status))
			continue;
		if (!failed)
			printf("FAIL: a process ended with status %#x\n", status);
		failed = 1;
		for (int i = 0; i < count; i++)
			if (children[i])
				kill(children[i], SIGKILL);
	}
	if (failed)
		exit(1);
}

#endif

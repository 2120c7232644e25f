/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A crowd: processes that work on shared memory, moved by their parent: `NAME [MODE [CELLS [SEED [ROUNDS [KIND]]]]]`. MODE `stay`
 * moves none; `once` takes number n to cell n modulo CELLS before it begins; `away` to the next one, so that number 0 is not
 * at home; `storm` does as `once` and then goes on moving one after the other at random until they end, whatever they do at
 * that moment, waiting included. The parent stays: it has children. KIND `anonymous` or `file`: what the memory is; a file every
 * other process opens and maps for itself, in the cell where it begins.
 */
#ifndef CROWD_H
#define CROWD_H

#include <fcntl.h>
#include <limits.h>

#include "shared.h"

#define CROWD_MAX 16
#define CROWD_PAUSE_US 20000

struct crowd {
	struct mover m;
	int count, shift;
	uint32_t gate;		/* of the shared part */
	pid_t parent;
	pid_t pids[CROWD_MAX];
	int killed;		/* this one may end by SIGKILL; -1: none */
	int file;		/* the memory is a file's */
	int files;
};

/* With CROWD_TRACE in the environment: what is done when, on standard error. */
#define TRACE(...)                                                                                \
	do {                                                                                      \
		if (getenv("CROWD_TRACE")) {                                                      \
			struct timespec now_;                                                     \
			char line_[200];                                                          \
			int n_;                                                                   \
			clock_gettime(CLOCK_MONOTONIC, &now_);                                    \
			n_ = snprintf(line_, sizeof(line_), "%ld.%03ld ", (long)now_.tv_sec,      \
				      now_.tv_nsec / 1000000);                                    \
			n_ += snprintf(line_ + n_, sizeof(line_) - (size_t)n_, __VA_ARGS__);      \
			line_[n_++] = '\n';                                                       \
			if (write(2, line_, (size_t)n_) < 0)                                      \
				exit(3);                                                          \
		}                                                                                 \
	} while (0)

/* In memory that all share. */
static inline struct crowd *crowd_new(int argc, char **argv, int count, long rounds)
{
	struct crowd *c = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(c != MAP_FAILED && count <= CROWD_MAX, "mapping");
	if (argc > 1 && !strcmp(argv[1], "away")) {
		argv[1] = "once";
		c->shift = 1;
	}
	mover_init(&c->m, argc, argv, rounds);
	c->count = count;
	c->parent = getpid();
	c->killed = -1;
	c->file = argc > 5 && !strcmp(argv[5], "file");
	return c;
}

static inline void crowd_path(char *path, size_t room, pid_t pid, int number)
{
	snprintf(path, room, "/var/tmp/crowd-%d-%d", pid, number);
}

/* @size bytes that all share who are forked from here on, of the kind that was asked for. @number: where the file has it from. */
static inline void *crowd_memory(struct crowd *c, size_t size, int *number)
{
	int fd = -1, flags = MAP_SHARED | MAP_ANONYMOUS;
	char path[48];
	void *at;

	if (c->file) {
		*number = __atomic_add_fetch(&c->files, 1, __ATOMIC_SEQ_CST);
		crowd_path(path, sizeof(path), getpid(), *number);
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		CHECK(fd >= 0 && !ftruncate(fd, (off_t)size), "%s", path);
		flags = MAP_SHARED;
	}
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(at != MAP_FAILED, "mapping");
	if (fd >= 0)
		close(fd);
	return at;
}

/* In process @me: its own mapping of the same, if it is one of those that have one. The file's name is that of its parent. */
static inline void *crowd_own(struct crowd *c, int me, void *memory, size_t size, int number)
{
	char path[48];
	void *at;
	int fd;

	if (!c->file || me % 2 == 0)
		return memory;
	crowd_path(path, sizeof(path), c->parent, number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0, "opening %s", path);
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(at != MAP_FAILED && !munmap(memory, size), "mapping %s", path);
	close(fd);
	return at;
}

/* The names of files that this process has made go. */
static inline void crowd_forget(const struct crowd *c)
{
	char path[48];

	for (int i = 1; i <= c->files; i++) {
		crowd_path(path, sizeof(path), getpid(), i);
		unlink(path);
	}
}

/* Where number @i begins. */
static inline int crowd_cell(const struct crowd *c, int i)
{
	return c->m.mode == STAY ? 0 : (i + c->shift) % c->m.cells;
}

/* Moves number @i to @cell; true if it went there. */
static inline int crowd_move(struct crowd *c, int i, int cell)
{
	int error = 0;

	TRACE("process %d: move to cell %d", i, cell);
	for (int tries = 0;; tries++) {
		if (!syscall(NR_MIGRATE, c->pids[i], (unsigned long)cell)) {
			TRACE("process %d to cell %d: %d tries, last error %d", i, cell, tries, error);
			return 1;
		}
		error = errno;
		if (error == ESRCH)		/* it has ended, or is about to */
			return 0;
		if ((error != EBUSY && error != EINTR && error != EAGAIN) || tries > 5000) {
			char path[48], why[200] = "";
			FILE *file;

			snprintf(path, sizeof(path), "/proc/ssi/%d/why", c->pids[i]);
			file = fopen(path, "r");
			if (file) {
				if (!fgets(why, sizeof(why), file))
					why[0] = 0;
				fclose(file);
			}
			printf("FAIL: a move of process %d was refused with errno %d: %s\n", i, error, why);
			for (int j = 0; j < c->count; j++)
				if (c->pids[j])
					kill(c->pids[j], SIGKILL);
			exit(1);
		}
		breathe();
	}
}

static inline int crowd_ended_well(struct crowd *c, int i, int status)
{
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 1;
	if (i == c->killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return 1;
	printf("FAIL: process %d ended with status %#x\n", i, status);
	return 0;
}

/* Takes note of those that ended: how many there are still. */
static inline int crowd_reap(struct crowd *c, int left, int wait)
{
	int status;
	pid_t ended;

	while (left && (ended = waitpid(-1, &status, wait ? 0 : WNOHANG)) > 0) {
		for (int i = 0; i < c->count; i++) {
			if (c->pids[i] != ended)
				continue;
			c->pids[i] = 0;
			left--;
			if (crowd_ended_well(c, i, status))
				continue;
			for (int j = 0; j < c->count; j++)
				if (c->pids[j])
					kill(c->pids[j], SIGKILL);
			exit(1);
		}
	}
	return left;
}

/* Runs @work as processes 0 to count - 1 and waits for all of them. */
static inline void crowd_run(struct crowd *c, void (*work)(struct crowd *c, int me, void *arg), void *arg)
{
	int left = c->count, moves = 0;

	for (int i = 0; i < c->count; i++) {
		pid_t child = fork();

		CHECK(child >= 0, "fork");
		if (!child) {
			await(&c->gate, 1, "the gate");
			work(c, i, arg);
			_exit(0);
		}
		c->pids[i] = child;
	}
	for (int i = 0; i < c->count && c->m.mode != STAY; i++)
		if (crowd_cell(c, i))
			moves += crowd_move(c, i, crowd_cell(c, i));
	__atomic_store_n(&c->gate, 1, __ATOMIC_SEQ_CST);
	while (c->m.mode == STORM && left) {
		struct timespec t = { 0, 1000L * mover_number(&c->m, CROWD_PAUSE_US) };
		int i = (int)mover_number(&c->m, (uint32_t)c->count), cell = (int)mover_number(&c->m, (uint32_t)c->m.cells);

		nanosleep(&t, NULL);
		left = crowd_reap(c, left, 0);
		if (c->pids[i])
			moves += crowd_move(c, i, cell);
	}
	left = crowd_reap(c, left, 1);
	CHECK(!left, "waiting");
	printf("crowd: %d processes, %d moves\n", c->count, moves);
}

#endif

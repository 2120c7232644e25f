// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * storm SEED CELLS PROGRAM [ARGUMENT...]: runs PROGRAM and moves it at random points, to random cells, until it ends: a pause of
 * 0 to 30 ms, a cell among CELLS, migrate(2), again. The same SEED gives the same pauses and cells. Prints what came of it
 * and ends with PROGRAM's status.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "random.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define PAUSE_US 30000
#define ERRNOS 134

static uint64_t state;

static uint32_t number(uint32_t below)
{
	return random_below(&state, below);
}

static void rest(void)
{
	uint32_t us = number(4) ? number(PAUSE_US) : 0;
	struct timespec t = { 0, us * 1000L };

	if (us)
		nanosleep(&t, NULL);
}

/* The kernel's reason for a refusal (/proc/ssi/PID/why). */
static void tell_why(pid_t pid, int error)
{
	char path[40], why[200] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/ssi/%d/why", (int)pid);
	file = fopen(path, "r");
	if (file) {
		if (!fgets(why, sizeof(why), file))
			why[0] = 0;
		fclose(file);
	}
	why[strcspn(why, "\n")] = 0;
	printf("storm: refused with %s: %s\n", strerrorname_np(error), why);
}

static int report(const char *seed, unsigned long moves, const unsigned long *refused, int status)
{
	printf("storm: seed %s, %lu moves", seed, moves);
	for (int i = 0; i < ERRNOS; i++)
		if (refused[i])
			printf(", %lu refused with %s", refused[i], strerrorname_np(i));
	printf("\n");
	if (WIFSIGNALED(status)) {
		printf("storm: ended by signal %d\n", WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	unsigned long moves = 0, refused[ERRNOS] = { 0 };
	uint32_t cells = argc > 3 ? (uint32_t)atoi(argv[2]) : 0, here = 0;
	int status = 0;
	pid_t child;

	if (cells < 2 || !atoll(argv[1])) {
		fprintf(stderr, "usage: %s SEED CELLS PROGRAM [ARGUMENT...]\n", argv[0]);
		return 2;
	}
	state = (uint64_t)atoll(argv[1]);
	child = fork();
	if (child < 0) {
		perror("storm: fork");
		return 1;
	}
	if (!child) {
		execvp(argv[3], argv + 3);
		perror(argv[3]);
		_exit(127);
	}
	for (;;) {
		uint32_t to = (here + 1 + number(cells - 1)) % cells;
		pid_t ended;

		rest();
		ended = waitpid(child, &status, WNOHANG);
		if (ended == child)
			return report(argv[1], moves, refused, status);
		if (syscall(NR_MIGRATE, child, (unsigned long)to) == 0) {
			moves++;
			here = to;
		} else if (errno != ESRCH) {	/* ESRCH: it has ended, or is about to */
			int error = errno < ERRNOS ? errno : 0;

			if (!refused[error]++)
				tell_why(child, errno);
		}
	}
}

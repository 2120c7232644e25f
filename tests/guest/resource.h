/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What the resource programs share. Each checks one resource of its own over and over, `res-NAME [ROUNDS]`, prints PASS or
 * FAIL with what was wrong, and may be moved at any point.
 */
#ifndef RESOURCE_H
#define RESOURCE_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(condition, ...)                                                         \
	do {                                                                          \
		if (!(condition)) {                                                   \
			int error_ = errno;                                           \
			printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #condition);   \
			printf(__VA_ARGS__);                                          \
			printf(" (errno %d)\n", error_);                              \
			exit(1);                                                      \
		}                                                                     \
	} while (0)

static inline long rounds_of(int argc, char **argv)
{
	long rounds = argc > 1 ? atol(argv[1]) : 1000;

	if (rounds <= 0) {
		fprintf(stderr, "usage: %s [ROUNDS]\n", argv[0]);
		exit(2);
	}
	return rounds;
}

/* A round takes about a millisecond, so that moves fall into all parts of a run. */
static inline void breathe(void)
{
	struct timespec t = { 0, 1000000 };

	nanosleep(&t, NULL);
}

static inline int pass(void)
{
	puts("PASS");
	return 0;
}

#endif

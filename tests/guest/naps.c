// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * naps COUNT: sleeps one second COUNT times. A sleep that a move interrupts goes on with what is left of it (MIG-5): it
 * neither fails nor ends early, and CLOCK_MONOTONIC does not go backwards.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 3;

	for (int i = 0; i < count; i++) {
		struct timespec second = { 1, 0 };
		long long before = now_ns(), slept;

		if (nanosleep(&second, NULL)) {
			perror("naps: nanosleep");
			return 1;
		}
		slept = now_ns() - before;
		if (slept < 1000000000LL) {
			fprintf(stderr, "naps: a second took %lld ns\n", slept);
			return 1;
		}
	}
	return 0;
}

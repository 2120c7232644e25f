// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* counter [MS]: the paper's test program 1. Prints 0, 1, 2, ... one per second, or per MS milliseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	long ms = argc > 1 ? atol(argv[1]) : 1000;
	struct timespec pause = { ms / 1000, ms % 1000 * 1000000 };

	if (ms <= 0) {
		fprintf(stderr, "usage: counter [MS]\n");
		return 2;
	}
	for (unsigned long i = 0;; i++) {
		if (printf("%lu\n", i) < 0 || fflush(stdout))
			return 1;
		nanosleep(&pause, NULL);
	}
}

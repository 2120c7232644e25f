// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* exits MS STATUS: runs for MS milliseconds, then exits with STATUS. Its parent has to get it, wherever it ran (MIG-2). */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: exits MS STATUS\n");
		return 2;
	}
	long ms = atol(argv[1]);
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&left, &left))
		;
	return atoi(argv[2]);
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * heap100 [ROUNDS]: the paper's test program 2. Increments every byte of a 100 MB heap, for ever or ROUNDS times. After
 * each round every byte has to be what that many increments made of it: a page that was lost, doubled or mixed up shows.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define HEAP_BYTES (100UL << 20)

static uint8_t first(size_t i)
{
	return (uint8_t)(i ^ i >> 8 ^ i >> 16 ^ i >> 24);
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	uint8_t *heap = malloc(HEAP_BYTES);

	if (!heap) {
		perror("heap100");
		return 1;
	}
	for (size_t i = 0; i < HEAP_BYTES; i++)
		heap[i] = first(i);
	for (unsigned long round = 1; !rounds || round <= rounds; round++) {
		for (size_t i = 0; i < HEAP_BYTES; i++)
			heap[i]++;
		for (size_t i = 0; i < HEAP_BYTES; i++) {
			if (heap[i] != (uint8_t)(first(i) + round)) {
				printf("heap100: FAIL: round %lu: byte %zu is %u, not %u\n", round, i, heap[i],
				       (uint8_t)(first(i) + round));
				return 1;
			}
		}
		if (printf("round %lu\n", round) < 0 || fflush(stdout))
			return 1;
	}
	puts("heap100: PASS");
	return 0;
}

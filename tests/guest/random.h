/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Numbers from a seed, the same everywhere: xorshift64*. Not for secrets. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

/* The next number, from 0 to @below - 1. *@state is not 0. */
static inline uint32_t random_below(uint64_t *state, uint32_t below)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (uint32_t)((*state * 0x2545f4914f6cdd1dULL) >> 32) % below;
}

#endif

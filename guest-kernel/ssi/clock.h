/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Cluster time: CLOCK_MONOTONIC and CLOCK_BOOTTIME of all cells count from one epoch.
 */
#ifndef _SSI_CLOCK_H
#define _SSI_CLOCK_H

#include <linux/types.h>

/* More than this behind a peer's clock, a cell catches up when it hears from it. Nanoseconds. */
#define SSI_CLOCK_SLACK_NS	1000000

/*
 * CLOCK_MONOTONIC here shows at least @mono_ns (another cell's clock, or that of an image from a file) when this returns 0,
 * so that what a process reads next is no less than what it read last. Messages of a move do this by themselves. -ERANGE if the peer's clock is absurdly far ahead:
 * the move should be refused. May sleep.
 */
int ssi_clock_not_before(u64 mono_ns);

/* A message carried @mono_ns: catches up if that is more than @slack_ns ahead. May sleep. */
void ssi_clock_heard(u64 mono_ns, s64 slack_ns);

/* Steps forward since boot, and their sum, for /proc/ssi/status. */
void ssi_clock_stats(u64 *steps_count, u64 *stepped_ns);

#endif

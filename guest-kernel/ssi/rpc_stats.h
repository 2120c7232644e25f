/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Figures of the calls between cells, since boot.
 */
#ifndef _SSI_RPC_STATS_H
#define _SSI_RPC_STATS_H

#include <linux/atomic.h>

struct ssi_rpc_stats {
	atomic64_t calls_count;		/* made here */
	atomic64_t posts_count;
	atomic64_t cancelled_count;
	atomic64_t timed_out_count;
	atomic64_t handled_count;	/* requests and posts of others (and own), answered */
};
extern struct ssi_rpc_stats ssi_rpc_stats;

/* Threads that handle requests, those of them that are idle, and the requests that wait or run. */
void ssi_rpc_threads(unsigned int *total, unsigned int *idle_now, unsigned int *queued_now);

#endif

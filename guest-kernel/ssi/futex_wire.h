/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Futexes of shared memory, on the wire, and what the files of futex*.c share. Little-endian.
 */
#ifndef _SSI_FUTEX_WIRE_H
#define _SSI_FUTEX_WIRE_H

#include <linux/atomic.h>
#include <linux/types.h>

#include "rpc.h"

enum {
	OP_FUTEX_WAIT = SSI_OP_FUTEX,	/* ssi_futex_wait_arg: is queued, or -EAGAIN, -ENXIO (page not lent: touch it again) */
	OP_FUTEX_CANCEL,		/* le64 wait: -ENOENT if it has been woken */
	OP_FUTEX_WOKEN,			/* home to waiter, one-way, le64 waits[] */
	OP_FUTEX_WAKE,			/* ssi_futex_wake_arg -> le32 count */
	OP_FUTEX_REQUEUE,		/* ssi_futex_requeue_arg -> le32 count */
};

#define SSI_FUTEX_BATCH	32		/* waits in one WOKEN */

/* A place in a region: 4 bytes, aligned. */
struct ssi_futex_place {
	__le64 region;
	__le64 offset;
};

struct ssi_futex_wait_arg {
	struct ssi_futex_place at;
	__le64 wait;			/* the waiter's name for it, never used again */
	__le32 val;
	__le32 bitset;
};

struct ssi_futex_wake_arg {
	struct ssi_futex_place at;
	__le32 count;
	__le32 bitset;
};

struct ssi_futex_requeue_arg {
	struct ssi_futex_place from, to;
	__le32 wake, requeue;
	__le32 compare;			/* 1: only if the word is @val */
	__le32 val;
};

extern struct ssi_futex_stats {
	/* for other cells, at home */
	atomic64_t queued, woken, cancelled, dropped, wakes_for, refused;
	/* in other cells */
	atomic64_t waits, wakes, requeues, pi;
} ssi_futex_stats;

struct inode;

/* The pages of this file are in another cell from now on, and unmapped here: who waits in them looks again, and goes there. */
void ssi_futex_moved(struct inode *inode);

u64 ssi_futex_proxies(void);		/* of other cells, queued here now */

#endif

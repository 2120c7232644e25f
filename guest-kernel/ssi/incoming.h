/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A move that comes in: from the offer until it is committed or has failed.
 *
 *	OFFERED -> ACCEPTED (migrationd has its descriptor) -> READY (built) -> COMMITTED
 *	any but COMMITTED -> FAILED
 */
#ifndef _SSI_INCOMING_H
#define _SSI_INCOMING_H

#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "wire.h"

enum ssi_incoming_state {
	SSI_IN_OFFERED,
	SSI_IN_ACCEPTED,
	SSI_IN_READY,
	SSI_IN_COMMITTED,
	SSI_IN_FAILED,
};

struct ssi_incoming_move {
	refcount_t ref;
	struct list_head list;		/* of all; incoming_lock */
	u64 id;
	u32 source;
	struct ssi_offer offer;

	spinlock_t lock;		/* of what follows */
	wait_queue_head_t wait;
	enum ssi_incoming_state state;
	int error;			/* in FAILED */
	char why[SSI_WHY_MAX];
	bool taken;			/* somebody reads it */
	u64 t3_us;			/* what bringing the pages took; in READY */
	struct list_head chunks;	/* of the image, not read yet */
	u64 total_bytes;		/* so far */
	struct ssi_commit commit;
};

void ssi_incoming_put(struct ssi_incoming_move *in);
int ssi_incoming_take(struct ssi_incoming_move *in);		/* -EBUSY: restart() was called before */
int ssi_incoming_read(struct ssi_source *src, void *buf, size_t len);
/* Says that all is built, and waits for the commit. 0: committed; else it has failed. */
int ssi_incoming_ready(struct ssi_incoming_move *in, u64 t3_us);
void ssi_incoming_fail(struct ssi_incoming_move *in, int err, const char *why);
/* The move behind a descriptor of /dev/ssi's ACCEPT, with a reference; NULL if @file is none. */
struct ssi_incoming_move *ssi_incoming_of(struct file *file);

/* A thread of a move under way needs the number @pid, which is in use. 0: not any more. */
int ssi_incoming_wait_pid(pid_t pid);

/* restart.c: current becomes the process in @src. 0, or -errno with nothing changed. */
int ssi_restart(struct ssi_source *src, bool deputy);

#endif

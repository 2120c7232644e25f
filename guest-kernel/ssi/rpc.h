/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Calls between cells, over the ssi device's tx and rx queues.
 *
 * A call is one message there and one back. Handlers run in process context on ssi's own threads and may
 * sleep; as many run at once as are blocked, up to SSI_RPC_THREADS. Nothing waits for a dead cell: every
 * call to it, under way or new, returns -EHOSTUNREACH.
 */
#ifndef _SSI_RPC_H
#define _SSI_RPC_H

#include <linux/types.h>
#include <linux/gfp.h>

struct page;

/* Most bytes of a request's or a response's body. */
#define SSI_RPC_MAX	32000

/* Most threads that handle requests; at most so many handlers run, or sleep, at once. */
#define SSI_RPC_THREADS	256

/* Operations. One block per slice; the number is part of the wire format. */
enum ssi_op {
	SSI_OP_PING		= 0x0001,
	SSI_OP_SELFTEST		= 0x0002,	/* selftest.c: 0x0002-0x000f */
	SSI_OP_MIGRATE		= 0x0010,	/* migrate.c:  0x0010-0x001f */
	SSI_OP_DEPUTY		= 0x0020,	/* deputy.c:   0x0020-0x002f */
	SSI_OP_RFILE		= 0x0030,	/* rfile.c:    0x0030-0x003f */
	SSI_OP_SHM		= 0x0040,	/* reserved for shared memory */
	SSI_OP_NET		= 0x0050,	/* reserved for sockets */
	SSI_OP_FUTEX		= 0x0060,	/* futex.c:    0x0060-0x006f */
	SSI_OP_MAX		= 0x0080,
};

struct ssi_request {
	u32 cell;		/* who asks */
	u16 op;
	const void *body;	/* valid until the handler returns */
	size_t len;		/* bytes */
	void *reply;		/* room for SSI_RPC_MAX bytes */
};

/*
 * Handles one request: returns the bytes put into @reply (0 or more), or -errno, which the caller gets.
 * For a one-way message the return value is dropped. signal_pending(current) becomes true when the caller
 * cancels: a handler that sleeps interruptibly then returns -ERESTARTSYS or what it has got.
 */
typedef ssize_t (*ssi_handler_t)(struct ssi_request *req);

/* At init time only: before device_initcall, which is when messages begin to arrive. */
void ssi_rpc_register(u16 op, ssi_handler_t handler);

/*
 * ssi_call - ask @cell and wait for its answer
 * @timeout: jiffies, or MAX_SCHEDULE_TIMEOUT
 *
 * Uninterruptible. Returns the bytes of the answer put into @reply (at most @cap), the handler's -errno,
 * -EHOSTUNREACH (no such cell, or dead), -EMSGSIZE, -ETIMEDOUT, -ENODEV (no ssi device).
 */
ssize_t ssi_call(u32 cell, u16 op, const void *body, size_t len, void *reply, size_t cap, unsigned long timeout);

/*
 * As ssi_call, without a time limit. A signal cancels the handler, and what the handler then answers is returned (so
 * that bytes it had already taken are not lost); -ERESTARTSYS if it answers that. A fatal signal does not wait for
 * the answer: -EINTR.
 */
ssize_t ssi_call_interruptible(u32 cell, u16 op, const void *body, size_t len, void *reply, size_t cap);

/*
 * One-way message. Posts to one cell are handled one after the other, in the order in which ssi_post was called, and
 * before any call or post that was made after ssi_post returned: so the handler of a post should be brief. (Calls that a
 * handler makes do not wait for earlier posts.) 0 or -errno as for ssi_call, which say only that it was sent. May sleep.
 */
int ssi_post(u32 cell, u16 op, const void *body, size_t len);

/*
 * Copy @count (1 to 256) remote frames into @pages, outside coherence (page queue, FETCH). Sleeps until all are
 * done. Returns 0, or the first failure: -EFAULT (bad address), -EHOSTUNREACH, -EIO.
 */
int ssi_fetch(u32 cell, const u64 *remote_phys, struct page **pages, unsigned int count);

/* The cluster, as the device says it. */
bool ssi_present(void);			/* is there a device? */
u32 ssi_this_cell(void);
u32 ssi_cells(void);
bool ssi_cell_alive(u32 cell);
/* Calls @fn(cell) in process context after a cell died. At init time only. */
void ssi_on_cell_death(void (*fn)(u32 cell));

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The ssi device: wire format (docs/ssi-device.md) and the driver's inner interface.
 *
 * Layers: device.c moves messages and page requests; rpc.c makes calls of them; everything else uses rpc.h.
 */
#ifndef _SSI_DEVICE_H
#define _SSI_DEVICE_H

#include <linux/atomic.h>
#include <linux/build_bug.h>
#include <linux/types.h>

struct page;

#define SSI_VIRTIO_ID		0x5353
#define SSI_MAGIC		0x49535353	/* "SSSI" */
#define SSI_VERSION		1
#define SSI_CELLS_MAX		64

/* Configuration space. */
struct ssi_config {
	__le32 magic;
	__le32 version;
	__le32 cell;
	__le32 cells;
	__le64 slice0_base;	/* guest-physical */
	__le64 slice_stride;	/* bytes */
	__le64 slice_size;	/* bytes */
	__le64 alive;		/* bit n: cell n is reachable */
	__le64 generation;	/* of alive */
	__le64 epoch_ns;	/* CLOCK_REALTIME at which CLOCK_MONOTONIC is 0 */
	__le64 lost;		/* pages of the own slice that are lost */
	__le32 bury;		/* write only: such a page, by its place in the slice, is out of use */
};
static_assert(offsetof(struct ssi_config, bury) == 0x48);

#define SSI_F_LOST		0	/* feature: page faults with SSI_PF_LOST are understood */

enum {
	SSI_QUEUE_TX,
	SSI_QUEUE_RX,
	SSI_QUEUE_PAGE,
	SSI_QUEUES,
};

struct ssi_msg {
	__le32 cell;		/* tx: destination; rx: source */
	__le32 type;
	__le32 len;		/* bytes of payload */
	__le32 flags;
	__le64 tag;
	__le64 cookie;
};
static_assert(sizeof(struct ssi_msg) == 32);

#define SSI_MSG_MAX		32768	/* bytes, header included */
#define SSI_PAYLOAD_MAX		(SSI_MSG_MAX - sizeof(struct ssi_msg))

enum {
	SSI_TX_ACCEPTED,
	SSI_TX_NO_SUCH_CELL,
	SSI_TX_DEAD,
	SSI_TX_TOO_LONG,
	SSI_TX_MALFORMED,
};

struct ssi_page_header {
	__le32 op;
	__le32 count;
	__le64 reserved;
};

struct ssi_page_entry {
	__le32 cell;
	__le32 reserved;
	__le64 remote;		/* guest-physical, as @cell sees it */
	__le64 local;		/* guest-physical, here; 0 where the operation has none */
};

#define SSI_PAGE_REQUEST_MAX	256	/* entries */

/* What LOST writes into its page. */
#define SSI_LOST_RUNS_MAX	255
struct ssi_lost_list {
	__le32 count;		/* SSI_LOST_RUNS_MAX: there may be more */
	__le32 reserved[3];
	struct {
		__le64 start, end;	/* guest-physical */
	} runs[SSI_LOST_RUNS_MAX];
};
static_assert(sizeof(struct ssi_lost_list) == 4096);

enum {
	SSI_PAGE_FETCH = 1,
	SSI_PAGE_PREFETCH = 2,
	SSI_PAGE_RELEASE = 3,
	SSI_PAGE_LOST = 4,
};

enum {
	SSI_PAGE_DONE,
	SSI_PAGE_BAD,
	SSI_PAGE_DEAD,
	SSI_PAGE_FAILED,
};

/* What the command line says (params.c); valid from parse_early_param() on. */
struct ssi_params {
	bool given;		/* ssi.cell= and ssi.cells= are there and make sense */
	u32 cell;
	u32 cells;
	u64 epoch_ns;		/* 0: none */
};
extern struct ssi_params ssi_params;

/* What the device says; constant once ssi_present(). */
struct ssi_geometry {
	u64 slice0_base;
	u64 slice_stride;
	u64 slice_size;
};
extern struct ssi_geometry ssi_geometry;

/* One message on its way. */
struct ssi_tx {
	u32 cell;
	u32 type;
	u64 tag;
	u64 cookie;
	const void *body;	/* copied before ssi_dev_send() returns */
	size_t len;		/* bytes, at most SSI_PAYLOAD_MAX */
	/*
	 * Called once with 0 or -errno when the device has taken the message, with interrupts off. NULL: nobody asks.
	 * Not called if ssi_dev_send() itself fails.
	 */
	void (*done)(void *arg, int error);
	void *arg;
};

/* Queues a message; sleeps while the ring is full. 0, -ENODEV, -ENOMEM, -EMSGSIZE, -EHOSTUNREACH. */
int ssi_dev_send(const struct ssi_tx *tx);

/*
 * One page request of @count (1 to SSI_PAGE_REQUEST_MAX) entries; sleeps until all are done. @pages: the local frames of
 * a FETCH, NULL for the other operations. 0, or the first failure: -EFAULT (bad address), -EHOSTUNREACH, -EIO; -ENODEV,
 * -ENOMEM.
 */
int ssi_dev_page_request(u32 op, u32 cell, const u64 *remote, struct page **pages, u32 count);

u64 ssi_dev_alive(void);		/* bit per cell */
u64 ssi_dev_lost(void);			/* pages of the own slice that are lost, so far */
/* The lost frame @pfn of the own slice may be touched from now on, by this cell. Anywhere. */
void ssi_dev_bury(unsigned long pfn);
u64 ssi_dev_generation(void);

/* Counters of the driver, for /proc/ssi/rpc. */
struct ssi_dev_stats {
	atomic64_t tx_count, tx_bytes, tx_refused_count;
	atomic64_t rx_count, rx_bytes, rx_malformed_count;
	atomic64_t page_request_count, page_count, page_failed_count;
};
extern struct ssi_dev_stats ssi_dev_stats;

/* rpc.c, for device.c: */
int ssi_rpc_start(void);		/* before the first message can arrive */
/* A message from @cell, in the receiving thread: must not wait for another message. @payload: @len bytes, until return. */
void ssi_rpc_receive(u32 cell, const struct ssi_msg *msg, const void *payload, size_t len);
void ssi_rpc_cells_died(u64 dead);	/* bit per cell; process context */

#endif

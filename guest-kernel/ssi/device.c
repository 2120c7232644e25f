// SPDX-License-Identifier: GPL-2.0
/*
 * Driver of the ssi device: the door between this cell and its VMM. Moves messages and page requests; knows nothing of
 * what they mean (rpc.c does).
 *
 * Contexts: senders and page requesters sleep; completions of both come in the interrupt; messages that arrive are handed
 * on by one thread, ssi-rx, which never waits for a message itself, so that back-pressure cannot lock two cells up.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "device.h"
#include "lost.h"
#include "rpc.h"

#define RX_ORDER	get_order(SSI_MSG_MAX)
#define RX_BUFFERS	64			/* at most; the queue's size may be less */
/* Up to this many bytes of payload lie beside the header, in one allocation and one descriptor. */
#define TX_INLINE	2048

/* One message in the tx ring; freed when the device has used it. */
struct tx_buffer {
	struct ssi_msg msg;		/* then the inline payload, see tx_alloc() */
	u8 inline_body[TX_INLINE];
};

struct tx_token {
	struct tx_buffer *buffer;
	void *body;			/* payload that is not inline, or NULL */
	void (*done)(void *arg, int error);
	void *arg;
	__le32 status;			/* written by the device */
};

struct page_token {
	struct completion done;		/* on the requester's stack */
};

struct ssi_device {
	struct virtio_device *vdev;
	struct virtqueue *vqs[SSI_QUEUES];

	spinlock_t tx_lock;		/* vqs[TX]; taken in the interrupt */
	wait_queue_head_t tx_space;	/* senders that found the ring full */
	spinlock_t page_lock;		/* vqs[PAGE]; taken in the interrupt */
	wait_queue_head_t page_space;

	struct task_struct *rx_thread;	/* the only one to touch vqs[RX] */
	wait_queue_head_t rx_wait;
	bool rx_pending;		/* set in the interrupt, cleared by rx_thread */

	struct work_struct alive_work;	/* reads the configuration after it changed */
	u64 alive;			/* written by alive_work only, read anywhere (READ_ONCE) */
	u64 generation;			/* likewise */
};

static struct ssi_device *ssi_device;	/* set once, in probe, when all is ready; never freed */

struct ssi_geometry ssi_geometry __ro_after_init;
struct ssi_dev_stats ssi_dev_stats;

bool ssi_present(void)
{
	return smp_load_acquire(&ssi_device);
}

u64 ssi_dev_alive(void)
{
	struct ssi_device *dev = smp_load_acquire(&ssi_device);

	return dev ? READ_ONCE(dev->alive) : 0;
}

u64 ssi_dev_generation(void)
{
	struct ssi_device *dev = smp_load_acquire(&ssi_device);

	return dev ? READ_ONCE(dev->generation) : 0;
}

u64 ssi_dev_lost(void)
{
	struct ssi_device *dev = smp_load_acquire(&ssi_device);
	u64 lost = 0;

	if (dev && virtio_has_feature(dev->vdev, SSI_F_LOST))
		virtio_cread_le(dev->vdev, struct ssi_config, lost, &lost);
	return lost;
}

void ssi_dev_bury(unsigned long pfn)
{
	struct ssi_device *dev = smp_load_acquire(&ssi_device);
	u64 slice = ssi_geometry.slice0_base + ssi_this_cell() * ssi_geometry.slice_stride;
	__le32 index = cpu_to_le32(pfn - PHYS_PFN(slice));

	/* virtio_cwrite() may be called where it may sleep only; it would do just this. */
	dev->vdev->config->set(dev->vdev, offsetof(struct ssi_config, bury), &index, sizeof(index));
}

/* ---- tx ---- */

static int tx_errno(u32 status)
{
	switch (status) {
	case SSI_TX_ACCEPTED:
		return 0;
	case SSI_TX_NO_SUCH_CELL:
	case SSI_TX_DEAD:
		return -EHOSTUNREACH;
	case SSI_TX_TOO_LONG:
		return -EMSGSIZE;
	default:
		return -EIO;
	}
}

static void tx_free(struct tx_token *token)
{
	kfree(token->body);
	kfree(token->buffer);
	kfree(token);
}

static struct tx_token *tx_alloc(const struct ssi_tx *tx)
{
	bool inlined = tx->len <= TX_INLINE;
	struct tx_token *token = kzalloc(sizeof(*token), GFP_KERNEL);
	void *to;

	if (!token)
		return NULL;
	token->buffer = kmalloc(sizeof(struct ssi_msg) + (inlined ? tx->len : 0), GFP_KERNEL);
	if (!inlined)
		token->body = kmalloc(tx->len, GFP_KERNEL);
	if (!token->buffer || (!inlined && !token->body)) {
		tx_free(token);
		return NULL;
	}
	token->buffer->msg = (struct ssi_msg) {
		.cell = cpu_to_le32(tx->cell),
		.type = cpu_to_le32(tx->type),
		.len = cpu_to_le32(tx->len),
		.tag = cpu_to_le64(tx->tag),
		.cookie = cpu_to_le64(tx->cookie),
	};
	to = inlined ? token->buffer->inline_body : token->body;
	if (tx->len)
		memcpy(to, tx->body, tx->len);
	token->status = cpu_to_le32(SSI_TX_MALFORMED);	/* until the device says better */
	token->done = tx->done;
	token->arg = tx->arg;
	return token;
}

/* Puts the chain into the ring. 0, or -ENOSPC when the ring is full. */
static int tx_add(struct ssi_device *dev, struct tx_token *token, size_t len)
{
	struct virtqueue *vq = dev->vqs[SSI_QUEUE_TX];
	struct scatterlist head, body, status, *sgs[3];
	unsigned int out = 0;
	unsigned long flags;
	bool notify = false;
	int error;

	sg_init_one(&head, token->buffer, sizeof(struct ssi_msg) + (token->body ? 0 : len));
	sgs[out++] = &head;
	if (token->body) {
		sg_init_one(&body, token->body, len);
		sgs[out++] = &body;
	}
	sg_init_one(&status, &token->status, sizeof(token->status));
	sgs[out] = &status;

	spin_lock_irqsave(&dev->tx_lock, flags);
	error = virtqueue_add_sgs(vq, sgs, out, 1, token, GFP_ATOMIC);
	if (!error)
		notify = virtqueue_kick_prepare(vq);
	spin_unlock_irqrestore(&dev->tx_lock, flags);

	if (notify)
		virtqueue_notify(vq);
	return error;
}

int ssi_dev_send(const struct ssi_tx *tx)
{
	struct ssi_device *dev = smp_load_acquire(&ssi_device);
	struct tx_token *token;
	int error;

	might_sleep();
	if (!dev)
		return -ENODEV;
	if (tx->len > SSI_PAYLOAD_MAX)
		return -EMSGSIZE;
	token = tx_alloc(tx);
	if (!token)
		return -ENOMEM;

	/* Three descriptors at most: more than that free and the chain goes in, unless another sender was faster. */
	for (;;) {
		error = tx_add(dev, token, tx->len);
		if (error != -ENOSPC)
			break;
		wait_event(dev->tx_space, READ_ONCE(dev->vqs[SSI_QUEUE_TX]->num_free) >= 3 ||
			   virtqueue_is_broken(dev->vqs[SSI_QUEUE_TX]));
	}
	if (error) {
		tx_free(token);
		return error == -ENOMEM ? -ENOMEM : -ENODEV;
	}
	atomic64_inc(&ssi_dev_stats.tx_count);
	atomic64_add(tx->len, &ssi_dev_stats.tx_bytes);
	return 0;
}

/* Interrupt: the device has taken messages. */
static void tx_used(struct virtqueue *vq)
{
	struct ssi_device *dev = vq->vdev->priv;
	struct tx_token *token;
	unsigned long flags;
	unsigned int len;
	int error;

	spin_lock_irqsave(&dev->tx_lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((token = virtqueue_get_buf(vq, &len))) {
			error = tx_errno(le32_to_cpu(token->status));
			if (error)
				atomic64_inc(&ssi_dev_stats.tx_refused_count);
			/* done() takes rpc.c's locks inside tx_lock; nobody sends with one of those held. */
			if (token->done)
				token->done(token->arg, error);
			tx_free(token);
		}
	} while (!virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&dev->tx_lock, flags);
	wake_up(&dev->tx_space);
}

/* ---- rx ---- */

static bool rx_post(struct virtqueue *vq, void *buffer)
{
	struct scatterlist sg;

	sg_init_one(&sg, buffer, SSI_MSG_MAX);
	return !virtqueue_add_inbuf(vq, &sg, 1, buffer, GFP_KERNEL);
}

static void rx_one(struct ssi_device *dev, const void *buffer, unsigned int used)
{
	const struct ssi_msg *msg = buffer;
	u32 cell, len;

	if (used < sizeof(*msg) || used > SSI_MSG_MAX)
		goto malformed;
	cell = le32_to_cpu(msg->cell);
	len = le32_to_cpu(msg->len);
	if (cell >= ssi_cells() || len != used - sizeof(*msg))
		goto malformed;
	atomic64_inc(&ssi_dev_stats.rx_count);
	atomic64_add(len, &ssi_dev_stats.rx_bytes);
	ssi_rpc_receive(cell, msg, buffer + sizeof(*msg), len);
	return;

malformed:
	atomic64_inc(&ssi_dev_stats.rx_malformed_count);
	pr_warn_ratelimited("dropped a malformed message (%u bytes used)\n", used);
}

static int rx_loop(void *arg)
{
	struct ssi_device *dev = arg;
	struct virtqueue *vq = dev->vqs[SSI_QUEUE_RX];
	unsigned int used;
	void *buffer;

	while (!kthread_should_stop()) {
		wait_event_idle(dev->rx_wait, READ_ONCE(dev->rx_pending) || kthread_should_stop());
		do {
			WRITE_ONCE(dev->rx_pending, false);
			virtqueue_disable_cb(vq);
			while ((buffer = virtqueue_get_buf(vq, &used))) {
				rx_one(dev, buffer, used);
				if (!rx_post(vq, buffer)) {	/* cannot be: a descriptor has just come free */
					WARN_ON_ONCE(1);
					free_pages((unsigned long)buffer, RX_ORDER);
				}
				virtqueue_kick(vq);
				cond_resched();
			}
		} while (!virtqueue_enable_cb(vq));
	}
	return 0;
}

/* Interrupt: messages have arrived. */
static void rx_used(struct virtqueue *vq)
{
	struct ssi_device *dev = vq->vdev->priv;

	WRITE_ONCE(dev->rx_pending, true);
	wake_up(&dev->rx_wait);
}

static int rx_fill(struct ssi_device *dev)
{
	struct virtqueue *vq = dev->vqs[SSI_QUEUE_RX];
	int posted;

	for (posted = 0; posted < RX_BUFFERS && vq->num_free; posted++) {
		void *buffer = (void *)__get_free_pages(GFP_KERNEL, RX_ORDER);

		if (!buffer)
			break;
		if (!rx_post(vq, buffer)) {
			free_pages((unsigned long)buffer, RX_ORDER);
			break;
		}
	}
	return posted ? 0 : -ENOMEM;
}

/* ---- page ---- */

static int page_errno(u32 status)
{
	switch (status) {
	case SSI_PAGE_DONE:
		return 0;
	case SSI_PAGE_BAD:
		return -EFAULT;
	case SSI_PAGE_DEAD:
		return -EHOSTUNREACH;
	default:
		return -EIO;
	}
}

static int page_add(struct ssi_device *dev, struct page_token *token, void *request, size_t request_bytes,
		    __le32 *status, size_t status_bytes)
{
	struct virtqueue *vq = dev->vqs[SSI_QUEUE_PAGE];
	struct scatterlist out, in, *sgs[2] = { &out, &in };
	unsigned long flags;
	bool notify = false;
	int error;

	sg_init_one(&out, request, request_bytes);
	sg_init_one(&in, status, status_bytes);
	spin_lock_irqsave(&dev->page_lock, flags);
	error = virtqueue_add_sgs(vq, sgs, 1, 1, token, GFP_ATOMIC);
	if (!error)
		notify = virtqueue_kick_prepare(vq);
	spin_unlock_irqrestore(&dev->page_lock, flags);
	if (notify)
		virtqueue_notify(vq);
	return error;
}

int ssi_dev_page_request(u32 op, u32 cell, const u64 *remote, struct page **pages, u32 count)
{
	struct ssi_device *dev = smp_load_acquire(&ssi_device);
	struct ssi_page_header *request;
	struct ssi_page_entry *entries;
	struct page_token token;
	size_t request_bytes;
	__le32 *status;
	int error = 0;
	u32 i;

	might_sleep();
	if (!dev)
		return -ENODEV;
	if (!count || count > SSI_PAGE_REQUEST_MAX)
		return -EINVAL;
	request_bytes = sizeof(*request) + count * sizeof(*entries);
	request = kzalloc(request_bytes + count * sizeof(*status), GFP_KERNEL);
	if (!request)
		return -ENOMEM;
	request->op = cpu_to_le32(op);
	request->count = cpu_to_le32(count);
	entries = (void *)(request + 1);
	status = (void *)request + request_bytes;
	for (i = 0; i < count; i++) {
		entries[i].cell = cpu_to_le32(cell);
		entries[i].remote = cpu_to_le64(remote[i]);
		entries[i].local = cpu_to_le64(pages ? page_to_phys(pages[i]) : 0);
		status[i] = cpu_to_le32(SSI_PAGE_FAILED);	/* until the device says better */
	}

	init_completion(&token.done);
	for (;;) {
		error = page_add(dev, &token, request, request_bytes, status, count * sizeof(*status));
		if (error != -ENOSPC)
			break;
		wait_event(dev->page_space, READ_ONCE(dev->vqs[SSI_QUEUE_PAGE]->num_free) >= 2 ||
			   virtqueue_is_broken(dev->vqs[SSI_QUEUE_PAGE]));
	}
	if (error) {
		error = error == -ENOMEM ? -ENOMEM : -ENODEV;
		goto out;
	}

	/* The device writes into the frames until it is done: no way out before. It answers for dead cells by itself. */
	wait_for_completion(&token.done);
	atomic64_inc(&ssi_dev_stats.page_request_count);
	for (i = 0; i < count; i++) {
		int failed = page_errno(le32_to_cpu(status[i]));

		atomic64_inc(failed ? &ssi_dev_stats.page_failed_count : &ssi_dev_stats.page_count);
		error = error ?: failed;
	}
out:
	kfree(request);
	return error;
}

/* Interrupt: page requests are done. */
static void page_used(struct virtqueue *vq)
{
	struct ssi_device *dev = vq->vdev->priv;
	struct page_token *token;
	unsigned long flags;
	unsigned int len;

	spin_lock_irqsave(&dev->page_lock, flags);
	do {
		virtqueue_disable_cb(vq);
		while ((token = virtqueue_get_buf(vq, &len)))
			complete(&token->done);
	} while (!virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&dev->page_lock, flags);
	wake_up(&dev->page_space);
}

/* ---- configuration ---- */

/* Both of one reading: docs/ssi-device.md. */
static void read_alive(struct virtio_device *vdev, u64 *alive, u64 *generation)
{
	u64 again;

	virtio_cread_le(vdev, struct ssi_config, generation, generation);
	for (;;) {
		virtio_cread_le(vdev, struct ssi_config, alive, alive);
		virtio_cread_le(vdev, struct ssi_config, generation, &again);
		if (again == *generation)
			return;
		*generation = again;
	}
}

static void alive_changed(struct work_struct *work)
{
	struct ssi_device *dev = container_of(work, struct ssi_device, alive_work);
	u64 before = dev->alive, alive, generation;

	read_alive(dev->vdev, &alive, &generation);
	alive |= BIT_ULL(ssi_this_cell());
	if (ssi_cells() < 64)
		alive &= BIT_ULL(ssi_cells()) - 1;
	WRITE_ONCE(dev->alive, alive);
	WRITE_ONCE(dev->generation, generation);
	if (alive != before)
		pr_info("cells alive: %#llx (generation %llu)\n", alive, generation);
	/* First what is lost, so that no such frame is freed; then whoever waits for the dead goes on, and lets go of its folios. */
	ssi_lost_learn();
	if (before & ~alive)
		ssi_rpc_cells_died(before & ~alive);
	ssi_lost_settle();
}

/* Interrupt: the configuration changed. */
static void config_changed(struct virtio_device *vdev)
{
	struct ssi_device *dev = vdev->priv;

	schedule_work(&dev->alive_work);
}

/* Reads and checks what does not change. */
static int read_config(struct virtio_device *vdev)
{
	u32 magic, version, cell, cells;
	u64 base, stride, size, epoch_ns;

	virtio_cread_le(vdev, struct ssi_config, magic, &magic);
	virtio_cread_le(vdev, struct ssi_config, version, &version);
	virtio_cread_le(vdev, struct ssi_config, cell, &cell);
	virtio_cread_le(vdev, struct ssi_config, cells, &cells);
	virtio_cread_le(vdev, struct ssi_config, slice0_base, &base);
	virtio_cread_le(vdev, struct ssi_config, slice_stride, &stride);
	virtio_cread_le(vdev, struct ssi_config, slice_size, &size);
	virtio_cread_le(vdev, struct ssi_config, epoch_ns, &epoch_ns);

	if (magic != SSI_MAGIC || version != SSI_VERSION) {
		dev_err(&vdev->dev, "magic %#x version %u: want %#x and %u; device not used\n", magic, version,
			SSI_MAGIC, SSI_VERSION);
		return -ENODEV;
	}
	if (!ssi_params.given || ssi_params.cell != cell || ssi_params.cells != cells ||
	    ssi_params.epoch_ns != epoch_ns) {
		dev_err(&vdev->dev, "the device says cell %u of %u, epoch %llu ns; the command line (ssi.cell, ssi.cells, ssi.epoch_ns) %u of %u, %llu: device not used\n",
			cell, cells, epoch_ns, ssi_params.cell, ssi_params.cells, ssi_params.epoch_ns);
		return -EINVAL;
	}
	if (!size || !IS_ALIGNED(size, SZ_128M) || !IS_ALIGNED(base, SZ_128M) || !IS_ALIGNED(stride, SZ_128M) ||
	    size > stride || stride > (1ULL << MAX_PHYSMEM_BITS) / SSI_CELLS_MAX ||
	    base > (1ULL << MAX_PHYSMEM_BITS) / 2) {
		dev_err(&vdev->dev, "slices of %#llx bytes every %#llx from %#llx: want multiples of 128 MiB below %u address bits; device not used\n",
			size, stride, base, MAX_PHYSMEM_BITS);
		return -EINVAL;
	}
	ssi_geometry.slice0_base = base;
	ssi_geometry.slice_stride = stride;
	ssi_geometry.slice_size = size;
	return 0;
}

static int find_queues(struct ssi_device *dev)
{
	struct virtqueue_info info[SSI_QUEUES] = {
		[SSI_QUEUE_TX] = { "tx", tx_used },
		[SSI_QUEUE_RX] = { "rx", rx_used },
		[SSI_QUEUE_PAGE] = { "page", page_used },
	};

	return virtio_find_vqs(dev->vdev, SSI_QUEUES, dev->vqs, info, NULL);
}

static int ssi_probe(struct virtio_device *vdev)
{
	struct ssi_device *dev;
	int error;

	if (ssi_present()) {
		dev_err(&vdev->dev, "a second ssi device: not used\n");
		return -EBUSY;
	}
	error = read_config(vdev);
	if (error)
		return error;
	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev)
		return -ENOMEM;
	dev->vdev = vdev;
	vdev->priv = dev;
	spin_lock_init(&dev->tx_lock);
	spin_lock_init(&dev->page_lock);
	init_waitqueue_head(&dev->tx_space);
	init_waitqueue_head(&dev->page_space);
	init_waitqueue_head(&dev->rx_wait);
	INIT_WORK(&dev->alive_work, alive_changed);

	error = find_queues(dev);
	if (error)
		goto err_free;
	error = rx_fill(dev);
	if (error)
		goto err_queues;
	error = ssi_rpc_start();
	if (error)
		goto err_queues;
	dev->rx_thread = kthread_create(rx_loop, dev, "ssi-rx");
	if (IS_ERR(dev->rx_thread)) {
		error = PTR_ERR(dev->rx_thread);
		goto err_queues;
	}

	virtio_device_ready(vdev);
	smp_store_release(&ssi_device, dev);
	schedule_work(&dev->alive_work);
	flush_work(&dev->alive_work);
	wake_up_process(dev->rx_thread);
	virtqueue_kick(dev->vqs[SSI_QUEUE_RX]);
	pr_info("cell %u of %u, slices of %llu MiB\n", ssi_this_cell(), ssi_cells(), ssi_geometry.slice_size >> 20);
	return 0;

err_queues:
	virtio_reset_device(vdev);
	while (dev->vqs[SSI_QUEUE_RX]) {
		void *buffer = virtqueue_detach_unused_buf(dev->vqs[SSI_QUEUE_RX]);

		if (!buffer)
			break;
		free_pages((unsigned long)buffer, RX_ORDER);
	}
	vdev->config->del_vqs(vdev);
err_free:
	kfree(dev);
	return error;
}

/* A cell without its device is no cell: it stays bound from boot to the end (suppress_bind_attrs; not a module). */
static void ssi_remove(struct virtio_device *vdev)
{
	panic("ssi: the device was taken away");
}

static const struct virtio_device_id ssi_ids[] = {
	{ SSI_VIRTIO_ID, VIRTIO_DEV_ANY_ID },
	{ 0 },
};

static const unsigned int features[] = { SSI_F_LOST };

static struct virtio_driver ssi_driver = {
	.feature_table = features,
	.feature_table_size = ARRAY_SIZE(features),
	.driver = {
		.name = "ssi",
		.suppress_bind_attrs = true,
	},
	.id_table = ssi_ids,
	.probe = ssi_probe,
	.remove = ssi_remove,
	.config_changed = config_changed,
};

static int __init ssi_driver_init(void)
{
	return register_virtio_driver(&ssi_driver);
}
device_initcall(ssi_driver_init);

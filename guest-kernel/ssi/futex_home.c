// SPDX-License-Identifier: GPL-2.0
/*
 * Futexes of shared memory, at home: the waits of other cells.
 *
 * A task of another cell that waits is a *proxy* here: a futex_q without a task, queued under the key that tasks of this cell
 * have as well, so that whoever wakes finds both in one hash bucket, in the order in which they came, and counts them alike.
 * What wakes a proxy does not know that it is one: futex_q->wake puts it on the list of its cell, from which a work tells that
 * cell. No thread waits for another cell's task.
 *
 * A wait ends once. It is woken when it leaves the bucket, under the bucket's lock; a CANCEL (timeout, signal, the end of the
 * task, a move) takes it out itself, or comes too late and says so: then the task has been woken, whatever made it cancel.
 *
 *	proxies_lock	inside a bucket's lock
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/highmem.h>
#include <linux/plist.h>
#include <linux/proc_fs.h>
#include <linux/refcount.h>
#include <linux/sched/wake_q.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "../kernel/futex/futex.h"
#include "device.h"
#include "futex_wire.h"
#include "proc.h"
#include "shared_wire.h"

#define PROXIES_MAX	32768		/* of one cell; beyond that its waits fail with -ENOMEM */

struct proxy {
	struct futex_q q;
	struct hlist_node node;		/* proxies; under proxies_lock */
	struct list_head woken;		/* its cell's list */
	refcount_t ref;			/* of the table; of the bucket, which the list of its cell inherits */
	u64 id;				/* what its cell calls it */
	u32 cell;
};

static DEFINE_SPINLOCK(proxies_lock);
static DEFINE_HASHTABLE(proxies, 9);
static u32 proxies_of[SSI_CELLS_MAX];	/* under proxies_lock */

/* Proxies that have been woken, and that their cell is to be told of. */
static struct teller {
	spinlock_t lock;
	struct list_head woken;
	struct work_struct work;
	u32 cell;
} tellers[SSI_CELLS_MAX];

struct ssi_futex_stats ssi_futex_stats;

u64 ssi_futex_proxies(void)
{
	u64 all = 0;

	spin_lock(&proxies_lock);
	for (u32 cell = 0; cell < ssi_cells(); cell++)
		all += proxies_of[cell];
	spin_unlock(&proxies_lock);
	return all;
}

/* ---- places ---- */

/* The region of @at, with a reference, if @cell uses it; or ERR_PTR. */
static struct ssi_region *region_at(const struct ssi_futex_place *at, u32 cell)
{
	struct ssi_region *region = NULL;

	if (IS_ALIGNED(le64_to_cpu(at->offset), sizeof(u32)) && le64_to_cpu(at->offset) <= MAX_LFS_FILESIZE)
		region = ssi_region_get(le64_to_cpu(at->region));
	if (region && ssi_region_claimed(region, cell))
		return region;
	if (region)
		ssi_region_put(region);
	atomic64_inc(&ssi_futex_stats.refused);
	return ERR_PTR(-ESTALE);
}

/* What tasks of this cell know the place by: get_futex_key(). */
static union futex_key key_at(struct ssi_region *region, const struct ssi_futex_place *at)
{
	u64 offset = le64_to_cpu(at->offset);
	union futex_key key = FUTEX_KEY_INIT;

	key.shared.i_seq = get_object_id(&region->inode->i_sequence);
	key.shared.pgoff = offset >> PAGE_SHIFT;
	key.shared.offset = offset_in_page(offset) | FUT_OFF_INODE;
	return key;
}

/* A word in a page that is lent to @cell. */
struct word {
	struct ssi_region *region;
	pgoff_t index;
	u32 cell;
	struct page *page;		/* a reference */
	u32 *at;
};

static bool word_get(struct word *w, struct ssi_region *region, const struct ssi_futex_place *at, u32 cell)
{
	*w = (struct word){ .region = region, .index = le64_to_cpu(at->offset) >> PAGE_SHIFT, .cell = cell };
	w->page = ssi_region_lent_page(region, w->index, cell);
	if (!w->page)
		return false;
	w->at = page_address(w->page) + offset_in_page(le64_to_cpu(at->offset));
	return true;
}

/* Under the bucket's lock: a page that is no longer lent may be in the file no more, and nobody would wake for it. */
static int word_is(struct word *w, u32 val)
{
	struct page *page = ssi_region_lent_page(w->region, w->index, w->cell);
	u32 now;

	if (page)
		put_page(page);
	if (page != w->page)
		return -ENXIO;
	if (PageHWPoison(w->page) || get_kernel_nofault(now, w->at))
		return -EFAULT;		/* it died with another cell */
	return now == val ? 0 : -EAGAIN;
}

/* ---- proxies ---- */

static void proxy_put(struct proxy *p)
{
	if (refcount_dec_and_test(&p->ref))
		kfree(p);
}

/* Out of the table, whose reference is the caller's then; false if it was out already. */
static bool proxy_unhash(struct proxy *p)
{
	bool there;

	spin_lock(&proxies_lock);
	there = !hlist_unhashed(&p->node);
	if (there) {
		hash_del(&p->node);
		proxies_of[p->cell]--;
	}
	spin_unlock(&proxies_lock);
	return there;
}

static u64 hash_of(u32 cell, u64 id)
{
	return id ^ (u64)cell << 56;
}

/* The same by name. */
static struct proxy *proxy_take(u32 cell, u64 id)
{
	struct proxy *p;

	spin_lock(&proxies_lock);
	hash_for_each_possible(proxies, p, node, hash_of(cell, id))
		if (p->id == id && p->cell == cell) {
			hash_del(&p->node);
			proxies_of[cell]--;
			spin_unlock(&proxies_lock);
			return p;
		}
	spin_unlock(&proxies_lock);
	return NULL;
}

static bool proxy_hash(struct proxy *p)
{
	bool room;

	spin_lock(&proxies_lock);
	room = proxies_of[p->cell] < PROXIES_MAX;
	if (room) {
		proxies_of[p->cell]++;
		hash_add(proxies, &p->node, hash_of(p->cell, p->id));
	}
	spin_unlock(&proxies_lock);
	return room;
}

/* futex_q->wake of a proxy, under the bucket's lock. */
static void proxy_woken(struct wake_q_head *wake_q, struct futex_q *q)
{
	struct proxy *p = container_of(q, struct proxy, q);
	struct teller *teller = &tellers[p->cell];

	if (!__futex_wake_mark(q))
		return;
	spin_lock(&teller->lock);
	list_add_tail(&p->woken, &teller->woken);
	spin_unlock(&teller->lock);
	queue_work(system_unbound_wq, &teller->work);
}

/* Ends @p, which is out of the table: true if it was not woken yet. */
static bool proxy_end(struct proxy *p)
{
	bool queued = futex_unqueue(&p->q);

	if (queued)
		proxy_put(p);		/* the bucket's */
	proxy_put(p);
	return queued;
}

static void tell(struct work_struct *work)
{
	struct teller *teller = container_of(work, struct teller, work);
	__le64 ids[SSI_FUTEX_BATCH];
	struct proxy *p, *next;
	unsigned int n = 0;
	LIST_HEAD(woken);

	spin_lock(&teller->lock);
	list_splice_init(&teller->woken, &woken);
	spin_unlock(&teller->lock);
	list_for_each_entry_safe(p, next, &woken, woken) {
		list_del(&p->woken);
		/* One that is out of the table has been told by the answer to its CANCEL. */
		if (proxy_unhash(p)) {
			ids[n++] = cpu_to_le64(p->id);
			atomic64_inc(&ssi_futex_stats.woken);
			proxy_put(p);
		}
		proxy_put(p);
		if (n == ARRAY_SIZE(ids) || (n && list_empty(&woken))) {
			/* If the cell died, nobody waits there. */
			ssi_post(teller->cell, OP_FUTEX_WOKEN, ids, n * sizeof(ids[0]));
			n = 0;
		}
	}
}

static ssize_t queue_proxy(struct proxy *p, struct ssi_region *region, const struct ssi_futex_wait_arg *op)
{
	struct futex_hash_bucket *hb;
	struct word word;
	int err;

	if (!word_get(&word, region, &op->at, p->cell))
		return -ENXIO;
	p->q.key = key_at(region, &op->at);
	hb = futex_q_lock(&p->q);
	err = word_is(&word, le32_to_cpu(op->val));
	if (!err && !proxy_hash(p))
		err = -ENOMEM;
	if (err)
		futex_q_unlock(hb);
	else
		futex_queue(&p->q, hb, NULL);
	put_page(word.page);
	return err;
}

static ssize_t handle_wait(struct ssi_request *req)
{
	const struct ssi_futex_wait_arg *op = req->body;
	struct ssi_region *region;
	struct proxy *p;
	ssize_t err;
	u64 id;

	if (req->len != sizeof(*op) || !op->bitset)
		return -EINVAL;
	id = le64_to_cpu(op->wait);
	p = kzalloc(sizeof(*p), GFP_KERNEL_ACCOUNT);
	if (!p)
		return -ENOMEM;
	p->q = futex_q_init;
	p->q.wake = proxy_woken;
	p->q.bitset = le32_to_cpu(op->bitset);
	p->id = id;
	p->cell = req->cell;
	refcount_set(&p->ref, 2);

	region = region_at(&op->at, req->cell);
	err = PTR_ERR_OR_ZERO(region);
	if (!err) {
		err = queue_proxy(p, region, op);
		ssi_region_put(region);
	}
	if (err) {
		kfree(p);
		return err;
	}
	atomic64_inc(&ssi_futex_stats.queued);
	if (!ssi_cell_alive(req->cell)) {	/* cell_died() may have passed before */
		p = proxy_take(req->cell, id);
		if (p)
			proxy_end(p);
	}
	return 0;
}

static ssize_t handle_cancel(struct ssi_request *req)
{
	const __le64 *id = req->body;
	struct proxy *p;

	if (req->len != sizeof(*id))
		return -EINVAL;
	p = proxy_take(req->cell, le64_to_cpu(*id));
	if (!p || !proxy_end(p))
		return -ENOENT;
	atomic64_inc(&ssi_futex_stats.cancelled);
	return 0;
}

/* ---- wakes ---- */

static bool is_pi(const struct futex_q *q)
{
	return q->pi_state || q->rt_waiter;
}

static ssize_t handle_wake(struct ssi_request *req)
{
	const struct ssi_futex_wake_arg *op = req->body;
	struct futex_hash_bucket *hb;
	struct futex_q *q, *next;
	struct ssi_region *region;
	__le32 *answer = req->reply;
	DEFINE_WAKE_Q(wake_q);
	union futex_key key;
	int count, n = 0;

	if (req->len != sizeof(*op) || !op->bitset)
		return -EINVAL;
	region = region_at(&op->at, req->cell);
	if (IS_ERR(region))
		return PTR_ERR(region);
	key = key_at(region, &op->at);
	ssi_region_put(region);
	count = le32_to_cpu(op->count);
	hb = futex_hash(&key);
	if (futex_hb_waiters_pending(hb)) {
		spin_lock(&hb->lock);
		plist_for_each_entry_safe(q, next, &hb->chain, list) {
			if (!futex_match(&q->key, &key))
				continue;
			if (is_pi(q)) {
				n = -EINVAL;
				break;
			}
			if (!(q->bitset & le32_to_cpu(op->bitset)))
				continue;
			q->wake(&wake_q, q);
			/* At least one, as here: futex(2) has always woken one where none was asked for. */
			if (++n >= count)
				break;
		}
		spin_unlock(&hb->lock);
		wake_up_q(&wake_q);
	}
	atomic64_inc(&ssi_futex_stats.wakes_for);
	*answer = cpu_to_le32(n);
	return n < 0 ? n : sizeof(*answer);
}

/* Wakes up to @wake waiters of @key1, and has up to @requeue more wait for @key2. Their number. */
static int requeue_locked(struct futex_hash_bucket *hb1, struct futex_hash_bucket *hb2, union futex_key *key1,
			  union futex_key *key2, u32 wake, u32 requeue, struct wake_q_head *wake_q)
{
	struct futex_q *q, *next;
	u32 n = 0;

	plist_for_each_entry_safe(q, next, &hb1->chain, list) {
		if (n >= wake + requeue)	/* each is at most INT_MAX */
			break;
		if (!futex_match(&q->key, key1))
			continue;
		if (is_pi(q))
			return -EINVAL;
		if (n++ < wake)
			q->wake(wake_q, q);
		else
			requeue_futex(q, hb1, hb2, key2);
	}
	return n;
}

static int requeue(union futex_key *key1, union futex_key *key2, const struct ssi_futex_requeue_arg *op, struct word *word)
{
	struct futex_hash_bucket *hb1 = futex_hash(key1), *hb2 = futex_hash(key2);
	DEFINE_WAKE_Q(wake_q);
	int n = 0;

	futex_hb_waiters_inc(hb2);	/* who wakes at @key2 meanwhile must not think that nobody waits */
	double_lock_hb(hb1, hb2);
	if (op->compare)
		n = word_is(word, le32_to_cpu(op->val));
	if (!n)
		n = requeue_locked(hb1, hb2, key1, key2, le32_to_cpu(op->wake), le32_to_cpu(op->requeue), &wake_q);
	double_unlock_hb(hb1, hb2);
	wake_up_q(&wake_q);
	futex_hb_waiters_dec(hb2);
	return n;
}

static ssize_t handle_requeue(struct ssi_request *req)
{
	const struct ssi_futex_requeue_arg *op = req->body;
	struct ssi_region *from, *to;
	union futex_key key1, key2;
	__le32 *answer = req->reply;
	struct word word = {};
	int n = -ENXIO;

	if (req->len != sizeof(*op) || le32_to_cpu(op->wake) > INT_MAX || le32_to_cpu(op->requeue) > INT_MAX)
		return -EINVAL;
	from = region_at(&op->from, req->cell);
	if (IS_ERR(from))
		return PTR_ERR(from);
	to = region_at(&op->to, req->cell);
	if (IS_ERR(to)) {
		ssi_region_put(from);
		return PTR_ERR(to);
	}
	key1 = key_at(from, &op->from);
	key2 = key_at(to, &op->to);
	if (!op->compare || word_get(&word, from, &op->from, req->cell))
		n = requeue(&key1, &key2, op, &word);
	if (word.page)
		put_page(word.page);
	ssi_region_put(from);
	ssi_region_put(to);
	atomic64_inc(&ssi_futex_stats.wakes_for);
	*answer = cpu_to_le32(n);
	return n < 0 ? n : sizeof(*answer);
}

/* ---- files whose pages leave, and the end of a cell ---- */

static void wake_inode(struct futex_hash_bucket *hb, u64 i_seq)
{
	struct futex_q *q, *next;
	DEFINE_WAKE_Q(wake_q);

	spin_lock(&hb->lock);
	plist_for_each_entry_safe(q, next, &hb->chain, list)
		if (q->key.both.offset & FUT_OFF_INODE && q->key.shared.i_seq == i_seq && !is_pi(q))
			q->wake(&wake_q, q);
	spin_unlock(&hb->lock);
	wake_up_q(&wake_q);
}

void ssi_futex_moved(struct inode *inode)
{
	u64 i_seq = atomic64_read(&inode->i_sequence);
	struct futex_hash_bucket *hb;

	/* A task that is about to queue itself reads the word under the bucket's lock, finds no page, and begins anew. */
	for (unsigned long i = 0; i_seq && (hb = futex_bucket(i)); i++) {
		if (futex_hb_waiters_pending(hb))
			wake_inode(hb, i_seq);
		cond_resched();
	}
}


static void cell_died(u32 cell)
{
	struct hlist_node *next;
	struct proxy *p;
	int bucket;

again:
	spin_lock(&proxies_lock);
	hash_for_each_safe(proxies, bucket, next, p, node) {
		if (p->cell != cell)
			continue;
		hash_del(&p->node);
		proxies_of[cell]--;
		spin_unlock(&proxies_lock);
		proxy_end(p);
		atomic64_inc(&ssi_futex_stats.dropped);
		goto again;
	}
	spin_unlock(&proxies_lock);
}

static int futex_show(struct seq_file *m, void *v)
{
	struct ssi_futex_stats *s = &ssi_futex_stats;

	seq_printf(m, "proxies_now %llu\nproxies_count %lld\nproxies_woken_count %lld\n", ssi_futex_proxies(),
		   atomic64_read(&s->queued), atomic64_read(&s->woken));
	seq_printf(m, "proxies_cancelled_count %lld\nproxies_dropped_count %lld\n", atomic64_read(&s->cancelled),
		   atomic64_read(&s->dropped));
	seq_printf(m, "wakes_for_others_count %lld\nrefused_count %lld\n", atomic64_read(&s->wakes_for),
		   atomic64_read(&s->refused));
	seq_printf(m, "remote_waits_count %lld\nremote_wakes_count %lld\nremote_requeues_count %lld\nrefused_pi_count %lld\n",
		   atomic64_read(&s->waits), atomic64_read(&s->wakes), atomic64_read(&s->requeues), atomic64_read(&s->pi));
	return 0;
}

static int __init futex_home_init(void)
{
	for (u32 cell = 0; cell < SSI_CELLS_MAX; cell++) {
		struct teller *teller = &tellers[cell];

		spin_lock_init(&teller->lock);
		INIT_LIST_HEAD(&teller->woken);
		INIT_WORK(&teller->work, tell);
		teller->cell = cell;
	}
	ssi_rpc_register(OP_FUTEX_WAIT, handle_wait);
	ssi_rpc_register(OP_FUTEX_CANCEL, handle_cancel);
	ssi_rpc_register(OP_FUTEX_WAKE, handle_wake);
	ssi_rpc_register(OP_FUTEX_REQUEUE, handle_requeue);
	ssi_on_cell_death(cell_died);
	return 0;
}
fs_initcall(futex_home_init);

static int __init futex_proc_init(void)
{
	return ssi_proc_root && proc_create_single("futex", 0444, ssi_proc_root, futex_show) ? 0 : -ENOMEM;
}
device_initcall(futex_proc_init);

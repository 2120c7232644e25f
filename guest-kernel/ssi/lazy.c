// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that follows its process: the destination's side.
 *
 * Locks: whoever brings pages in holds mmap_lock (for reading at least) from before it claims a chunk until they are in.
 * So whoever waits for a claimed chunk while it holds mmap_lock itself waits for somebody who has it already. lazy->lock
 * guards the regions.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/hashtable.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <linux/xarray.h>

#include "lazy.h"
#include "wire.h"
#include "migrate.h"
#include "rpc.h"
#include "task.h"

#define CHUNK_PAGES	32				/* what one touch brings: a multiple of fault-around's 16 */
#define CHUNK_SHIFT	(PAGE_SHIFT + 5)
#define REGION_SHIFT	(PAGE_SHIFT + 9)
#define CHUNKS		(SSI_MAP_PAGES / CHUNK_PAGES)	/* in a region */
#define FETCH_MAX	256				/* pages of one page request */

struct region {
	u16 busy, done;		/* bit per chunk; under lazy->lock */
	u64 *frames;		/* SSI_MAP_PAGES, 0: none; NULL: not asked yet */
};

struct part {
	unsigned long start, end;
};

struct ssi_lazy {
	struct hlist_node node;
	struct mm_struct *mm;	/* with mm_count */
	refcount_t ref;
	u32 cell;
	u64 id;
	spinlock_t lock;
	wait_queue_head_t wait;
	struct xarray regions;	/* of struct region, by address >> REGION_SHIFT */
	struct part *ranges;	/* in which pages of the source may be; in order */
	unsigned int nranges;
	bool closed;		/* the address space ends: nothing more is brought */
	bool complete;		/* everything is here, or lost */
	int error;		/* what the first lost page was lost by */
	bool thp_disabled;	/* as the process itself wants it */
	struct task_struct *thread;
	u64 fetched;		/* pages */
	pid_t pid;		/* whose it is */
	u32 moves;		/* that it has made with this one */
};

static DEFINE_HASHTABLE(lazies, 6);
static DEFINE_SPINLOCK(lazies_lock);

static void put_lazy(struct ssi_lazy *lazy)
{
	struct region *reg;
	unsigned long i;

	if (!refcount_dec_and_test(&lazy->ref))
		return;
	xa_for_each(&lazy->regions, i, reg) {
		kfree(reg->frames);
		kfree(reg);
	}
	xa_destroy(&lazy->regions);
	kvfree(lazy->ranges);
	mmdrop(lazy->mm);
	kfree(lazy);
}

static struct ssi_lazy *get_lazy(struct mm_struct *mm)
{
	struct ssi_lazy *lazy;

	spin_lock(&lazies_lock);
	hash_for_each_possible(lazies, lazy, node, (unsigned long)mm)
		if (lazy->mm == mm && refcount_inc_not_zero(&lazy->ref)) {
			spin_unlock(&lazies_lock);
			return lazy;
		}
	spin_unlock(&lazies_lock);
	return NULL;
}

static void unhash(struct ssi_lazy *lazy)
{
	bool there;

	spin_lock(&lazies_lock);
	there = !hlist_unhashed(&lazy->node);
	hash_del(&lazy->node);
	spin_unlock(&lazies_lock);
	if (!there)
		return;
	clear_bit(MMF_SSI, &lazy->mm->flags);
	if (!lazy->thp_disabled)
		clear_bit(MMF_DISABLE_THP, &lazy->mm->flags);
	put_lazy(lazy);
}

/* The part of [start, end) that lies in a range, from @start on. False: none. */
static bool next_part(struct ssi_lazy *lazy, unsigned long *start, unsigned long *end)
{
	unsigned int lo = 0, hi = lazy->nranges;

	while (lo < hi) {	/* the first range that ends after start */
		unsigned int mid = (lo + hi) / 2;

		if (lazy->ranges[mid].end <= *start)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == lazy->nranges || lazy->ranges[lo].start >= *end)
		return false;
	*start = max(*start, lazy->ranges[lo].start);
	*end = min(*end, lazy->ranges[lo].end);
	return true;
}

static struct region *get_region(struct ssi_lazy *lazy, unsigned long addr)
{
	unsigned long i = addr >> REGION_SHIFT;
	struct region *reg = xa_load(&lazy->regions, i), *was;

	if (reg)
		return reg;
	reg = kzalloc(sizeof(*reg), GFP_KERNEL);
	if (!reg)
		return NULL;
	was = xa_cmpxchg(&lazy->regions, i, NULL, reg, GFP_KERNEL);
	if (!was)
		return reg;
	kfree(reg);
	return xa_is_err(was) ? NULL : was;
}

/* Asks the source for the frames of the region at @addr. */
static int ask_frames(struct ssi_lazy *lazy, struct region *reg, unsigned long addr)
{
	struct ssi_map_request req = { .id = lazy->id, .addr = addr & ~((1UL << REGION_SHIFT) - 1) };
	u64 *frames;
	ssize_t n;

	if (READ_ONCE(reg->frames))
		return 0;
	frames = kmalloc_array(SSI_MAP_PAGES, sizeof(*frames), GFP_KERNEL);
	if (!frames)
		return -ENOMEM;
	n = ssi_call(lazy->cell, SSI_OP_MIGRATE_MAP, &req, sizeof(req), frames, SSI_MAP_PAGES * sizeof(*frames),
		     MAX_SCHEDULE_TIMEOUT);
	if (n != SSI_MAP_PAGES * sizeof(*frames)) {
		kfree(frames);
		return n < 0 ? n : -EPROTO;
	}
	spin_lock(&lazy->lock);
	if (!reg->frames)
		swap(reg->frames, frames);
	spin_unlock(&lazy->lock);
	kfree(frames);
	return 0;
}

struct batch {
	unsigned int n;
	unsigned long addr[FETCH_MAX];
	u64 remote[FETCH_MAX];
	struct page *pages[FETCH_MAX];
};

static int insert_batch(struct ssi_lazy *lazy, struct batch *b)
{
	int err = 0;

	for (unsigned int i = 0; i < b->n; i++) {
		struct vm_area_struct *vma = find_vma(lazy->mm, b->addr[i]);

		/* Unmapped meanwhile: of no use. */
		if (!vma || vma->vm_start > b->addr[i]) {
			put_page(b->pages[i]);
			continue;
		}
		err = ssi_insert_page(lazy->mm, vma, b->addr[i], b->pages[i]);
		if (err == -EEXIST) {
			pr_warn_ratelimited("page %lx had come already\n", b->addr[i]);
			err = 0;
			put_page(b->pages[i]);
		} else if (err) {
			while (i < b->n)
				put_page(b->pages[i++]);
			return err;
		}
		lazy->fetched++;
	}
	return 0;
}

/* Brings in the pages of the claimed chunks @mask of the region at @base. */
static int bring(struct ssi_lazy *lazy, struct region *reg, unsigned long base, u16 mask)
{
	struct batch *b;
	int err;

	err = ask_frames(lazy, reg, base);
	if (err)
		return err;
	b = kmalloc(sizeof(*b), GFP_KERNEL);
	if (!b)
		return -ENOMEM;
	b->n = 0;
	for (unsigned int i = 0; !err && i < SSI_MAP_PAGES; i++) {
		if (!(mask & BIT(i / CHUNK_PAGES)) || !reg->frames[i])
			continue;
		b->pages[b->n] = alloc_page(GFP_HIGHUSER_MOVABLE);
		if (!b->pages[b->n]) {
			err = -ENOMEM;
			break;
		}
		b->addr[b->n] = base + i * PAGE_SIZE;
		b->remote[b->n] = reg->frames[i];
		b->n++;
	}
	if (!err && b->n)
		err = ssi_fetch(lazy->cell, b->remote, b->pages, b->n);
	if (err)
		while (b->n)
			put_page(b->pages[--b->n]);
	else
		err = insert_batch(lazy, b);
	kfree(b);
	return err;
}

/*
 * Sees to it that the chunks @want of the region at @addr are here; with @more, up to FETCH_MAX pages of others on the way.
 * Under mmap_lock.
 */
static int bring_chunks(struct ssi_lazy *lazy, unsigned long addr, u16 want)
{
	unsigned long base = addr & ~((1UL << REGION_SHIFT) - 1);
	struct region *reg = get_region(lazy, addr);
	u16 mine;
	int err = 0;

	if (!reg)
		return -ENOMEM;
	while (!err) {
		spin_lock(&lazy->lock);
		want &= ~reg->done;
		mine = want & ~reg->busy;
		if (hweight16(mine) > FETCH_MAX / CHUNK_PAGES)
			mine &= mine & 0xff ? 0xff : 0xff00;
		reg->busy |= mine;
		spin_unlock(&lazy->lock);
		if (!want)
			break;
		if (!mine) {
			wait_event(lazy->wait, !(READ_ONCE(reg->busy) & want));
			continue;
		}
		err = lazy->closed ? 0 : bring(lazy, reg, base, mine);
		spin_lock(&lazy->lock);
		reg->busy &= ~mine;
		if (!err)
			reg->done |= mine;
		spin_unlock(&lazy->lock);
		wake_up_all(&lazy->wait);
	}
	if (err && !lazy->error)
		lazy->error = err;
	return err;
}

static u16 chunks_of(unsigned long start, unsigned long end)
{
	unsigned int first = (start >> CHUNK_SHIFT) % CHUNKS, last = ((end - 1) >> CHUNK_SHIFT) % CHUNKS;

	return GENMASK(last, first);
}

/* Applies bring_chunks() to all of [start, end) that may have pages. Under mmap_lock. */
static int bring_range(struct ssi_lazy *lazy, unsigned long start, unsigned long end)
{
	int err = 0;

	while (!err && start < end) {	/* a range may go on beyond the end */
		unsigned long s = start, e = end;

		if (!next_part(lazy, &s, &e))
			break;
		e = min(e, ALIGN(s + 1, 1UL << REGION_SHIFT));
		err = bring_chunks(lazy, s, chunks_of(s, e));
		start = e;
		cond_resched();
	}
	return err;
}

/* handle_mm_fault() in an address space with MMF_SSI. 0: go on. */
vm_fault_t __ssi_mm_fault(struct vm_area_struct *vma, unsigned long address, unsigned int flags)
{
	struct mm_struct *mm = vma->vm_mm;
	struct ssi_lazy *lazy = get_lazy(mm);
	unsigned long s = address & PAGE_MASK, e = s + PAGE_SIZE;
	struct region *reg;
	vm_fault_t ret = 0;
	int err;

	if (!lazy)
		return 0;
	if (!next_part(lazy, &s, &e))
		goto out;
	reg = xa_load(&lazy->regions, s >> REGION_SHIFT);
	if (reg && READ_ONCE(reg->done) & chunks_of(s, e))
		goto out;
	if (flags & FAULT_FLAG_VMA_LOCK) {	/* others of its chunk are in other mappings: take mmap_lock */
		vma_end_read(vma);
		ret = VM_FAULT_RETRY;
		goto out;
	}
	err = bring_chunks(lazy, s, chunks_of(s, e));
	if (err == -ENOMEM)
		ret = VM_FAULT_OOM;
	else if (err)
		ret = VM_FAULT_SIGBUS;
out:
	put_lazy(lazy);
	return ret;
}

/* Before page tables of [start, end) are moved, copied or looked into. Under mmap_lock. */
int __ssi_mm_settle(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	struct ssi_lazy *lazy = get_lazy(mm);
	int err;

	if (!lazy)
		return 0;
	err = bring_range(lazy, start & PAGE_MASK, PAGE_ALIGN(end));
	put_lazy(lazy);
	return err;
}

int __ssi_mm_fork(struct mm_struct *mm, struct mm_struct *oldmm)
{
	struct ssi_lazy *lazy = get_lazy(oldmm);
	bool thp_disabled = lazy ? lazy->thp_disabled : test_bit(MMF_DISABLE_THP, &oldmm->flags);

	if (lazy)
		put_lazy(lazy);
	clear_bit(MMF_SSI, &mm->flags);
	if (!thp_disabled)
		clear_bit(MMF_DISABLE_THP, &mm->flags);
	return ssi_mm_settle(oldmm, 0, TASK_SIZE);
}

/* Before [start, end) is unmapped: what lies whole in it is not brought any more. Under mmap_lock. */
void __ssi_mm_drop(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	struct ssi_lazy *lazy = get_lazy(mm);

	if (!lazy)
		return;
	end = min(end, TASK_SIZE_MAX);
	while (!lazy->closed && start < end) {
		unsigned long s = start, e = min(end, ALIGN(start + 1, 1UL << CHUNK_SHIFT)), ps, pe;
		struct region *reg;

		ps = s;
		pe = end;
		if (!next_part(lazy, &ps, &pe))
			break;		/* nothing of interest up to the end */
		if (ps >= e) {
			start = ALIGN_DOWN(ps, 1UL << CHUNK_SHIFT);
			start = max(start, e);
			continue;
		}
		start = e;
		if (e - s < 1UL << CHUNK_SHIFT) {
			bring_chunks(lazy, ps, chunks_of(s, e));
			continue;
		}
		reg = get_region(lazy, s);
		if (!reg)
			continue;
		wait_event(lazy->wait, !(READ_ONCE(reg->busy) & chunks_of(s, e)));
		spin_lock(&lazy->lock);
		reg->done |= chunks_of(s, e);
		spin_unlock(&lazy->lock);
		cond_resched();
	}
	put_lazy(lazy);
}

/* exit_mmap(): nobody uses it any more. */
void __ssi_mm_exit(struct mm_struct *mm)
{
	struct ssi_lazy *lazy = get_lazy(mm);

	if (!lazy)
		return;
	WRITE_ONCE(lazy->closed, true);
	unhash(lazy);
	put_lazy(lazy);
}

/* Everything of one region that is not here yet. -ESRCH: the address space has ended. */
static int pull_region(struct ssi_lazy *lazy, unsigned long start, unsigned long end)
{
	int err;

	if (!mmget_not_zero(lazy->mm))
		return -ESRCH;
	mmap_read_lock(lazy->mm);
	err = bring_chunks(lazy, start, chunks_of(start, end));
	mmap_read_unlock(lazy->mm);
	mmput(lazy->mm);
	return err;
}

static int pull_all(struct ssi_lazy *lazy)
{
	int err = 0;

	for (unsigned int i = 0; i < lazy->nranges; i++) {
		unsigned long s = lazy->ranges[i].start;

		while (s < lazy->ranges[i].end) {
			unsigned long e = min(lazy->ranges[i].end, ALIGN(s + 1, 1UL << REGION_SHIFT));

			if (READ_ONCE(lazy->closed))
				return -ESRCH;
			err = pull_region(lazy, s, e);
			if (err)
				return err;
			s = e;
			cond_resched();
		}
	}
	return 0;
}

/* Tells the source that it may let go, and notes what there was. */
static void send_done(struct ssi_lazy *lazy)
{
	struct ssi_lazy_done req = { .id = lazy->id };
	struct ssi_lazy_counts c;
	struct ssi_task *st;

	if (ssi_call(lazy->cell, SSI_OP_MIGRATE_FREE, &req, sizeof(req), &c, sizeof(c), MAX_SCHEDULE_TIMEOUT) != sizeof(c))
		return;
	st = ssi_task_get_pid(lazy->pid);
	if (!st)
		return;
	spin_lock(&st->lock);
	if (st->where == ssi_this_cell() && st->moves == lazy->moves) {
		st->stat.pages_sent = c.pages_sent;
		st->stat.pages_absent = c.pages_absent;
		st->stat.pages_unmodified = c.pages_unmodified;
		st->stat.total_us = div_u64(ktime_get_ns() - st->stop_ns, NSEC_PER_USEC);
	}
	spin_unlock(&st->lock);
	if (lazy->cell != st->home)	/* which knows itself */
		ssi_tell_figures(st);
	ssi_task_put(st);
}

static int pull_thread(void *arg)
{
	struct ssi_lazy *lazy = arg;
	int err;

	while ((err = pull_all(lazy)) == -ENOMEM)	/* what has come stays: it goes on where it was */
		schedule_timeout_interruptible(HZ / 10);
	/*
	 * Lost pages stay lost, and the others are asked for one by one: the address space remains as it is. Otherwise it
	 * is an ordinary one now.
	 */
	if (err && err != -ESRCH)
		pr_notice("memory in cell %u was lost before it had followed its process: error %d\n", lazy->cell, err);
	else
		unhash(lazy);
	send_done(lazy);
	WRITE_ONCE(lazy->complete, true);
	wake_up_all(&lazy->wait);
	put_lazy(lazy);
	return 0;
}

static int gather_ranges(struct ssi_restore *r, struct ssi_lazy *lazy)
{
	struct ssi_rec *raw;
	unsigned int n = 0;

	ssi_for_each_rec(r, raw, SSI_REC_VMA)
		n += !!(((struct ssi_rec_vma *)raw->data)->flags & SSI_VMA_ANON);
	lazy->ranges = kvcalloc(n ?: 1, sizeof(*lazy->ranges), GFP_KERNEL);
	if (!lazy->ranges)
		return -ENOMEM;
	ssi_for_each_rec(r, raw, SSI_REC_VMA) {
		const struct ssi_rec_vma *v = (const void *)raw->data;
		struct part *last = lazy->nranges ? &lazy->ranges[lazy->nranges - 1] : NULL;

		if (!(v->flags & SSI_VMA_ANON))
			continue;
		if (last && last->end == v->start)
			last->end = v->end;
		else
			lazy->ranges[lazy->nranges++] = (struct part){ v->start, v->end };
	}
	return 0;
}

int ssi_lazy_prepare(struct ssi_restore *r)
{
	const struct ssi_rec *raw = ssi_rec_next(r, NULL, SSI_REC_LAZY);
	const struct ssi_rec_lazy *rec;
	struct ssi_lazy *lazy;
	int err;

	if (!raw)
		return ssi_bad_image(r, "it does not say where its memory is");
	rec = (const void *)raw->data;
	err = ssi_read_pages(r);	/* there are none: the end */
	if (err)
		return err;
	lazy = kzalloc(sizeof(*lazy), GFP_KERNEL);
	if (!lazy)
		return -ENOMEM;
	lazy->mm = r->new_mm;
	mmgrab(lazy->mm);
	refcount_set(&lazy->ref, 1);
	lazy->cell = rec->cell;
	lazy->id = rec->id;
	lazy->pid = r->hdr->pid;
	lazy->moves = r->hdr->moves + 1;
	spin_lock_init(&lazy->lock);
	init_waitqueue_head(&lazy->wait);
	xa_init(&lazy->regions);
	r->lazy = lazy;
	err = gather_ranges(r, lazy);
	if (err)
		return err;
	lazy->thp_disabled = test_and_set_bit(MMF_DISABLE_THP, &lazy->mm->flags);
	spin_lock(&lazies_lock);
	refcount_inc(&lazy->ref);
	hash_add(lazies, &lazy->node, (unsigned long)lazy->mm);
	spin_unlock(&lazies_lock);
	set_bit(MMF_SSI, &lazy->mm->flags);

	if (r->hdr->flags & SSI_IMAGE_EAGER) {
		u64 start = ktime_get_ns();

		err = pull_all(lazy);
		if (!err)
			unhash(lazy);
		r->stat.pages_sent = lazy->fetched;
		r->stat.t3_us = div_u64(ktime_get_ns() - start, NSEC_PER_USEC);
		return err;
	}
	lazy->thread = kthread_create(pull_thread, lazy, "ssi-pull/%d", r->hdr->pid);
	if (IS_ERR(lazy->thread)) {
		err = PTR_ERR(lazy->thread);
		lazy->thread = NULL;
	}
	return err;
}

void ssi_lazy_commit(struct ssi_restore *r)
{
	struct ssi_lazy *lazy = r->lazy;

	if (!lazy)
		return;
	r->lazy = NULL;
	if (lazy->thread)	/* takes over the reference */
		wake_up_process(lazy->thread);
	else
		put_lazy(lazy);
}

void ssi_lazy_abort(struct ssi_restore *r)
{
	struct ssi_lazy *lazy = r->lazy;

	if (!lazy)
		return;
	r->lazy = NULL;
	lazy->closed = true;
	unhash(lazy);
	if (lazy->thread)
		kthread_stop(lazy->thread);	/* never ran: ends without pull_thread */
	put_lazy(lazy);
}

int ssi_lazy_finish(struct mm_struct *mm)
{
	struct ssi_lazy *lazy = get_lazy(mm);
	int err;

	if (!lazy)
		return 0;
	err = wait_event_interruptible(lazy->wait, READ_ONCE(lazy->complete));
	if (!err && lazy->error)
		err = -EIO;
	put_lazy(lazy);
	return err;
}

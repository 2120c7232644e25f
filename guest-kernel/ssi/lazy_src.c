// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that follows its process: the source's side. The address space stays, with its pages pinned as they are asked for,
 * until the destination says that it has all of it, or dies.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "lazy.h"
#include "task.h"
#include "wire.h"

struct pins {
	struct list_head list;
	u64 addr;
	struct page *pages[SSI_MAP_PAGES];
};

struct ssi_lazy_src {
	struct list_head list;	/* sources_lock */
	u64 id;
	u32 dest;
	pid_t pid;		/* whose it was */
	struct mm_struct *mm;	/* with mm_users */
	struct mutex lock;	/* of what follows */
	bool gone;
	bool under_way;		/* the move is not decided, or not noted here */
	u64 done_ns;		/* when the destination had everything */
	refcount_t ref;
	struct list_head pins;
	struct ssi_move_stat stat;
};

static LIST_HEAD(sources);
static DEFINE_MUTEX(sources_lock);
static u64 last_id;

struct ssi_lazy_src *ssi_lazy_keep(struct mm_struct *mm, pid_t pid, u32 dest, u64 *id)
{
	struct ssi_lazy_src *src = kzalloc(sizeof(*src), GFP_KERNEL);

	if (!src)
		return NULL;
	mmget(mm);
	src->mm = mm;
	src->dest = dest;
	src->pid = pid;
	src->under_way = true;
	mutex_init(&src->lock);
	refcount_set(&src->ref, 2);	/* the table's and the caller's */
	INIT_LIST_HEAD(&src->pins);
	mutex_lock(&sources_lock);
	*id = src->id = ++last_id;
	list_add(&src->list, &sources);
	mutex_unlock(&sources_lock);
	return src;
}

static void put_src(struct ssi_lazy_src *src)
{
	if (refcount_dec_and_test(&src->ref))
		kfree(src);
}

static struct ssi_lazy_src *get_src(u64 id, u32 dest)
{
	struct ssi_lazy_src *src;

	mutex_lock(&sources_lock);
	list_for_each_entry(src, &sources, list)
		if (src->id == id && src->dest == dest) {
			refcount_inc(&src->ref);
			mutex_unlock(&sources_lock);
			return src;
		}
	mutex_unlock(&sources_lock);
	return NULL;
}

static void complete_stat(struct ssi_lazy_src *src, u64 done_ns)
{
	struct ssi_task *st = ssi_task_get_pid(src->pid);

	if (!st)
		return;
	spin_lock(&st->lock);
	st->stat.pages_sent = src->stat.pages_sent;
	st->stat.pages_absent = src->stat.pages_absent;
	st->stat.pages_unmodified = src->stat.pages_unmodified;
	st->stat.total_us = done_ns ? div_u64(done_ns - st->stop_ns, NSEC_PER_USEC) : st->stat.stop_us;
	spin_unlock(&st->lock);
	ssi_task_put(st);
}

/* Lets go of pages and address space. */
static void release_src(struct ssi_lazy_src *src)
{
	struct pins *p, *next;
	bool gone;

	mutex_lock(&sources_lock);
	list_del_init(&src->list);
	mutex_unlock(&sources_lock);
	mutex_lock(&src->lock);
	gone = src->gone;
	src->gone = true;
	mutex_unlock(&src->lock);
	if (gone)
		return;
	list_for_each_entry_safe(p, next, &src->pins, list) {
		for (int i = 0; i < SSI_MAP_PAGES; i++)
			if (p->pages[i])
				put_page(p->pages[i]);
		kfree(p);
		cond_resched();
	}
	mmput(src->mm);
	put_src(src);
}

/* The destination has everything. It may say so before this side has noted that the process has left. */
static void complete_src(struct ssi_lazy_src *src)
{
	bool under_way;

	mutex_lock(&src->lock);
	src->done_ns = ktime_get_ns();
	under_way = src->under_way;
	mutex_unlock(&src->lock);
	if (!under_way)
		complete_stat(src, src->done_ns);
	release_src(src);
}

void ssi_lazy_abandon(struct ssi_lazy_src *src)
{
	release_src(src);
	put_src(src);
}

void ssi_lazy_left(struct ssi_lazy_src *src, bool eager)
{
	u64 done_ns;

	mutex_lock(&src->lock);
	src->under_way = false;
	done_ns = src->done_ns;
	mutex_unlock(&src->lock);
	if (eager || done_ns)
		complete_stat(src, done_ns);
	/* Died meanwhile, when this was not for ssi_lazy_cell_died() to release. */
	if (eager || !ssi_cell_alive(src->dest))
		release_src(src);
	put_src(src);
}

static struct pins *find_pins(struct ssi_lazy_src *src, u64 addr)
{
	struct pins *p;

	list_for_each_entry(p, &src->pins, list)
		if (p->addr == addr)
			return p;
	return NULL;
}

static ssize_t map_region(struct ssi_lazy_src *src, u64 addr, u64 *frames)
{
	struct pins *p = find_pins(src, addr);

	if (!p) {
		int err;

		p = kmalloc(sizeof(*p), GFP_KERNEL);
		if (!p)
			return -ENOMEM;
		mmap_read_lock(src->mm);
		err = ssi_collect_pages(src->mm, addr, SSI_MAP_PAGES, p->pages, &src->stat);
		mmap_read_unlock(src->mm);
		if (err) {
			kfree(p);
			return err;
		}
		p->addr = addr;
		list_add(&p->list, &src->pins);
	}
	for (int i = 0; i < SSI_MAP_PAGES; i++)
		frames[i] = p->pages[i] ? page_to_phys(p->pages[i]) : 0;
	return SSI_MAP_PAGES * sizeof(*frames);
}

static ssize_t handle_map(struct ssi_request *req)
{
	const struct ssi_map_request *m = req->body;
	struct ssi_lazy_src *src;
	ssize_t n = -ENOENT;

	if (req->len != sizeof(*m) || m->addr >= TASK_SIZE_MAX || m->addr % (SSI_MAP_PAGES * PAGE_SIZE))
		return -EINVAL;
	src = get_src(m->id, req->cell);
	if (!src)
		return -ENOENT;
	mutex_lock(&src->lock);
	if (!src->gone)
		n = map_region(src, m->addr, req->reply);
	mutex_unlock(&src->lock);
	put_src(src);
	return n;
}

static ssize_t handle_free(struct ssi_request *req)
{
	const struct ssi_lazy_done *d = req->body;
	struct ssi_lazy_counts *c = req->reply;
	struct ssi_lazy_src *src;

	if (req->len != sizeof(*d))
		return -EINVAL;
	src = get_src(d->id, req->cell);
	if (!src)
		return -ENOENT;
	*c = (struct ssi_lazy_counts){ src->stat.pages_sent, src->stat.pages_absent, src->stat.pages_unmodified };
	complete_src(src);
	put_src(src);
	return sizeof(*c);
}

void ssi_lazy_cell_died(u32 cell)
{
	struct ssi_lazy_src *src, *found;

	do {
		found = NULL;
		mutex_lock(&sources_lock);
		list_for_each_entry(src, &sources, list)
			if (src->dest == cell) {
				/* One whose move is under way is released by that, when it fails. */
				if (READ_ONCE(src->under_way))
					continue;
				found = src;
				refcount_inc(&src->ref);
				break;
			}
		mutex_unlock(&sources_lock);
		if (found) {
			release_src(found);
			put_src(found);
		}
	} while (found);
}

static int __init lazy_src_init(void)
{
	ssi_rpc_register(SSI_OP_MIGRATE_MAP, handle_map);
	ssi_rpc_register(SSI_OP_MIGRATE_FREE, handle_free);
	return 0;
}
fs_initcall(lazy_src_init);

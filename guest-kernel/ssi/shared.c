// SPDX-License-Identifier: GPL-2.0
/*
 * Shared memory, at home: regions, the cells that claim them, and the pages that are lent.
 *
 * A lent page has a reference of ours, so that it stays where it is (no reclaim, no compaction) and what it is. It leaves the
 * page cache in two steps, as it does for mappings of this cell: the range is unmapped everywhere (ssi_unmap()), then each
 * folio is removed under its lock, and unmapped once more if somebody was quicker (ssi_lent()). Lending happens under that
 * lock too, after a look whether the folio is still in the page cache and within the file: so a page that is lent is seen by
 * whoever removes it.
 *
 * A frame goes back to the allocator only when no other cell can reach it: what a borrower has pinned for I/O when it is told
 * to unmap stays in limbo until it says that it is free.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/highmem.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/ssi_shared.h>
#include <linux/swap.h>

#include "../mm/internal.h"	/* folio_isolate_lru() */
#include "lost.h"
#include "shared_wire.h"
#include "slices.h"

struct ssi_lent {
	struct page *page;		/* a reference */
	u64 cells;
	u64 writers;			/* of these, who may write to it */
};

/* A page that was unmapped, and that @cell has pinned. */
struct limbo {
	struct list_head list;
	struct page *page;		/* a reference */
	u32 cell;
};

static DEFINE_SPINLOCK(regions_lock);
static DEFINE_HASHTABLE(regions, 7);		/* by number */
static DEFINE_HASHTABLE(regions_inodes, 7);	/* by inode */
static u64 last_region;				/* under regions_lock */
static DEFINE_MUTEX(make_lock);

static DEFINE_SPINLOCK(limbo_lock);
static LIST_HEAD(limbos);

struct ssi_shared_stats ssi_shared_stats;
static atomic64_t lent_now[SSI_CELLS_MAX];

u64 ssi_region_lent_now(u32 cell)
{
	return atomic64_read(&lent_now[cell]);
}

/* ---- regions ---- */

struct ssi_region *ssi_region_get(u64 id)
{
	struct ssi_region *region;

	spin_lock(&regions_lock);
	hash_for_each_possible(regions, region, by_id, id)
		if (region->id == id && refcount_inc_not_zero(&region->ref)) {
			spin_unlock(&regions_lock);
			return region;
		}
	spin_unlock(&regions_lock);
	return NULL;
}

static struct ssi_region *find_of(struct inode *inode)
{
	struct ssi_region *region;

	lockdep_assert_held(&regions_lock);
	hash_for_each_possible(regions_inodes, region, by_inode, (unsigned long)inode)
		if (region->inode == inode && refcount_inc_not_zero(&region->ref))
			return region;
	return NULL;
}

struct ssi_region *ssi_region_of(struct address_space *mapping)
{
	struct ssi_region *region;

	if (!test_bit(AS_SSI, &mapping->flags))
		return NULL;
	spin_lock(&regions_lock);
	region = find_of(mapping->host);
	spin_unlock(&regions_lock);
	return region;
}

static void end_file(struct work_struct *work);

static struct ssi_region *new_region(struct file *file)
{
	struct ssi_region *region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	struct file *own;

	if (!region)
		return ERR_PTR(-ENOMEM);
	INIT_HLIST_NODE(&region->by_id);
	INIT_HLIST_NODE(&region->by_inode);
	refcount_set(&region->ref, 1);
	spin_lock_init(&region->lock);
	xa_init(&region->lent);
	region->kind = shmem_mapping(file->f_mapping) ? SSI_SHM_KIND_MEMORY : SSI_SHM_KIND_FILE;
	if (ssi_shm_of_file(file, &region->shmid))
		region->kind = SSI_SHM_KIND_SYSV;
	region->path = file->f_path;
	path_get(&region->path);
	region->inode = file->f_mapping->host;
	if (region->kind == SSI_SHM_KIND_FILE) {
		/* Not @file itself: who moves would take it for one that another process has, too. */
		own = dentry_open(&region->path, (file->f_mode & FMODE_WRITE ? O_RDWR : O_RDONLY) | O_LARGEFILE, current_cred());
		if (IS_ERR(own)) {
			path_put(&region->path);
			kfree(region);
			return ERR_CAST(own);
		}
		region->file = own;
		region->making = true;
		INIT_WORK(&region->end, end_file);
	}
	atomic64_inc(&ssi_shared_stats.regions_made);
	return region;
}

bool ssi_region_claimed(struct ssi_region *region, u32 cell)
{
	return READ_ONCE(region->claims[cell]);
}

/* ---- lending ---- */

/* A frame of the own slice to move a page to: low RAM, which no other cell can reach, is the allocator's last resort. */
static struct folio *slice_folio(struct folio *src, unsigned long private)
{
	struct folio *refused[32], *folio;
	unsigned int n = 0;

	do {
		folio = folio_alloc(GFP_HIGHUSER_MOVABLE | __GFP_NORETRY, folio_order(src));
		if (!folio || (ssi_slice_own(page_to_phys(&folio->page)) && !ssi_lost_renewed(&folio->page)))
			break;
		refused[n++] = folio;
		folio = NULL;
	} while (n < ARRAY_SIZE(refused));
	while (n)
		folio_put(refused[--n]);
	return folio;
}

/* Moves a folio that is not in the slice into it. Takes over the reference. */
static int move_to_slice(struct folio *folio)
{
	LIST_HEAD(list);
	bool isolated;
	int err;

	lru_add_drain_all();
	isolated = folio_isolate_lru(folio);
	if (isolated) {
		node_stat_mod_folio(folio, NR_ISOLATED_ANON + folio_is_file_lru(folio), folio_nr_pages(folio));
		list_add(&folio->lru, &list);
	}
	folio_put(folio);
	if (!isolated)
		return -EAGAIN;
	err = migrate_pages(&list, slice_folio, NULL, 0, MIGRATE_SYNC, MR_SYSCALL, NULL);
	if (err)
		putback_movable_pages(&list);
	atomic64_inc(&ssi_shared_stats.moved_frames);
	return err ? -EAGAIN : 0;
}

static bool beyond_end(struct inode *inode, pgoff_t index)
{
	loff_t size = i_size_read(inode);

	return index >= DIV_ROUND_UP((u64)size, PAGE_SIZE);
}

/* The folio of page @index, locked, with a reference, and with its contents; or ERR_PTR. */
static struct folio *get_folio(struct ssi_region *region, pgoff_t index)
{
	struct inode *inode = region->inode;
	struct folio *folio;
	int err;

	if (beyond_end(inode, index))
		return ERR_PTR(-EFAULT);
	if (region->kind != SSI_SHM_KIND_FILE) {
		err = shmem_get_folio(inode, index, 0, &folio, SGP_CACHE);
		return err ? ERR_PTR(err == -EINVAL ? -EFAULT : err) : folio;
	}
	folio = read_mapping_folio(inode->i_mapping, index, region->file);
	if (!IS_ERR(folio))
		folio_lock(folio);
	return folio;
}

/* The same if it is there and not locked; else NULL. */
static struct folio *try_folio(struct ssi_region *region, pgoff_t index)
{
	struct folio *folio = filemap_get_folio(region->inode->i_mapping, index);

	if (IS_ERR(folio))
		return NULL;
	if (folio_trylock(folio)) {
		if (folio_test_uptodate(folio))
			return folio;
		folio_unlock(folio);
	}
	folio_put(folio);
	return NULL;
}

/* Enters that @cell has @page. Under the folio's lock. */
static int note_lent(struct ssi_region *region, pgoff_t index, struct page *page, u32 cell, bool write)
{
	struct ssi_lent *lent = xa_load(&region->lent, index), *fresh = NULL;
	int err = 0;

	if (!lent) {
		fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);
		if (!fresh)
			return -ENOMEM;
		fresh->page = page;
	}
	xa_lock(&region->lent);
	lent = xa_load(&region->lent, index);
	if (!lent && fresh) {
		err = xa_err(__xa_store(&region->lent, index, fresh, GFP_KERNEL_ACCOUNT));
		if (!err) {
			get_page(page);
			lent = fresh;
			fresh = NULL;
		}
	} else if (!lent) {
		err = -EAGAIN;		/* returned meanwhile */
	}
	if (!err && WARN_ON_ONCE(lent->page != page))
		err = -EIO;
	if (!err) {
		if (!(lent->cells & BIT_ULL(cell))) {
			atomic64_inc(&lent_now[cell]);
			atomic64_inc(&ssi_shared_stats.lent);
		}
		lent->cells |= BIT_ULL(cell);
		if (write)
			lent->writers |= BIT_ULL(cell);
	}
	xa_unlock(&region->lent);
	kfree(fresh);
	return err;
}

int ssi_region_lend(struct ssi_region *region, pgoff_t index, u32 cell, bool create, bool write, u64 *phys)
{
	struct folio *folio;
	struct page *page;
	int tries = 0, err;

	do {
		folio = create ? get_folio(region, index) : try_folio(region, index);
		if (IS_ERR_OR_NULL(folio))
			return folio ? PTR_ERR(folio) : -EAGAIN;
		page = folio_file_page(folio, index);
		*phys = page_to_phys(page);
		if (folio->mapping != region->inode->i_mapping) {
			err = -EAGAIN;
		} else if (PageHWPoison(page)) {
			err = -EHWPOISON;
		} else if (beyond_end(region->inode, index)) {
			err = -EFAULT;
		} else if (!ssi_slice_own(*phys) || ssi_lost_renewed(page)) {
			folio_unlock(folio);
			if (!create) {
				folio_put(folio);
				return -EAGAIN;
			}
			err = move_to_slice(folio);
			if (!err)
				err = -EAGAIN;
			continue;
		} else {
			err = note_lent(region, index, page, cell, write);
			if (!err && write && region->kind == SSI_SHM_KIND_FILE)
				folio_mark_dirty(folio);
		}
		folio_unlock(folio);
		folio_put(folio);
	} while (err == -EAGAIN && create && ++tries < 100);
	return err;
}

bool ssi_region_lends(struct page *page)
{
	struct address_space *mapping = READ_ONCE(page->mapping);
	struct ssi_region *region = mapping ? ssi_region_of(mapping) : NULL;
	struct ssi_lent *lent;
	bool lends;

	if (!region)
		return false;
	xa_lock(&region->lent);
	lent = xa_load(&region->lent, page->index);
	lends = lent && lent->page == page;
	xa_unlock(&region->lent);
	ssi_region_put(region);
	return lends;
}

/* Does not sleep. */
struct page *ssi_region_lent_page(struct ssi_region *region, pgoff_t index, u32 cell)
{
	struct ssi_lent *lent;
	struct page *page = NULL;

	xa_lock(&region->lent);
	lent = xa_load(&region->lent, index);
	if (lent && lent->cells & BIT_ULL(cell)) {
		page = lent->page;
		get_page(page);
	}
	xa_unlock(&region->lent);
	return page;
}

/* ---- returning ---- */

/* What others have written to it is in the page, but no dirty bit here says so. @locked: its folio is. */
static void drop_lent(struct ssi_region *region, struct ssi_lent *lent, bool locked)
{
	u32 cell;

	for (cell = 0; cell < ssi_cells(); cell++)
		if (lent->cells & BIT_ULL(cell)) {
			atomic64_dec(&lent_now[cell]);
			atomic64_inc(&ssi_shared_stats.returned);
		}
	if (lent->writers && region->kind == SSI_SHM_KIND_FILE && !ssi_lost_frame(lent->page)) {
		if (locked)
			set_page_dirty(lent->page);
		else
			set_page_dirty_lock(lent->page);
	}
	/* The reference of a frame that is lost stays: it is not free until it is known as broken (lost.c), nor afterwards. */
	if (!ssi_lost_keep(lent->page))
		put_page(lent->page);
	kfree(lent);
}

void ssi_region_return_all(struct ssi_region *region, u32 cell)
{
	struct ssi_lent *lent;
	unsigned long index;
	bool last;

	xa_for_each(&region->lent, index, lent) {
		xa_lock(&region->lent);
		lent = xa_load(&region->lent, index);
		last = lent && lent->cells == BIT_ULL(cell);
		if (last) {
			__xa_erase(&region->lent, index);
		} else if (lent && lent->cells & BIT_ULL(cell)) {
			lent->cells &= ~BIT_ULL(cell);
			atomic64_dec(&lent_now[cell]);
			atomic64_inc(&ssi_shared_stats.returned);
		}
		xa_unlock(&region->lent);
		if (last)
			drop_lent(region, lent, false);
		cond_resched();
	}
}

/* Of a cell that died while it asked; else nothing. */
static void return_rest(struct ssi_region *region)
{
	struct ssi_lent *lent;
	unsigned long index;

	xa_for_each(&region->lent, index, lent) {
		xa_erase(&region->lent, index);
		drop_lent(region, lent, false);
	}
}

static void free_region(struct ssi_region *region)
{
	return_rest(region);
	xa_destroy(&region->lent);
	if (region->writer)
		fput(region->writer);
	if (region->file)
		fput(region->file);
	path_put(&region->path);
	kfree(region);
	atomic64_inc(&ssi_shared_stats.regions_gone);
}

/* No other cell uses it any more. */
static void end_file(struct work_struct *work)
{
	struct ssi_region *region = container_of(work, struct ssi_region, end);

	/* What died with the last cell that used it is not to be written. */
	ssi_lost_learn();
	ssi_lost_settle();
	filemap_write_and_wait(region->inode->i_mapping);
	ssi_shared_announce(region, true, NULL);
	free_region(region);
}

void ssi_region_put(struct ssi_region *region)
{
	struct ssi_region *other;
	bool last = true;

	if (!refcount_dec_and_test(&region->ref))
		return;
	spin_lock(&regions_lock);
	hash_del(&region->by_id);
	hash_del(&region->by_inode);
	/* Another one may have been made since the count became 0. */
	hash_for_each_possible(regions_inodes, other, by_inode, (unsigned long)region->inode)
		last &= other->inode != region->inode;
	if (last)
		clear_bit(AS_SSI, &region->inode->i_mapping->flags);
	spin_unlock(&regions_lock);
	if (region->kind == SSI_SHM_KIND_FILE) {
		return_rest(region);
		queue_work(system_unbound_wq, &region->end);
	} else {
		free_region(region);
	}
}

/*
 * Tells the other cells of a file's region that has just been entered. 0 or -errno. One that fails is in the making until it is
 * gone, so that nobody uses it.
 */
static int announce(struct ssi_region *region)
{
	struct kstat stat;
	bool known = false;
	int err = ssi_shared_announce(region, false, &known);

	/* What others had written went to the server only, and so did the size. */
	if (!err && known) {
		vfs_getattr_nosec(&region->path, &stat, STATX_BASIC_STATS, AT_STATX_FORCE_SYNC);
		filemap_write_and_wait(region->inode->i_mapping);
		invalidate_inode_pages2(region->inode->i_mapping);
	}
	spin_lock(&region->lock);
	if (!err && region->yielded)
		err = -EBUSY;
	region->making = err;
	spin_unlock(&region->lock);
	for (u32 cell = 0; err && cell < ssi_cells(); cell++)
		ssi_region_unclaim(region, cell, U32_MAX);
	return err;
}

int ssi_region_ready(struct ssi_region *region)
{
	return READ_ONCE(region->making) ? -EINPROGRESS : 0;
}

struct file *ssi_region_writer(struct ssi_region *region)
{
	struct file *file = READ_ONCE(region->writer), *was;

	if (file)
		return file;
	file = region->file->f_mode & FMODE_WRITE ? get_file(region->file) :
	       dentry_open(&region->path, O_RDWR | O_LARGEFILE, current_cred());
	if (IS_ERR(file))
		return file;
	fuse_link_write_file(file);
	was = cmpxchg(&region->writer, NULL, file);
	if (was)
		fput(file);
	return was ?: file;
}

bool ssi_region_yield(struct ssi_region *region, u32 cell)
{
	bool yields;

	spin_lock(&region->lock);
	yields = region->making && cell < ssi_this_cell();
	region->yielded |= yields;
	spin_unlock(&region->lock);
	return yields;
}

static void enter(struct ssi_region *region)
{
	spin_lock(&regions_lock);
	region->id = (u64)ssi_this_cell() << 48 | ++last_region;
	hash_add(regions, &region->by_id, region->id);
	hash_add(regions_inodes, &region->by_inode, (unsigned long)region->inode);
	set_bit(AS_SSI, &region->inode->i_mapping->flags);
	spin_unlock(&regions_lock);
}

struct ssi_region *ssi_region_make(struct file *file)
{
	struct ssi_region *region;
	int err;

	mutex_lock(&make_lock);
	region = ssi_region_of(file->f_mapping);
	err = region ? ssi_region_ready(region) : test_bit(AS_SSI_AWAY, &file->f_mapping->flags) ? -EBUSY : 0;
	if (err) {	/* another cell's counts, or this one is about to go, because it had to yield */
		if (region)
			ssi_region_put(region);
		region = ERR_PTR(-EBUSY);
	}
	if (region)
		goto out;
	region = new_region(file);
	if (IS_ERR(region))
		goto out;
	err = ssi_shared_enter(region, enter);
	if (err) {
		free_region(region);
		region = ERR_PTR(err);
		goto out;
	}
	if (region->kind == SSI_SHM_KIND_FILE)
		err = announce(region);
	if (err) {
		ssi_region_put(region);
		region = ERR_PTR(err);
	}
out:
	mutex_unlock(&make_lock);
	return region;
}

/* fuse_fsync(): what other cells have written shows in no dirty bit here. */
void __ssi_sync(struct address_space *mapping)
{
	struct ssi_region *region = ssi_region_of(mapping);
	struct ssi_lent *lent;
	struct page *page;
	unsigned long index;

	if (!region)
		return;
	xa_for_each(&region->lent, index, lent) {
		xa_lock(&region->lent);
		lent = xa_load(&region->lent, index);
		page = lent && lent->writers ? lent->page : NULL;
		if (page)
			get_page(page);
		xa_unlock(&region->lent);
		if (page) {
			set_page_dirty_lock(page);
			put_page(page);
		}
		cond_resched();
	}
	ssi_region_put(region);
}

/* ---- limbo ---- */

/* @cell has the frame pinned. */
static void keep_for(struct page *page, u32 cell)
{
	struct limbo *limbo = kmalloc(sizeof(*limbo), GFP_KERNEL | __GFP_NOFAIL);

	get_page(page);
	limbo->page = page;
	limbo->cell = cell;
	spin_lock(&limbo_lock);
	list_add(&limbo->list, &limbos);
	spin_unlock(&limbo_lock);
	atomic64_inc(&ssi_shared_stats.pinned);
}

/* Lets go of what @cell had pinned: of @phys, or of all. */
static void let_go(u32 cell, bool all, u64 phys)
{
	struct limbo *limbo, *next;
	LIST_HEAD(found);

	spin_lock(&limbo_lock);
	list_for_each_entry_safe(limbo, next, &limbos, list)
		if (limbo->cell == cell && (all || page_to_phys(limbo->page) == phys)) {
			list_move(&limbo->list, &found);
			if (!all)
				break;
		}
	spin_unlock(&limbo_lock);
	list_for_each_entry_safe(limbo, next, &found, list) {
		put_page(limbo->page);
		kfree(limbo);
		atomic64_dec(&ssi_shared_stats.pinned);
	}
}

static ssize_t handle_return(struct ssi_request *req)
{
	const __le64 *frames = req->body;

	for (size_t i = 0; i < req->len / sizeof(*frames); i++)
		let_go(req->cell, false, le64_to_cpu(frames[i]));
	return 0;
}

/* ---- unmapping everywhere ---- */

struct batch {
	unsigned int n;
	pgoff_t first, last;
	u64 cells;
	struct ssi_lent *lent[SSI_SHM_ZAP_MAX];
	__le64 pinned[SSI_SHM_ZAP_MAX];
};

/* Takes up to SSI_SHM_ZAP_MAX lent pages of [@first, @last] out of the table. */
static void take_batch(struct ssi_region *region, struct batch *b, pgoff_t first, pgoff_t last)
{
	XA_STATE(xas, &region->lent, first);
	struct ssi_lent *lent;

	b->n = 0;
	b->cells = 0;
	xa_lock(&region->lent);
	xas_for_each(&xas, lent, last) {
		if (!b->n)
			b->first = xas.xa_index;
		b->last = xas.xa_index;
		b->cells |= lent->cells;
		b->lent[b->n++] = lent;
		xas_store(&xas, NULL);
		if (b->n == SSI_SHM_ZAP_MAX)
			break;
	}
	xa_unlock(&region->lent);
}

/* Has @cell unmap [@first, @last]. The bytes of frames in b->pinned. */
static ssize_t zap_cell(struct ssi_region *region, u32 cell, pgoff_t first, pgoff_t last, bool even_cows, struct batch *b)
{
	struct ssi_shm_range range = {
		.id = cpu_to_le64(region->id),
		.first = cpu_to_le64(first),
		.count = cpu_to_le64(last - first + 1),	/* 0: all that is there */
		.flags = cpu_to_le32(even_cows ? SSI_SHM_EVEN_COWS : 0),
	};
	ssize_t n;

	/* A frame must not be freed while somebody can write to it: there is no going on without an answer, or its death. */
	while ((n = ssi_call(cell, OP_SHM_ZAP, &range, sizeof(range), b->pinned, sizeof(b->pinned), MAX_SCHEDULE_TIMEOUT)) < 0) {
		if (n == -EHOSTUNREACH || n == -ENODEV) {
			ssi_lost_learn();
			return 0;
		}
		pr_warn_ratelimited("cell %u does not unmap pages of region %llx: error %zd\n", cell, region->id, n);
		schedule_timeout_uninterruptible(HZ / 10);
	}
	return n;
}

static bool in_batch(const struct batch *b, u64 phys, struct page **page)
{
	for (unsigned int i = 0; i < b->n; i++)
		if (page_to_phys(b->lent[i]->page) == phys) {
			*page = b->lent[i]->page;
			return true;
		}
	return false;
}

static void zap_batch(struct ssi_region *region, struct batch *b, bool even_cows, bool locked)
{
	struct page *page;
	ssize_t bytes;
	u32 cell;

	for (cell = 0; cell < ssi_cells(); cell++) {
		if (!(b->cells & BIT_ULL(cell)))
			continue;
		bytes = zap_cell(region, cell, b->first, b->last, even_cows, b);
		for (ssize_t i = 0; i < bytes / (ssize_t)sizeof(b->pinned[0]); i++)
			if (in_batch(b, le64_to_cpu(b->pinned[i]), &page))
				keep_for(page, cell);
	}
	for (unsigned int i = 0; i < b->n; i++)
		drop_lent(region, b->lent[i], locked);
	atomic64_add(b->n, &ssi_shared_stats.zapped_pages);
	atomic64_inc(&ssi_shared_stats.zaps);
}

static void unmap(struct address_space *mapping, pgoff_t first, pgoff_t last, bool even_cows, bool locked)
{
	struct ssi_region *region = ssi_region_of(mapping);
	struct batch *b;
	u32 cell;

	if (!region)
		return;
	if (xa_empty(&region->lent) && !even_cows)
		goto out;
	b = kvmalloc(sizeof(*b), GFP_KERNEL | __GFP_NOFAIL);
	for (;;) {
		take_batch(region, b, first, last);
		if (!b->n)
			break;
		zap_batch(region, b, even_cows, locked);
	}
	/* Copies in private mappings: of pages too that are not lent any more. */
	b->n = 0;
	for (cell = 0; even_cows && cell < ssi_cells(); cell++)
		if (cell != ssi_this_cell() && ssi_region_claimed(region, cell))
			zap_cell(region, cell, first, last, true, b);
	kvfree(b);
out:
	ssi_region_put(region);
}

/* unmap_mapping_pages(): pages [@first, @last] of a region. May sleep. */
void __ssi_unmap(struct address_space *mapping, pgoff_t first, pgoff_t last, bool even_cows)
{
	unmap(mapping, first, last, even_cows, false);
}

/* unmap_mapping_folio(), under its lock. */
void __ssi_unmap_folio(struct folio *folio)
{
	unmap(folio->mapping, folio->index, folio_next_index(folio) - 1, false, true);
}

/* Whoever removes @folio from the page cache of a region: has any cell a page of it? */
bool __ssi_lent(struct address_space *mapping, struct folio *folio)
{
	struct ssi_region *region = ssi_region_of(mapping);
	unsigned long index = folio->index;
	bool lent;

	if (!region)
		return false;
	lent = xa_find(&region->lent, &index, folio_next_index(folio) - 1, XA_PRESENT);
	ssi_region_put(region);
	return lent;
}

/* ---- the end of a cell ---- */

static void cell_died(u32 cell)
{
	struct ssi_region *region, *found;
	u64 after = 0;

	/* In the order of their numbers, so that each is looked at once. */
	do {
		int bucket;

		found = NULL;
		spin_lock(&regions_lock);
		hash_for_each(regions, bucket, region, by_id)
			if (region->id > after && (!found || region->id < found->id) && READ_ONCE(region->claims[cell]))
				found = region;
		if (found && !refcount_inc_not_zero(&found->ref))
			found = NULL;
		spin_unlock(&regions_lock);
		if (found) {
			after = found->id;
			ssi_region_unclaim(found, cell, U32_MAX);
			ssi_region_put(found);
		}
	} while (found);
	let_go(cell, true, 0);
}

static int __init shared_init(void)
{
	ssi_rpc_register(OP_SHM_RETURN, handle_return);
	ssi_on_cell_death(cell_died);
	return ssi_shared_home_init();
}
fs_initcall(shared_init);

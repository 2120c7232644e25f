// SPDX-License-Identifier: GPL-2.0
/*
 * The contents of private memory: which pages are a process's own (MIG-7), and putting a page into an address space.
 *
 * A page that belongs to the process is an anonymous one: it was written at some time, or came with fork. Whether a mapping
 * is writable now, or a page dirty, proves nothing. Pages that do not exist, the zero page, and the pages of files that
 * nobody wrote to stay where they are.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/highmem.h>
#include <linux/kernel.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagewalk.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#include "move.h"

struct collect {
	unsigned long start;
	struct page **pages;
	struct ssi_move_stat *stat;
};

static void collect_one(struct collect *c, struct vm_area_struct *vma, unsigned long addr, struct page *page)
{
	if (page && PageAnon(page)) {
		get_page(page);
		c->pages[(addr - c->start) >> PAGE_SHIFT] = page;
		c->stat->pages_sent++;
	} else {
		c->stat->pages_unmodified++;
	}
}

static int collect_pmd(pmd_t *pmd, unsigned long addr, unsigned long end, struct mm_walk *walk)
{
	struct vm_area_struct *vma = walk->vma;
	struct collect *c = walk->private;
	spinlock_t *ptl;
	pte_t *start, *pte;
	int err = 0;

again:
	ptl = pmd_trans_huge_lock(pmd, vma);
	if (ptl) {
		if (pmd_present(*pmd) && !is_huge_zero_pmd(*pmd)) {
			struct page *head = pmd_page(*pmd);

			for (; addr < end; addr += PAGE_SIZE)
				collect_one(c, vma, addr, head + ((addr & ~HPAGE_PMD_MASK) >> PAGE_SHIFT));
		} else if (is_huge_zero_pmd(*pmd)) {
			c->stat->pages_unmodified += (end - addr) >> PAGE_SHIFT;
		} else {	/* under migration by compaction: wait for it */
			err = -EAGAIN;
		}
		spin_unlock(ptl);
		if (err == -EAGAIN) {
			err = 0;
			pmd_migration_entry_wait(walk->mm, pmd);
			goto again;
		}
		return 0;
	}
	start = pte = pte_offset_map_lock(walk->mm, pmd, addr, &ptl);
	if (!pte)
		return pmd_none(*pmd) ? 0 : -EAGAIN;
	for (; addr < end; addr += PAGE_SIZE, pte++) {
		pte_t entry = ptep_get(pte);

		if (pte_none(entry)) {
			c->stat->pages_absent++;
		} else if (pte_present(entry)) {
			collect_one(c, vma, addr, vm_normal_page(vma, addr, entry));
		} else if (is_migration_entry(pte_to_swp_entry(entry))) {
			pte_unmap_unlock(start, ptl);
			migration_entry_wait(walk->mm, pmd, addr);
			goto again;
		} else if (is_pte_marker(entry)) {
			c->stat->pages_absent++;
		} else {	/* swapped out (cells have no swap) or poisoned */
			err = -EIO;
			break;
		}
	}
	pte_unmap_unlock(start, ptl);
	cond_resched();
	return err;
}

static int collect_hole(unsigned long addr, unsigned long end, int depth, struct mm_walk *walk)
{
	struct collect *c = walk->private;

	if (walk->vma)
		c->stat->pages_absent += (end - addr) >> PAGE_SHIFT;
	return 0;
}

static int collect_test(unsigned long start, unsigned long end, struct mm_walk *walk)
{
	/* 1: nothing of its own can be in there */
	return !walk->vma->anon_vma || walk->vma->vm_flags & (VM_PFNMAP | VM_IO);
}

static const struct mm_walk_ops collect_ops = {
	.pmd_entry = collect_pmd,
	.pte_hole = collect_hole,
	.test_walk = collect_test,
	.walk_lock = PGWALK_RDLOCK,
};

int ssi_collect_pages(struct mm_struct *mm, unsigned long addr, unsigned int n, struct page **pages,
		      struct ssi_move_stat *stat)
{
	struct collect c = { .start = addr, .pages = pages, .stat = stat };
	int err;

	memset(pages, 0, n * sizeof(*pages));
	err = walk_page_range(mm, addr, addr + n * PAGE_SIZE, &collect_ops, &c);
	if (err)
		for (unsigned int i = 0; i < n; i++)
			if (pages[i])
				put_page(pages[i]);
	return err;
}

static int write_run(struct ssi_save *s, unsigned long addr, struct page **pages, unsigned int n)
{
	struct ssi_rec_pages rec = { .addr = addr, .count = n };
	int err = ssi_write_hdr(s->sink, SSI_REC_PAGES, sizeof(rec) + n * PAGE_SIZE);

	if (!err)
		err = ssi_write(s->sink, &rec, sizeof(rec));
	for (unsigned int i = 0; !err && i < n; i++) {
		void *p = kmap_local_page(pages[i]);

		err = ssi_write(s->sink, p, PAGE_SIZE);
		kunmap_local(p);
	}
	return err;
}

#define BATCH	512	/* pages */

static int write_batch(struct ssi_save *s, unsigned long addr, struct page **pages, unsigned int n)
{
	unsigned int i = 0, run;
	int err = 0;

	while (!err && i < n) {
		if (!pages[i]) {
			i++;
			continue;
		}
		for (run = 1; run < SSI_RUN_PAGES && i + run < n && pages[i + run]; run++)
			;
		err = write_run(s, addr + i * PAGE_SIZE, pages + i, run);
		i += run;
	}
	for (i = 0; i < n; i++)
		if (pages[i])
			put_page(pages[i]);
	return err;
}

/* All pages into the image: checkpoints. */
int ssi_save_pages(struct ssi_save *s)
{
	struct mm_struct *mm = current->mm;
	struct page **pages = kvmalloc_array(BATCH, sizeof(*pages), GFP_KERNEL);
	struct vm_area_struct *vma;
	unsigned long addr = 0;
	int err = 0;

	if (!pages)
		return -ENOMEM;
	while (!err) {
		unsigned long end;
		unsigned int n;

		if (fatal_signal_pending(current)) {
			err = -EINTR;
			break;
		}
		mmap_read_lock(mm);
		vma = find_vma(mm, addr);
		if (!vma) {
			mmap_read_unlock(mm);
			break;
		}
		addr = max(addr, vma->vm_start);
		end = vma->vm_end;
		n = min_t(unsigned long, (end - addr) >> PAGE_SHIFT, BATCH);
		err = ssi_collect_pages(mm, addr, n, pages, &s->stat);
		mmap_read_unlock(mm);
		if (!err)
			err = write_batch(s, addr, pages, n);
		addr += n * PAGE_SIZE;
		cond_resched();
	}
	kvfree(pages);
	return err;
}

/*
 * Puts @page, which nobody else knows yet, at @addr, where there is nothing. Takes over the reference if it returns 0. Under
 * mmap_lock, for reading at least.
 */
int ssi_insert_page(struct mm_struct *mm, struct vm_area_struct *vma, unsigned long addr, struct page *page)
{
	struct folio *folio = page_folio(page);
	spinlock_t *ptl;
	pte_t *pte, entry;
	int err = -EEXIST;

	if (anon_vma_prepare(vma))
		return -ENOMEM;
	if (mem_cgroup_charge(folio, mm, GFP_KERNEL))
		return -ENOMEM;
	__folio_mark_uptodate(folio);

	pte = get_locked_pte(mm, addr, &ptl);
	if (!pte)
		return -ENOMEM;
	if (!pte_none(ptep_get(pte)))
		goto unlock;
	entry = mk_pte(page, vma->vm_page_prot);
	entry = pte_mkdirty(pte_sw_mkyoung(entry));
	if (vma->vm_flags & VM_WRITE)
		entry = pte_mkwrite(entry, vma);
	folio_add_new_anon_rmap(folio, vma, addr, RMAP_EXCLUSIVE);
	folio_add_lru_vma(folio, vma);
	inc_mm_counter(mm, MM_ANONPAGES);
	set_pte_at(mm, addr, pte, entry);
	update_mmu_cache(vma, addr, pte);
	err = 0;
unlock:
	pte_unmap_unlock(pte, ptl);
	return err;
}

static int read_page(struct ssi_restore *r, unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	struct folio *folio;
	void *p;
	int err;

	folio = folio_alloc(GFP_HIGHUSER_MOVABLE, 0);
	if (!folio)
		return -ENOMEM;
	p = kmap_local_folio(folio, 0);
	err = ssi_read(r->src, p, PAGE_SIZE);
	kunmap_local(p);
	if (!err) {
		mmap_read_lock(mm);
		vma = find_vma(mm, addr);
		if (!vma || vma->vm_start > addr || vma->vm_flags & (VM_PFNMAP | VM_IO | VM_MAYSHARE))
			err = ssi_bad_image(r, "page %lx is in no private mapping", addr);
		else
			err = ssi_insert_page(mm, vma, addr, folio_page(folio, 0));
		mmap_read_unlock(mm);
		if (err == -EEXIST)
			err = ssi_bad_image(r, "page %lx twice", addr);
	}
	if (err)
		folio_put(folio);
	return err;
}

static int read_run(struct ssi_restore *r)
{
	struct ssi_rec_pages rec;
	int err;

	if (r->next.version != 1 || r->next.flags || r->next.length < sizeof(rec))
		return ssi_bad_image(r, "bad record of pages");
	err = ssi_read(r->src, &rec, sizeof(rec));
	if (err)
		return err;
	if (!rec.count || rec.count > SSI_RUN_PAGES || r->next.length != sizeof(rec) + rec.count * PAGE_SIZE ||
	    rec.addr & ~PAGE_MASK || rec.addr >= TASK_SIZE_MAX)
		return ssi_bad_image(r, "bad record of %u pages at %llx", rec.count, rec.addr);
	for (u32 i = 0; !err && i < rec.count; i++)
		err = read_page(r, rec.addr + i * PAGE_SIZE);
	r->stat.pages_sent += rec.count;
	return err;
}

static int read_end(struct ssi_restore *r, u32 records, u32 crc)
{
	struct ssi_rec_end end;
	int err;

	if (r->next.version != 1 || r->next.flags || r->next.length != sizeof(end))
		return ssi_bad_image(r, "bad last record");
	err = ssi_read(r->src, &end, sizeof(end));
	if (err)
		return err;
	if (end.records != records)
		return ssi_bad_image(r, "%u records, it says %u", records, end.records);
	if (end.crc != crc)
		return ssi_bad_image(r, "wrong check sum: it was damaged");
	return 0;
}

/* The rest of the stream, after the state: pages, if there are any, and the end. */
int ssi_read_pages(struct ssi_restore *r)
{
	u32 crc, records;
	int err = 0;

	while (r->next.type == SSI_REC_PAGES) {
		err = r->live ? ssi_bad_image(r, "pages in a move") : read_run(r);
		if (err)
			break;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
		err = ssi_read_hdr(r->src, &r->next);
		if (err)
			break;
	}
	if (!err && r->next.type != SSI_REC_END)
		err = ssi_bad_image(r, "record %u after the pages", r->next.type);
	if (!err) {
		/* What the writer had summed up before it began this record. */
		crc = r->src->crc_before;
		records = r->src->records - 1;
		err = read_end(r, records, crc);
	}
	if (err == -ENODATA)
		err = ssi_bad_image(r, "it ends after %u records: truncated", r->src->records);
	return err;
}

// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that died with another node.
 *
 * A frame whose only copy was in a cell that died is *lost*. The VMM says so in two ways (docs/ssi-device.md): the home of the
 * frame can ask for the list (LOST), and does so when the device says that there are more; and a CPU that touches a lost frame
 * gets a page fault with SSI_PF_LOST, anywhere and in any cell that maps it, at once or long before the list is here.
 *
 * What is made of it: the page is unmapped from all processes and marked as the kernel marks broken memory (PG_hwpoison,
 * memory_failure()). So the access is tried again, faults as every access to a page that is not mapped, and the handler of
 * that mapping says SIGBUS with the very address. read(2) and write(2) say EIO or EFAULT, and the frame never is free again.
 *
 * When a frame of the own slice is in use by nobody but its file, the VMM is told (bury): from then on the kernel may touch it (as
 * it does who clears the end of a file), and finds zeros that it gives to nobody. To other cells it stays lost.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/extable.h>
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/kdebug.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/spinlock.h>
#include <linux/ssi_lost.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include <asm/extable.h>
#include <asm/ptrace.h>
#include <asm/trapnr.h>

#include "device.h"
#include "lost.h"
#include "rpc.h"
#include "shared_wire.h"
#include "slices.h"

/* Of a frame in @frames. */
enum {
	LOST_NEW,
	LOST_SETTLED,
	LOST_RENEWED,		/* nothing was lost with it, and it is memory as any other again */
};

#define LOST_KEPT	XA_MARK_0	/* a reference is kept of what was lent */

static DEFINE_XARRAY_FLAGS(frames, XA_FLAGS_LOCK_IRQ);	/* frame number -> LOST_*; of the own slice, for ever */
static DEFINE_MUTEX(learn_lock);	/* @answer, writes of @known */
static u64 known;			/* pages that the device had said were lost when @frames was last filled */
static struct page *answer;		/* what the device writes its list to; allocated early, and in use ever since */
static DEFINE_MUTEX(settle_lock);	/* one settles at a time */

static atomic64_t settled_pages, buried_pages, renewed_pages, user_faults, kernel_faults, borrowed_pages;

/* Frames that the kernel itself has met. Under met_lock. */
#define MET_MAX		64
static DEFINE_RAW_SPINLOCK(met_lock);
static u64 met[MET_MAX];
static unsigned int met_n;

static void settle_met(struct work_struct *work);
static DECLARE_WORK(met_work, settle_met);

/* ---- which frames ---- */

/* Enters one run of the list. False: it is none that an honest device tells. */
static bool enter_run(u64 start, u64 end, u64 from)
{
	if (start < from || start >= end || !PAGE_ALIGNED(start) || !PAGE_ALIGNED(end) || !ssi_slice_own(start) ||
	    !ssi_slice_own(end - 1))
		return false;
	for (; start < end; start += PAGE_SIZE) {
		int err = xa_insert_irq(&frames, PHYS_PFN(start), xa_mk_value(LOST_NEW), GFP_KERNEL | __GFP_NOFAIL);

		if (err && err != -EBUSY)	/* known already */
			return false;
		cond_resched();
	}
	return true;
}

/* Asks the device for all of the list. */
static int ask(void)
{
	const struct ssi_lost_list *list = page_address(answer);
	u64 from = ssi_geometry.slice0_base + ssi_this_cell() * ssi_geometry.slice_stride;
	u32 n;
	int err;

	do {
		err = ssi_dev_page_request(SSI_PAGE_LOST, ssi_this_cell(), &from, &answer, 1);
		if (err)
			return err;
		n = le32_to_cpu(list->count);
		if (n > SSI_LOST_RUNS_MAX)
			return -EIO;
		for (u32 i = 0; i < n; i++) {
			u64 end = le64_to_cpu(list->runs[i].end);

			if (!enter_run(le64_to_cpu(list->runs[i].start), end, from))
				return -EIO;
			from = end;
		}
	} while (n == SSI_LOST_RUNS_MAX && ssi_slice_own(from));
	return 0;
}

void ssi_lost_learn(void)
{
	u64 now;
	int err;

	if (!ssi_present())
		return;
	mutex_lock(&learn_lock);
	now = ssi_dev_lost();
	if (now != known) {
		err = ask();
		if (err)
			pr_err("which pages are lost cannot be learnt: error %d\n", err);
		else
			known = now;
	}
	mutex_unlock(&learn_lock);
}

bool ssi_lost_frame(struct page *page)
{
	void *state = xa_load(&frames, page_to_pfn(page));

	return state && xa_to_value(state) != LOST_RENEWED;
}

bool ssi_lost_keep(struct page *page)
{
	unsigned long flags, pfn = page_to_pfn(page);
	bool keep;

	if (!ssi_lost_frame(page))
		return false;
	xa_lock_irqsave(&frames, flags);
	keep = !xa_get_mark(&frames, pfn, LOST_KEPT);
	if (keep)
		__xa_set_mark(&frames, pfn, LOST_KEPT);
	xa_unlock_irqrestore(&frames, flags);
	return keep;
}

bool ssi_lost_renewed(struct page *page)
{
	void *state = xa_load(&frames, page_to_pfn(page));

	return state && xa_to_value(state) == LOST_RENEWED;
}

/* ---- out of use ---- */

/* A file's page must not be read from the cache again; memory stays there, marked, so that its loss is told to all. */
static void drop_from_file(struct page *page)
{
	struct folio *folio = page_folio(page);
	struct address_space *mapping;

	if (!folio_try_get(folio))
		return;
	folio_lock(folio);
	mapping = page_folio(page) == folio ? folio_mapping(folio) : NULL;
	if (mapping && !folio_test_anon(folio) && !shmem_mapping(mapping)) {
		mapping_set_error(mapping, -EIO);
		generic_error_remove_folio(mapping, folio);
	}
	folio_unlock(folio);
	folio_put(folio);
}

/* The frame is mapped by nobody, and marked, so that it never will be. */
static bool is_out_of_use(struct page *page)
{
	return PageHWPoison(page) && !page_mapped(page);
}

/*
 * Is it in use by nobody but its file? Else (a pipe, direct I/O) whoever has it may read it, and must not find zeros. One
 * reference is memory_failure()'s.
 */
static bool can_be_buried(struct page *page)
{
	bool kept = xa_get_mark(&frames, page_to_pfn(page), LOST_KEPT);

	return page->mapping && page_count(page) == 2 + kept + ssi_region_lends(page);
}

/* Takes frame @pfn of the own slice out of use. */
static bool settle(unsigned long pfn)
{
	struct page *page = pfn_to_page(pfn);

	memory_failure(pfn, 0);		/* that others hold the page is an error to it, and none here */
	drop_from_file(page);
	if (!is_out_of_use(page))
		return false;
	if (can_be_buried(page)) {
		ssi_dev_bury(pfn);
		atomic64_inc(&buried_pages);
	}
	return true;
}

void ssi_lost_settle(void)
{
	unsigned long pfn, done = 0, failed = 0;
	void *state;

	mutex_lock(&settle_lock);
	xa_for_each(&frames, pfn, state) {
		if (xa_to_value(state) != LOST_NEW)
			continue;
		if (!done && !failed)
			drain_all_pages(NULL);	/* what is free on a CPU's list is not found */
		if (settle(pfn)) {
			xa_store_irq(&frames, pfn, xa_mk_value(LOST_SETTLED), GFP_KERNEL | __GFP_NOFAIL);
			done++;
		} else {
			failed++;
		}
		cond_resched();
	}
	mutex_unlock(&settle_lock);
	atomic64_add(done, &settled_pages);
	if (done || failed)
		pr_err("%lu pages died with another cell and are out of use; %lu that did are in use yet\n", done, failed);
}

/* A page of another cell, which was borrowed and is lost. True: the next access finds it unmapped. */
static bool settle_borrowed(u64 phys, u32 home)
{
	struct page *page = ssi_remote_page(phys);

	if (IS_ERR(page))
		return false;
	if (!TestSetPageHWPoison(page))
		atomic64_inc(&borrowed_pages);
	return ssi_object_lost(page, home);
}

/* The frame at @phys is lost. True: it is out of use. May sleep. */
static bool settle_phys(u64 phys)
{
	int home = ssi_slice_home(phys);

	if (home < 0)
		return false;
	if (home != (int)ssi_this_cell())
		return settle_borrowed(phys, home);
	ssi_lost_learn();
	ssi_lost_settle();
	return xa_to_value(xa_load(&frames, PHYS_PFN(phys)) ?: xa_mk_value(LOST_NEW)) == LOST_SETTLED;
}

static void settle_met(struct work_struct *work)
{
	unsigned long flags;
	u64 phys;

	for (;;) {
		raw_spin_lock_irqsave(&met_lock, flags);
		phys = met_n ? met[--met_n] : 0;
		raw_spin_unlock_irqrestore(&met_lock, flags);
		if (!phys)
			break;
		settle_phys(phys);
	}
}

/* ---- faults ---- */

/* The kernel cannot wait where it is. What finds no room is met again. */
static void settle_later(u64 phys)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&met_lock, flags);
	if (met_n < MET_MAX)
		met[met_n++] = phys;
	raw_spin_unlock_irqrestore(&met_lock, flags);
	schedule_work(&met_work);
}

/*
 * A frame of the own slice that is no part of a file or a process has no content that anybody could miss: it was given back and
 * is being used anew. The device then gives zeros.
 */
static bool renew(u64 phys)
{
	unsigned long flags, pfn = PHYS_PFN(phys);
	struct page *page = pfn_to_page(pfn);

	if (!ssi_slice_own(phys) || READ_ONCE(page->mapping))
		return false;
	if (!PageHWPoison(page)) {
		xa_lock_irqsave(&frames, flags);
		__xa_store(&frames, pfn, xa_mk_value(LOST_RENEWED), GFP_ATOMIC);
		xa_unlock_irqrestore(&frames, flags);
		atomic64_inc(&renewed_pages);
	}
	ssi_dev_bury(pfn);
	return true;
}

void __ssi_lost_fault(struct pt_regs *regs, unsigned long error_code, u64 phys)
{
	if (user_mode(regs)) {
		atomic64_inc(&user_faults);
		local_irq_enable();
		/* The next access says SIGBUS, with its address. One to a page that stays mapped would come here for ever. */
		if (!settle_phys(phys))
			force_sig(SIGBUS);
		local_irq_disable();
		return;
	}
	atomic64_inc(&kernel_faults);
	if (fixup_exception(regs, X86_TRAP_PF, error_code, phys)) {
		settle_later(phys);
		return;
	}
	if (renew(phys))
		return;
	pr_emerg("the kernel needs the page at %#llx, which died with another cell\n", phys);
	die("lost memory", regs, error_code);
}

/* ---- figures ---- */

void ssi_lost_show(struct seq_file *m)
{
	seq_printf(m, "lost_pages %llu\nlost_settled_pages %lld\nlost_buried_pages %lld\nlost_renewed_pages %lld\nlost_borrowed_pages %lld\n",
		   READ_ONCE(known), atomic64_read(&settled_pages), atomic64_read(&buried_pages),
		   atomic64_read(&renewed_pages), atomic64_read(&borrowed_pages));
	seq_printf(m, "lost_user_faults_count %lld\nlost_kernel_faults_count %lld\n", atomic64_read(&user_faults),
		   atomic64_read(&kernel_faults));
}

static int __init lost_init(void)
{
	answer = alloc_page(GFP_KERNEL | __GFP_ZERO);
	return answer ? 0 : -ENOMEM;
}
fs_initcall(lost_init);

// SPDX-License-Identifier: GPL-2.0
/*
 * Shared memory, at a borrower: remote objects.
 *
 * A page fault asks the home for the frame, once; what it answers is kept in object->pages and serves all processes of this
 * cell. The page is mapped as that of any file: it has a page struct (slices.c), so that fork, get_user_pages() and the rest
 * of the kernel work on it, but no mapping or index of its own.
 *
 * ZAP, from the home, takes pages away. A fault that is at the home meanwhile is told that its answer is stale and asks again.
 * One that has its page already holds the page's lock until the page table has it: so whoever takes the page away unmaps,
 * waits for the lock, and unmaps again.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iversion.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "lost.h"
#include "shared_wire.h"
#include "slices.h"

#define SSI_SHARED_MAGIC	0x53534953	/* file system type of statfs(2) */
#define POLL_JIFFIES		(HZ / 20)

/* A fault that waits for the home. */
struct asking {
	struct list_head list;
	pgoff_t first, last;
	bool stale;
};

/* A page that the home took back, and that is pinned here. */
struct pin {
	struct list_head list;
	struct page *page;
	u32 home;
};

static struct vfsmount *mount __ro_after_init;
static DEFINE_MUTEX(objects_lock);	/* @objects, @closing */
static LIST_HEAD(objects);
static LIST_HEAD(closing);		/* without users, but with pages that are pinned */
static DEFINE_MUTEX(pins_lock);
static LIST_HEAD(pins);

static void poll_pins(struct work_struct *work);
static DECLARE_DELAYED_WORK(pins_work, poll_pins);

struct ssi_object *ssi_object_of(struct inode *inode)
{
	return inode->i_sb == mount->mnt_sb ? inode->i_private : NULL;
}

bool ssi_shared_is_remote(struct address_space *mapping)
{
	return ssi_object_of(mapping->host);
}

/* ---- pages ---- */

/* The page struct of a frame that @home says is one of its own. */
static struct page *lent_page(struct ssi_object *object, u64 phys)
{
	if (phys & ~PAGE_MASK || ssi_slice_home(phys) != (int)object->home) {
		pr_warn_ratelimited("cell %u lends %#llx, which is not its own\n", object->home, phys);
		atomic64_inc(&ssi_shared_stats.refused);
		return ERR_PTR(-EIO);
	}
	return ssi_remote_page(phys);
}

/* Enters what the home answered. Under object->lock. */
static int enter(struct ssi_object *object, pgoff_t index, u64 phys)
{
	struct page *page = lent_page(object, phys);
	void *old;

	if (IS_ERR(page))
		return PTR_ERR(page);
	old = xa_cmpxchg(&object->pages, index, NULL, page, GFP_KERNEL_ACCOUNT);
	if (xa_is_err(old))
		return xa_err(old);
	if (!old)
		atomic64_inc(&ssi_shared_stats.borrowed);
	return old && old != page ? -EIO : 0;
}

/* Asks for page @index and what is around it. 0, -EAGAIN: it has to be asked again; or -errno. */
static int borrow(struct ssi_object *object, pgoff_t index, bool write)
{
	struct ssi_shm_range range = {
		.id = cpu_to_le64(object->id),
		.first = cpu_to_le64(index),
		.count = cpu_to_le64(1),
		.flags = cpu_to_le32(write ? SSI_SHM_WRITE : 0),
	};
	struct asking ask = { .first = round_down(index, SSI_SHM_RUN) };
	struct ssi_shm_frames frames;
	ssize_t n;
	int err;

	ask.last = ask.first + SSI_SHM_RUN - 1;
	mutex_lock(&object->lock);
	list_add(&ask.list, &object->asking);
	mutex_unlock(&object->lock);

	n = ssi_call(object->home, OP_SHM_FAULT, &range, sizeof(range), &frames, sizeof(frames), MAX_SCHEDULE_TIMEOUT);
	atomic64_inc(&ssi_shared_stats.faults);

	mutex_lock(&object->lock);
	list_del(&ask.list);
	if (n < 0)
		err = n;
	else if (n != sizeof(frames) || le64_to_cpu(frames.first) != ask.first || !frames.frames[index - ask.first])
		err = -EIO;
	else if (ask.stale)
		err = -EAGAIN;
	else
		err = enter(object, index, le64_to_cpu(frames.frames[index - ask.first]));
	for (unsigned int i = 0; !err && i < SSI_SHM_RUN; i++)
		if (frames.frames[i] && ask.first + i != index)
			enter(object, ask.first + i, le64_to_cpu(frames.frames[i]));
	mutex_unlock(&object->lock);
	return err;
}

/* The page of @index, locked and with a reference, or ERR_PTR. */
static struct page *locked_page(struct ssi_object *object, pgoff_t index, bool write)
{
	struct page *page;
	int err;

	for (;;) {
		page = xa_load(&object->pages, index);
		if (!page) {
			err = READ_ONCE(object->dead) ? -EIO : borrow(object, index, write);
			if (err && err != -EAGAIN)
				return ERR_PTR(err);
			continue;
		}
		if (PageHWPoison(page))
			return ERR_PTR(-EHWPOISON);
		get_page(page);
		lock_page(page);
		if (xa_load(&object->pages, index) == page)
			return page;
		unlock_page(page);
		put_page(page);
	}
}

vm_fault_t ssi_object_fault(struct ssi_object *object, struct vm_fault *vmf)
{
	struct page *page;

	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;
	page = locked_page(object, vmf->pgoff, vmf->vma->vm_flags & VM_SHARED);
	if (IS_ERR(page))
		return PTR_ERR(page) == -ENOMEM ? VM_FAULT_OOM :
		       PTR_ERR(page) == -EHWPOISON ? VM_FAULT_HWPOISON : VM_FAULT_SIGBUS;
	vmf->page = page;
	return VM_FAULT_LOCKED;
}

static vm_fault_t object_fault(struct vm_fault *vmf)
{
	return ssi_object_fault(file_inode(vmf->vma->vm_file)->i_private, vmf);
}

/* ---- writable mappings, which seals look at ---- */

static bool counts(struct vm_area_struct *vma)
{
	return (vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) == (VM_SHARED | VM_MAYWRITE);
}

static int tell_writers(struct ssi_object *object, s32 count)
{
	struct ssi_shm_id op = { .id = cpu_to_le64(object->id), .count = cpu_to_le32(count) };
	ssize_t n;

	if (count < 0)
		return ssi_post(object->home, OP_SHM_WRITERS, &op, sizeof(op));
	n = ssi_call(object->home, OP_SHM_WRITERS, &op, sizeof(op), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	return n == -EHOSTUNREACH ? -EIO : n;
}

static int add_writer(struct ssi_object *object)
{
	int err = 0;

	mutex_lock(&object->lock);
	if (!object->writers)
		err = tell_writers(object, 1);
	if (!err)
		object->writers++;
	mutex_unlock(&object->lock);
	return err;
}

static void drop_writer(struct ssi_object *object, struct vm_area_struct *vma)
{
	if (!counts(vma))
		return;
	mutex_lock(&object->lock);
	if (!--object->writers)
		tell_writers(object, -1);
	mutex_unlock(&object->lock);
}

static void object_open(struct vm_area_struct *vma)
{
	struct ssi_object *object = file_inode(vma->vm_file)->i_private;

	if (object->kind == SSI_SHM_KIND_SYSV)
		ssi_object_attach(object, 1);
	if (!counts(vma))
		return;
	mutex_lock(&object->lock);
	object->writers++;	/* beside that of a mapping that is there already */
	mutex_unlock(&object->lock);
}

static void object_close(struct vm_area_struct *vma)
{
	struct ssi_object *object = file_inode(vma->vm_file)->i_private;

	drop_writer(object, vma);
	if (object->kind == SSI_SHM_KIND_SYSV)
		ssi_object_attach(object, -1);
}

static const struct vm_operations_struct object_vm_ops = {
	.open = object_open,
	.close = object_close,
	.fault = object_fault,
};

int ssi_object_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct ssi_object *object = file_inode(file)->i_private;
	int err;

	if (object->home == ssi_this_cell())
		return ssi_object_map_here(object, file, vma);
	err = counts(vma) ? add_writer(object) : 0;
	if (err)
		return err;
	if (object->kind == SSI_SHM_KIND_SYSV) {
		err = ssi_object_attach(object, 1);
		if (err) {
			drop_writer(object, vma);
			return err;
		}
	}
	vma->vm_ops = &object_vm_ops;
	return 0;
}

/* ---- what the home takes back ---- */

/* Somebody uses the page beyond the mappings that are gone. The reference of the page struct itself is one. */
static bool is_pinned(struct page *page)
{
	return page_ref_count(page) > 1;
}

static void keep_pinned(struct page *page, u32 home)
{
	struct pin *pin = kmalloc(sizeof(*pin), GFP_KERNEL | __GFP_NOFAIL);

	pin->page = page;
	pin->home = home;
	mutex_lock(&pins_lock);
	list_add(&pin->list, &pins);
	mutex_unlock(&pins_lock);
	schedule_delayed_work(&pins_work, POLL_JIFFIES);
}

/* Reports the pinned ones among @pages. */
static unsigned int report(struct ssi_object *object, struct page **pages, unsigned int n, __le64 *frames)
{
	unsigned int pinned = 0;

	for (unsigned int i = 0; i < n; i++)
		if (is_pinned(pages[i])) {
			keep_pinned(pages[i], object->home);
			frames[pinned++] = cpu_to_le64(page_to_phys(pages[i]));
		}
	return pinned;
}

/* Frames that this cell is about to give back to @home. */
struct giving {
	u32 home;
	unsigned int n;
	u64 frames[SSI_PAGE_REQUEST_MAX];
};

static void give_now(struct giving *giving)
{
	/* A hint. */
	if (giving->n)
		ssi_dev_page_request(SSI_PAGE_RELEASE, giving->home, giving->frames, NULL, giving->n);
	giving->n = 0;
}

/*
 * The node's copy goes home too: when this cell dies, it shall take nothing along that it does not use any more. Without memory
 * it stays here until somebody wants it.
 */
static void give(struct giving *giving, struct page *page)
{
	if (!giving || is_pinned(page))
		return;
	giving->frames[giving->n++] = page_to_phys(page);
	if (giving->n == SSI_PAGE_REQUEST_MAX)
		give_now(giving);
}

static struct giving *giving_to(u32 home)
{
	struct giving *giving = kmalloc(sizeof(*giving), GFP_KERNEL);

	if (giving) {
		giving->home = home;
		giving->n = 0;
	}
	return giving;
}

static void given(struct giving *giving)
{
	if (giving)
		give_now(giving);
	kfree(giving);
}

/* Takes what was lent of [@first, @last] out of @pages: at most @max. */
static unsigned int take(struct ssi_object *object, pgoff_t first, pgoff_t last, struct page **pages, unsigned int max)
{
	struct page *page;
	unsigned long index;
	unsigned int n = 0;

	lockdep_assert_held(&object->lock);
	xa_for_each_range(&object->pages, index, page, first, last) {
		if (n == max)
			break;
		xa_erase(&object->pages, index);
		pages[n++] = page;
	}
	atomic64_sub(n, &ssi_shared_stats.borrowed);
	return n;
}

static void unmap_both(struct ssi_object *object, struct inode *local, pgoff_t first, pgoff_t last, bool even_cows)
{
	unmap_mapping_pages(object->inode->i_mapping, first, last - first + 1, even_cows);
	if (local)
		unmap_mapping_pages(local->i_mapping, first, last - first + 1, even_cows);
}

void ssi_object_set_local(struct ssi_object *object, struct inode *local)
{
	mutex_lock(&object->lock);
	object->local = local;
	mutex_unlock(&object->lock);
}

static unsigned int zap(struct ssi_object *object, pgoff_t first, u64 count, bool even_cows, struct page **pages, __le64 *frames)
{
	pgoff_t last = count ? first + count - 1 : ULONG_MAX;
	struct giving *giving;
	struct inode *local;
	struct asking *ask;
	unsigned int n;

	mutex_lock(&object->lock);
	list_for_each_entry(ask, &object->asking, list)
		if (ask->first <= last && ask->last >= first)
			ask->stale = true;
	n = take(object, first, last, pages, SSI_SHM_ZAP_MAX);
	local = object->local ? igrab(object->local) : NULL;
	mutex_unlock(&object->lock);

	unmap_both(object, local, first, last, even_cows);
	/* Faults that had found their page before hold its lock until it is mapped. */
	for (unsigned int i = 0; i < n; i++) {
		lock_page(pages[i]);
		unlock_page(pages[i]);
	}
	if (n)
		unmap_both(object, local, first, last, even_cows);
	if (local)
		iput(local);
	giving = n ? giving_to(object->home) : NULL;
	for (unsigned int i = 0; i < n; i++)
		give(giving, pages[i]);
	given(giving);
	return report(object, pages, n, frames);
}

static ssize_t handle_zap(struct ssi_request *req)
{
	const struct ssi_shm_range *op = req->body;
	struct ssi_object *object;
	struct page **pages;
	struct inode *inode;
	unsigned int pinned = 0;
	u64 id, first, count;

	if (req->len != sizeof(*op))
		return -EINVAL;
	id = le64_to_cpu(op->id);
	first = le64_to_cpu(op->first);
	count = le64_to_cpu(op->count);
	if (SSI_REGION_HOME(id) != req->cell || (count && first + count - 1 < first))
		return 0;
	pages = kvmalloc_array(SSI_SHM_ZAP_MAX, sizeof(*pages), GFP_KERNEL | __GFP_NOFAIL);
	/* One that closes has no mappings any more, but may have pages that are pinned. */
	mutex_lock(&objects_lock);
	list_for_each_entry(object, &closing, list) {
		if (object->id != id)
			continue;
		mutex_lock(&object->lock);
		pinned = take(object, first, count ? first + count - 1 : ULONG_MAX, pages, SSI_SHM_ZAP_MAX);
		mutex_unlock(&object->lock);
		pinned = report(object, pages, pinned, req->reply);
	}
	mutex_unlock(&objects_lock);
	inode = ssi_object_find(id);
	if (inode) {
		pinned += zap(inode->i_private, first, count, le32_to_cpu(op->flags) & SSI_SHM_EVEN_COWS, pages,
			      req->reply + pinned * sizeof(__le64));
		atomic64_inc(&ssi_shared_stats.zaps);
		iput(inode);
	}
	kvfree(pages);
	return pinned * sizeof(__le64);
}

/* ---- life ---- */

static void free_object(struct ssi_object *object)
{
	struct ssi_shm_id op = { .id = cpu_to_le64(object->id), .count = cpu_to_le32(1) };
	struct giving *giving = xa_empty(&object->pages) ? NULL : giving_to(object->home);
	struct page *page;
	unsigned long index;

	xa_for_each(&object->pages, index, page) {
		atomic64_dec(&ssi_shared_stats.borrowed);
		give(giving, page);
		cond_resched();
	}
	given(giving);
	xa_destroy(&object->pages);
	ssi_post(object->home, OP_SHM_RELEASE, &op, sizeof(op));	/* fails if the home died: then nothing is to be released */
	kfree(object);
	atomic64_dec(&ssi_shared_stats.objects);
}

static bool any_pinned(struct ssi_object *object)
{
	struct page *page;
	unsigned long index;

	xa_for_each(&object->pages, index, page)
		if (is_pinned(page))
			return true;
	return false;
}

static void poll_pins(struct work_struct *work)
{
	struct ssi_object *object, *next;
	struct pin *pin, *next_pin;
	LIST_HEAD(freed);
	LIST_HEAD(done);
	bool more;

	mutex_lock(&pins_lock);
	list_for_each_entry_safe(pin, next_pin, &pins, list)
		if (!is_pinned(pin->page))
			list_move(&pin->list, &freed);
	more = !list_empty(&pins);
	mutex_unlock(&pins_lock);
	list_for_each_entry_safe(pin, next_pin, &freed, list) {
		__le64 frame = cpu_to_le64(page_to_phys(pin->page));

		ssi_post(pin->home, OP_SHM_RETURN, &frame, sizeof(frame));
		kfree(pin);
	}

	mutex_lock(&objects_lock);
	list_for_each_entry_safe(object, next, &closing, list)
		if (!any_pinned(object))
			list_move(&object->list, &done);
	more |= !list_empty(&closing);
	mutex_unlock(&objects_lock);
	list_for_each_entry_safe(object, next, &done, list)
		free_object(object);
	if (more)
		schedule_delayed_work(&pins_work, POLL_JIFFIES);
}

/* The last user in this cell is gone. */
static void object_evict(struct inode *inode)
{
	struct ssi_object *object = inode->i_private;
	bool pinned;

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (!object)
		return;
	mutex_lock(&objects_lock);
	object->inode = NULL;
	pinned = any_pinned(object);
	if (pinned)
		list_move(&object->list, &closing);
	else
		list_del(&object->list);
	mutex_unlock(&objects_lock);
	if (pinned)
		schedule_delayed_work(&pins_work, POLL_JIFFIES);
	else
		free_object(object);
}

static void set_attributes(struct ssi_object *object, const struct ssi_shm_about *about)
{
	struct inode *inode = object->inode;

	object->ino = le64_to_cpu(about->ino);
	inode->i_mode = S_IFREG | (le32_to_cpu(about->mode) & S_IALLUGO);
	inode->i_uid = make_kuid(&init_user_ns, le32_to_cpu(about->uid));
	inode->i_gid = make_kgid(&init_user_ns, le32_to_cpu(about->gid));
	inode->i_blocks = le64_to_cpu(about->blocks);
	set_nlink(inode, le32_to_cpu(about->nlink));
	inode_set_atime_to_ts(inode, ns_to_timespec64(le64_to_cpu(about->atime)));
	inode_set_mtime_to_ts(inode, ns_to_timespec64(le64_to_cpu(about->mtime)));
	inode_set_ctime_to_ts(inode, ns_to_timespec64(le64_to_cpu(about->ctime)));
	spin_lock(&inode->i_lock);
	i_size_write(inode, min_t(u64, le64_to_cpu(about->size), MAX_LFS_FILESIZE));
	spin_unlock(&inode->i_lock);
}

static int ask_about(struct ssi_object *object, u16 op, struct ssi_shm_about *about)
{
	struct ssi_shm_id id = { .id = cpu_to_le64(object->id), .count = cpu_to_le32(1) };
	ssize_t n = ssi_region_call(object->id, op, &id, sizeof(id), about, sizeof(*about));
	u32 kind;

	if (n < 0)
		return n == -EHOSTUNREACH ? -EIO : n;
	kind = le32_to_cpu(about->kind);
	if (n != sizeof(*about) || !kind || kind >= SSI_SHM_KINDS)
		return -EIO;
	about->name[sizeof(about->name) - 1] = 0;
	return 0;
}

int ssi_object_stat(struct ssi_object *object)
{
	struct ssi_shm_about *about = kmalloc(sizeof(*about), GFP_KERNEL);
	int err = about ? ask_about(object, OP_SHM_STAT, about) : -ENOMEM;

	if (!err) {
		mutex_lock(&object->lock);
		set_attributes(object, about);
		mutex_unlock(&object->lock);
	}
	kfree(about);
	return err;
}

static int fill_inode(struct inode *inode, u64 id)
{
	struct ssi_object *object = kzalloc(sizeof(*object), GFP_KERNEL_ACCOUNT);
	struct ssi_shm_about *about = kmalloc(sizeof(*about), GFP_KERNEL);
	int err = -ENOMEM;

	if (!object || !about)
		goto out;
	object->id = id;
	object->home = SSI_REGION_HOME(id);
	object->inode = inode;
	mutex_init(&object->lock);
	INIT_LIST_HEAD(&object->asking);
	xa_init(&object->pages);
	err = ask_about(object, OP_SHM_CLAIM, about);
	if (err)
		goto out;
	object->kind = le32_to_cpu(about->kind);
	object->shmid = le32_to_cpu(about->shmid);
	strscpy(object->name, about->name, sizeof(object->name));
	set_attributes(object, about);
	inode->i_ino = object->ino;
	inode->i_flags |= S_NOATIME | S_NOCMTIME;
	inode->i_op = &ssi_object_iops;
	inode->i_fop = &ssi_object_fops;
	inode->i_private = object;
	atomic64_inc(&ssi_shared_stats.objects);
	mutex_lock(&objects_lock);
	list_add(&object->list, &objects);
	mutex_unlock(&objects_lock);
	if (!ssi_cell_alive(object->home))	/* home_died() may have passed before */
		WRITE_ONCE(object->dead, true);
	object = NULL;
out:
	kfree(object);
	kfree(about);
	return err;
}

static int same(struct inode *inode, void *id)
{
	return inode_peek_iversion_raw(inode) == *(u64 *)id;
}

static int set(struct inode *inode, void *id)
{
	inode_set_iversion_raw(inode, *(u64 *)id);
	return 0;
}

struct inode *ssi_object_find(u64 id)
{
	return ilookup5(mount->mnt_sb, id, same, &id);
}

struct inode *ssi_object_get(u64 id)
{
	struct inode *inode;
	int err;

	if (!ssi_present() || SSI_REGION_HOME(id) >= ssi_cells())
		return ERR_PTR(-EINVAL);
	inode = iget5_locked(mount->mnt_sb, id, same, set, &id);
	if (!inode)
		return ERR_PTR(-ENOMEM);
	if (!(inode->i_state & I_NEW))
		return inode;
	err = fill_inode(inode, id);
	if (err) {
		iget_failed(inode);
		return ERR_PTR(err);
	}
	unlock_new_inode(inode);
	return inode;
}

struct file *ssi_object_file(struct inode *inode, unsigned int flags)
{
	struct file *file = alloc_file_pseudo(inode, mount, "", flags | O_LARGEFILE, &ssi_object_fops);

	if (!IS_ERR(file))
		file->f_mode |= FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE;
	return file;
}

/* Its place in @object, if it is a page of it. */
static bool find_page(struct ssi_object *object, struct page *page, unsigned long *index)
{
	struct page *at;

	xa_for_each(&object->pages, *index, at)
		if (at == page)
			return true;
	return false;
}

bool ssi_object_lost(struct page *page, u32 home)
{
	struct inode *inode = NULL, *local = NULL;
	struct ssi_object *object;
	unsigned long index;

	mutex_lock(&objects_lock);
	list_for_each_entry(object, &objects, list) {
		if (object->home != home || !find_page(object, page, &index))
			continue;
		inode = igrab(object->inode);
		break;
	}
	mutex_unlock(&objects_lock);
	if (!inode)
		return false;
	mutex_lock(&object->lock);
	local = object->local ? igrab(object->local) : NULL;
	mutex_unlock(&object->lock);
	/* Faults that had found it before it was marked hold its lock until it is mapped. */
	lock_page(page);
	unlock_page(page);
	unmap_both(object, local, index, index, false);
	if (local)
		iput(local);
	iput(inode);
	return true;
}

/* What the home had of pages is lost; who touches one gets SIGBUS. */
static void home_died(u32 cell)
{
	struct ssi_object *object;
	struct inode *inode;
	struct page *page;
	unsigned long index;

	mutex_lock(&objects_lock);
again:
	list_for_each_entry(object, &objects, list) {
		if (object->home != cell || object->dead)
			continue;
		WRITE_ONCE(object->dead, true);
		inode = igrab(object->inode);
		if (!inode)
			continue;
		mutex_unlock(&objects_lock);
		mutex_lock(&object->lock);
		xa_for_each(&object->pages, index, page) {
			xa_erase(&object->pages, index);
			atomic64_dec(&ssi_shared_stats.borrowed);
		}
		mutex_unlock(&object->lock);
		unmap_mapping_pages(inode->i_mapping, 0, 0, false);
		iput(inode);
		mutex_lock(&objects_lock);
		goto again;
	}
	mutex_unlock(&objects_lock);
}

/* ---- the file system ---- */

static char *object_dname(struct dentry *dentry, char *buffer, int size)
{
	struct ssi_object *object = d_inode(dentry)->i_private;
	int len = strlen(object->name) + 1;

	if (len > size)
		return ERR_PTR(-ENAMETOOLONG);
	return memcpy(buffer + size - len, object->name, len);
}

static const struct dentry_operations dentries = {
	.d_dname = object_dname,
};

static const struct super_operations super = {
	.evict_inode = object_evict,
	.drop_inode = generic_delete_inode,
	.statfs = simple_statfs,
};

static int init_context(struct fs_context *fc)
{
	struct pseudo_fs_context *context = init_pseudo(fc, SSI_SHARED_MAGIC);

	if (!context)
		return -ENOMEM;
	context->dops = &dentries;
	context->ops = &super;
	return 0;
}

static struct file_system_type objects_fs = {
	.name = "ssi_shared",
	.init_fs_context = init_context,
	.kill_sb = kill_anon_super,
};

static int __init objects_init(void)
{
	mount = kern_mount(&objects_fs);
	if (IS_ERR(mount))
		return PTR_ERR(mount);
	ssi_rpc_register(OP_SHM_ZAP, handle_zap);
	ssi_on_cell_death(home_died);
	return 0;
}
fs_initcall(objects_init);

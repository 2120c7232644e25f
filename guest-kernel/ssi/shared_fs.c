// SPDX-License-Identifier: GPL-2.0
/*
 * Shared memory and the root file system. Each cell has a client and a page cache of its own; a file that is mapped shared in
 * several cells has its pages in one of them, the home of its region. That cell announces the region, by the number that the
 * file has at the server. From then on the others keep no page of the file: they carry reads, writes, changes of the size and
 * new mappings to the home, and mappings that they have already find the home's pages when they fault.
 *
 * When the region ends, the home writes back what is dirty and announces the end; then the file is a file as any other again.
 * Who is refused with -ESTALE in between waits for that.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/hashtable.h>
#include <linux/init_task.h>
#include <linux/kernel.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/ssi_shared.h>
#include <linux/uio.h>
#include <linux/wait.h>

#include "futex_wire.h"
#include "rfile_wire.h"
#include "shared_wire.h"

/*
 * A region that another cell has announced. There may be several for one file for a while: when cells make one at the same
 * time, and when the end of the one before is on its way. That of the lowest cell counts: others yield to it (handle_announce()),
 * or have ended.
 */
struct away {
	struct hlist_node node;
	u64 ino;
	u64 id;
	struct inode *local;		/* with @object: whose mappings it serves; a reference each */
	struct inode *object;
};

static DEFINE_MUTEX(aways_lock);	/* also: a region of this cell is entered for a file of the root */
static DEFINE_HASHTABLE(aways, 6);	/* by ino */
static atomic_t aways_count;
static DECLARE_WAIT_QUEUE_HEAD(aways_change);

/* What a cell answers to an announcement. */
#define HAD_KNOWN	1	/* it has had to do with the file */
#define HAD_MAPPED	2	/* it has it mapped, and gives a claim back once it has its own (keep()) */

struct announcement {
	__le64 id;
	__le64 ino;
	__le32 gone;
	__le32 pad;
};

bool ssi_shared_on_root(struct inode *inode)
{
	return S_ISREG(inode->i_mode) && inode->i_sb->s_magic == FUSE_SUPER_MAGIC;
}

static struct away *find_away(u64 ino)
{
	struct away *away, *found = NULL;

	lockdep_assert_held(&aways_lock);
	hash_for_each_possible(aways, away, node, ino)
		if (away->ino == ino && (!found || SSI_REGION_HOME(away->id) < SSI_REGION_HOME(found->id)))
			found = away;
	return found;
}

/* That of cell @home. */
static struct away *find_away_of(u64 ino, u32 home)
{
	struct away *away;

	lockdep_assert_held(&aways_lock);
	hash_for_each_possible(aways, away, node, ino)
		if (away->ino == ino && SSI_REGION_HOME(away->id) == home)
			return away;
	return NULL;
}

/* The region of @inode, or 0. */
u64 ssi_shared_away(struct inode *inode)
{
	struct away *away;
	u64 id;

	if (!test_bit(AS_SSI_AWAY, &inode->i_mapping->flags))
		return 0;
	mutex_lock(&aways_lock);
	away = find_away(inode->i_ino);
	id = away ? away->id : 0;
	mutex_unlock(&aways_lock);
	return id;
}

/* ---- announcing ---- */

int ssi_shared_enter(struct ssi_region *region, void (*enter)(struct ssi_region *region))
{
	int err;

	mutex_lock(&aways_lock);
	err = region->kind == SSI_SHM_KIND_FILE && find_away(region->inode->i_ino) ? -EBUSY : 0;
	if (!err)
		enter(region);
	mutex_unlock(&aways_lock);
	return err;
}

/* Tells all cells. 0, -EBUSY: another cell is just doing the same; @known: some cell has had to do with it. */
int ssi_shared_announce(struct ssi_region *region, bool gone, bool *known)
{
	struct announcement a = {
		.id = cpu_to_le64(region->id),
		.ino = cpu_to_le64(region->inode->i_ino),
		.gone = cpu_to_le32(gone),
	};
	__le32 had;
	ssize_t n;
	u32 cell;

	for (cell = 0; cell < ssi_cells(); cell++) {
		if (cell == ssi_this_cell())
			continue;
		n = ssi_call(cell, OP_SHM_ANNOUNCE, &a, sizeof(a), &had, sizeof(had), MAX_SCHEDULE_TIMEOUT);
		if (n == -EHOSTUNREACH)
			continue;
		if (n < 0)
			return n;
		if (n != sizeof(had))
			continue;
		if (had & cpu_to_le32(HAD_MAPPED))
			ssi_region_claim(region, cell);
		if (had && known)
			*known = true;
	}
	return 0;
}

/* ---- being told ---- */

/* The inode of @ino on the root file system of this cell, if it is in memory; with a reference. */
static struct inode *find_inode(u64 ino)
{
	struct inode *inode, *found = NULL;
	struct super_block *sb;
	struct path root;

	get_fs_root(init_task.fs, &root);
	sb = root.mnt->mnt_sb;
	spin_lock(&sb->s_inode_list_lock);
	list_for_each_entry(inode, &sb->s_inodes, i_sb_list) {
		if (inode->i_ino != ino)
			continue;
		spin_lock(&inode->i_lock);
		if (!(inode->i_state & (I_FREEING | I_WILL_FREE | I_NEW)) && ssi_shared_on_root(inode)) {
			__iget(inode);
			found = inode;
		}
		spin_unlock(&inode->i_lock);
		if (found)
			break;
	}
	spin_unlock(&sb->s_inode_list_lock);
	path_put(&root);
	return found;
}

/* No page of it is left here: the server has what was written to them. */
static void drop_pages(struct inode *inode)
{
	unmap_mapping_pages(inode->i_mapping, 0, 0, false);
	filemap_write_and_wait(inode->i_mapping);
	invalidate_inode_pages2(inode->i_mapping);
}

/* Under aways_lock. The two references are the caller's. */
static void detach(struct away *away, struct inode **local, struct inode **object)
{
	*local = away->local;
	*object = away->object;
	away->local = away->object = NULL;
	if (*object)
		ssi_object_set_local((*object)->i_private, NULL);
}

static void remove_away(struct away *away, struct inode **local, struct inode **object)
{
	detach(away, local, object);
	hash_del(&away->node);
	atomic_dec(&aways_count);
	kfree(away);
}

static void put_both(struct inode *local, struct inode *object)
{
	if (local) {
		/* Mappings find its own pages again. */
		unmap_mapping_pages(local->i_mapping, 0, 0, false);
		iput(local);
	}
	if (object)
		iput(object);
}

/* Another region of the same cell has ended; its end is on its way, and will find nothing to end. */
static void note(struct away *fresh, struct inode **local, struct inode **object)
{
	struct away *away = find_away_of(fresh->ino, SSI_REGION_HOME(fresh->id));

	if (away)
		remove_away(away, local, object);
	hash_add(aways, &fresh->node, fresh->ino);
	atomic_inc(&aways_count);
}

static void forget(u64 ino, u64 id)
{
	struct inode *local = NULL, *object = NULL, *inode = NULL;
	struct away *away;

	mutex_lock(&aways_lock);
	away = find_away_of(ino, SSI_REGION_HOME(id));
	if (away && away->id == id)
		inode = find_inode(ino);
	mutex_unlock(&aways_lock);
	/* Of readers that had begun before; as long as it is away, nobody else makes any. */
	if (inode)
		drop_pages(inode);
	mutex_lock(&aways_lock);
	away = find_away_of(ino, SSI_REGION_HOME(id));
	if (away && away->id == id) {
		remove_away(away, &local, &object);
		if (!inode)
			inode = find_inode(ino);
		if (inode && !find_away(ino))
			clear_bit(AS_SSI_AWAY, &inode->i_mapping->flags);
	}
	mutex_unlock(&aways_lock);
	put_both(local, object);
	if (inode)
		iput(inode);
	wake_up_all(&aways_change);
}

static struct inode *attach(struct inode *inode, u64 id);

/* A file was mapped when its pages left: this cell uses the region from then on, touched or not, as it does by new mappings. */
struct keeping {
	struct work_struct work;
	struct inode *inode;
	u64 id;
};

static void keep(struct work_struct *work)
{
	struct keeping *k = container_of(work, struct keeping, work);
	struct ssi_shm_id op = { .id = cpu_to_le64(k->id), .count = cpu_to_le32(1) };
	struct inode *object = attach(k->inode, k->id);

	if (!IS_ERR(object))
		iput(object);
	ssi_region_call(k->id, OP_SHM_RELEASE, &op, sizeof(op), NULL, 0);
	__ssi_away_closed(k->inode);	/* its last mapping may have gone by now */
	iput(k->inode);
	kfree(k);
}

/* Later: the home is ready for it when all cells have answered. False: it is not mapped. */
static bool keep_mapped(struct inode *inode, u64 id)
{
	struct keeping *k;

	if (!mapping_mapped(inode->i_mapping))
		return false;
	k = kmalloc(sizeof(*k), GFP_KERNEL | __GFP_NOFAIL);
	ihold(inode);
	*k = (struct keeping){ .inode = inode, .id = id };
	INIT_WORK(&k->work, keep);
	queue_work(system_unbound_wq, &k->work);
	return true;
}

/*
 * Notes @fresh, unless this cell has a region for the file that does not yield: -EBUSY. @inode: the file, with a reference, or
 * NULL.
 */
static int receive(struct away *fresh, struct inode **inode)
{
	struct inode *local = NULL, *object = NULL;
	struct ssi_region *region;
	bool yields = true;

	mutex_lock(&aways_lock);
	*inode = find_inode(fresh->ino);
	region = *inode ? ssi_region_of((*inode)->i_mapping) : NULL;
	if (region) {
		/* Both make one at the same time: that of the lower cell stays. */
		yields = ssi_region_yield(region, SSI_REGION_HOME(fresh->id));
		ssi_region_put(region);
	}
	if (yields) {
		note(fresh, &local, &object);
		/* One that was just being read in: whoever does that has looked for @fresh, or is done with it. */
		if (!*inode)
			*inode = find_inode(fresh->ino);
		if (*inode)
			set_bit(AS_SSI_AWAY, &(*inode)->i_mapping->flags);
	}
	mutex_unlock(&aways_lock);
	put_both(local, object);
	return yields ? 0 : -EBUSY;
}

static ssize_t handle_announce(struct ssi_request *req)
{
	const struct announcement *a = req->body;
	struct inode *inode = NULL;
	__le32 *had = req->reply;
	struct away *fresh;
	u64 id, ino;
	int err;

	if (req->len != sizeof(*a))
		return -EINVAL;
	id = le64_to_cpu(a->id);
	ino = le64_to_cpu(a->ino);
	if (SSI_REGION_HOME(id) != req->cell)
		return -EINVAL;
	if (a->gone) {
		forget(ino, id);
		return 0;
	}
	fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);
	if (!fresh)
		return -ENOMEM;
	fresh->ino = ino;
	fresh->id = id;
	err = receive(fresh, &inode);
	if (err)
		kfree(fresh);
	wake_up_all(&aways_change);
	*had = cpu_to_le32(inode ? HAD_KNOWN : 0);
	if (!err && inode) {
		drop_pages(inode);
		ssi_futex_moved(inode);
		if (keep_mapped(inode, id))
			*had |= cpu_to_le32(HAD_MAPPED);
	}
	if (inode)
		iput(inode);
	if (!err && !ssi_cell_alive(req->cell))		/* cell_died() may have passed before */
		forget(ino, id);
	return err ?: sizeof(*had);
}

/* fuse_iget(): an inode of a file may be one that another cell has announced. */
void __ssi_inode_found(struct inode *inode)
{
	if (!atomic_read(&aways_count) || !ssi_shared_on_root(inode))
		return;
	mutex_lock(&aways_lock);
	if (find_away(inode->i_ino))
		set_bit(AS_SSI_AWAY, &inode->i_mapping->flags);
	mutex_unlock(&aways_lock);
}

static void cell_died(u32 cell)
{
	struct away *away;
	u64 ino, id;
	int bucket;
	bool found;

	do {
		found = false;
		mutex_lock(&aways_lock);
		hash_for_each(aways, bucket, away, node)
			if (SSI_REGION_HOME(away->id) == cell) {
				found = true;
				ino = away->ino;
				id = away->id;
			}
		mutex_unlock(&aways_lock);
		if (found)
			forget(ino, id);
	} while (found);
}

/* ---- carrying ---- */

/* The region @id ends, and its home is about to say so. -ERESTARTSYS, or -EAGAIN: the file is as any other then. */
static int await_end(struct inode *inode, u64 id)
{
	int err = wait_event_killable(aways_change, ssi_shared_away(inode) != id);

	return err ?: -EAGAIN;
}

/* What the home of @inode's region is asked to do: @ask does it for region @id. */
struct errand {
	struct inode *inode;
	ssize_t (*ask)(struct errand *errand, u64 id);
	struct kiocb *iocb;		/* read, write */
	struct iov_iter *iter;
	u16 op;				/* the rest: a call that begins with the region's number */
	void *body;
	size_t len;
};

/* False: the file has become one of this cell, and nothing was done. */
static bool carry(struct errand *errand, ssize_t *result)
{
	u64 id;

	while ((id = ssi_shared_away(errand->inode))) {
		*result = errand->ask(errand, id);
		if (*result == -EHOSTUNREACH)
			*result = -EIO;
		if (*result != -ESTALE)
			return true;
		*result = await_end(errand->inode, id);
		if (*result != -EAGAIN)
			return true;
	}
	return false;
}

ssize_t ssi_region_call(u64 id, u16 op, const void *body, size_t len, void *reply, size_t cap)
{
	ssize_t n;

	while ((n = ssi_call(SSI_REGION_HOME(id), op, body, len, reply, cap, MAX_SCHEDULE_TIMEOUT)) == -EINPROGRESS) {
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	return n;
}

#define CARRY_MAX	(SSI_RPC_MAX - sizeof(struct ssi_rfile_fop))

static void io_init(struct ssi_rfile_fop *op, struct kiocb *iocb, u64 id, size_t count)
{
	*op = (struct ssi_rfile_fop) {
		.op.id = cpu_to_le64(id),
		.op.count = cpu_to_le32(count),
		.op.flags = cpu_to_le32((iocb->ki_flags & IOCB_APPEND ? SSI_RFILE_APPEND : 0) |
					(iocb->ki_flags & IOCB_DSYNC ? SSI_RFILE_DSYNC : 0)),
		.pos = cpu_to_le64(iocb->ki_pos),
	};
}

static ssize_t read_away(struct errand *errand, u64 id)
{
	struct iov_iter *to = errand->iter;
	struct kiocb *iocb = errand->iocb;
	void *buffer = kvmalloc(min_t(size_t, iov_iter_count(to), SSI_RPC_MAX), GFP_KERNEL);
	struct ssi_rfile_fop op;
	size_t done = 0;
	ssize_t n = 0;

	if (!buffer)
		return -ENOMEM;
	while (iov_iter_count(to)) {
		size_t count = min_t(size_t, iov_iter_count(to), SSI_RPC_MAX), copied;

		io_init(&op, iocb, id, count);
		n = ssi_region_call(id, OP_SHM_READ, &op, sizeof(op), buffer, count);
		if (n <= 0)
			break;
		copied = copy_to_iter(buffer, n, to);
		iocb->ki_pos += copied;
		done += copied;
		if (copied < n)
			n = -EFAULT;
		if (n < count || fatal_signal_pending(current))
			break;
	}
	kvfree(buffer);
	return done ?: n;
}

static ssize_t write_away(struct errand *errand, u64 id)
{
	struct iov_iter *from = errand->iter;
	struct kiocb *iocb = errand->iocb;
	struct ssi_rfile_fop *op = kvmalloc(sizeof(*op) + min_t(size_t, iov_iter_count(from), CARRY_MAX), GFP_KERNEL);
	struct ssi_rfile_fdone reply;
	size_t done = 0;
	ssize_t n = 0;

	if (!op)
		return -ENOMEM;
	while (iov_iter_count(from)) {
		size_t copied = copy_from_iter(op + 1, min_t(size_t, iov_iter_count(from), CARRY_MAX), from);
		u32 taken = 0;

		if (!copied) {
			n = -EFAULT;
			break;
		}
		io_init(op, iocb, id, copied);
		n = ssi_region_call(id, OP_SHM_WRITE, op, sizeof(*op) + copied, &reply, sizeof(reply));
		if (n == sizeof(reply))
			taken = min_t(u32, le32_to_cpu(reply.taken), copied);
		iov_iter_revert(from, copied - taken);
		if (n < 0)
			break;
		iocb->ki_pos = le64_to_cpu(reply.pos);
		done += taken;
		if (taken < copied || fatal_signal_pending(current))
			break;
	}
	kvfree(op);
	return done ?: n;
}

/* Carries a read or write. False: the file has become one of this cell, and nothing was done. */
bool __ssi_away_io(struct kiocb *iocb, struct iov_iter *iter, bool write, ssize_t *result)
{
	struct errand errand = {
		.inode = file_inode(iocb->ki_filp), .ask = write ? write_away : read_away, .iocb = iocb, .iter = iter,
	};

	return carry(&errand, result);
}

/*
 * A write of @n bytes, up to iocb->ki_pos, had begun here when the pages left. The server has them, but the home may have read
 * the page before: they are written there as well.
 */
ssize_t __ssi_away_wrote(struct kiocb *iocb, struct iov_iter *from, ssize_t n)
{
	ssize_t carried;

	iov_iter_revert(from, n);
	iocb->ki_pos -= n;
	iocb->ki_flags &= ~IOCB_APPEND;
	if (__ssi_away_io(iocb, from, true, &carried))
		return carried;
	iov_iter_advance(from, n);
	iocb->ki_pos += n;
	return n;
}

static ssize_t ask_home(struct errand *errand, u64 id)
{
	*(__le64 *)errand->body = cpu_to_le64(id);
	return ssi_region_call(id, errand->op, errand->body, errand->len, NULL, 0);
}

/* @body begins with the region's number. */
static bool carry_call(struct inode *inode, u16 op, void *body, size_t len, int *result)
{
	struct errand errand = { .inode = inode, .ask = ask_home, .op = op, .body = body, .len = len };
	ssize_t n;
	bool away = carry(&errand, &n);

	if (away)
		*result = n;
	return away;
}

static bool carry_range(struct inode *inode, u16 op, u64 first, u64 count, u32 flags, int *result)
{
	struct ssi_shm_range range = {
		.first = cpu_to_le64(first), .count = cpu_to_le64(count), .flags = cpu_to_le32(flags),
	};

	return carry_call(inode, op, &range, sizeof(range), result);
}

bool __ssi_away_fsync(struct inode *inode, loff_t start, loff_t end, int datasync, int *result)
{
	return carry_range(inode, OP_SHM_SYNC, start, end, datasync, result);
}

bool __ssi_away_fallocate(struct inode *inode, int mode, loff_t offset, loff_t length, int *result)
{
	return carry_range(inode, OP_SHM_FALLOCATE, offset, length, mode, result);
}

bool __ssi_away_resize(struct inode *inode, loff_t size, int *result)
{
	struct ssi_shm_setattr op = { .valid = cpu_to_le32(ATTR_SIZE), .size = cpu_to_le64(size) };

	return carry_call(inode, OP_SHM_SETATTR, &op, sizeof(op), result);
}

/* ---- mappings ---- */

/* A new mapping is one of the remote object. */
bool __ssi_away_mmap(struct file *file, struct vm_area_struct *vma, int *result)
{
	struct inode *inode = file_inode(file);
	struct file *object;
	u64 id = ssi_shared_away(inode);

	if (!id)
		return false;
	object = ssi_shared_open(id, file->f_mode & FMODE_WRITE);
	if (PTR_ERR_OR_ZERO(object) == -ESTALE)
		return false;		/* it is about to end: faults wait for that */
	if (IS_ERR(object)) {
		*result = PTR_ERR(object);
		return true;
	}
	*result = ssi_object_mmap(object, vma);
	if (!*result)
		vma_set_file(vma, object);
	fput(object);
	return true;
}

/* The remote object for faults in mappings of @inode that were here before; with a reference. -ESTALE: the region has ended. */
static struct inode *attach(struct inode *inode, u64 id)
{
	struct inode *object, *found = NULL;
	struct away *away;

	object = ssi_object_get(id);
	if (IS_ERR(object))
		return object;
	mutex_lock(&aways_lock);
	away = find_away(inode->i_ino);
	if (away && away->id == id) {
		if (!away->object) {
			away->object = object;
			ihold(object);
			away->local = inode;
			ihold(inode);
			ssi_object_set_local(object->i_private, inode);
		}
		found = object;
	}
	mutex_unlock(&aways_lock);
	if (found)
		return found;
	iput(object);
	return ERR_PTR(-ESTALE);
}

/* A fault in a mapping of a file whose pages are away. False: they are not any more. */
bool __ssi_away_fault(struct vm_fault *vmf, vm_fault_t *result)
{
	struct inode *inode = file_inode(vmf->vma->vm_file), *object;
	u64 id;

	for (;;) {
		id = ssi_shared_away(inode);
		if (!id)
			return false;
		object = attach(inode, id);
		if (!IS_ERR(object))
			break;
		if (PTR_ERR(object) != -ESTALE || await_end(inode, id) != -EAGAIN) {
			*result = VM_FAULT_SIGBUS;
			return true;
		}
	}
	*result = ssi_object_fault(object->i_private, vmf);
	iput(object);
	return true;
}

static bool has_page(struct inode *inode, pgoff_t index, struct page *page)
{
	struct away *away;
	bool has;

	mutex_lock(&aways_lock);
	away = find_away(inode->i_ino);
	has = away && away->object && xa_load(&((struct ssi_object *)away->object->i_private)->pages, index) == page;
	mutex_unlock(&aways_lock);
	return has;
}

/* The page was lent to be written: it only has to be there still. */
bool __ssi_away_mkwrite(struct vm_fault *vmf, vm_fault_t *result)
{
	struct page *page = vmf->page;

	if (page->mapping || !is_zone_device_page(page))
		return false;
	lock_page(page);
	*result = has_page(file_inode(vmf->vma->vm_file), vmf->pgoff, page) ? VM_FAULT_LOCKED : VM_FAULT_NOPAGE;
	if (*result == VM_FAULT_NOPAGE)
		unlock_page(page);
	return true;
}

/* A mapping of a file ended: with the last one the object has no more use here. */
void __ssi_away_closed(struct inode *inode)
{
	struct inode *local = NULL, *object = NULL;
	struct away *away;

	if (mapping_mapped(inode->i_mapping))
		return;
	mutex_lock(&aways_lock);
	away = find_away(inode->i_ino);
	if (away && away->local == inode)
		detach(away, &local, &object);
	mutex_unlock(&aways_lock);
	if (local)
		iput(local);
	if (object)
		iput(object);
}

/* ---- at home ---- */

/* The region of a request, whoever asks: the file is everybody's. */
static struct ssi_region *begin(struct ssi_request *req, size_t least)
{
	struct ssi_region *region;
	int err;

	if (req->len < least)
		return ERR_PTR(-EINVAL);
	region = ssi_region_get(le64_to_cpu(*(const __le64 *)req->body));
	if (!region)
		return ERR_PTR(-ESTALE);
	err = region->kind == SSI_SHM_KIND_FILE ? ssi_region_ready(region) : -EINVAL;
	if (!err)
		return region;
	ssi_region_put(region);
	return ERR_PTR(err);
}

static ssize_t handle_read(struct ssi_request *req)
{
	const struct ssi_rfile_fop *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	struct kvec vec = { .iov_base = req->reply };
	struct iov_iter iter;
	loff_t pos;
	ssize_t n;

	if (IS_ERR(region))
		return PTR_ERR(region);
	vec.iov_len = min_t(u32, le32_to_cpu(op->op.count), SSI_RPC_MAX);
	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, vec.iov_len);
	pos = le64_to_cpu(op->pos);
	n = vfs_iter_read(region->file, &iter, &pos, 0);
	ssi_region_put(region);
	return n;
}

static ssize_t handle_write(struct ssi_request *req)
{
	const struct ssi_rfile_fop *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	struct ssi_rfile_fdone *done = req->reply;
	struct iov_iter iter;
	struct file *file;
	struct kvec vec;
	ssize_t n = -EINVAL;
	loff_t pos;
	u32 flags;

	if (IS_ERR(region))
		return PTR_ERR(region);
	vec = (struct kvec){ .iov_base = (void *)(op + 1), .iov_len = req->len - sizeof(*op) };
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, vec.iov_len);
	flags = le32_to_cpu(op->op.flags);
	pos = le64_to_cpu(op->pos);
	if (le32_to_cpu(op->op.count) == vec.iov_len) {
		file = ssi_region_writer(region);
		n = PTR_ERR_OR_ZERO(file);
		if (!n)
			n = vfs_iter_write(file, &iter, &pos, (flags & SSI_RFILE_APPEND ? RWF_APPEND : 0) |
					   (flags & SSI_RFILE_DSYNC ? RWF_DSYNC : 0));
	}
	ssi_region_put(region);
	if (n < 0)
		return n;
	*done = (struct ssi_rfile_fdone){ .taken = cpu_to_le32(n), .pos = cpu_to_le64(pos) };
	return sizeof(*done);
}

static int __init shared_fs_init(void)
{
	ssi_rpc_register(OP_SHM_ANNOUNCE, handle_announce);
	ssi_rpc_register(OP_SHM_READ, handle_read);
	ssi_rpc_register(OP_SHM_WRITE, handle_write);
	ssi_on_cell_death(cell_died);
	return 0;
}
fs_initcall(shared_fs_init);

// SPDX-License-Identifier: GPL-2.0
/*
 * Shared memory, at home: what other cells ask for, and moves that start or end here.
 *
 * Nothing that comes from another cell is believed: a region's number must be known and claimed by who asks, offsets are
 * within what a file can have, lengths as long as they should be.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/memfd.h>
#include <linux/mm.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/ssi_shared.h>

#include "lost.h"
#include "move.h"
#include "proc.h"
#include "shared_wire.h"

#define PAGES_MAX	((u64)MAX_LFS_FILESIZE >> PAGE_SHIFT)

/* The region of a request, with a reference, if its sender claims it; or ERR_PTR. */
static struct ssi_region *begin(struct ssi_request *req, size_t len)
{
	struct ssi_region *region;
	int err;

	if (req->len != len)
		return ERR_PTR(-EINVAL);
	region = ssi_region_get(le64_to_cpu(*(const __le64 *)req->body));
	if (!region)
		return ERR_PTR(-ESTALE);
	err = ssi_region_ready(region);
	if (err) {
		ssi_region_put(region);
		return ERR_PTR(err);
	}
	/* A file of the root file system is everybody's. */
	if (!ssi_region_claimed(region, req->cell) && region->kind != SSI_SHM_KIND_FILE) {
		ssi_region_put(region);
		atomic64_inc(&ssi_shared_stats.refused);
		return ERR_PTR(-ESTALE);
	}
	return region;
}

/* ---- claims ---- */

static int fill_about(struct ssi_region *region, struct ssi_shm_about *about)
{
	struct kstat stat;
	char *name;
	int err = vfs_getattr_nosec(&region->path, &stat, STATX_BASIC_STATS, AT_STATX_SYNC_AS_STAT);

	if (err)
		return err;
	memset(about, 0, sizeof(*about));
	about->kind = cpu_to_le32(region->kind);
	about->shmid = cpu_to_le32(region->shmid);
	about->size = cpu_to_le64(stat.size);
	about->blocks = cpu_to_le64(stat.blocks);
	about->ino = cpu_to_le64(stat.ino);
	about->mode = cpu_to_le32(stat.mode);
	about->uid = cpu_to_le32(from_kuid(&init_user_ns, stat.uid));
	about->gid = cpu_to_le32(from_kgid(&init_user_ns, stat.gid));
	about->nlink = cpu_to_le32(stat.nlink);
	about->atime = cpu_to_le64(timespec64_to_ns(&stat.atime));
	about->mtime = cpu_to_le64(timespec64_to_ns(&stat.mtime));
	about->ctime = cpu_to_le64(timespec64_to_ns(&stat.ctime));
	name = d_path(&region->path, about->name, sizeof(about->name));
	if (IS_ERR(name))
		strscpy(about->name, "/shared", sizeof(about->name));
	else
		memmove(about->name, name, strlen(name) + 1);
	return 0;
}

/* The caller has a reference of its own. */
void ssi_region_claim(struct ssi_region *region, u32 cell)
{
	bool first;

	spin_lock(&region->lock);
	first = !region->claims[cell]++;
	spin_unlock(&region->lock);
	if (first)
		refcount_inc(&region->ref);
	if (!ssi_cell_alive(cell))	/* cell_died() may have passed before */
		ssi_region_unclaim(region, cell, U32_MAX);
}

static ssize_t handle_claim(struct ssi_request *req)
{
	const struct ssi_shm_id *op = req->body;
	struct ssi_region *region;
	int err;

	if (req->len != sizeof(*op))
		return -EINVAL;
	region = ssi_region_get(le64_to_cpu(op->id));
	if (!region)
		return -ESTALE;
	err = ssi_region_ready(region) ?: fill_about(region, req->reply);
	if (!err)
		ssi_region_claim(region, req->cell);
	ssi_region_put(region);
	return err ?: sizeof(struct ssi_shm_about);
}

static void end_writers(struct ssi_region *region, s32 count)
{
	while (count-- > 0)
		mapping_unmap_writable(region->inode->i_mapping);
}

void ssi_region_unclaim(struct ssi_region *region, u32 cell, u32 count)
{
	s32 writers = 0, attaches = 0;
	bool last;

	spin_lock(&region->lock);
	last = region->claims[cell] && region->claims[cell] <= count;
	region->claims[cell] -= min(count, region->claims[cell]);
	if (last) {
		swap(writers, region->writers[cell]);
		swap(attaches, region->attaches[cell]);
	}
	spin_unlock(&region->lock);
	if (!last)
		return;
	end_writers(region, writers);
	if (attaches > 0)
		ssi_shm_attach(region->shmid, -attaches, 0);
	ssi_region_return_all(region, cell);
	ssi_region_put(region);
}

static ssize_t handle_release(struct ssi_request *req)
{
	const struct ssi_shm_id *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));

	if (IS_ERR(region))
		return PTR_ERR(region);
	ssi_region_unclaim(region, req->cell, le32_to_cpu(op->count));
	ssi_region_put(region);
	return 0;
}

static ssize_t handle_stat(struct ssi_request *req)
{
	struct ssi_region *region = begin(req, sizeof(struct ssi_shm_id));
	int err;

	if (IS_ERR(region))
		return PTR_ERR(region);
	err = fill_about(region, req->reply);
	ssi_region_put(region);
	return err ?: sizeof(struct ssi_shm_about);
}

/* One more or one less writable shared mapping there: what seals look at. */
static ssize_t handle_writers(struct ssi_request *req)
{
	const struct ssi_shm_id *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	s32 count;
	int err = 0;

	if (IS_ERR(region))
		return PTR_ERR(region);
	count = (s32)le32_to_cpu(op->count);
	if (!ssi_region_claimed(region, req->cell))
		err = -ESTALE;
	else if (count == 1 && region->kind == SSI_SHM_KIND_FILE)
		err = PTR_ERR_OR_ZERO(ssi_region_writer(region));
	if (!err && count == 1)
		err = mapping_map_writable(region->inode->i_mapping);
	else if (count != -1 && !err)
		err = -EINVAL;
	if (!err) {
		spin_lock(&region->lock);
		if (count < 0 && !region->writers[req->cell])
			err = -EINVAL;
		else
			region->writers[req->cell] += count;
		spin_unlock(&region->lock);
		if (!err && count < 0)
			end_writers(region, 1);
	}
	ssi_region_put(region);
	return err;
}

/* ---- pages ---- */

static ssize_t handle_fault(struct ssi_request *req)
{
	const struct ssi_shm_range *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	struct ssi_shm_frames *reply = req->reply;
	u64 index, first, phys;
	bool write;
	int err;

	if (IS_ERR(region))
		return PTR_ERR(region);
	if (!ssi_region_claimed(region, req->cell)) {
		ssi_region_put(region);
		return -ESTALE;
	}
	index = le64_to_cpu(op->first);
	write = le32_to_cpu(op->flags) & SSI_SHM_WRITE;
	err = index < PAGES_MAX ? ssi_region_lend(region, index, req->cell, true, write, &phys) : -EFAULT;
	if (!err) {
		first = round_down(index, SSI_SHM_RUN);
		memset(reply, 0, sizeof(*reply));
		reply->first = cpu_to_le64(first);
		reply->frames[index - first] = cpu_to_le64(phys);
		/* What is there anyhow around it. */
		for (unsigned int i = 0; i < SSI_SHM_RUN; i++)
			if (first + i != index && !ssi_region_lend(region, first + i, req->cell, false, write, &phys)) {
				reply->frames[i] = cpu_to_le64(phys);
				atomic64_inc(&ssi_shared_stats.lent_runs);
			}
	}
	ssi_region_put(region);
	return err ?: sizeof(*reply);
}

/* ---- the file ---- */

static struct file *open_for(struct ssi_region *region, int flags)
{
	if (region->kind == SSI_SHM_KIND_SYSV)
		return ssi_shm_file(region->shmid, 0, flags);
	return dentry_open(&region->path, flags | O_LARGEFILE, current_cred());
}

static ssize_t handle_setattr(struct ssi_request *req)
{
	const struct ssi_shm_setattr *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	struct dentry *dentry;
	struct iattr attr = {};
	int err;

	if (IS_ERR(region))
		return PTR_ERR(region);
	attr.ia_valid = le32_to_cpu(op->valid) & (ATTR_SIZE | ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_ATIME | ATTR_MTIME |
						  ATTR_CTIME | ATTR_ATIME_SET | ATTR_MTIME_SET | ATTR_KILL_SUID |
						  ATTR_KILL_SGID);
	attr.ia_size = le64_to_cpu(op->size);
	if (attr.ia_valid & (ATTR_KILL_SUID | ATTR_KILL_SGID))
		attr.ia_valid &= ~ATTR_MODE;
	attr.ia_mode = (region->inode->i_mode & S_IFMT) | (le32_to_cpu(op->mode) & S_IALLUGO);
	attr.ia_uid = make_kuid(&init_user_ns, le32_to_cpu(op->uid));
	attr.ia_gid = make_kgid(&init_user_ns, le32_to_cpu(op->gid));
	attr.ia_vfsuid = VFSUIDT_INIT(attr.ia_uid);
	attr.ia_vfsgid = VFSGIDT_INIT(attr.ia_gid);
	attr.ia_atime = ns_to_timespec64(le64_to_cpu(op->atime));
	attr.ia_mtime = ns_to_timespec64(le64_to_cpu(op->mtime));
	attr.ia_file = region->file;
	if (region->file)
		attr.ia_valid |= ATTR_FILE;
	dentry = region->path.dentry;
	err = mnt_want_write(region->path.mnt);
	if (!err) {
		inode_lock(region->inode);
		err = notify_change(&nop_mnt_idmap, dentry, &attr, NULL);
		inode_unlock(region->inode);
		mnt_drop_write(region->path.mnt);
	}
	ssi_region_put(region);
	return err;
}

static ssize_t handle_fallocate(struct ssi_request *req)
{
	const struct ssi_shm_range *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	struct file *file;
	int err;

	if (IS_ERR(region))
		return PTR_ERR(region);
	file = open_for(region, O_RDWR);
	err = PTR_ERR_OR_ZERO(file);
	if (!err) {
		err = vfs_fallocate(file, le32_to_cpu(op->flags), le64_to_cpu(op->first), le64_to_cpu(op->count));
		fput(file);
	}
	ssi_region_put(region);
	return err;
}

static ssize_t handle_sync(struct ssi_request *req)
{
	const struct ssi_shm_range *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	int err = 0;

	if (IS_ERR(region))
		return PTR_ERR(region);
	if (region->file)
		err = vfs_fsync_range(region->writer ?: region->file, le64_to_cpu(op->first), le64_to_cpu(op->count), le32_to_cpu(op->flags));
	ssi_region_put(region);
	return err;
}

static ssize_t handle_seals(struct ssi_request *req)
{
	const struct ssi_shm_range *op = req->body;
	struct ssi_region *region = begin(req, sizeof(*op));
	__le32 *seals = req->reply;
	struct file *file;
	long n;

	if (IS_ERR(region))
		return PTR_ERR(region);
	file = open_for(region, O_RDWR);
	n = PTR_ERR_OR_ZERO(file);
	if (!n) {
		n = memfd_fcntl(file, le32_to_cpu(op->flags), le64_to_cpu(op->first));
		fput(file);
	}
	ssi_region_put(region);
	*seals = cpu_to_le32(n);
	return n < 0 ? n : sizeof(*seals);
}

/* ---- moves ---- */

bool ssi_shared_vma(struct vm_area_struct *vma)
{
	struct file *file = vma->vm_file;

	if (!file || !S_ISREG(file_inode(file)->i_mode))
		return false;
	return vma->vm_flags & VM_SHARED || shmem_mapping(file->f_mapping) || ssi_shared_is_remote(file->f_mapping) ||
	       test_bit(AS_SSI, &file->f_mapping->flags) ||
	       test_bit(AS_SSI_AWAY, &file->f_mapping->flags) || d_unlinked(file->f_path.dentry);
}

bool ssi_shared_vma_capable(struct vm_area_struct *vma)
{
	struct address_space *mapping = vma->vm_file->f_mapping;

	return shmem_mapping(mapping) || ssi_shared_is_remote(mapping) || ssi_shared_on_root(mapping->host);
}

int ssi_shared_get(struct file *file, u64 *id)
{
	struct ssi_object *object = ssi_object_of(file_inode(file));
	struct ssi_region *region;
	struct inode *inode;

	if (object) {
		*id = object->id;
		/* One of this cell's claims its region, so that it is there. */
		if (object->home != ssi_this_cell())
			ihold(object->inode);
		else if (!ssi_region_get(object->id))
			return -ESTALE;
		return 0;
	}
	if (!ssi_present())
		return -ENODEV;
	for (;;) {
		region = ssi_region_make(file);
		if (PTR_ERR_OR_ZERO(region) != -EBUSY)
			break;
		/* Another cell has its pages. */
		*id = ssi_shared_away(file_inode(file));
		if (*id) {
			inode = ssi_object_get(*id);
			if (PTR_ERR_OR_ZERO(inode) != -ESTALE)
				return PTR_ERR_OR_ZERO(inode);
		}
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	if (IS_ERR(region))
		return PTR_ERR(region);
	*id = region->id;
	return 0;
}

void ssi_shared_put(u64 id)
{
	struct ssi_region *region;
	struct inode *inode;

	if (SSI_REGION_HOME(id) != ssi_this_cell()) {
		inode = ssi_object_find(id);
		if (inode) {
			iput(inode);
			iput(inode);
		}
		return;
	}
	region = ssi_region_get(id);
	if (region) {
		ssi_region_put(region);
		ssi_region_put(region);
	}
}

struct file *ssi_shared_open(u64 id, bool write)
{
	struct ssi_region *region;
	struct inode *inode;
	struct file *file;

	if (SSI_REGION_HOME(id) == ssi_this_cell()) {
		region = ssi_region_get(id);
		if (!region)
			return ERR_PTR(-ESTALE);
		file = open_for(region, write ? O_RDWR : O_RDONLY);
		ssi_region_put(region);
		return file;
	}
	inode = ssi_object_get(id);
	if (IS_ERR(inode))
		return ERR_CAST(inode);
	file = ssi_object_file(inode, write ? O_RDWR : O_RDONLY);
	if (IS_ERR(file))
		iput(inode);
	return file;
}

bool ssi_shared_key_of_mapping(struct address_space *mapping, u64 offset, struct ssi_shared_key *key)
{
	struct ssi_region *region = ssi_region_of(mapping);
	struct ssi_object *object = ssi_object_of(mapping->host);
	u64 away = region || object ? 0 : ssi_shared_away(mapping->host);

	if (region)
		*key = (struct ssi_shared_key){ .region = region->id, .home = ssi_this_cell(), .offset = offset };
	else if (object)
		*key = (struct ssi_shared_key){ .region = object->id, .home = object->home, .offset = offset };
	else if (away)
		*key = (struct ssi_shared_key){ .region = away, .home = SSI_REGION_HOME(away), .offset = offset };
	else
		return false;
	if (region)
		ssi_region_put(region);
	return true;
}

bool ssi_shared_key_of_vma(struct vm_area_struct *vma, unsigned long addr, struct ssi_shared_key *key)
{
	u64 offset = ((u64)vma->vm_pgoff << PAGE_SHIFT) + (addr - vma->vm_start);

	return vma->vm_file && vma->vm_flags & VM_MAYSHARE && ssi_shared_key_of_mapping(vma->vm_file->f_mapping, offset, key);
}

/* ---- figures ---- */

static int shared_show(struct seq_file *m, void *v)
{
	struct ssi_shared_stats *s = &ssi_shared_stats;
	s64 gone = atomic64_read(&s->regions_gone), made = atomic64_read(&s->regions_made);

	seq_printf(m, "regions_now %lld\nregions_made_count %lld\n", made - gone, made);
	for (u32 cell = 0; cell < ssi_cells(); cell++)
		if (cell != ssi_this_cell())
			seq_printf(m, "lent_now_pages_to_%u %llu\n", cell, ssi_region_lent_now(cell));
	seq_printf(m, "lent_pages %lld\nlent_in_runs_pages %lld\nreturned_pages %lld\n", atomic64_read(&s->lent),
		   atomic64_read(&s->lent_runs), atomic64_read(&s->returned));
	seq_printf(m, "zaps_count %lld\nzapped_pages %lld\npinned_now_pages %lld\nmoved_frames_count %lld\nrefused_count %lld\n",
		   atomic64_read(&s->zaps), atomic64_read(&s->zapped_pages), atomic64_read(&s->pinned),
		   atomic64_read(&s->moved_frames), atomic64_read(&s->refused));
	ssi_lost_show(m);
	seq_printf(m, "objects_now %lld\nremote_faults_count %lld\nborrowed_now_pages %lld\n", atomic64_read(&s->objects),
		   atomic64_read(&s->faults), atomic64_read(&s->borrowed));
	return 0;
}

int __init ssi_shared_home_init(void)
{
	ssi_rpc_register(OP_SHM_CLAIM, handle_claim);
	ssi_rpc_register(OP_SHM_RELEASE, handle_release);
	ssi_rpc_register(OP_SHM_STAT, handle_stat);
	ssi_rpc_register(OP_SHM_WRITERS, handle_writers);
	ssi_rpc_register(OP_SHM_FAULT, handle_fault);
	ssi_rpc_register(OP_SHM_SETATTR, handle_setattr);
	ssi_rpc_register(OP_SHM_FALLOCATE, handle_fallocate);
	ssi_rpc_register(OP_SHM_SYNC, handle_sync);
	ssi_rpc_register(OP_SHM_SEALS, handle_seals);
	return 0;
}

static int __init shared_proc_init(void)
{
	return ssi_proc_root && proc_create_single("shared", 0444, ssi_proc_root, shared_show) ? 0 : -ENOMEM;
}
device_initcall(shared_proc_init);

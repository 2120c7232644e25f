// SPDX-License-Identifier: GPL-2.0
/*
 * Shared memory, at a borrower: descriptors of files that live in one cell's memory (memfd, tmpfs) or that share their offset
 * with somebody there.
 *
 * Such a descriptor is an open file on a remote object, with a ticket (rfile_wire.h) to the open file where it was opened: at the
 * home, or in a cell from which the pages of a file of the root have gone to another, perhaps to this one. That one has the
 * offset: read(2) and write(2) show by a position that no file can have (POS_HOME) that they mean it. What is done to the
 * file as such, its size or its seals, names the region and needs no ticket: mappings can do it too.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/memfd.h>
#include <linux/mm.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/ssi_shared.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "rfile_wire.h"
#include "shared_wire.h"

#define POS_HOME	SSI_RFILE_POS_HOME

/* Of an open file in cell @cell. */
struct ticket {
	u32 cell;
	u64 id;
};

/* NULL: it has none. */
static struct ticket *ticket_of(struct file *file)
{
	return file->private_data;
}

static ssize_t carried(ssize_t n)
{
	return n == -EHOSTUNREACH || n == -ENODEV || n == -ESTALE ? -EIO : n;
}

/* ---- read and write ---- */

static void op_init(struct ssi_rfile_fop *op, struct kiocb *iocb, size_t count)
{
	*op = (struct ssi_rfile_fop) {
		.op.id = cpu_to_le64(ticket_of(iocb->ki_filp)->id),
		.op.count = cpu_to_le32(count),
		.op.flags = cpu_to_le32((iocb->ki_flags & IOCB_APPEND ? SSI_RFILE_APPEND : 0) |
					(iocb->ki_flags & IOCB_DSYNC ? SSI_RFILE_DSYNC : 0)),
		.pos = cpu_to_le64(iocb->ki_pos),
	};
}

static void advance(struct kiocb *iocb, size_t n)
{
	if (iocb->ki_pos != POS_HOME)
		iocb->ki_pos += n;
}

static ssize_t file_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct ticket *ticket = ticket_of(iocb->ki_filp);
	void *buffer = kvmalloc(min_t(size_t, iov_iter_count(to), SSI_RPC_MAX), GFP_KERNEL);
	struct ssi_rfile_fop op;
	size_t done = 0;
	ssize_t n = 0;

	if (!buffer || !ticket) {
		kvfree(buffer);
		return ticket ? -ENOMEM : -EBADF;
	}
	while (iov_iter_count(to)) {
		size_t count = min_t(size_t, iov_iter_count(to), SSI_RPC_MAX), copied;

		/* What is read at the home's offset cannot be put back. */
		if (iocb->ki_pos == POS_HOME && fault_in_iov_iter_writeable(to, count) == count) {
			n = -EFAULT;
			break;
		}
		op_init(&op, iocb, count);
		n = ssi_call(ticket->cell, OP_RFILE_FREAD, &op, sizeof(op), buffer, count, MAX_SCHEDULE_TIMEOUT);
		if (n <= 0)
			break;
		copied = copy_to_iter(buffer, n, to);
		advance(iocb, copied);
		done += copied;
		if (copied < n) {
			n = -EFAULT;
			break;
		}
		if (n < count || fatal_signal_pending(current))
			break;
	}
	kvfree(buffer);
	return done ?: carried(n);
}

static ssize_t file_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct ticket *ticket = ticket_of(iocb->ki_filp);
	struct ssi_rfile_fop *op = kvmalloc(sizeof(*op) + min_t(size_t, iov_iter_count(from), SSI_RFILE_FWRITE_MAX), GFP_KERNEL);
	struct ssi_rfile_fdone reply;
	size_t done = 0;
	ssize_t n = 0;

	if (!op || !ticket) {
		kvfree(op);
		return ticket ? -ENOMEM : -EBADF;
	}
	while (iov_iter_count(from)) {
		size_t copied = copy_from_iter(op + 1, min_t(size_t, iov_iter_count(from), SSI_RFILE_FWRITE_MAX), from);
		u32 taken;

		if (!copied) {
			n = -EFAULT;
			break;
		}
		op_init(op, iocb, copied);
		n = ssi_call(ticket->cell, OP_RFILE_FWRITE, op, sizeof(*op) + copied, &reply, sizeof(reply),
			     MAX_SCHEDULE_TIMEOUT);
		if (n == sizeof(reply))
			taken = min_t(u32, le32_to_cpu(reply.taken), copied);
		else
			taken = 0;
		iov_iter_revert(from, copied - taken);
		if (n < 0)
			break;
		if (iocb->ki_flags & IOCB_APPEND && iocb->ki_pos != POS_HOME)
			iocb->ki_pos = le64_to_cpu(reply.pos);
		else
			advance(iocb, taken);
		done += taken;
		if (taken < copied || fatal_signal_pending(current))
			break;
	}
	kvfree(op);
	return done ?: carried(n);
}

static loff_t file_llseek(struct file *file, loff_t offset, int whence)
{
	struct ticket *ticket = ticket_of(file);
	struct ssi_rfile_fop op = {
		.op.flags = cpu_to_le32(whence),
		.pos = cpu_to_le64(offset),
	};
	__le64 pos;
	ssize_t n;

	if (!ticket)
		return -ESPIPE;
	op.op.id = cpu_to_le64(ticket->id);
	n = ssi_call(ticket->cell, OP_RFILE_FSEEK, &op, sizeof(op), &pos, sizeof(pos), MAX_SCHEDULE_TIMEOUT);
	if (n < 0)
		return carried(n);
	return n == sizeof(pos) ? (loff_t)le64_to_cpu(pos) : -EIO;
}

/* ---- the file as such ---- */

static int call_range(struct file *file, u16 op, u64 first, u64 count, u32 flags, void *reply, size_t cap)
{
	struct ssi_object *object = file_inode(file)->i_private;
	struct ssi_shm_range range = {
		.id = cpu_to_le64(object->id),
		.first = cpu_to_le64(first),
		.count = cpu_to_le64(count),
		.flags = cpu_to_le32(flags),
	};
	ssize_t n = ssi_call(object->home, op, &range, sizeof(range), reply, cap, MAX_SCHEDULE_TIMEOUT);

	return n < 0 ? carried(n) : n == cap ? 0 : -EIO;
}

static long file_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	return call_range(file, OP_SHM_FALLOCATE, offset, len, mode, NULL, 0);
}

static int file_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	return call_range(file, OP_SHM_SYNC, start, end, datasync, NULL, 0);
}

/* memfd_fcntl(): seals. */
bool __ssi_memfd_fcntl(struct file *file, unsigned int cmd, unsigned int arg, long *result)
{
	__le32 reply;

	if (!ssi_object_of(file_inode(file)))
		return false;
	if (cmd == F_ADD_SEALS && !(file->f_mode & FMODE_WRITE)) {
		*result = -EPERM;
		return true;
	}
	*result = call_range(file, OP_SHM_SEALS, arg, 0, cmd, &reply, sizeof(reply));
	if (!*result)
		*result = le32_to_cpu(reply);
	return true;
}

static int object_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct ssi_object *object = inode->i_private;
	int err = ssi_object_stat(object);

	if (err)
		return carried(err);
	generic_fillattr(idmap, mask, inode, stat);
	stat->ino = object->ino;
	return 0;
}

static int object_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	struct ssi_object *object = inode->i_private;
	struct ssi_shm_setattr op = {
		.id = cpu_to_le64(object->id),
		.valid = cpu_to_le32(attr->ia_valid),
		.mode = cpu_to_le32(attr->ia_mode),
		.uid = cpu_to_le32(from_kuid(&init_user_ns, attr->ia_uid)),
		.gid = cpu_to_le32(from_kgid(&init_user_ns, attr->ia_gid)),
		.size = cpu_to_le64(attr->ia_size),
		.atime = cpu_to_le64(timespec64_to_ns(&attr->ia_atime)),
		.mtime = cpu_to_le64(timespec64_to_ns(&attr->ia_mtime)),
	};
	ssize_t n;
	int err;

	err = ssi_object_stat(object);
	if (err)
		return carried(err);
	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;
	n = ssi_call(object->home, OP_SHM_SETATTR, &op, sizeof(op), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	return n < 0 ? carried(n) : carried(ssi_object_stat(object));
}

const struct inode_operations ssi_object_iops = {
	.getattr = object_getattr,
	.setattr = object_setattr,
};

static void drop_ticket(u32 cell, u64 ticket)
{
	struct ssi_rfile_op body = { .id = cpu_to_le64(ticket) };

	ssi_post(cell, OP_RFILE_DROP, &body, sizeof(body));
}

static int file_release(struct inode *inode, struct file *file)
{
	struct ticket *ticket = ticket_of(file);

	if (ticket)
		drop_ticket(ticket->cell, ticket->id);
	kfree(ticket);
	return 0;
}

/* /proc/<pid>/fd/<n>, map_files: the open file at the home is not ours to copy. */
static int file_open(struct inode *inode, struct file *file)
{
	return -ENXIO;
}

const struct file_operations ssi_object_fops = {
	.owner = THIS_MODULE,
	.open = file_open,
	.llseek = file_llseek,
	.read_iter = file_read,
	.write_iter = file_write,
	.splice_read = copy_splice_read,
	.splice_write = iter_file_splice_write,
	.mmap = ssi_object_mmap,
	.fsync = file_fsync,
	.fallocate = file_fallocate,
	.release = file_release,
};

/* ---- shared_wire.h, shared.h ---- */

int ssi_object_map_here(struct ssi_object *object, struct file *file, struct vm_area_struct *vma)
{
	struct file *real = ssi_shared_open(object->id, file->f_mode & FMODE_WRITE);
	int err = PTR_ERR_OR_ZERO(real);

	if (err)
		return err;
	err = call_mmap(real, vma);
	if (!err)
		vma_set_file(vma, real);
	fput(real);
	return err;
}

bool ssi_shared_file_stays(struct file *file)
{
	return ssi_object_of(file_inode(file)) || shmem_mapping(file->f_mapping);
}

bool ssi_shared_file_capable(struct file *file)
{
	struct inode *inode = file_inode(file);

	if (!S_ISREG(inode->i_mode) || file->f_mode & FMODE_PATH || !file->f_op->read_iter)
		return false;
	if (ssi_object_of(inode))
		return ticket_of(file);
	return shmem_mapping(file->f_mapping) || ssi_shared_on_root(inode);
}

bool ssi_shared_file_ticket(struct file *file, u32 *cell, u64 *id)
{
	struct ticket *ticket = ssi_object_of(file_inode(file)) ? ticket_of(file) : NULL;

	if (!ticket)
		return false;
	*cell = ticket->cell;
	*id = ticket->id;
	return true;
}

struct file *ssi_shared_file_open(const struct ssi_rfile_ref *ref)
{
	u32 flags = le32_to_cpu(ref->f_flags);
	struct inode *inode = ssi_object_get(le64_to_cpu(ref->region));
	struct ticket *ticket;
	struct file *file;

	if (IS_ERR(inode))
		return ERR_CAST(inode);
	ticket = kmalloc(sizeof(*ticket), GFP_KERNEL_ACCOUNT);
	file = ticket ? ssi_object_file(inode, flags & (O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | __O_SYNC)) : ERR_PTR(-ENOMEM);
	if (IS_ERR(file)) {
		iput(inode);
		kfree(ticket);
		return file;
	}
	*ticket = (struct ticket){ .cell = le32_to_cpu(ref->cell), .id = le64_to_cpu(ref->id) };
	file->private_data = ticket;
	file->f_pos = POS_HOME;
	return file;
}

void ssi_shared_file_forget(struct file *file)
{
	kfree(file->private_data);
	file->private_data = NULL;
}

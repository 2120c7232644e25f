// SPDX-License-Identifier: GPL-2.0
/*
 * Remote descriptors, at the holder: an open file whose object lives in another cell.
 *
 * A blocking read asks the home; if there is nothing it sleeps here, until the home's NOTIFY, and asks again. So a
 * sleeping process costs the home nothing, and a signal that interrupts it needs no message. While a question is at the
 * home, a signal cancels it there, and bytes that were already taken come back with the answer.
 *
 * What is carried here is streams (terminals, pipes). Files with an offset: shared_file.c.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/init.h>
#include <linux/kdev_t.h>
#include <linux/mount.h>
#include <linux/pid.h>
#include <linux/pseudo_fs.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/tty.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/wait.h>

#include "rfile_wire.h"
#include "shared.h"

#define SSI_RFILE_MAGIC	0x53534946	/* file system type of statfs(2) */

struct remote {
	struct hlist_node node;		/* remotes; under remotes_lock */
	u32 cell;			/* the home */
	u64 id;				/* the ticket there */
	wait_queue_head_t wait;
	atomic_t notified;		/* grows with each NOTIFY */
	bool dead;			/* the home died; never cleared */
};

static DEFINE_SPINLOCK(remotes_lock);
static DEFINE_HASHTABLE(remotes, 6);
static struct vfsmount *remote_mount __ro_after_init;
static const struct file_operations remote_fops;

static bool is_remote(struct file *file)
{
	return file->f_op == &remote_fops;
}

/* What the caller of an operation gets to see when it could not be carried. */
static ssize_t carried(struct remote *remote, ssize_t n)
{
	return n == -EHOSTUNREACH || n == -ENODEV || READ_ONCE(remote->dead) ? -EIO : n;
}

/* ---- read and write ---- */

/* Sleeps until a NOTIFY after @seen, or the home's death. 0 or -ERESTARTSYS. */
static int await_notify(struct remote *remote, int seen)
{
	return wait_event_interruptible(remote->wait,
					atomic_read(&remote->notified) != seen || READ_ONCE(remote->dead));
}

static bool nonblocking(struct kiocb *iocb)
{
	return (iocb->ki_filp->f_flags & O_NONBLOCK) || (iocb->ki_flags & IOCB_NOWAIT);
}

static void op_init(struct ssi_rfile_op *op, struct remote *remote, size_t count, bool nonblock)
{
	*op = (struct ssi_rfile_op) {
		.id = cpu_to_le64(remote->id),
		.count = cpu_to_le32(count),
		.flags = cpu_to_le32(nonblock ? SSI_RFILE_NONBLOCK : SSI_RFILE_NOTIFY),
	};
}

static ssize_t remote_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct remote *remote = iocb->ki_filp->private_data;
	size_t count = min_t(size_t, iov_iter_count(to), SSI_RPC_MAX);
	bool nonblock = nonblocking(iocb);
	struct ssi_rfile_op op;
	ssize_t n;
	void *buffer;

	if (!count)
		return 0;
	/* What the home has given cannot be put back: be sure first that there is a place for it. */
	if (fault_in_iov_iter_writeable(to, count) == count)
		return -EFAULT;
	buffer = kvmalloc(count, GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	op_init(&op, remote, count, nonblock);
	for (;;) {
		int seen = atomic_read(&remote->notified);

		n = ssi_call_interruptible(remote->cell, OP_RFILE_READ, &op, sizeof(op), buffer, count);
		if (n != -EAGAIN || nonblock)
			break;
		n = await_notify(remote, seen);
		if (n)
			break;
	}
	if (n > 0) {
		size_t copied = copy_to_iter(buffer, n, to);

		n = copied ?: -EFAULT;
	}
	kvfree(buffer);
	return carried(remote, n);
}

/* One piece, in the order of the caller's bytes. Bytes taken, or -errno. */
static ssize_t write_piece(struct remote *remote, struct ssi_rfile_op *op, size_t count, bool nonblock)
{
	__le32 taken = 0;
	ssize_t n;

	op_init(op, remote, count, nonblock);
	for (;;) {
		int seen = atomic_read(&remote->notified);

		n = ssi_call_interruptible(remote->cell, OP_RFILE_WRITE, op, sizeof(*op) + count, &taken, sizeof(taken));
		if (n != -EAGAIN || nonblock)
			break;
		n = await_notify(remote, seen);
		if (n)
			break;
	}
	if (n >= 0)
		n = n == sizeof(taken) && le32_to_cpu(taken) <= count ? le32_to_cpu(taken) : -EIO;
	return n;
}

static ssize_t remote_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct remote *remote = iocb->ki_filp->private_data;
	bool nonblock = nonblocking(iocb);
	struct ssi_rfile_op *op;
	size_t done = 0;
	ssize_t n = 0;

	if (!iov_iter_count(from))
		return 0;
	op = kvmalloc(sizeof(*op) + min_t(size_t, iov_iter_count(from), SSI_RFILE_WRITE_MAX), GFP_KERNEL);
	if (!op)
		return -ENOMEM;
	while (iov_iter_count(from)) {
		size_t count = min_t(size_t, iov_iter_count(from), SSI_RFILE_WRITE_MAX);
		size_t copied = copy_from_iter(op + 1, count, from);

		if (!copied) {
			n = -EFAULT;
			break;
		}
		n = write_piece(remote, op, copied, nonblock);
		if (n <= 0) {
			iov_iter_revert(from, copied);
			break;
		}
		done += n;
		if (n < copied) {
			iov_iter_revert(from, copied - n);
			if (nonblock || signal_pending(current))
				break;
		}
	}
	kvfree(op);
	if (n == -EPIPE)
		send_sig(SIGPIPE, current, 0);
	return done ?: carried(remote, n);
}

/* ---- poll ---- */

static __poll_t remote_poll(struct file *file, poll_table *table)
{
	struct remote *remote = file->private_data;
	struct ssi_rfile_op op = { .id = cpu_to_le64(remote->id) };
	__le32 events;
	ssize_t n;

	poll_wait(file, &remote->wait, table);
	/* epoll asks again without a table after each wake-up, and stays in the wait queue. */
	if (!poll_does_not_wait(table) || waitqueue_active(&remote->wait))
		op.flags = cpu_to_le32(SSI_RFILE_NOTIFY);
	n = ssi_call(remote->cell, OP_RFILE_POLL, &op, sizeof(op), &events, sizeof(events), MAX_SCHEDULE_TIMEOUT);
	if (n != sizeof(events))
		return EPOLLERR | EPOLLHUP;
	return (__force __poll_t)le32_to_cpu(events);
}

static void wake(struct remote *remote, __poll_t events)
{
	atomic_inc(&remote->notified);
	if (events)
		wake_up_poll(&remote->wait, events);
	else
		wake_up(&remote->wait);
}

static ssize_t handle_notify(struct ssi_request *req)
{
	const struct ssi_rfile_notify *notify = req->body;
	struct remote *remote;
	u64 id;

	if (req->len != sizeof(*notify))
		return -EINVAL;
	id = le64_to_cpu(notify->id);
	spin_lock(&remotes_lock);
	hash_for_each_possible(remotes, remote, node, id) {
		if (remote->id == id && remote->cell == req->cell)
			wake(remote, (__force __poll_t)le32_to_cpu(notify->events));
	}
	spin_unlock(&remotes_lock);
	return 0;
}

static void home_died(u32 cell)
{
	struct remote *remote;
	int bucket;

	spin_lock(&remotes_lock);
	hash_for_each(remotes, bucket, remote, node) {
		if (remote->cell == cell) {
			WRITE_ONCE(remote->dead, true);
			wake(remote, EPOLLERR | EPOLLHUP);
		}
	}
	spin_unlock(&remotes_lock);
}

/* ---- ioctl ---- */

static const struct ssi_ioctl ioctls[] = {
	{ TCGETS,	SSI_IOCTL_OUT,	sizeof(struct termios) },
	{ TCSETS,	SSI_IOCTL_IN,	sizeof(struct termios) },
	{ TCSETSW,	SSI_IOCTL_IN,	sizeof(struct termios) },
	{ TCSETSF,	SSI_IOCTL_IN,	sizeof(struct termios) },
	{ TCGETS2,	SSI_IOCTL_OUT,	sizeof(struct termios2) },
	{ TCSETS2,	SSI_IOCTL_IN,	sizeof(struct termios2) },
	{ TCSETSW2,	SSI_IOCTL_IN,	sizeof(struct termios2) },
	{ TCSETSF2,	SSI_IOCTL_IN,	sizeof(struct termios2) },
	{ TCGETA,	SSI_IOCTL_OUT,	sizeof(struct termio) },
	{ TCSETA,	SSI_IOCTL_IN,	sizeof(struct termio) },
	{ TCSETAW,	SSI_IOCTL_IN,	sizeof(struct termio) },
	{ TCSETAF,	SSI_IOCTL_IN,	sizeof(struct termio) },
	{ TCSBRK,	SSI_IOCTL_VALUE },
	{ TCSBRKP,	SSI_IOCTL_VALUE },
	{ TCXONC,	SSI_IOCTL_VALUE },
	{ TCFLSH,	SSI_IOCTL_VALUE },
	{ TIOCGPGRP,	SSI_IOCTL_JOB_GET, sizeof(u32) },
	{ TIOCGSID,	SSI_IOCTL_JOB_GET, sizeof(u32) },
	{ TIOCSPGRP,	SSI_IOCTL_JOB_SET, sizeof(u32) },
	{ TIOCOUTQ,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ FIONREAD,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCGWINSZ,	SSI_IOCTL_OUT,	sizeof(struct winsize) },
	{ TIOCSWINSZ,	SSI_IOCTL_IN,	sizeof(struct winsize) },
	{ TIOCMGET,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCMSET,	SSI_IOCTL_IN,	sizeof(u32) },
	{ TIOCMBIS,	SSI_IOCTL_IN,	sizeof(u32) },
	{ TIOCMBIC,	SSI_IOCTL_IN,	sizeof(u32) },
	{ TIOCGETD,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCGPTN,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCSPTLCK,	SSI_IOCTL_IN,	sizeof(u32) },
	{ TIOCGPTLCK,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCPKT,	SSI_IOCTL_IN,	sizeof(u32) },
	{ TIOCGPKT,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCGEXCL,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCGDEV,	SSI_IOCTL_OUT,	sizeof(u32) },
	{ TIOCSIG,	SSI_IOCTL_VALUE },
};
static_assert(sizeof(struct termios2) <= sizeof_field(struct ssi_rfile_ioctl, data));

const struct ssi_ioctl *ssi_rfile_ioctl_find(u32 cmd)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		if (ioctls[i].cmd == cmd)
			return &ioctls[i];
	}
	return NULL;
}

static long remote_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	const struct ssi_ioctl *known = ssi_rfile_ioctl_find(cmd);
	struct remote *remote = file->private_data;
	struct ssi_rfile_ioctl op = { .id = cpu_to_le64(remote->id), .cmd = cpu_to_le32(cmd) };
	struct ssi_rfile_ioctl_reply reply;
	void __user *user = (void __user *)arg;
	ssize_t n;

	if (!known)
		return -ENOTTY;
	op.session = cpu_to_le32(pid_nr(task_session(current)));
	if (known->kind == SSI_IOCTL_VALUE)
		op.arg = cpu_to_le64(arg);
	else if ((known->kind == SSI_IOCTL_IN || known->kind == SSI_IOCTL_JOB_SET) &&
		 copy_from_user(op.data, user, known->size))
		return -EFAULT;
	n = ssi_call_interruptible(remote->cell, OP_RFILE_IOCTL, &op, sizeof(op), &reply, sizeof(reply));
	if (n < 0)
		return carried(remote, n);
	if (n != sizeof(reply))
		return -EIO;
	if ((known->kind == SSI_IOCTL_OUT || known->kind == SSI_IOCTL_JOB_GET) &&
	    copy_to_user(user, reply.data, known->size))
		return -EFAULT;
	return (int)le32_to_cpu(reply.result);
}

/* ---- the file ---- */

static struct remote *new_remote(u32 cell, u64 id)
{
	struct remote *remote = kzalloc(sizeof(*remote), GFP_KERNEL_ACCOUNT);

	if (!remote)
		return NULL;
	remote->cell = cell;
	remote->id = id;
	init_waitqueue_head(&remote->wait);
	spin_lock(&remotes_lock);
	hash_add(remotes, &remote->node, remote->id);
	spin_unlock(&remotes_lock);
	if (!ssi_cell_alive(remote->cell))	/* home_died() may have passed before */
		WRITE_ONCE(remote->dead, true);
	return remote;
}

static void free_remote(struct remote *remote)
{
	spin_lock(&remotes_lock);
	hash_del(&remote->node);
	spin_unlock(&remotes_lock);
	kfree(remote);
}

static int call_with_id(u32 cell, u16 op, u64 id, void *reply, size_t cap)
{
	struct ssi_rfile_op body = { .id = cpu_to_le64(id) };
	ssize_t n = ssi_call(cell, op, &body, sizeof(body), reply, cap, MAX_SCHEDULE_TIMEOUT);

	return n < 0 ? n : n == cap ? 0 : -EIO;
}

/* A failure is the home's death, and then there is nothing left to drop. */
static void drop(u32 cell, u64 id)
{
	struct ssi_rfile_op body = { .id = cpu_to_le64(id) };

	ssi_post(cell, OP_RFILE_DROP, &body, sizeof(body));
}

/*
 * Of /proc/<pid>/fd/<n>, the only path to such an inode: another open file for the same one at the home. The inode knows
 * the ticket of the file that it was made for (i_private; i_generation: the cell); once that is closed this fails.
 */
static int remote_open(struct inode *inode, struct file *file)
{
	u32 cell = inode->i_generation;
	struct remote *remote;
	__le64 id;
	int error;

	error = call_with_id(cell, OP_RFILE_DUP, (u64)inode->i_private, &id, sizeof(id));
	if (!error)
		error = call_with_id(cell, OP_RFILE_CLAIM, le64_to_cpu(id), NULL, 0);
	if (error)
		return -ENXIO;
	remote = new_remote(cell, le64_to_cpu(id));
	if (!remote) {
		drop(cell, le64_to_cpu(id));
		return -ENOMEM;
	}
	file->private_data = remote;
	return stream_open(inode, file);
}

static int remote_release(struct inode *inode, struct file *file)
{
	struct remote *remote = file->private_data;

	drop(remote->cell, remote->id);
	free_remote(remote);
	return 0;
}

static void remote_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct remote *remote = file->private_data;

	seq_printf(m, "ssi-cell:\t%u\nssi-id:\t%llu\n", remote->cell, remote->id);
}

static const struct file_operations remote_fops = {
	.owner = THIS_MODULE,
	.open = remote_open,
	.read_iter = remote_read,
	.write_iter = remote_write,
	.splice_read = copy_splice_read,
	.splice_write = iter_file_splice_write,
	.poll = remote_poll,
	.unlocked_ioctl = remote_ioctl,
	.release = remote_release,
	.show_fdinfo = remote_show_fdinfo,
};

/* The name that /proc/<pid>/fd shows: a terminal's is the same in every cell. */
static char *remote_dname(struct dentry *dentry, char *buffer, int size)
{
	struct inode *inode = d_inode(dentry);
	unsigned int major = MAJOR(inode->i_rdev), minor = MINOR(inode->i_rdev);

	if (S_ISFIFO(inode->i_mode))
		return dynamic_dname(buffer, size, "pipe:[%lu]", inode->i_ino);
	if (major >= UNIX98_PTY_SLAVE_MAJOR && major < UNIX98_PTY_SLAVE_MAJOR + UNIX98_PTY_MAJOR_COUNT)
		return dynamic_dname(buffer, size, "/dev/pts/%u",
				     (major - UNIX98_PTY_SLAVE_MAJOR) * 256 + minor);
	if (inode->i_rdev == MKDEV(TTYAUX_MAJOR, 0))
		return dynamic_dname(buffer, size, "/dev/tty");
	if (inode->i_rdev == MKDEV(TTYAUX_MAJOR, 1))
		return dynamic_dname(buffer, size, "/dev/console");
	if (inode->i_rdev == MKDEV(TTYAUX_MAJOR, 2))
		return dynamic_dname(buffer, size, "/dev/ptmx");
	return dynamic_dname(buffer, size, "ssi:[%u:%u]", major, minor);
}

static const struct dentry_operations remote_dentries = {
	.d_dname = remote_dname,
};

static int remote_init_fs_context(struct fs_context *fc)
{
	struct pseudo_fs_context *context = init_pseudo(fc, SSI_RFILE_MAGIC);

	if (!context)
		return -ENOMEM;
	context->dops = &remote_dentries;
	return 0;
}

static struct file_system_type remote_fs = {
	.name = "ssi_rfile",
	.init_fs_context = remote_init_fs_context,
	.kill_sb = kill_anon_super,
};

static struct file *open_remote(const struct ssi_rfile_ref *ref)
{
	u32 mode = le32_to_cpu(ref->mode), rdev = le32_to_cpu(ref->rdev);
	struct remote *remote;
	struct inode *inode;
	struct file *file;

	remote = new_remote(le32_to_cpu(ref->cell), le64_to_cpu(ref->id));
	if (!remote)
		return ERR_PTR(-ENOMEM);
	inode = alloc_anon_inode(remote_mount->mnt_sb);
	if (IS_ERR(inode)) {
		free_remote(remote);
		return ERR_CAST(inode);
	}
	inode->i_mode = mode & (S_IFMT | 0777);
	inode->i_rdev = S_ISCHR(mode) ? new_decode_dev(rdev) : 0;
	inode->i_fop = &remote_fops;
	inode->i_private = (void *)remote->id;
	inode->i_generation = remote->cell;
	file = alloc_file_pseudo(inode, remote_mount, "", le32_to_cpu(ref->f_flags) & (O_ACCMODE | O_NONBLOCK),
				 &remote_fops);
	if (IS_ERR(file)) {
		iput(inode);
		free_remote(remote);
		return file;
	}
	file->private_data = remote;
	stream_open(inode, file);
	return file;
}

/* ---- rfile.h ---- */

bool ssi_rfile_capable(struct file *file)
{
	return is_remote(file) || ssi_rfile_home_capable(file) || ssi_shared_file_capable(file);
}

int ssi_rfile_export(struct file *file, struct ssi_rfile_ref *ref)
{
	struct inode *inode = file_inode(file);
	struct remote *remote = file->private_data;
	u64 id, region = 0;
	int error;
	u32 cell;

	memset(ref, 0, sizeof(*ref));
	ref->f_flags = cpu_to_le32(file->f_flags);
	ref->mode = cpu_to_le32(inode->i_mode);
	ref->rdev = cpu_to_le32(S_ISCHR(inode->i_mode) ? new_encode_dev(inode->i_rdev) : 0);

	if (is_remote(file)) {
		ref->cell = cpu_to_le32(remote->cell);
		return call_with_id(remote->cell, OP_RFILE_DUP, remote->id, &ref->id, sizeof(ref->id));
	}
	if (!ssi_present())
		return -ENODEV;
	if (S_ISREG(inode->i_mode) && ssi_shared_file_capable(file)) {
		error = ssi_shared_get(file, &region);
		if (error)
			return error;
		ref->region = cpu_to_le64(region);
		if (ssi_shared_file_ticket(file, &cell, &id)) {
			ssi_shared_put(region);
			ref->cell = cpu_to_le32(cell);
			return call_with_id(cell, OP_RFILE_DUP, id, &ref->id, sizeof(ref->id));
		}
	} else if (!ssi_rfile_home_capable(file)) {
		return -EOPNOTSUPP;
	}
	error = ssi_rfile_home_export(file, ssi_this_cell(), region, &id);
	if (error)
		return error;
	ref->cell = cpu_to_le32(ssi_this_cell());
	ref->id = cpu_to_le64(id);
	return 0;
}

void ssi_rfile_unexport(const struct ssi_rfile_ref *ref)
{
	u32 cell = le32_to_cpu(ref->cell);

	if (cell == ssi_this_cell())
		ssi_rfile_home_drop(le64_to_cpu(ref->id), cell);
	else
		drop(cell, le64_to_cpu(ref->id));
}

static struct file *take_home(const struct ssi_rfile_ref *ref)
{
	struct file *file = ssi_rfile_home_take(le64_to_cpu(ref->id));

	if (IS_ERR(file))
		return file;
	/* What the holder set with F_SETFL. */
	spin_lock(&file->f_lock);
	file->f_flags = (file->f_flags & ~O_NONBLOCK) | (le32_to_cpu(ref->f_flags) & O_NONBLOCK);
	spin_unlock(&file->f_lock);
	return file;
}

/* DROP of ticket 0 drops nothing. */
static void forget(struct remote *remote)
{
	spin_lock(&remotes_lock);
	hash_del(&remote->node);
	remote->id = 0;
	hash_add(remotes, &remote->node, 0);
	spin_unlock(&remotes_lock);
}

struct file *ssi_rfile_import(const struct ssi_rfile_ref *ref)
{
	u32 cell = le32_to_cpu(ref->cell), mode = le32_to_cpu(ref->mode);
	struct file *file;
	int error;

	if (!ssi_present())
		return ERR_PTR(-ENODEV);
	if (cell >= ssi_cells() || !ref->id || (!S_ISCHR(mode) && !S_ISFIFO(mode) && !S_ISREG(mode)))
		return ERR_PTR(-EINVAL);
	if (cell == ssi_this_cell())
		return take_home(ref);

	/* The file first: what can fail after CLAIM would lose the reference that a failure leaves to the caller. */
	file = S_ISREG(mode) ? ssi_shared_file_open(ref) : open_remote(ref);
	if (IS_ERR(file))
		return file;
	error = call_with_id(cell, OP_RFILE_CLAIM, le64_to_cpu(ref->id), NULL, 0);
	if (error) {
		/* Closing must not drop the caller's reference. */
		if (S_ISREG(mode))
			ssi_shared_file_forget(file);
		else
			forget(file->private_data);
		fput(file);
		return ERR_PTR(error);
	}
	return file;
}

static int __init rfile_init(void)
{
	remote_mount = kern_mount(&remote_fs);
	if (IS_ERR(remote_mount))
		return PTR_ERR(remote_mount);
	ssi_rpc_register(OP_RFILE_NOTIFY, handle_notify);
	ssi_on_cell_death(home_died);
	return ssi_rfile_home_init();
}
fs_initcall(rfile_init);

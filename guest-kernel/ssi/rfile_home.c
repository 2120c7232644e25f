// SPDX-License-Identifier: GPL-2.0
/*
 * Remote descriptors, at the object's home: the tickets of other cells to open files of this one.
 *
 * Handlers run on ssi's threads. They do not sleep for data if that can be helped: a reader that finds none is told
 * -EAGAIN and gets a NOTIFY when there may be some. Where a file cannot be asked that way (a terminal that is full, or
 * reads with MIN and TIME), the thread sleeps in its place and is cancelled with it.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pid.h>
#include <linux/pipe_fs_i.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/tty.h>
#include <linux/tty_driver.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "../drivers/tty/tty.h"	/* tty_default_fops() */
#include "rfile_wire.h"
#include "shared.h"

#define TICKETS_MAX	65536		/* open at once; beyond that export fails */
#define WAITS		4		/* wait queues of one file; a terminal and a pipe have two */

struct ticket;

struct wait_link {
	wait_queue_entry_t entry;
	wait_queue_head_t *head;
	struct ticket *ticket;
};

struct ticket {
	u64 id;
	struct file *file;		/* a reference */
	u64 region;			/* of a regular file, with a reference; else 0 */
	struct kref kref;		/* one of the table, one of each operation under way */

	u32 owner;			/* cell; under the xa_lock */
	bool claimed;			/* likewise */

	struct mutex watch_lock;	/* @watched, @links while they are filled */
	bool watched;			/* @links are in the file's wait queues, until the end */
	unsigned int links_count;
	struct wait_link links[WAITS];
	poll_table table;
	atomic_t armed;			/* the holder waits for a NOTIFY */
	struct work_struct notify;	/* sends it; holds a kref while queued */
};

static DEFINE_XARRAY_ALLOC1(tickets);	/* id -> struct ticket */
static u64 last_id;			/* under the xa_lock of @tickets */
static unsigned int tickets_count;	/* likewise */

/* ---- tickets ---- */

static void ticket_free(struct kref *kref)
{
	struct ticket *ticket = container_of(kref, struct ticket, kref);
	unsigned int i;

	/* A wake-up that runs right now finds no reference to take, and is over when the entry is out. */
	for (i = 0; i < ticket->links_count; i++)
		remove_wait_queue(ticket->links[i].head, &ticket->links[i].entry);
	fput(ticket->file);
	if (ticket->region)
		ssi_shared_put(ticket->region);
	kfree(ticket);
}

static void ticket_put(struct ticket *ticket)
{
	kref_put(&ticket->kref, ticket_free);
}

/* The claimed ticket @id of @owner, with a reference; or NULL. */
static struct ticket *ticket_get(u64 id, u32 owner)
{
	struct ticket *ticket;

	xa_lock(&tickets);
	ticket = xa_load(&tickets, id);
	if (ticket && ticket->owner == owner && ticket->claimed)
		kref_get(&ticket->kref);
	else
		ticket = NULL;
	xa_unlock(&tickets);
	return ticket;
}

static void notify_work(struct work_struct *work);

int ssi_rfile_home_export(struct file *file, u32 owner, u64 region, u64 *id)
{
	struct ticket *ticket = kzalloc(sizeof(*ticket), GFP_KERNEL_ACCOUNT);
	int error = 0;

	if (!ticket) {
		if (region)
			ssi_shared_put(region);
		return -ENOMEM;
	}
	ticket->file = get_file(file);
	ticket->region = region;
	ticket->owner = owner;
	kref_init(&ticket->kref);
	mutex_init(&ticket->watch_lock);
	INIT_WORK(&ticket->notify, notify_work);

	xa_lock(&tickets);
	if (tickets_count >= TICKETS_MAX) {
		error = -ENFILE;
	} else {
		ticket->id = ++last_id;
		error = xa_err(__xa_store(&tickets, ticket->id, ticket, GFP_KERNEL));
		if (!error)
			tickets_count++;
	}
	xa_unlock(&tickets);
	if (error) {
		ticket_put(ticket);
		return error;
	}
	*id = ticket->id;
	return 0;
}

/* Takes the ticket out of the table if @want allows; the table's reference goes to the caller. */
static struct ticket *ticket_take(u64 id, bool any_claim, u32 owner)
{
	struct ticket *ticket;

	xa_lock(&tickets);
	ticket = xa_load(&tickets, id);
	if (ticket && (any_claim ? ticket->owner == owner : !ticket->claimed)) {
		__xa_erase(&tickets, id);
		tickets_count--;
	} else {
		ticket = NULL;
	}
	xa_unlock(&tickets);
	return ticket;
}

struct file *ssi_rfile_home_take(u64 id)
{
	struct ticket *ticket = ticket_take(id, false, 0);
	struct file *file;

	if (!ticket)
		return ERR_PTR(-ESTALE);
	file = get_file(ticket->file);
	ticket_put(ticket);
	return file;
}

void ssi_rfile_home_drop(u64 id, u32 owner)
{
	struct ticket *ticket = ticket_take(id, true, owner);

	if (ticket)
		ticket_put(ticket);
}

static void drop_all_of(u32 cell)
{
	struct ticket *ticket;
	unsigned long id;

	xa_for_each(&tickets, id, ticket)
		ssi_rfile_home_drop(id, cell);
}

/* ---- wake-ups ---- */

static int on_wake(wait_queue_entry_t *entry, unsigned int mode, int sync, void *key)
{
	struct wait_link *link = container_of(entry, struct wait_link, entry);
	struct ticket *ticket = link->ticket;

	/* Any lock may be held here. One NOTIFY per request for it. */
	if (atomic_cmpxchg(&ticket->armed, 1, 0) == 1 && kref_get_unless_zero(&ticket->kref)) {
		if (!queue_work(system_unbound_wq, &ticket->notify))
			ticket_put(ticket);	/* queued already: not the last reference, that one holds one too */
	}
	return 0;
}

static void notify_work(struct work_struct *work)
{
	struct ticket *ticket = container_of(work, struct ticket, notify);
	struct ssi_rfile_notify notify = {
		.id = cpu_to_le64(ticket->id),
		.events = cpu_to_le32((__force u32)vfs_poll(ticket->file, NULL)),
	};

	/* If the holder is dead, its ticket goes with it. */
	ssi_post(READ_ONCE(ticket->owner), OP_RFILE_NOTIFY, &notify, sizeof(notify));
	ticket_put(ticket);
}

static void watch_queue_head(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct ticket *ticket = container_of(table, struct ticket, table);
	struct wait_link *link;

	if (WARN_ON_ONCE(ticket->links_count == WAITS))
		return;
	link = &ticket->links[ticket->links_count++];
	link->head = head;
	link->ticket = ticket;
	init_waitqueue_func_entry(&link->entry, on_wake);
	add_wait_queue(head, &link->entry);
}

/* From here on the next wake-up sends a NOTIFY. What is ready already: the caller asks afterwards. */
static void arm(struct ticket *ticket)
{
	mutex_lock(&ticket->watch_lock);
	if (!ticket->watched) {
		init_poll_funcptr(&ticket->table, watch_queue_head);
		vfs_poll(ticket->file, &ticket->table);
		ticket->watched = true;
	}
	mutex_unlock(&ticket->watch_lock);
	atomic_set(&ticket->armed, 1);
	smp_mb();	/* before the question what is ready; pairs with the waker's set-then-wake */
}

/* ---- operations ---- */

static struct file_operations tty_fops __ro_after_init;

static struct tty_struct *tty_of(struct file *file)
{
	return ((struct tty_file_private *)file->private_data)->tty;
}

static bool is_tty(struct file *file)
{
	/* The console has its own table, with the terminals' functions. A terminal that was hung up is none any more. */
	return S_ISCHR(file_inode(file)->i_mode) && file->private_data &&
	       file->f_op->read_iter == tty_fops.read_iter && file->f_op->unlocked_ioctl == tty_fops.unlocked_ioctl;
}

bool ssi_rfile_home_capable(struct file *file)
{
	return get_pipe_info(file, true) || is_tty(file);
}

/* A read that must run as it is, sleeping included: MIN and TIME of termios(3) mean something. */
static bool reads_with_time(struct file *file)
{
	struct tty_struct *tty;
	bool timed;

	if (!is_tty(file))
		return false;
	tty = tty_of(file);
	down_read(&tty->termios_rwsem);
	timed = !L_ICANON(tty) && (TIME_CHAR(tty) || MIN_CHAR(tty) > 1);
	up_read(&tty->termios_rwsem);
	return timed;
}

static ssize_t read_at_once(struct file *file, void *to, size_t count, bool may_sleep)
{
	struct kvec vec = { .iov_base = to, .iov_len = count };
	struct iov_iter iter;
	struct kiocb kiocb;
	ssize_t n;

	init_sync_kiocb(&kiocb, file);
	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, count);
	if (may_sleep)
		return file->f_op->read_iter(&kiocb, &iter);

	if (!is_tty(file)) {
		kiocb.ki_flags |= IOCB_NOWAIT;
		return file->f_op->read_iter(&kiocb, &iter);
	}
	/* Terminals do not know IOCB_NOWAIT, but what they have they give before they look for signals. */
	set_thread_flag(TIF_SIGPENDING);
	n = file->f_op->read_iter(&kiocb, &iter);
	spin_lock_irq(&current->sighand->siglock);
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
	return n == -ERESTARTSYS || n == -EINTR ? -EAGAIN : n;
}

static ssize_t do_read(struct ticket *ticket, u32 flags, void *to, size_t count)
{
	struct file *file = ticket->file;
	ssize_t n;

	if (!(file->f_mode & FMODE_READ))
		return -EBADF;
	if (!file->f_op->read_iter)
		return -EIO;
	if (!(flags & SSI_RFILE_NONBLOCK) && reads_with_time(file))
		return read_at_once(file, to, count, true);
	n = read_at_once(file, to, count, false);
	if (n != -EAGAIN || !(flags & SSI_RFILE_NOTIFY))
		return n;
	arm(ticket);
	n = read_at_once(file, to, count, false);
	/* Somebody else reads this terminal, and takes what is there or not: nothing would wake us, so stand in line. */
	if (n == -EAGAIN && !(flags & SSI_RFILE_NONBLOCK) && is_tty(file) && (vfs_poll(file, NULL) & EPOLLIN))
		n = read_at_once(file, to, count, true);
	return n;
}

static ssize_t do_write(struct ticket *ticket, u32 flags, const void *from, size_t count)
{
	struct kvec vec = { .iov_base = (void *)from, .iov_len = count };
	struct file *file = ticket->file;
	struct iov_iter iter;
	struct kiocb kiocb;

	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!file->f_op->write_iter)
		return -EIO;
	if (is_tty(file)) {
		/* Sleeps where it must; for a holder that does not want to, only what the terminal has room for. */
		if (flags & SSI_RFILE_NONBLOCK) {
			if (!(vfs_poll(file, NULL) & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
				return -EAGAIN;
			count = clamp_t(size_t, tty_write_room(tty_of(file)), 1, count);
		}
		init_sync_kiocb(&kiocb, file);
	} else {
		init_sync_kiocb(&kiocb, file);
		kiocb.ki_flags |= IOCB_NOWAIT;
	}
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, count);
	return file->f_op->write_iter(&kiocb, &iter);
}

/* The request's common part, and the ticket with a reference; or ERR_PTR. */
static struct ticket *begin(struct ssi_request *req, size_t least)
{
	const struct ssi_rfile_op *op = req->body;
	struct ticket *ticket;

	if (req->len < least)
		return ERR_PTR(-EINVAL);
	ticket = ticket_get(le64_to_cpu(op->id), req->cell);
	return ticket ?: ERR_PTR(-EBADF);
}

static ssize_t handle_read(struct ssi_request *req)
{
	const struct ssi_rfile_op *op = req->body;
	struct ticket *ticket = begin(req, sizeof(*op));
	ssize_t n;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	n = do_read(ticket, le32_to_cpu(op->flags), req->reply, min_t(u32, le32_to_cpu(op->count), SSI_RPC_MAX));
	ticket_put(ticket);
	return n;
}

static ssize_t handle_write(struct ssi_request *req)
{
	const struct ssi_rfile_op *op = req->body;
	struct ticket *ticket = begin(req, sizeof(*op));
	u32 flags, count;
	__le32 *taken = req->reply;
	ssize_t n = -EINVAL;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	flags = le32_to_cpu(op->flags);
	count = le32_to_cpu(op->count);
	if (count && count == req->len - sizeof(*op)) {
		n = do_write(ticket, flags, op + 1, count);
		if (n == -EAGAIN && (flags & SSI_RFILE_NOTIFY)) {
			arm(ticket);
			n = do_write(ticket, flags, op + 1, count);
		}
	}
	ticket_put(ticket);
	if (n < 0)
		return n;
	*taken = cpu_to_le32(n);
	return sizeof(*taken);
}

static ssize_t handle_poll(struct ssi_request *req)
{
	const struct ssi_rfile_op *op = req->body;
	struct ticket *ticket = begin(req, sizeof(*op));
	__le32 *events = req->reply;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	if (le32_to_cpu(op->flags) & SSI_RFILE_NOTIFY)
		arm(ticket);
	*events = cpu_to_le32((__force u32)vfs_poll(ticket->file, NULL));
	ticket_put(ticket);
	return sizeof(*events);
}

/* ---- files with an offset ---- */

static struct ticket *begin_file(struct ssi_request *req, size_t least)
{
	struct ticket *ticket = begin(req, least);

	if (IS_ERR(ticket) || ticket->region)
		return ticket;
	ticket_put(ticket);
	return ERR_PTR(-EINVAL);
}

static ssize_t handle_fread(struct ssi_request *req)
{
	const struct ssi_rfile_fop *op = req->body;
	struct ticket *ticket = begin_file(req, sizeof(*op));
	struct kvec vec = { .iov_base = req->reply };
	struct iov_iter iter;
	loff_t pos;
	ssize_t n;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	vec.iov_len = min_t(u32, le32_to_cpu(op->op.count), SSI_RPC_MAX);
	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, vec.iov_len);
	pos = le64_to_cpu(op->pos);
	if (pos == SSI_RFILE_POS_HOME) {
		mutex_lock(&ticket->file->f_pos_lock);
		n = vfs_iter_read(ticket->file, &iter, &ticket->file->f_pos, 0);
		mutex_unlock(&ticket->file->f_pos_lock);
	} else {
		n = vfs_iter_read(ticket->file, &iter, &pos, 0);
	}
	ticket_put(ticket);
	return n;
}

static ssize_t handle_fwrite(struct ssi_request *req)
{
	const struct ssi_rfile_fop *op = req->body;
	struct ticket *ticket = begin_file(req, sizeof(*op));
	struct ssi_rfile_fdone *done = req->reply;
	struct iov_iter iter;
	struct kvec vec;
	ssize_t n = -EINVAL;
	loff_t pos;
	rwf_t rwf;
	u32 flags;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	vec = (struct kvec){ .iov_base = (void *)(op + 1), .iov_len = req->len - sizeof(*op) };
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, vec.iov_len);
	flags = le32_to_cpu(op->op.flags);
	rwf = (flags & SSI_RFILE_APPEND ? RWF_APPEND : 0) | (flags & SSI_RFILE_DSYNC ? RWF_DSYNC : 0);
	pos = le64_to_cpu(op->pos);
	if (le32_to_cpu(op->op.count) != vec.iov_len)
		goto out;
	if (pos == SSI_RFILE_POS_HOME) {
		mutex_lock(&ticket->file->f_pos_lock);
		n = vfs_iter_write(ticket->file, &iter, &ticket->file->f_pos, rwf);
		pos = ticket->file->f_pos;
		mutex_unlock(&ticket->file->f_pos_lock);
	} else {
		n = vfs_iter_write(ticket->file, &iter, &pos, rwf);
	}
out:
	ticket_put(ticket);
	if (n < 0)
		return n;
	*done = (struct ssi_rfile_fdone){ .taken = cpu_to_le32(n), .pos = cpu_to_le64(pos) };
	return sizeof(*done);
}

static ssize_t handle_fseek(struct ssi_request *req)
{
	const struct ssi_rfile_fop *op = req->body;
	struct ticket *ticket = begin_file(req, sizeof(*op));
	__le64 *answer = req->reply;
	u32 whence;
	loff_t pos;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	whence = le32_to_cpu(op->op.flags);
	mutex_lock(&ticket->file->f_pos_lock);
	pos = whence <= SEEK_MAX ? vfs_llseek(ticket->file, le64_to_cpu(op->pos), whence) : -EINVAL;
	mutex_unlock(&ticket->file->f_pos_lock);
	ticket_put(ticket);
	if (pos < 0)
		return pos;
	*answer = cpu_to_le64(pos);
	return sizeof(*answer);
}

/* ---- ioctl ---- */

#define SCRATCH_ADDRESS	0x100000UL

/*
 * Drivers read and write an ioctl's argument in user memory, and this thread has none: an address space of one page, for
 * one call.
 */
static int ioctl_in_scratch(struct file *file, u32 cmd, const struct ssi_ioctl *known, void *data)
{
	void __user *user = (void __user *)SCRATCH_ADDRESS;
	struct mm_struct *mm = mm_alloc();
	unsigned long at;
	int result;

	if (!mm)
		return -ENOMEM;
	kthread_use_mm(mm);
	at = vm_mmap(NULL, SCRATCH_ADDRESS, PAGE_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0);
	if (IS_ERR_VALUE(at))
		result = at;
	else if (known->kind == SSI_IOCTL_IN && copy_to_user(user, data, known->size))
		result = -EFAULT;
	else
		result = file->f_op->unlocked_ioctl(file, cmd, SCRATCH_ADDRESS);
	if (result >= 0 && known->kind == SSI_IOCTL_OUT && copy_from_user(data, user, known->size))
		result = -EFAULT;
	kthread_unuse_mm(mm);
	mmput(mm);
	return result;
}

static struct tty_struct *slave_of(struct tty_struct *tty)
{
	bool master = tty->driver->type == TTY_DRIVER_TYPE_PTY && tty->driver->subtype == PTY_TYPE_MASTER;

	return master && tty->link ? tty->link : tty;
}

/* tcgetpgrp(3), tcgetsid(3): a session sees its own terminal only; of a master side, the slave's is meant. */
static int job_get(struct tty_struct *tty, u32 cmd, pid_t session, u32 *value)
{
	struct tty_struct *real = slave_of(tty);
	int result = -ENOTTY;

	spin_lock_irq(&real->ctrl.lock);
	if (real->ctrl.session && (tty != real || pid_nr(real->ctrl.session) == session)) {
		*value = pid_nr(cmd == TIOCGSID ? real->ctrl.session : real->ctrl.pgrp);
		result = 0;
	}
	spin_unlock_irq(&real->ctrl.lock);
	return result;
}

/* tcsetpgrp(3). */
static int job_set(struct tty_struct *tty, pid_t session, u32 value)
{
	struct tty_struct *real = slave_of(tty);
	struct task_struct *leader;
	struct pid *group, *old;
	int result = -ENOTTY;

	if ((s32)value < 0)
		return -EINVAL;
	spin_lock_irq(&real->ctrl.lock);
	if (!real->ctrl.session || pid_nr(real->ctrl.session) != session)
		goto out;
	rcu_read_lock();
	group = find_pid_ns(value, &init_pid_ns);
	leader = group ? pid_task(group, PIDTYPE_PGID) : NULL;
	if (!leader) {
		result = -ESRCH;
	} else if (task_session(leader) != real->ctrl.session) {
		result = -EPERM;
	} else {
		old = real->ctrl.pgrp;
		real->ctrl.pgrp = get_pid(group);
		put_pid(old);
		result = 0;
	}
	rcu_read_unlock();
out:
	spin_unlock_irq(&real->ctrl.lock);
	return result;
}

static int do_ioctl(struct file *file, const struct ssi_ioctl *known, const struct ssi_rfile_ioctl *op, void *data)
{
	pid_t session = le32_to_cpu(op->session);
	u32 value = 0;
	int result;

	if (!file->f_op->unlocked_ioctl)
		return -ENOTTY;
	switch (known->kind) {
	case SSI_IOCTL_VALUE:
		return file->f_op->unlocked_ioctl(file, known->cmd, le64_to_cpu(op->arg));
	case SSI_IOCTL_JOB_GET:
		if (!is_tty(file))
			return -ENOTTY;
		result = job_get(tty_of(file), known->cmd, session, &value);
		memcpy(data, &value, sizeof(value));
		return result;
	case SSI_IOCTL_JOB_SET:
		if (!is_tty(file))
			return -ENOTTY;
		memcpy(&value, data, sizeof(value));
		return job_set(tty_of(file), session, value);
	default:
		return ioctl_in_scratch(file, known->cmd, known, data);
	}
}

static ssize_t handle_ioctl(struct ssi_request *req)
{
	const struct ssi_rfile_ioctl *op = req->body;
	struct ssi_rfile_ioctl_reply *reply = req->reply;
	const struct ssi_ioctl *known;
	struct ticket *ticket = begin(req, sizeof(*op));
	int result = -ENOTTY;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	memset(reply, 0, sizeof(*reply));
	memcpy(reply->data, op->data, sizeof(reply->data));
	known = ssi_rfile_ioctl_find(le32_to_cpu(op->cmd));
	if (known)
		result = do_ioctl(ticket->file, known, op, reply->data);
	ticket_put(ticket);
	if (result < 0)
		return result == -ENOIOCTLCMD ? -ENOTTY : result;
	reply->result = cpu_to_le32(result);
	return sizeof(*reply);
}

/* ---- tickets, from afar ---- */

static ssize_t handle_claim(struct ssi_request *req)
{
	const struct ssi_rfile_op *op = req->body;
	struct ticket *ticket;
	ssize_t error = -ESTALE;

	if (req->len != sizeof(*op))
		return -EINVAL;
	xa_lock(&tickets);
	ticket = xa_load(&tickets, le64_to_cpu(op->id));
	if (ticket && !ticket->claimed) {
		ticket->claimed = true;
		ticket->owner = req->cell;
		error = 0;
	}
	xa_unlock(&tickets);
	if (!error && !ssi_cell_alive(req->cell))	/* drop_all_of() may have passed before */
		ssi_rfile_home_drop(le64_to_cpu(op->id), req->cell);
	return error;
}

static ssize_t handle_dup(struct ssi_request *req)
{
	const struct ssi_rfile_op *op = req->body;
	struct ticket *ticket = begin(req, sizeof(*op));
	__le64 *answer = req->reply;
	u64 id, region = 0;
	int error = 0;

	if (IS_ERR(ticket))
		return PTR_ERR(ticket);
	if (ticket->region)
		error = ssi_shared_get(ticket->file, &region);
	if (!error)
		error = ssi_rfile_home_export(ticket->file, req->cell, region, &id);
	ticket_put(ticket);
	if (error)
		return error;
	if (!ssi_cell_alive(req->cell))			/* as above */
		ssi_rfile_home_drop(id, req->cell);
	*answer = cpu_to_le64(id);
	return sizeof(*answer);
}

static ssize_t handle_drop(struct ssi_request *req)
{
	const struct ssi_rfile_op *op = req->body;

	if (req->len != sizeof(*op))
		return -EINVAL;
	ssi_rfile_home_drop(le64_to_cpu(op->id), req->cell);
	return 0;
}

int __init ssi_rfile_home_init(void)
{
	tty_default_fops(&tty_fops);
	ssi_rpc_register(OP_RFILE_CLAIM, handle_claim);
	ssi_rpc_register(OP_RFILE_DUP, handle_dup);
	ssi_rpc_register(OP_RFILE_DROP, handle_drop);
	ssi_rpc_register(OP_RFILE_READ, handle_read);
	ssi_rpc_register(OP_RFILE_WRITE, handle_write);
	ssi_rpc_register(OP_RFILE_POLL, handle_poll);
	ssi_rpc_register(OP_RFILE_IOCTL, handle_ioctl);
	ssi_rpc_register(OP_RFILE_FREAD, handle_fread);
	ssi_rpc_register(OP_RFILE_FWRITE, handle_fwrite);
	ssi_rpc_register(OP_RFILE_FSEEK, handle_fseek);
	ssi_on_cell_death(drop_all_of);
	return 0;
}

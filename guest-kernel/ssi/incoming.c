// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/ssi, and the destination's side of a move: offers, the image as it comes, ready and commit.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <linux/uaccess.h>

#include "fault.h"
#include "incoming.h"
#include "migrate.h"
#include "task.h"
#include "uapi.h"

#define INCOMING_MAX	256			/* moves at once */
#define ACCEPT_TIMEOUT	(30 * HZ)		/* for migrationd and what it forks to get so far */

struct chunk {
	struct list_head list;
	u32 len, done;
	u8 data[];
};

static LIST_HEAD(incoming);
static DEFINE_SPINLOCK(incoming_lock);
static DECLARE_WAIT_QUEUE_HEAD(offers);
static u64 last_id;
static unsigned int nincoming;
static atomic_t openers;

void ssi_incoming_put(struct ssi_incoming_move *in)
{
	struct chunk *c, *next;

	if (!refcount_dec_and_test(&in->ref))
		return;
	list_for_each_entry_safe(c, next, &in->chunks, list)
		kvfree(c);
	kfree(in);
}

static struct ssi_incoming_move *get_incoming(u64 id, u32 source)
{
	struct ssi_incoming_move *in;

	spin_lock(&incoming_lock);
	list_for_each_entry(in, &incoming, list)
		if (in->id == id && in->source == source) {
			refcount_inc(&in->ref);
			spin_unlock(&incoming_lock);
			return in;
		}
	spin_unlock(&incoming_lock);
	return NULL;
}

/* From the list of all; drops its reference. */
static void unlist(struct ssi_incoming_move *in)
{
	bool there;

	spin_lock(&incoming_lock);
	there = !list_empty(&in->list);
	list_del_init(&in->list);
	nincoming -= there;
	spin_unlock(&incoming_lock);
	if (there)
		ssi_incoming_put(in);
}

void ssi_incoming_fail(struct ssi_incoming_move *in, int err, const char *why)
{
	spin_lock(&in->lock);
	if (in->state < SSI_IN_COMMITTED) {
		in->state = SSI_IN_FAILED;
		in->error = err;
		strscpy(in->why, why ?: "", sizeof(in->why));
	}
	spin_unlock(&in->lock);
	wake_up_all(&in->wait);
	wake_up_all(&offers);
}

int ssi_incoming_take(struct ssi_incoming_move *in)
{
	int err = 0;

	spin_lock(&in->lock);
	if (in->state != SSI_IN_ACCEPTED)
		err = in->state == SSI_IN_FAILED ? in->error : -EBUSY;
	else if (in->taken)
		err = -EBUSY;
	else
		in->taken = true;
	spin_unlock(&in->lock);
	return err;
}

static struct chunk *first_chunk(struct ssi_incoming_move *in)
{
	struct chunk *c;

	spin_lock(&in->lock);
	c = list_first_entry_or_null(&in->chunks, struct chunk, list);
	spin_unlock(&in->lock);
	return c;
}

/* Only one reads: it may look at the first chunk without the lock. */
int ssi_incoming_read(struct ssi_source *src, void *buf, size_t len)
{
	struct ssi_incoming_move *in = src->in;

	while (len) {
		struct chunk *c;
		size_t n;

		if (wait_event_killable(in->wait, READ_ONCE(in->state) == SSI_IN_FAILED || first_chunk(in)))
			return -EINTR;
		if (READ_ONCE(in->state) == SSI_IN_FAILED)
			return in->error;
		c = first_chunk(in);
		n = min_t(size_t, len, c->len - c->done);
		memcpy(buf, c->data + c->done, n);
		c->done += n;
		buf += n;
		len -= n;
		if (c->done < c->len)
			continue;
		spin_lock(&in->lock);
		list_del(&c->list);
		spin_unlock(&in->lock);
		kvfree(c);
	}
	return 0;
}

int ssi_incoming_ready(struct ssi_incoming_move *in, u64 t3_us)
{
	int err = 0;

	spin_lock(&in->lock);
	in->t3_us = t3_us;
	if (in->state == SSI_IN_ACCEPTED)
		in->state = SSI_IN_READY;
	else
		err = in->error ?: -EIO;
	spin_unlock(&in->lock);
	if (err)
		return err;
	wake_up_all(&in->wait);
	if (wait_event_killable(in->wait, READ_ONCE(in->state) != SSI_IN_READY))
		ssi_incoming_fail(in, -EINTR, "the process that was to become it was killed");
	/* Whichever was first, under the lock. */
	spin_lock(&in->lock);
	if (in->state != SSI_IN_COMMITTED)
		err = in->error;
	spin_unlock(&in->lock);
	return err;
}

static bool is_home(s32 pid)
{
	struct ssi_task *st = ssi_task_get_pid(pid);
	bool home = st && READ_ONCE(st->role) == SSI_DEPUTY;

	if (st)
		ssi_task_put(st);
	return home;
}

static bool in_use(pid_t pid)
{
	bool taken;

	rcu_read_lock();
	taken = find_pid_ns(pid, &init_pid_ns);
	rcu_read_unlock();
	return taken;
}

/*
 * May a child of migrationd have @pid? What has it still is the rest of a process that was here and left, or the child of an
 * earlier attempt that has failed: each is about to end. Its entry, if it has one, goes after the PID.
 */
static bool pid_is_free(s32 pid)
{
	struct ssi_task *st;

	if (in_use(pid))
		return false;
	st = ssi_task_get_pid(pid);
	if (st)
		ssi_task_put(st);
	return !st;
}

int ssi_incoming_wait_pid(pid_t pid)
{
	return wait_event_killable_timeout(offers, !in_use(pid), ACCEPT_TIMEOUT) > 0 ? 0 : -EEXIST;
}

/* A PID was freed, under tasklist_lock, or an entry has gone: an offer may wait for it. */
void __ssi_pid_freed(void)
{
	smp_mb();	/* an offer is counted before it looks whether its PID is free */
	if (READ_ONCE(nincoming))
		wake_up_all(&offers);
}

/* Can migrationd take @in? Under its lock. */
static bool takeable(struct ssi_incoming_move *in)
{
	return in->state == SSI_IN_OFFERED && (in->offer.flags & SSI_INCOMING_HOME || pid_is_free(in->offer.pid));
}

static bool taken_or_takeable(struct ssi_incoming_move *in)
{
	bool can;

	spin_lock(&in->lock);
	can = in->state != SSI_IN_OFFERED || takeable(in);
	spin_unlock(&in->lock);
	return can;
}

/* Until migrationd can take @in. The process runs on meanwhile: it stops when its offer has been answered. */
static int wait_takeable(struct ssi_incoming_move *in)
{
	if (wait_event_timeout(offers, taken_or_takeable(in), ACCEPT_TIMEOUT))
		return 0;
	pr_notice("process %d (%s) from cell %u: its PID is still in use\n", in->offer.pid, in->offer.comm, in->source);
	ssi_incoming_fail(in, -EAGAIN, "its PID is still in use at the destination");
	unlist(in);
	return -EEXIST;
}

static ssize_t handle_offer(struct ssi_request *req)
{
	const struct ssi_offer *o = req->body;
	struct ssi_incoming_move *in;
	bool home;
	int err;

	if (req->len != sizeof(*o))
		return -EINVAL;
	if (!atomic_read(&openers))
		return -ENOTCONN;	/* no migrationd here */
	ssi_fault_point(SSI_FAULT_OFFER);
	home = is_home(o->pid);
	if (!home && ssi_home_of_pid(o->pid) == ssi_this_cell())
		return -ESRCH;		/* born here, and its deputy has ended: it is about to be killed */
	in = kzalloc(sizeof(*in), GFP_KERNEL);
	if (!in)
		return -ENOMEM;
	refcount_set(&in->ref, 2);	/* of the list, and this function's */
	in->source = req->cell;
	in->offer = *o;
	in->offer.comm[sizeof(o->comm) - 1] = 0;
	in->offer.flags &= SSI_INCOMING_EAGER;
	if (home)
		in->offer.flags |= SSI_INCOMING_HOME;
	spin_lock_init(&in->lock);
	init_waitqueue_head(&in->wait);
	INIT_LIST_HEAD(&in->chunks);

	spin_lock(&incoming_lock);
	if (nincoming >= INCOMING_MAX) {
		spin_unlock(&incoming_lock);
		kfree(in);
		return -EAGAIN;
	}
	nincoming++;
	in->id = ++last_id;
	*(u64 *)req->reply = in->id;
	list_add_tail(&in->list, &incoming);
	spin_unlock(&incoming_lock);
	wake_up_all(&offers);
	err = wait_takeable(in);
	ssi_incoming_put(in);
	return err ?: sizeof(u64);
}

static ssize_t handle_data(struct ssi_request *req)
{
	struct ssi_incoming_move *in;
	struct chunk *c;
	size_t len;
	int err = 0;

	if (req->len <= sizeof(u64))
		return -EINVAL;
	len = req->len - sizeof(u64);
	ssi_fault_point(SSI_FAULT_IMAGE);
	in = get_incoming(*(const u64 *)req->body, req->cell);
	if (!in)
		return -ESTALE;
	c = kvmalloc(sizeof(*c) + len, GFP_KERNEL);
	if (c) {
		c->len = len;
		c->done = 0;
		memcpy(c->data, req->body + sizeof(u64), len);
		spin_lock(&in->lock);
		if (in->state == SSI_IN_FAILED)
			err = in->error;
		else if (in->state > SSI_IN_READY || in->total_bytes + len > SSI_IMAGE_MAX)
			err = -EMSGSIZE;
		else
			list_add_tail(&c->list, &in->chunks);
		in->total_bytes += len;
		spin_unlock(&in->lock);
		if (err)
			kvfree(c);
		else
			wake_up_all(&in->wait);
	} else {
		err = -ENOMEM;
	}
	ssi_incoming_put(in);
	return err;
}

static ssize_t handle_ready(struct ssi_request *req)
{
	struct ssi_incoming_move *in;
	struct ssi_ready *reply = req->reply;

	if (req->len != sizeof(u64))
		return -EINVAL;
	in = get_incoming(*(const u64 *)req->body, req->cell);
	if (!in)
		return -ESTALE;
	/* Until somebody has begun there is a limit; then it builds until it is done or fails. */
	if (!wait_event_timeout(in->wait, READ_ONCE(in->taken) || READ_ONCE(in->state) >= SSI_IN_READY, ACCEPT_TIMEOUT))
		ssi_incoming_fail(in, -ETIMEDOUT, "nobody took it at the destination");
	wait_event(in->wait, READ_ONCE(in->state) >= SSI_IN_READY);
	spin_lock(&in->lock);
	memset(reply, 0, sizeof(*reply));
	if (in->state == SSI_IN_FAILED) {
		reply->error = in->error;
		strscpy(reply->why, in->why, sizeof(reply->why));
	}
	reply->t3_us = in->t3_us;
	spin_unlock(&in->lock);
	if (reply->error)
		unlist(in);
	ssi_incoming_put(in);
	return sizeof(*reply);
}

static ssize_t handle_commit(struct ssi_request *req)
{
	const struct ssi_commit *c = req->body;
	struct ssi_incoming_move *in;
	int err = 0;

	if (req->len != sizeof(*c))
		return -EINVAL;
	ssi_fault_point(SSI_FAULT_COMMIT);
	in = get_incoming(c->id, req->cell);
	if (!in)
		return -ESTALE;
	spin_lock(&in->lock);
	if (in->state == SSI_IN_READY) {
		in->commit = *c;
		in->state = SSI_IN_COMMITTED;
	} else {
		err = in->state == SSI_IN_FAILED ? in->error : -EPROTO;
	}
	spin_unlock(&in->lock);
	wake_up_all(&in->wait);
	unlist(in);
	ssi_incoming_put(in);
	return err;
}

static ssize_t handle_abort(struct ssi_request *req)
{
	struct ssi_incoming_move *in;

	if (req->len != sizeof(u64))
		return -EINVAL;
	in = get_incoming(*(const u64 *)req->body, req->cell);
	if (!in)
		return -ESTALE;
	ssi_incoming_fail(in, -ECANCELED, "the source gave up");
	unlist(in);
	ssi_incoming_put(in);
	return 0;
}

void ssi_incoming_cell_died(u32 cell)
{
	struct ssi_incoming_move *in, *found;

	do {
		found = NULL;
		spin_lock(&incoming_lock);
		list_for_each_entry(in, &incoming, list)
			if (in->source == cell) {
				found = in;
				refcount_inc(&in->ref);
				break;
			}
		spin_unlock(&incoming_lock);
		if (found) {
			ssi_incoming_fail(found, -EHOSTUNREACH, "the source died");
			unlist(found);
			ssi_incoming_put(found);
		}
	} while (found);
}

/* The descriptor that ACCEPT returns. */
static int conn_release(struct inode *inode, struct file *file)
{
	struct ssi_incoming_move *in = file->private_data;

	/* Once somebody reads, that one decides. */
	if (!READ_ONCE(in->taken))
		ssi_incoming_fail(in, -ECONNABORTED, "migrationd closed it");
	ssi_incoming_put(in);
	return 0;
}

static const struct file_operations conn_fops = {
	.owner = THIS_MODULE,
	.release = conn_release,
	.llseek = noop_llseek,
};

struct ssi_incoming_move *ssi_incoming_of(struct file *file)
{
	struct ssi_incoming_move *in;

	if (file->f_op != &conn_fops)
		return NULL;
	in = file->private_data;
	refcount_inc(&in->ref);
	return in;
}

/* Takes the oldest offer that can be taken, with a reference. */
static struct ssi_incoming_move *accept_one(void)
{
	struct ssi_incoming_move *in;
	bool mine = false;

	spin_lock(&incoming_lock);
	list_for_each_entry(in, &incoming, list) {
		spin_lock(&in->lock);
		if (takeable(in)) {
			WRITE_ONCE(in->state, SSI_IN_ACCEPTED);
			mine = true;
		}
		spin_unlock(&in->lock);
		if (mine) {
			refcount_inc(&in->ref);
			break;
		}
	}
	spin_unlock(&incoming_lock);
	if (mine)
		wake_up_all(&offers);	/* who waits until it can be taken */
	return mine ? in : NULL;
}

static bool offered(void)
{
	struct ssi_incoming_move *in;
	bool any = false;

	spin_lock(&incoming_lock);
	list_for_each_entry(in, &incoming, list) {
		spin_lock(&in->lock);
		any |= takeable(in);
		spin_unlock(&in->lock);
	}
	spin_unlock(&incoming_lock);
	return any;
}

static long dev_accept(struct file *file, struct ssi_incoming __user *arg)
{
	struct ssi_incoming info;
	struct ssi_incoming_move *in;
	u32 size;

	if (get_user(size, &arg->size))
		return -EFAULT;
	if (size != sizeof(info))
		return -EINVAL;
	while (!(in = accept_one())) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(offers, offered()))
			return -ERESTARTSYS;
	}
	info = (struct ssi_incoming){
		.size = size,
		.pid = in->offer.pid,
		.flags = in->offer.flags,
		.source = in->source,
		.home = in->offer.home,
		.uid = in->offer.uid,
	};
	memcpy(info.comm, in->offer.comm, sizeof(info.comm));
	info.fd = anon_inode_getfd("[ssi-move]", &conn_fops, in, O_RDWR | O_CLOEXEC);
	if (info.fd < 0) {
		ssi_incoming_fail(in, info.fd, "migrationd has too many descriptors");
		ssi_incoming_put(in);
		return info.fd;
	}
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long dev_checkpoint(struct ssi_checkpoint __user *arg)
{
	struct ssi_checkpoint c;
	struct file *file;
	long err;

	if (copy_from_user(&c, arg, sizeof(c)))
		return -EFAULT;
	if (c.size != sizeof(c) || c.flags & ~SSI_CHECKPOINT_KILL)
		return -EINVAL;
	file = fget(c.fd);
	if (!file)
		return -EBADF;
	err = file->f_mode & FMODE_WRITE ? ssi_checkpoint(c.pid, file, c.flags) : -EBADF;
	fput(file);
	return err;
}

static long dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	switch (cmd) {
	case SSI_IOC_ACCEPT:
		return dev_accept(file, (void __user *)arg);
	case SSI_IOC_CHECKPOINT:
		return dev_checkpoint((void __user *)arg);
	}
	return -ENOTTY;
}

static __poll_t dev_poll(struct file *file, poll_table *wait)
{
	poll_wait(file, &offers, wait);
	return offered() ? EPOLLIN | EPOLLRDNORM : 0;
}

static int dev_open(struct inode *inode, struct file *file)
{
	if (file->f_mode & FMODE_WRITE)
		atomic_inc(&openers);
	return nonseekable_open(inode, file);
}

static int dev_release(struct inode *inode, struct file *file)
{
	if (file->f_mode & FMODE_WRITE)
		atomic_dec(&openers);
	return 0;
}

static const struct file_operations dev_fops = {
	.owner = THIS_MODULE,
	.open = dev_open,
	.release = dev_release,
	.unlocked_ioctl = dev_ioctl,
	.poll = dev_poll,
};

static struct miscdevice ssi_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ssi",
	.fops = &dev_fops,
	.mode = 0600,
};

static int __init incoming_init(void)
{
	ssi_rpc_register(SSI_OP_MIGRATE_OFFER, handle_offer);
	ssi_rpc_register(SSI_OP_MIGRATE_DATA, handle_data);
	ssi_rpc_register(SSI_OP_MIGRATE_READY, handle_ready);
	ssi_rpc_register(SSI_OP_MIGRATE_COMMIT, handle_commit);
	ssi_rpc_register(SSI_OP_MIGRATE_ABORT, handle_abort);
	return misc_register(&ssi_dev);
}
fs_initcall(incoming_init);

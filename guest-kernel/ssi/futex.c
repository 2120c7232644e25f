// SPDX-License-Identifier: GPL-2.0
/*
 * Futexes of shared memory whose home is another cell (DSM-5).
 *
 * kernel/futex/ comes here when get_futex_key() says -EREMOTE. The futex is queued at the home of its memory (futex_home.c); the
 * task sleeps here, in the same call, with its own timer and signals, so that it can be interrupted, killed and moved as if it
 * waited in this cell.
 *
 * Whoever stops waiting before it was woken asks the home, and believes the answer: if it had been woken meanwhile, then this
 * wake-up was counted, and the call returns 0.
 *
 * If the home dies, so does the memory. Waits and wakes then fail with -EFAULT, as they do from then on for a page that is
 * not there (it raises SIGBUS when it is touched).
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/freezer.h>
#include <linux/hashtable.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/ssi_futex.h>
#include <linux/uaccess.h>

#include "../kernel/futex/futex.h"
#include "device.h"
#include "futex_wire.h"
#include "shared.h"
#include "slices.h"

/* A task that waits at another cell, on its stack. */
struct wait {
	struct hlist_node node;		/* waits; under waits_lock */
	u64 id;
	u32 home;
	int ended;			/* 0: waits; 1: woken; -errno: the home died */
	struct task_struct *task;
};

static DEFINE_SPINLOCK(waits_lock);
static DEFINE_HASHTABLE(waits, 8);
static u64 last_id;			/* under waits_lock */

int ssi_futex_no_key(struct page *page)
{
	int home = ssi_present() ? ssi_slice_home(page_to_phys(page)) : -ENXIO;

	return home >= 0 && home != (int)ssi_this_cell() ? -EREMOTE : -EFAULT;
}

/* Where the word at @uaddr is, in a region. False: in none. */
static bool place_of(u32 __user *uaddr, struct ssi_shared_key *key)
{
	unsigned long addr = (unsigned long)uaddr;
	struct vm_area_struct *vma;
	bool found;

	mmap_read_lock(current->mm);
	vma = vma_lookup(current->mm, addr);
	found = vma && ssi_shared_key_of_vma(vma, addr, key);
	mmap_read_unlock(current->mm);
	return found;
}

static struct ssi_futex_place on_wire(const struct ssi_shared_key *key)
{
	return (struct ssi_futex_place){ .region = cpu_to_le64(key->region), .offset = cpu_to_le64(key->offset) };
}

/* What a program gets for an error of a call to the home. */
static int error_of(ssize_t err)
{
	switch (err) {
	case -EAGAIN:
	case -EINVAL:
	case -ENOMEM:
	case -ENXIO:
		return err;
	default:	/* the home is dead, or knows no such memory */
		return -EFAULT;
	}
}

/* ---- waiting ---- */

static void wait_begin(struct wait *w, u32 home)
{
	w->task = current;
	w->home = home;
	w->ended = 0;
	spin_lock(&waits_lock);
	w->id = ++last_id;
	hash_add(waits, &w->node, w->id);
	spin_unlock(&waits_lock);
}

static void wait_end(struct wait *w)
{
	spin_lock(&waits_lock);
	hash_del(&w->node);
	spin_unlock(&waits_lock);
}

/* Under waits_lock, so that @w and its task are there. */
static void end(struct wait *w, int how)
{
	lockdep_assert_held(&waits_lock);
	WRITE_ONCE(w->ended, how);
	wake_up_process(w->task);
}

static ssize_t handle_woken(struct ssi_request *req)
{
	const __le64 *ids = req->body;
	struct wait *w;

	spin_lock(&waits_lock);
	for (size_t i = 0; i < min_t(size_t, req->len / sizeof(*ids), SSI_FUTEX_BATCH); i++)
		hash_for_each_possible(waits, w, node, le64_to_cpu(ids[i]))
			if (w->id == le64_to_cpu(ids[i]) && w->home == req->cell)
				end(w, 1);
	spin_unlock(&waits_lock);
	return 0;
}

static void home_died(u32 cell)
{
	struct wait *w;
	int bucket;

	spin_lock(&waits_lock);
	hash_for_each(waits, bucket, w, node)
		if (w->home == cell && !w->ended)
			end(w, -EFAULT);
	spin_unlock(&waits_lock);
}

/* Sleeps until woken, or the time is over, or a signal comes. */
static void sleep_on(struct wait *w, struct hrtimer_sleeper *to)
{
	if (to)
		hrtimer_sleeper_start_expires(to, HRTIMER_MODE_ABS);
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE | TASK_FREEZABLE);
		if (READ_ONCE(w->ended) || (to && !READ_ONCE(to->task)) || signal_pending(current))
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
}

/* Stops waiting. 0: it had been woken; -EINTR: it had not. */
static int stop(struct wait *w)
{
	__le64 id = cpu_to_le64(w->id);
	ssize_t n = ssi_call(w->home, OP_FUTEX_CANCEL, &id, sizeof(id), NULL, 0, MAX_SCHEDULE_TIMEOUT);

	if (!n)
		return -EINTR;
	return n == -ENOENT ? 0 : error_of(n);
}

static int wait_at(const struct ssi_shared_key *key, u32 val, struct hrtimer_sleeper *to, u32 bitset)
{
	struct ssi_futex_wait_arg op = { .at = on_wire(key), .val = cpu_to_le32(val), .bitset = cpu_to_le32(bitset) };
	struct wait w;
	ssize_t err;

	wait_begin(&w, key->home);
	op.wait = cpu_to_le64(w.id);
	err = ssi_call(w.home, OP_FUTEX_WAIT, &op, sizeof(op), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	if (err) {
		err = error_of(err);
		goto out;
	}
	atomic64_inc(&ssi_futex_stats.waits);
	sleep_on(&w, to);
	err = READ_ONCE(w.ended);
	if (!err)
		err = stop(&w);
	if (err == -EINTR)
		err = to && !to->task ? -ETIMEDOUT : -ERESTARTSYS;
	else if (err > 0)
		err = 0;
out:
	wait_end(&w);
	return err;
}

int ssi_futex_wait(int err, u32 __user *uaddr, unsigned int flags, u32 val, struct hrtimer_sleeper *to, u32 bitset)
{
	union futex_key unused = FUTEX_KEY_INIT;
	struct ssi_shared_key key;
	u32 now;

	while (err == -EREMOTE) {
		if (!place_of(uaddr, &key))
			return -EFAULT;
		if (key.home == ssi_this_cell())	/* mapped anew meanwhile */
			return -EWOULDBLOCK;
		if (get_user(now, uaddr))
			return -EFAULT;
		if (now != val)				/* the home need not be asked */
			return -EWOULDBLOCK;
		err = wait_at(&key, val, to, bitset);
		if (err != -ENXIO)
			return err;
		/* The page was taken back meanwhile: if it is there still, it comes again. */
		if (signal_pending(current))
			return -ERESTARTSYS;
		cond_resched();
		err = get_futex_key(uaddr, flags, &unused, FUTEX_READ);
		if (!err)
			return -EWOULDBLOCK;
	}
	return err;
}

/* ---- waking ---- */

/* A call that answers a number of waiters. */
static int count_at(u32 home, u16 op, const void *body, size_t len)
{
	__le32 count;
	ssize_t n = ssi_call(home, op, body, len, &count, sizeof(count), MAX_SCHEDULE_TIMEOUT);

	if (n != sizeof(count))
		return n < 0 ? error_of(n) : -EFAULT;
	return le32_to_cpu(count) & INT_MAX;
}

int ssi_futex_wake(int err, u32 __user *uaddr, unsigned int flags, int nr_wake, u32 bitset)
{
	struct ssi_futex_wake_arg op = { .count = cpu_to_le32(nr_wake), .bitset = cpu_to_le32(bitset) };
	struct ssi_shared_key key;

	if (err != -EREMOTE)
		return err;
	if (flags & FLAGS_STRICT && !nr_wake)
		return 0;
	if (!place_of(uaddr, &key) || key.home == ssi_this_cell())
		return -EFAULT;
	op.at = on_wire(&key);
	atomic64_inc(&ssi_futex_stats.wakes);
	return count_at(key.home, OP_FUTEX_WAKE, &op, sizeof(op));
}

/* The operation of FUTEX_WAKE_OP: on the caller's own memory, atomic for all cells as any access to it. */
static int operate(u32 __user *uaddr, int op)
{
	int result;

	for (;;) {
		result = futex_atomic_op_inuser(op, uaddr);
		if (result >= 0 || (result != -EFAULT && result != -EAGAIN))
			return result;
		if (result == -EFAULT) {
			result = fault_in_user_writeable(uaddr);
			if (result)
				return result;
		}
		if (fatal_signal_pending(current))
			return -ERESTARTSYS;
		cond_resched();
	}
}

int ssi_futex_wake_op(int err, u32 __user *uaddr1, unsigned int flags, u32 __user *uaddr2, int nr_wake, int nr_wake2, int op)
{
	union futex_key unused = FUTEX_KEY_INIT;
	int wake2, n, more;

	if (err != -EREMOTE)
		return err;
	err = get_futex_key(uaddr2, flags, &unused, FUTEX_WRITE);
	if (err && err != -EREMOTE)
		return err;
	wake2 = operate(uaddr2, op);
	if (wake2 < 0)
		return wake2;
	n = futex_wake(uaddr1, flags, nr_wake, FUTEX_BITSET_MATCH_ANY);
	if (n < 0 || !wake2)
		return n;
	more = futex_wake(uaddr2, flags, nr_wake2, FUTEX_BITSET_MATCH_ANY);
	return more < 0 ? more : n + more;
}

int ssi_futex_requeue(int err, u32 __user *uaddr1, unsigned int flags1, u32 __user *uaddr2, unsigned int flags2, int nr_wake,
		      int nr_requeue, u32 *cmpval, int requeue_pi)
{
	struct ssi_futex_requeue_arg op = {};
	struct ssi_shared_key key1, key2;
	int n;

	if (err != -EREMOTE || requeue_pi)
		return ssi_futex_here(err);
	for (;;) {
		bool in1 = place_of(uaddr1, &key1), in2 = place_of(uaddr2, &key2);

		/* To another home no waiter can go: it is woken, looks, and waits there itself. */
		if (!in1 || !in2 || key1.home != key2.home) {
			nr_wake = min_t(s64, INT_MAX, (s64)nr_wake + nr_requeue);
			nr_requeue = 0;
			key2 = key1;
		}
		if (!in1 || key1.home == ssi_this_cell())
			return futex_requeue(uaddr1, flags1, uaddr1, flags1, nr_wake, 0, cmpval, 0);
		op.from = on_wire(&key1);
		op.to = on_wire(&key2);
		op.wake = cpu_to_le32(nr_wake);
		op.requeue = cpu_to_le32(nr_requeue);
		op.compare = cpu_to_le32(!!cmpval);
		op.val = cpu_to_le32(cmpval ? *cmpval : 0);
		atomic64_inc(&ssi_futex_stats.requeues);
		n = count_at(key1.home, OP_FUTEX_REQUEUE, &op, sizeof(op));
		if (n != -ENXIO)
			return n;
		/* As in ssi_futex_wait(). */
		if (fatal_signal_pending(current))
			return -ERESTARTSYS;
		cond_resched();
		if (get_user(n, (int __user *)uaddr1))
			return -EFAULT;
	}
}

/* ---- what is not done between cells ---- */

int __ssi_futex_here(int err)
{
	if (err != -EREMOTE)
		return err;
	atomic64_inc(&ssi_futex_stats.pi);
	pr_notice_ratelimited("%s (%d): a futex with priority inheritance, or of futex_waitv(2) or io_uring, in memory shared with other cells: not supported\n",
			      current->comm, task_tgid_nr(current));
	return -EOPNOTSUPP;
}

int ssi_futex_pi(int err, u32 __user *uaddr, unsigned int flags)
{
	struct ssi_shared_key key;

	if (!err && flags & FLAGS_SHARED && ssi_present() && place_of(uaddr, &key))
		err = -EREMOTE;
	return ssi_futex_here(err);
}

static int __init futex_init(void)
{
	ssi_rpc_register(OP_FUTEX_WOKEN, handle_woken);
	ssi_on_cell_death(home_died);
	return 0;
}
fs_initcall(futex_init);

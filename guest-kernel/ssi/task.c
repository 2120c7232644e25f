// SPDX-License-Identifier: GPL-2.0
/*
 * The table of processes that have moved, and /proc/ssi/<pid>.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/hashtable.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>

#include "device.h"
#include "incoming.h"
#include "pid.h"
#include "proc.h"
#include "rpc.h"
#include "task.h"

static DEFINE_HASHTABLE(tasks, 8);
static DEFINE_SPINLOCK(tasks_lock);	/* inside tasklist_lock: with interrupts off */
static DEFINE_MUTEX(tasks_create);
static atomic_t ntasks;

static const char *const role_names[] = { "native", "deputy", "runner", "gone", "arriving" };

static int stat_show(struct seq_file *m, void *v)
{
	struct ssi_task *st = m->private;
	struct ssi_move_stat s;

	spin_lock(&st->lock);
	s = st->stat;
	seq_printf(m, "role: %s\ndeputy: %d\nhome: %u\nnode: %u\nmoves: %u\nmoving: %d\n", role_names[st->role],
		   st->role == SSI_DEPUTY, st->home, st->where, st->moves, st->moving);
	spin_unlock(&st->lock);
	seq_printf(m, "t0_us: %llu\nt1_us: %llu\nt2_us: %llu\nt3_us: %llu\nstop_us: %llu\ntotal_us: %llu\n", s.t0_us,
		   s.t1_us, s.t2_us, s.t3_us, s.stop_us, s.total_us);
	seq_printf(m, "image_bytes: %llu\npages_sent: %llu\npages_absent: %llu\npages_unmodified: %llu\n", s.image_bytes,
		   s.pages_sent, s.pages_absent, s.pages_unmodified);
	return 0;
}

static int why_show(struct seq_file *m, void *v)
{
	struct ssi_task *st = m->private;
	char why[SSI_WHY_MAX];

	spin_lock(&st->lock);
	strscpy(why, st->why, sizeof(why));
	spin_unlock(&st->lock);
	if (why[0])
		seq_printf(m, "%s\n", why);
	return 0;
}

static struct ssi_task *find(struct signal_struct *sig)
{
	struct ssi_task *st;

	lockdep_assert_held(&tasks_lock);
	hash_for_each_possible(tasks, st, node, (unsigned long)sig)
		if (st->sig == sig)
			return st;
	return NULL;
}

static struct ssi_task *get(struct signal_struct *sig)
{
	struct ssi_task *st;
	unsigned long flags;

	if (!atomic_read(&ntasks))
		return NULL;
	spin_lock_irqsave(&tasks_lock, flags);
	st = find(sig);
	if (st)
		refcount_inc(&st->ref);
	spin_unlock_irqrestore(&tasks_lock, flags);
	return st;
}

u32 ssi_home_of_pid(pid_t pid)
{
	return ssi_params.given && pid >= RESERVED_PIDS ? ssi_pid_home(pid) : ssi_this_cell();
}

static struct ssi_task *create_task(struct task_struct *t)
{
	struct ssi_task *st = kzalloc(sizeof(*st), GFP_KERNEL);
	char name[16];

	if (!st)
		return NULL;
	st->sig = t->signal;
	st->pid = task_tgid_nr(t);
	/* One reference for the table, one for the caller. */
	refcount_set(&st->ref, 2);
	spin_lock_init(&st->lock);
	init_waitqueue_head(&st->wait);
	INIT_LIST_HEAD(&st->strays);
	st->home = ssi_this_cell();
	st->where = ssi_this_cell();
	snprintf(name, sizeof(name), "%d", st->pid);
	st->proc = proc_mkdir(name, ssi_proc_root);
	if (st->proc) {
		proc_create_single_data("stat", 0444, st->proc, stat_show, st);
		proc_create_single_data("why", 0444, st->proc, why_show, st);
	}
	atomic_inc(&ntasks);
	spin_lock_irq(&tasks_lock);
	hash_add(tasks, &st->node, (unsigned long)st->sig);
	spin_unlock_irq(&tasks_lock);
	/*
	 * A process that ended meanwhile may have looked for its entry already: it would stay, and be taken for that of the
	 * next process whose signal_struct lies at the same address.
	 */
	if (!atomic_read(&t->signal->live)) {
		ssi_task_forget(st);
		ssi_task_put(st);
		return NULL;
	}
	return st;
}

struct ssi_task *ssi_task_get(struct task_struct *t, bool create)
{
	struct ssi_task *st = get(t->signal);

	if (st || !create)
		return st;
	mutex_lock(&tasks_create);
	st = get(t->signal);
	if (!st)
		st = create_task(t);
	mutex_unlock(&tasks_create);
	return st;
}

struct ssi_task *ssi_task_get_pid(pid_t pid)
{
	struct ssi_task *st;
	int i;

	spin_lock_irq(&tasks_lock);
	hash_for_each(tasks, i, st, node)
		if (st->pid == pid) {
			refcount_inc(&st->ref);
			spin_unlock_irq(&tasks_lock);
			return st;
		}
	spin_unlock_irq(&tasks_lock);
	return NULL;
}

void ssi_task_put(struct ssi_task *st)
{
	struct ssi_stray *stray, *next;

	if (!refcount_dec_and_test(&st->ref))
		return;
	list_for_each_entry_safe(stray, next, &st->strays, list)
		kfree(stray);
	kfree(st);
}

/* A deputy that has been given the process and has not become it yet. */
static bool coming_home(struct ssi_task *st)
{
	bool coming;

	spin_lock(&st->lock);
	coming = st->role == SSI_DEPUTY && st->coming && READ_ONCE(st->coming->state) == SSI_IN_COMMITTED;
	spin_unlock(&st->lock);
	return coming;
}

void ssi_task_arrived(struct ssi_task *st)
{
	wait_event(st->wait, READ_ONCE(st->forgotten) || (READ_ONCE(st->role) != SSI_ARRIVING && !coming_home(st)));
}

void ssi_task_forget(struct ssi_task *st)
{
	bool there;

	/* First: the process may come back as soon as it has no entry, and gets a new one of the same name. */
	proc_remove(xchg(&st->proc, NULL));	/* waits for readers */
	spin_lock_irq(&tasks_lock);
	there = !hlist_unhashed(&st->node);
	hash_del(&st->node);
	spin_unlock_irq(&tasks_lock);
	if (!there)
		return;
	atomic_dec(&ntasks);
	WRITE_ONCE(st->forgotten, true);
	wake_up_all(&st->wait);
	ssi_pid_freed();
	ssi_task_put(st);
}

void ssi_task_each(void (*fn)(struct ssi_task *st, u32 arg), u32 arg)
{
	unsigned int n = 0, max = atomic_read(&ntasks);
	struct ssi_task *st, **all;
	int i;

	all = kvcalloc(max ?: 1, sizeof(*all), GFP_KERNEL | __GFP_NOFAIL);
	spin_lock_irq(&tasks_lock);
	hash_for_each(tasks, i, st, node) {
		if (n == max)
			break;
		refcount_inc(&st->ref);
		all[n++] = st;
	}
	spin_unlock_irq(&tasks_lock);
	while (n--) {
		fn(all[n], arg);
		ssi_task_put(all[n]);
	}
	kvfree(all);
}

u32 ssi_home_of(struct task_struct *t)
{
	struct ssi_task *st = get(t->signal);
	u32 home = st ? st->home : ssi_this_cell();

	if (st)
		ssi_task_put(st);
	return home;
}

u32 ssi_moves_of(struct task_struct *t)
{
	struct ssi_task *st = get(t->signal);
	u32 moves = st ? st->moves : 0;

	if (st)
		ssi_task_put(st);
	return moves;
}

/* A number that a runner has from its home, else the one of this cell. */
static s32 number_of(struct task_struct *t, size_t field, s32 here)
{
	struct ssi_task *st = get(t->signal);

	if (!st)
		return here;
	if (st->role == SSI_RUNNER)
		here = *(s32 *)((char *)st + field);
	ssi_task_put(st);
	return here;
}

s32 ssi_ppid_of(struct task_struct *t)
{
	s32 pid;

	rcu_read_lock();
	pid = task_tgid_nr(rcu_dereference(t->real_parent));
	rcu_read_unlock();
	return number_of(t, offsetof(struct ssi_task, ppid), pid);
}

s32 ssi_pgrp_of(struct task_struct *t)
{
	return number_of(t, offsetof(struct ssi_task, pgrp), task_pgrp_nr_ns(t, &init_pid_ns));
}

s32 ssi_sid_of(struct task_struct *t)
{
	return number_of(t, offsetof(struct ssi_task, sid), task_session_nr_ns(t, &init_pid_ns));
}

// SPDX-License-Identifier: GPL-2.0
/*
 * migrate(2) and checkpoints: asking a process to move, and the source's side of the move.
 *
 * The request is a piece of task work: the target is woken as by a signal, leaves its system call as for a signal, and does
 * the work in its own context, at the point where it would take a signal (MIG-4, MIG-5).
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/ptrace.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/syscalls.h>
#include <linux/task_work.h>

#include "fault.h"
#include "lazy.h"
#include "migrate.h"
#include "pid.h"
#include "task.h"
#include "uapi.h"
#include "wire.h"

#define START_TIMEOUT	(30 * HZ)	/* for the target to come to its signal point */
#define NODE_NET	0x0a400100	/* 10.64.1.0/24: node n is .n+2 */

struct move {
	struct callback_head work;
	bool queued_again;
	refcount_t ref;			/* the caller's and the target's */
	struct completion done;
	int result;
	struct ssi_task *st;
	u32 dest;
	u64 flags;			/* SSI_MOVE_* */
	u64 id;				/* at the destination */
	u64 t0_us;			/* what the offer took */
	struct file *file;		/* of a checkpoint; NULL: a move */
	u32 checkpoint_flags;
	struct ssi_threads *threads;	/* of a process of which another than the main thread asks; else NULL */
};

static void put_move(struct move *m)
{
	if (!refcount_dec_and_test(&m->ref))
		return;
	if (m->file)
		fput(m->file);
	ssi_threads_put(m->threads);
	ssi_task_put(m->st);
	kfree(m);
}

/* Once per move, by whoever ends it. */
static void finish(struct move *m, int result)
{
	spin_lock(&m->st->lock);
	m->st->moving = false;
	spin_unlock(&m->st->lock);
	m->result = result;
	ssi_threads_done(m->threads, result);
	complete(&m->done);
	put_move(m);
}

static void set_why(struct ssi_task *st, const char *why)
{
	spin_lock(&st->lock);
	strscpy(st->why, why, sizeof(st->why));
	spin_unlock(&st->lock);
}

static u64 us_since(u64 ns)
{
	return div_u64(ktime_get_ns() - ns, NSEC_PER_USEC);
}

/* The image's way to another cell: one-way messages; what goes wrong there is told by READY. */
static int flush_to_cell(struct ssi_sink *sink)
{
	int err;

	*(u64 *)(sink->buf - sizeof(u64)) = sink->id;
	err = ssi_post(sink->cell, SSI_OP_MIGRATE_DATA, sink->buf - sizeof(u64), sink->used + sizeof(u64));
	sink->used = 0;
	return err;
}

static int sink_cell(struct ssi_sink *sink, u32 cell, u64 id)
{
	void *buf = kvmalloc(SSI_RPC_MAX, GFP_KERNEL);

	memset(sink, 0, sizeof(*sink));
	if (!buf)
		return -ENOMEM;
	sink->buf = buf + sizeof(u64);	/* the id goes before */
	sink->room = SSI_RPC_MAX - sizeof(u64);
	sink->cell = cell;
	sink->id = id;
	sink->flush = flush_to_cell;
	return 0;
}

static int offer(struct move *m, struct task_struct *t)
{
	u64 start = ktime_get_ns();
	struct ssi_offer o = {
		.pid = task_tgid_nr(t),
		.home = ssi_home_of(t),
		.uid = from_kuid(&init_user_ns, task_uid(t)),
		.flags = m->flags & SSI_MOVE_EAGER ? SSI_INCOMING_EAGER : 0,
	};
	ssize_t n;

	get_task_comm(o.comm, t);
	n = ssi_call(m->dest, SSI_OP_MIGRATE_OFFER, &o, sizeof(o), &m->id, sizeof(m->id), MAX_SCHEDULE_TIMEOUT);
	m->t0_us = us_since(start);
	if (n == -ENOTCONN) {
		snprintf(m->st->why, SSI_WHY_MAX, "no migrationd runs in cell %u", m->dest);
		return -EHOSTUNREACH;
	}
	if (n == -EEXIST) {
		snprintf(m->st->why, SSI_WHY_MAX, "its PID is still in use in cell %u, where it was before", m->dest);
		return -EAGAIN;
	}
	return n == sizeof(m->id) ? 0 : n < 0 ? n : -EPROTO;
}

static void abort_offer(struct move *m)
{
	ssi_post(m->dest, SSI_OP_MIGRATE_ABORT, &m->id, sizeof(m->id));
}

static int wait_ready(struct move *m, struct ssi_save *s)
{
	struct ssi_ready ready;
	ssize_t n = ssi_call(m->dest, SSI_OP_MIGRATE_READY, &m->id, sizeof(m->id), &ready, sizeof(ready),
			     MAX_SCHEDULE_TIMEOUT);

	if (n < 0)
		return n;
	if (n != sizeof(ready))
		return -EPROTO;
	ready.why[SSI_WHY_MAX - 1] = 0;
	s->stat.t3_us = ready.t3_us;
	if (ready.error) {
		strscpy(s->why, ready.why, SSI_WHY_MAX);
		return ready.error < 0 && ready.error >= -MAX_ERRNO ? ready.error : -EPROTO;
	}
	return 0;
}

/* The point of no return. 0: it runs there, or has died with that cell. */
static int commit(struct move *m, struct ssi_save *s, u64 stop_ns)
{
	struct ssi_commit c = {
		.id = m->id,
		.stop_ns = stop_ns,
		.t0_us = s->stat.t0_us,
		.t1_us = s->stat.t1_us,
		.t2_us = s->stat.t2_us,
		.image_bytes = s->stat.image_bytes,
	};
	ssize_t n;

	if (fatal_signal_pending(current))
		return -EINTR;
	if (!ssi_cell_alive(m->dest))
		return -EHOSTUNREACH;
	n = ssi_call(m->dest, SSI_OP_MIGRATE_COMMIT, &c, sizeof(c), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	if (n == -EHOSTUNREACH) {	/* it may have begun to run there: it must not run here */
		pr_notice("process %d was lost with cell %u as it arrived there\n", task_tgid_nr(current), m->dest);
		return 0;
	}
	return n < 0 ? n : 0;
}

struct left {
	enum ssi_role role;
	u32 where;
	u64 stop_ns;
	struct ssi_move_stat stat;
};

/*
 * Before the destination may run it: from the commit on it may end there, move on or come back, and what is told of that has
 * to find a deputy here, though the answer to the commit is still on its way.
 */
static void leave(struct move *m, struct ssi_save *s, u64 stop_ns, struct left *was)
{
	struct ssi_task *st = m->st;

	s->stat.stop_us = us_since(stop_ns);
	spin_lock(&st->lock);
	*was = (struct left){ .role = st->role, .where = st->where, .stop_ns = st->stop_ns, .stat = st->stat };
	st->role = st->home == ssi_this_cell() ? SSI_DEPUTY : SSI_GONE;
	st->where = m->dest;
	st->moves++;
	st->why[0] = 0;
	st->stop_ns = stop_ns;
	st->stat = s->stat;
	st->exited = st->lost = false;
	spin_unlock(&st->lock);
}

/* The destination does not have it after all. */
static void stay(struct move *m, const struct left *was)
{
	struct ssi_task *st = m->st;

	spin_lock(&st->lock);
	st->role = was->role;
	st->where = was->where;
	st->moves--;
	st->stop_ns = was->stop_ns;
	st->stat = was->stat;
	st->lost = false;
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
}

/* What is left here is a task without memory and files. */
static int empty_mm(struct mm_struct **empty)
{
	*empty = mm_alloc();
	return *empty ? 0 : -ENOMEM;
}

/* 1: it has left, and current is its deputy or nothing; else 0 or -errno, and it goes on here. */
static int move_to_cell(struct move *m, struct ssi_save *s, u64 stop_ns)
{
	struct mm_struct *empty = NULL;
	struct ssi_lazy_src *src;
	struct ssi_sink sink = {};
	struct left was;
	u64 start = ktime_get_ns();
	int err;

	s->stat.t0_us = m->t0_us;
	src = ssi_lazy_keep(current->mm, m->st->pid, m->dest, &s->lazy_id);
	if (!src)
		return -ENOMEM;
	err = empty_mm(&empty);
	if (!err)
		err = sink_cell(&sink, m->dest, m->id);
	if (!err) {
		s->sink = &sink;
		err = ssi_save(s);
		ssi_fault_point(SSI_FAULT_SAVE);
		s->stat.t1_us = us_since(start);
		start = ktime_get_ns();
		if (!err)
			err = wait_ready(m, s);
		s->stat.t2_us = us_since(start);
		if (!err) {
			leave(m, s, stop_ns, &was);
			err = commit(m, s, stop_ns);
			if (err)
				stay(m, &was);
		}
		kvfree(sink.buf ? sink.buf - sizeof(u64) : NULL);
	}
	if (err) {
		ssi_save_release(s, false);
		ssi_lazy_abandon(src);
		if (empty)
			mmput(empty);
		return err;
	}
	ssi_fault_point(SSI_FAULT_LEFT);
	ssi_save_release(s, true);
	set_dumpable(empty, get_dumpable(current->mm));
	ssi_drop_mm(ssi_switch_mm(empty));
	ssi_lazy_left(src, m->flags & SSI_MOVE_EAGER);
	return 1;
}

static int write_checkpoint(struct move *m, struct ssi_save *s)
{
	struct ssi_sink sink;
	int err = ssi_sink_file(&sink, m->file);

	if (err)
		return err;
	s->sink = &sink;
	err = ssi_save(s);
	if (!err && m->checkpoint_flags & SSI_CHECKPOINT_KILL)	/* before another thread goes on */
		do_send_sig_info(SIGKILL, SEND_SIG_PRIV, current, PIDTYPE_TGID);
	ssi_save_release(s, false);
	ssi_sink_release(&sink);
	return err;
}

/* In the context of the process that is to move. As move_to_cell(). */
static int do_move(struct move *m, bool self)
{
	struct ssi_save *s = kzalloc(sizeof(*s), GFP_KERNEL);
	char why[SSI_WHY_MAX] = {};
	u64 stop_ns;
	int err;

	if (!s)
		return -ENOMEM;
	s->live = !m->file;
	s->self = self;
	s->dest = m->dest;
	s->flags = m->flags;
	s->why = why;
	s->threads = ssi_threads_get(m->threads);
	stop_ns = ktime_get_ns();
	err = ssi_check(s);
	if (err)
		ssi_save_release(s, false);
	else
		err = m->file ? write_checkpoint(m, s) : move_to_cell(m, s, stop_ns);
	if (err < 0)
		set_why(m->st, why);
	if (m->file && !err) {
		spin_lock(&m->st->lock);
		m->st->stat = s->stat;
		m->st->stat.stop_us = us_since(stop_ns);
		m->st->stat.total_us = m->st->stat.stop_us;
		m->st->why[0] = 0;
		spin_unlock(&m->st->lock);
	}
	if (err == -ENOTSUPP)
		err = -EOPNOTSUPP;
	if (err < 0 && !m->file)
		abort_offer(m);
	kfree(s);
	return err;
}

/* 1: it had left, and current, which was its deputy, is the process again. Else what the move ended with. */
static int run_move(struct move *m, bool self)
{
	struct ssi_task *st = m->st;
	u32 dest = m->dest;
	int err;

	if (current->flags & PF_EXITING || !current->mm || READ_ONCE(st->role) == SSI_DEPUTY ||
	    READ_ONCE(st->role) == SSI_GONE) {
		if (!m->file)
			abort_offer(m);
		finish(m, -ESRCH);
		return -ESRCH;
	}
	err = do_move(m, self);
	refcount_inc(&st->ref);
	finish(m, err == 1 ? 0 : err);
	if (err == 1)
		ssi_depart(st, dest);
	ssi_task_put(st);
	return err;
}

static void move_work(struct callback_head *work)
{
	struct move *m = container_of(work, struct move, work);

	clear_notify_signal();	/* it may have come here on another way than through get_signal() */
	if (current->flags & PF_EXITING || !ssi_work_again(work, &m->queued_again))
		run_move(m, false);
}

/* May the caller move @t? */
static int may_move(struct task_struct *t, u32 uid, u32 euid, bool capable)
{
	const struct cred *tc;
	bool same;

	if (is_global_init(t))
		return -EPERM;
	if (t->flags & PF_KTHREAD)
		return -EINVAL;
	rcu_read_lock();
	tc = __task_cred(t);
	same = euid == from_kuid(&init_user_ns, tc->uid) && euid == from_kuid(&init_user_ns, tc->suid);
	same |= uid == from_kuid(&init_user_ns, tc->uid) && uid == from_kuid(&init_user_ns, tc->suid);
	rcu_read_unlock();
	return same || capable ? 0 : -EPERM;
}

static struct move *new_move(struct task_struct *t, int *err)
{
	struct move *m = kzalloc(sizeof(*m), GFP_KERNEL);

	*err = -ENOMEM;
	if (!m)
		return NULL;
	m->st = ssi_task_get(t, true);
	if (!m->st) {
		*err = atomic_read(&t->signal->live) ? -ENOMEM : -ESRCH;
		kfree(m);
		return NULL;
	}
	refcount_set(&m->ref, 2);
	init_completion(&m->done);
	init_task_work(&m->work, move_work);
	*err = 0;
	spin_lock(&m->st->lock);
	if (m->st->moving)
		*err = -EBUSY;
	else
		m->st->moving = true;
	spin_unlock(&m->st->lock);
	if (*err) {
		ssi_task_put(m->st);
		kfree(m);
		return NULL;
	}
	return m;
}

static void not_begun(struct move *m, int err)
{
	if (err == -ETIMEDOUT)
		set_why(m->st, "it is stopped, or in a system call that cannot be interrupted");
	if (!m->file)
		abort_offer(m);
	finish(m, err);
}

/* current is another thread of the process: it stops here, as the others will, and returns only if the process stays. */
static int wait_with_others(struct move *m, struct task_struct *leader)
{
	struct ssi_threads *g = m->threads;
	int err = ssi_threads_await(g, START_TIMEOUT);

	if (err && task_work_cancel(leader, &m->work))
		not_begun(m, err);
	put_move(m);
	return ssi_threads_follow(g);
}

static int join(struct move *m)
{
	struct ssi_threads *g = ssi_threads_new();
	int err = g ? ssi_threads_join(g) : -ENOMEM;

	if (err)
		ssi_threads_put(g);
	else
		m->threads = g;
	return err;
}

static int wait_for(struct move *m, struct task_struct *t)
{
	long left = wait_for_completion_interruptible_timeout(&m->done, START_TIMEOUT);
	int err;

	if (left <= 0 && task_work_cancel(t, &m->work)) {
		err = left ? -EINTR : -ETIMEDOUT;
		not_begun(m, err);
	} else if (left <= 0 && wait_for_completion_killable(&m->done)) {
		put_move(m);
		return -EINTR;	/* and it goes on moving */
	}
	err = m->result;
	put_move(m);
	return err;
}

/* What has not come from the last cell yet comes first. The process runs meanwhile. */
static int wait_drained(struct task_struct *t)
{
	struct mm_struct *mm = get_task_mm(t);
	int err;

	if (!mm)
		return 0;
	err = ssi_lazy_finish(mm);
	mmput(mm);
	return err == -ERESTARTSYS ? -EINTR : err;
}

static int refuse(struct task_struct *t, const char *why)
{
	struct ssi_task *st = ssi_task_get(t, true);

	if (!st)
		return atomic_read(&t->signal->live) ? -ENOMEM : -ESRCH;
	set_why(st, why);
	ssi_task_put(st);
	return -EOPNOTSUPP;
}

/* Has @t do it, and waits. 1: @t is current, and its registers are what it brought when it came home. */
static int request(struct task_struct *t, u32 dest, u64 flags, struct file *file, u32 checkpoint_flags)
{
	struct move *m;
	int err;

	if (t->flags & PF_EXITING || READ_ONCE(t->exit_state))
		return atomic_read(&t->signal->live) ? refuse(t, "its main thread has ended") : -ESRCH;
	err = wait_drained(t);
	if (err)
		return err;
	if (READ_ONCE(t->signal->flags) & SIGNAL_STOP_STOPPED)
		return refuse(t, "it is stopped: continue it first");
	m = new_move(t, &err);
	if (!m)
		return err;
	m->dest = dest;
	m->flags = flags;
	m->checkpoint_flags = checkpoint_flags;
	if (file)
		m->file = get_file(file);
	else
		err = offer(m, t);
	if (err) {
		finish(m, err);
		put_move(m);
		return err;
	}
	if (t == current) {
		err = run_move(m, true);
		put_move(m);
		return err;
	}
	if (same_thread_group(t, current))
		err = join(m);
	if (err || task_work_add(t, &m->work, TWA_SIGNAL))
		not_begun(m, err ?: -ESRCH);
	else if (!m->threads)
		return wait_for(m, t);
	if (!err && m->threads)
		return wait_with_others(m, t);
	err = m->result;
	put_move(m);
	return err;
}

/* migrate(2) of a process that is in another cell: its home knows which. */
static int ask(u32 cell, pid_t pid, u32 dest, u64 flags, u32 uid, u32 euid, bool capable)
{
	struct ssi_ask a = { .pid = pid, .dest = dest, .flags = flags, .uid = uid, .euid = euid, .capable = capable };
	struct ssi_asked reply;
	struct ssi_task *st;
	ssize_t n = ssi_call_interruptible(cell, SSI_OP_MIGRATE_ASK, &a, sizeof(a), &reply, sizeof(reply));

	if (n < 0)
		return n;
	if (n != sizeof(reply) || reply.error > 0 || reply.error < -MAX_ERRNO)
		return -EPROTO;
	reply.why[SSI_WHY_MAX - 1] = 0;
	st = reply.why[0] ? ssi_task_get_pid(pid) : NULL;
	if (st) {
		set_why(st, reply.why);
		ssi_task_put(st);
	}
	return reply.error;
}

/* Is @t, born in another cell, not the process, but what is about to become it here, or what it left behind? */
static bool only_has_its_pid(struct task_struct *t)
{
	struct ssi_task *st;
	bool runs = false;

	if (ssi_home_of_pid(task_tgid_nr(t)) == ssi_this_cell())
		return false;
	st = ssi_task_get(t, false);
	if (st) {
		ssi_task_arrived(st);
		runs = READ_ONCE(st->role) == SSI_RUNNER;
		ssi_task_put(st);
	}
	return !runs;
}

/* The main thread of the process of which @pid is a thread, or 0: of current's. With a reference; NULL: none. */
static struct task_struct *get_main_thread(pid_t pid)
{
	struct task_struct *t = pid ? find_get_task_by_vpid(pid) : get_task_struct(current), *main;

	if (!t)
		return NULL;
	main = get_task_struct(t->group_leader);
	put_task_struct(t);
	return main;
}

/*
 * Here, or where it is: a cell that does not have it asks its home, and the home asks where it went. With @may_ask_home false
 * the home has asked already: a process that has just ended is then nowhere, and not asked for round and round.
 */
static int migrate(pid_t pid, u32 dest, u64 flags, u32 uid, u32 euid, bool capable, bool may_ask_home)
{
	struct task_struct *t;
	struct ssi_task *st;
	u32 where = ssi_this_cell();
	int err;

	pid = ssi_pid_owner(pid) ?: pid;
	t = get_main_thread(pid);
	if (t && only_has_its_pid(t)) {
		put_task_struct(t);
		if (!may_ask_home)
			return -EAGAIN;		/* it has just left, or is not here yet */
		t = NULL;
	}
	if (!t) {
		u32 home = ssi_home_of_pid(pid);

		return home == ssi_this_cell() || !may_ask_home ? -ESRCH : ask(home, pid, dest, flags, uid, euid, capable);
	}
	err = may_move(t, uid, euid, capable);
	st = err ? NULL : ssi_task_get(t, false);
	if (st) {
		ssi_task_arrived(st);
		spin_lock(&st->lock);
		if (st->role == SSI_DEPUTY)
			where = st->where;
		else if (st->role == SSI_GONE)
			err = -EAGAIN;
		spin_unlock(&st->lock);
		ssi_task_put(st);
	}
	if (!err && where != dest)
		err = where == ssi_this_cell() ? request(t, dest, flags, NULL, 0) :
						 ask(where, task_tgid_nr(t), dest, flags, uid, euid, capable);
	put_task_struct(t);
	return err;
}

static ssize_t handle_ask(struct ssi_request *req)
{
	const struct ssi_ask *a = req->body;
	struct ssi_asked *reply = req->reply;
	struct ssi_task *st;

	if (req->len != sizeof(*a) || a->pid <= 0 || a->dest >= ssi_cells() || a->flags & ~SSI_MOVE_FLAGS)
		return -EINVAL;
	memset(reply, 0, sizeof(*reply));
	reply->error = migrate(a->pid, a->dest, a->flags, a->uid, a->euid, a->capable, false);
	st = ssi_task_get_pid(a->pid);
	if (st) {
		spin_lock(&st->lock);
		strscpy(reply->why, st->why, sizeof(reply->why));
		spin_unlock(&st->lock);
		ssi_task_put(st);
	}
	return sizeof(*reply);
}

SYSCALL_DEFINE2(migrate, int, pid, unsigned long, addr)
{
	u32 node = addr & SSI_ADDR_NODE;
	int err;

	if (pid < 0 || addr & ~(SSI_ADDR_NODE | SSI_MOVE_FLAGS))
		return -EINVAL;
	if (node >= 0x01000000) {
		if ((node & 0xffffff00) != NODE_NET || (node & 0xff) < 2)
			return -EHOSTUNREACH;
		node = (node & 0xff) - 2;
	}
	if (node != ssi_this_cell() && (!ssi_present() || node >= ssi_cells() || !ssi_cell_alive(node)))
		return -EHOSTUNREACH;
	err = migrate(pid, node, addr & SSI_MOVE_FLAGS, from_kuid(&init_user_ns, current_uid()),
		      from_kuid(&init_user_ns, current_euid()), capable(CAP_SYS_PTRACE), true);
	return err == 1 ? task_pt_regs(current)->ax : err;
}

int ssi_checkpoint(pid_t pid, struct file *file, u32 flags)
{
	struct task_struct *t = get_main_thread(pid);
	int err;

	if (!t)
		return -ESRCH;
	if (is_global_init(t))
		err = -EPERM;
	else if (t->flags & PF_KTHREAD || same_thread_group(t, current))
		err = -EINVAL;
	else if (!ptrace_may_access(t, PTRACE_MODE_ATTACH_REALCREDS))
		err = -EPERM;
	else
		err = request(t, 0, 0, file, flags);
	put_task_struct(t);
	return err;
}

static void cell_died(u32 cell)
{
	ssi_incoming_cell_died(cell);
	ssi_lazy_cell_died(cell);
	ssi_deputy_cell_died(cell);
}

static int __init migrate_init(void)
{
	ssi_rpc_register(SSI_OP_MIGRATE_ASK, handle_ask);
	ssi_on_cell_death(cell_died);
	return 0;
}
fs_initcall(migrate_init);

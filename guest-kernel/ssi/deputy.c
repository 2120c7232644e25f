// SPDX-License-Identifier: GPL-2.0
/*
 * The deputy: what stays of a process in the cell where it was born, and what ties the process to it.
 *
 * The deputy is the task that it was, without memory and files: it keeps the PID, the parent, the process group, the session
 * and the terminal. It blocks every signal but SIGKILL, takes each that comes (as signalfd does) and sends it to where the
 * process runs. When the process ends there, the deputy ends with its status, so that wait(2) sees a child as any other.
 *
 * A process that moves on from a cell where it was not born leaves nothing there.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/pid_namespace.h>
#include <linux/sched/cputime.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/signal.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <linux/task_work.h>

#include "incoming.h"
#include "migrate.h"
#include "task.h"
#include "wire.h"

static_assert(sizeof(struct ssi_usage) == sizeof_field(struct ssi_exit, usage));

/* @type: PIDTYPE_PID for one that was sent to the thread, as by tgkill(2), else PIDTYPE_TGID. 0: delivered. -ESRCH: it is not there. */
static int send_to(u32 cell, pid_t pid, int sig, const kernel_siginfo_t *info, enum pid_type type)
{
	struct ssi_signal msg = { .pid = pid, .sig = sig, .thread = type == PIDTYPE_PID, .info = *info };
	ssize_t n = ssi_call(cell, SSI_OP_DEPUTY_SIGNAL, &msg, sizeof(msg), NULL, 0, MAX_SCHEDULE_TIMEOUT);

	return n < 0 ? n : 0;
}

static bool over(struct ssi_task *st)
{
	return READ_ONCE(st->exited) || READ_ONCE(st->lost);
}

/*
 * Sends a signal after the process. It may be between two cells: then the old one does not know it any more, and the new one
 * is about to say that it has it.
 */
static void forward(struct ssi_task *st, int sig, const kernel_siginfo_t *info, enum pid_type type)
{
	u32 moves, where;

	for (;;) {
		spin_lock(&st->lock);
		where = st->where;
		moves = st->moves;
		spin_unlock(&st->lock);
		if (over(st) || send_to(where, st->pid, sig, info, type) != -ESRCH)
			return;
		wait_event(st->wait, over(st) || READ_ONCE(st->moves) != moves || READ_ONCE(st->coming));
		if (READ_ONCE(st->coming) && !over(st)) {	/* here in a moment */
			do_send_sig_info(sig, (void *)info, current, type);
			return;
		}
	}
}

static int take_signal(kernel_siginfo_t *info, enum pid_type *type)
{
	sigset_t but;
	int sig;

	siginitset(&but, sigmask(SIGKILL));
	spin_lock_irq(&current->sighand->siglock);
	sig = dequeue_signal(&but, info, type);
	current->jobctl &= ~JOBCTL_STOP_DEQUEUED;
	spin_unlock_irq(&current->sighand->siglock);
	return sig;
}

static void block_all(void)
{
	spin_lock_irq(&current->sighand->siglock);
	sigfillset(&current->blocked);
	sigdelset(&current->blocked, SIGKILL);
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
	clear_restore_sigmask();
}

static bool has_signal(void)
{
	return !sigisemptyset(&current->pending.signal) || !sigisemptyset(&current->signal->shared_pending.signal);
}

static void run_requests(void)
{
	clear_notify_signal();
	if (task_work_pending(current))
		task_work_run();	/* those who want to move it learn that it is elsewhere */
}

/* Until there is something to do. */
static void deputy_sleep(struct ssi_task *st)
{
	DECLARE_WAITQUEUE(on_event, current);
	DECLARE_WAITQUEUE(on_signal, current);

	add_wait_queue(&st->wait, &on_event);
	add_wait_queue(&current->sighand->signalfd_wqh, &on_signal);
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (over(st) || READ_ONCE(st->coming) || has_signal() || signal_pending(current))
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	remove_wait_queue(&current->sighand->signalfd_wqh, &on_signal);
	remove_wait_queue(&st->wait, &on_event);
}

/* What the process used elsewhere is what this task used, for its parent. */
static void take_usage(const struct ssi_usage *u)
{
	struct signal_struct *sig = current->signal;
	u64 utime, stime;

	task_cputime(current, &utime, &stime);
	write_seqlock_irq(&sig->stats_lock);
	sig->utime = u->utime - min(u->utime, utime);
	sig->stime = u->stime - min(u->stime, stime);
	sig->cutime = u->cutime;
	sig->cstime = u->cstime;
	sig->min_flt = u->min_flt;
	sig->maj_flt = u->maj_flt;
	sig->nvcsw = u->nvcsw;
	sig->nivcsw = u->nivcsw;
	sig->maxrss = u->maxrss;
	write_sequnlock_irq(&sig->stats_lock);
}

static void __noreturn deputy_end(struct ssi_task *st)
{
	int status = SIGKILL;

	spin_lock(&st->lock);
	if (st->exited) {
		status = st->status;
		spin_unlock(&st->lock);
		take_usage(&st->usage);
	} else {
		spin_unlock(&st->lock);
		pr_notice("process %d was lost with cell %u\n", st->pid, st->where);
	}
	ssi_task_put(st);
	do_group_exit(status);
}

/* SIGKILL has come: the process is killed, wherever it is, and then this is its end. */
static void deputy_killed(struct ssi_task *st)
{
	kernel_siginfo_t info;

	clear_siginfo(&info);
	info.si_signo = SIGKILL;
	info.si_code = SI_USER;
	while (!over(st)) {
		struct ssi_incoming_move *in;

		spin_lock(&st->lock);
		in = st->coming;
		st->coming = NULL;
		spin_unlock(&st->lock);
		if (in) {
			ssi_incoming_fail(in, -EINTR, "the process was killed");
			ssi_incoming_put(in);
		}
		forward(st, SIGKILL, &info, PIDTYPE_TGID);
		wait_event(st->wait, over(st) || READ_ONCE(st->coming));
	}
	deputy_end(st);
}

/* 0: current is the process again. */
static int come_home(struct ssi_task *st)
{
	struct ssi_incoming_move *in;
	struct ssi_source src = { .read = ssi_incoming_read };
	int err;

	spin_lock(&st->lock);
	in = st->coming;
	spin_unlock(&st->lock);
	src.in = in;
	err = ssi_incoming_take(in);
	if (!err)
		err = ssi_restart(&src, true);
	spin_lock(&st->lock);
	st->coming = NULL;
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
	ssi_incoming_put(in);
	return err;
}

static void deputy_run(struct ssi_task *st)
{
	kernel_siginfo_t info;
	enum pid_type type;
	int sig;

	block_all();
	for (;;) {
		deputy_sleep(st);
		if (over(st))
			deputy_end(st);
		if (fatal_signal_pending(current))
			deputy_killed(st);
		if (test_thread_flag(TIF_NOTIFY_SIGNAL))
			run_requests();
		if (READ_ONCE(st->coming)) {
			if (!come_home(st))
				return;
			continue;
		}
		sig = take_signal(&info, &type);
		if (sig)
			forward(st, sig, &info, type);
	}
}

static void tell_moved(struct ssi_task *st, u32 where)
{
	struct ssi_moved msg = { .pid = st->pid, .cell = where, .moves = st->moves };

	ssi_post(st->home, SSI_OP_DEPUTY_MOVED, &msg, sizeof(msg));
}

/* To the cell where it went; if it has left that one as well, its home knows, and waits until it is somewhere. */
static void send_after(struct ssi_task *st, u32 where, int sig, const kernel_siginfo_t *info, enum pid_type type)
{
	struct ssi_kill msg = { .pid = st->pid, .sig = sig, .thread = type == PIDTYPE_PID, .capable = true, .info = *info };

	if (send_to(where, st->pid, sig, info, type) == -ESRCH)
		ssi_call(st->home, SSI_OP_DEPUTY_KILL, &msg, sizeof(msg), NULL, 0, MAX_SCHEDULE_TIMEOUT);
}

/* The rest of a process that was not born here: what signals came while it left follow it, then nothing is left. */
static void __noreturn vanish(struct ssi_task *st, u32 where)
{
	kernel_siginfo_t info;
	enum pid_type type;
	int sig;

	tell_moved(st, where);
	block_all();
	while ((sig = take_signal(&info, &type)))
		send_after(st, where, sig, &info, type);
	if (fatal_signal_pending(current)) {
		clear_siginfo(&info);
		info.si_signo = SIGKILL;
		info.si_code = SI_USER;
		send_after(st, where, SIGKILL, &info, PIDTYPE_TGID);
	}
	ssi_task_put(st);
	do_exit(0);
}

void ssi_depart(struct ssi_task *st, u32 where)
{
	if (!ssi_cell_alive(where))
		WRITE_ONCE(st->lost, true);
	if (READ_ONCE(st->role) == SSI_GONE)
		vanish(st, where);
	deputy_run(st);
}

/* What a move took, for /proc/ssi of its home, where people look. */
void ssi_tell_figures(struct ssi_task *st)
{
	struct ssi_figures msg;

	if (st->home == ssi_this_cell())
		return;
	spin_lock(&st->lock);
	msg = (struct ssi_figures){ .pid = st->pid, .moves = st->moves, .stat = st->stat };
	spin_unlock(&st->lock);
	ssi_post(st->home, SSI_OP_DEPUTY_STAT, &msg, sizeof(msg));
}

void ssi_arrive(struct ssi_task *st, u32 source)
{
	if (st->home == ssi_this_cell() || st->home == source)
		return;
	tell_moved(st, ssi_this_cell());
	ssi_tell_figures(st);
}

typedef int (*send_fn)(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type);

/*
 * A process that was born elsewhere and runs here gets the signal; -ENOENT if it does not: what has its PID here is about to
 * become it, or was it. Under the lock, so that leave() comes after the signal, which then follows the process, or before.
 */
static int send_to_runner(struct task_struct *t, send_fn send, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	struct ssi_task *st = ssi_task_get(t, false);
	int err = -ENOENT;

	if (!st)
		return err;
	spin_lock(&st->lock);
	if (st->role == SSI_RUNNER)
		err = send(t, sig, info, type);
	spin_unlock(&st->lock);
	ssi_task_put(st);
	return err;
}

static int send_unchecked(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	return do_send_sig_info(sig, sig == SIGKILL ? SEND_SIG_PRIV : info, t, type);
}

/* As kill(2) or tkill(2) of a process of this cell, permissions included. */
static int send_checked(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	return type == PIDTYPE_PID ? do_send_specific(0, task_pid_vnr(t), sig, info) : kill_pid_info(sig, info, task_tgid(t));
}

static ssize_t handle_signal_to(struct ssi_request *req)
{
	const struct ssi_signal *s = req->body;
	struct kernel_siginfo info;
	struct task_struct *t;
	struct ssi_task *st;
	int err;

	if (req->len != sizeof(*s) || !valid_signal(s->sig) || !s->sig || s->info.si_signo != s->sig)
		return -EINVAL;
	t = find_get_task_by_vpid(s->pid);
	if (!t)
		return -ESRCH;
	st = ssi_task_get(t, false);
	if (st) {
		ssi_task_arrived(st);
		ssi_task_put(st);
	}
	info = s->info;
	err = send_to_runner(t, send_unchecked, s->sig, &info, s->thread ? PIDTYPE_PID : PIDTYPE_TGID);
	put_task_struct(t);
	return err == -ENOENT ? -ESRCH : err;
}

static int may_kill(const struct ssi_kill *k, struct task_struct *t)
{
	const struct cred *tc;
	u32 uid, suid;

	rcu_read_lock();
	tc = __task_cred(t);
	uid = from_kuid(&init_user_ns, tc->uid);
	suid = from_kuid(&init_user_ns, tc->suid);
	rcu_read_unlock();
	if (k->capable || k->euid == suid || k->euid == uid || k->uid == suid || k->uid == uid)
		return 0;
	return -EPERM;
}

static ssize_t handle_kill(struct ssi_request *req)
{
	const struct ssi_kill *k = req->body;
	struct task_struct *t;
	int err;

	if (req->len != sizeof(*k) || !valid_signal(k->sig) || k->pid < RESERVED_PIDS)
		return -EINVAL;
	t = find_get_task_by_vpid(k->pid);
	if (!t)
		return -ESRCH;
	err = k->tgid && k->tgid != task_tgid_vnr(t) ? -ESRCH : may_kill(k, t);
	if (!err && k->sig) {
		struct kernel_siginfo info = k->info;

		err = do_send_sig_info(k->sig, &info, t, k->thread ? PIDTYPE_PID : PIDTYPE_TGID);
	}
	put_task_struct(t);
	return err;
}

static ssize_t handle_exit(struct ssi_request *req)
{
	const struct ssi_exit *e = req->body;
	struct ssi_task *st;

	if (req->len != sizeof(*e))
		return -EINVAL;
	st = ssi_task_get_pid(e->pid);
	if (!st)
		return -ESRCH;
	spin_lock(&st->lock);
	if (st->role == SSI_DEPUTY && !st->exited) {
		st->status = e->status & 0xffff;
		memcpy(&st->usage, e->usage, sizeof(st->usage));
		st->exited = true;
	}
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
	ssi_task_put(st);
	return 0;
}

static ssize_t handle_moved(struct ssi_request *req)
{
	const struct ssi_moved *m = req->body;
	struct ssi_task *st;

	if (req->len != sizeof(*m))
		return -EINVAL;
	st = ssi_task_get_pid(m->pid);
	if (!st)
		return -ESRCH;
	spin_lock(&st->lock);
	if (st->role == SSI_DEPUTY && (s32)(m->moves - st->moves) > 0) {
		st->moves = m->moves;
		st->where = m->cell;
		if (m->cell != ssi_this_cell() && !ssi_cell_alive(m->cell))
			st->lost = true;
	}
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
	ssi_task_put(st);
	return 0;
}

static ssize_t handle_stat(struct ssi_request *req)
{
	const struct ssi_figures *f = req->body;
	struct ssi_task *st;

	if (req->len != sizeof(*f))
		return -EINVAL;
	st = ssi_task_get_pid(f->pid);
	if (!st)
		return -ESRCH;
	spin_lock(&st->lock);
	if (st->role == SSI_DEPUTY && st->moves == f->moves)
		st->stat = f->stat;
	spin_unlock(&st->lock);
	ssi_task_put(st);
	return 0;
}

static ssize_t handle_ppid(struct ssi_request *req)
{
	struct task_struct *t;

	if (req->len != sizeof(s32))
		return -EINVAL;
	t = find_get_task_by_vpid(*(const s32 *)req->body);
	if (!t)
		return -ESRCH;
	rcu_read_lock();
	*(s32 *)req->reply = task_tgid_nr(rcu_dereference(t->real_parent));
	rcu_read_unlock();
	put_task_struct(t);
	return sizeof(s32);
}

static void mark_lost(struct ssi_task *st, u32 cell)
{
	spin_lock(&st->lock);
	if (st->role == SSI_DEPUTY && st->where == cell && !st->exited)
		st->lost = true;
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
}

void ssi_deputy_cell_died(u32 cell)
{
	ssi_task_each(mark_lost, cell);
}

/* Hooks in the core kernel. */

void __ssi_exit(struct task_struct *tsk, long code)
{
	struct ssi_task *st = ssi_task_get(tsk, false);
	struct signal_struct *sig = tsk->signal;
	struct task_cputime used;
	struct ssi_usage u;
	struct ssi_exit msg;

	if (!st)
		return;
	if (READ_ONCE(st->role) == SSI_RUNNER) {
		thread_group_cputime(tsk, &used);
		u = (struct ssi_usage){
			.utime = used.utime, .stime = used.stime, .cutime = sig->cutime, .cstime = sig->cstime,
			.min_flt = sig->min_flt + tsk->min_flt, .maj_flt = sig->maj_flt + tsk->maj_flt,
			.nvcsw = sig->nvcsw + tsk->nvcsw, .nivcsw = sig->nivcsw + tsk->nivcsw, .maxrss = sig->maxrss,
		};
		msg.pid = st->pid;
		msg.status = sig->flags & SIGNAL_GROUP_EXIT ? sig->group_exit_code : code;
		memcpy(msg.usage, &u, sizeof(u));
		ssi_post(st->home, SSI_OP_DEPUTY_EXIT, &msg, sizeof(msg));
	}
	ssi_task_put(st);
}

void __ssi_exited(struct task_struct *tsk)
{
	struct ssi_task *st = ssi_task_get(tsk, false);

	if (!st)
		return;
	ssi_task_forget(st);
	ssi_task_put(st);
}

/* Under tasklist_lock. True: its parent here is only migrationd, which does not hear of it. */
bool __ssi_exit_silent(struct task_struct *tsk)
{
	struct ssi_task *st = ssi_task_get(tsk, false);
	enum ssi_role role = st ? READ_ONCE(st->role) : SSI_NATIVE;

	if (st)
		ssi_task_put(st);
	return role == SSI_RUNNER || role == SSI_GONE;
}

/* Does another cell know where @pid is? */
bool __ssi_foreign(pid_t pid)
{
	u32 home = ssi_home_of_pid(pid);

	return home != ssi_this_cell() && home < ssi_cells() && task_active_pid_ns(current) == &init_pid_ns;
}

/*
 * A signal for @pid, of which @t is what is here, with a reference, or NULL. @tgid: the process that it has to be a thread of,
 * 0: any.
 */
static int kill_foreign(struct task_struct *t, pid_t pid, pid_t tgid, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	struct ssi_kill msg = {
		.pid = pid,
		.sig = sig,
		.thread = type == PIDTYPE_PID,
		.tgid = tgid,
		.uid = from_kuid(&init_user_ns, current_uid()),
		.euid = from_kuid(&init_user_ns, current_euid()),
		.capable = capable(CAP_KILL),
	};
	ssize_t n = -ENOENT;

	if (t) {
		n = tgid && tgid != task_tgid_vnr(t) ? -ESRCH : send_to_runner(t, send_checked, sig, info, type);
		put_task_struct(t);
	}
	if (n != -ENOENT)
		return n;
	if (info != SEND_SIG_NOINFO && info != SEND_SIG_PRIV)
		msg.info = *info;
	msg.info.si_signo = sig;
	n = ssi_call(ssi_home_of_pid(pid), SSI_OP_DEPUTY_KILL, &msg, sizeof(msg), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	if (n == -EHOSTUNREACH || n == -EINVAL)
		return -ESRCH;
	return n < 0 ? n : 0;
}

int __ssi_kill(int sig, struct kernel_siginfo *info, pid_t pid)
{
	return kill_foreign(find_get_task_by_vpid(pid), pid, 0, sig, info, PIDTYPE_TGID);
}

int __ssi_tkill(int sig, struct kernel_siginfo *info, pid_t tgid, pid_t pid)
{
	return kill_foreign(find_get_task_by_vpid(pid), pid, max(tgid, 0), sig, info, PIDTYPE_PID);
}

/* A descriptor names what has the PID in this cell: when that has left, it is as if it had ended. */
int __ssi_pidfd_kill(int sig, struct kernel_siginfo *info, struct pid *pid, enum pid_type type)
{
	struct task_struct *t = get_pid_task(pid, PIDTYPE_PID);

	return t ? kill_foreign(t, pid_nr(pid), 0, sig, info, type) : -ESRCH;
}

pid_t __ssi_getppid(pid_t here)
{
	struct ssi_task *st = ssi_task_get(current, false);
	s32 pid, ppid;

	if (!st)
		return here;
	if (READ_ONCE(st->role) == SSI_RUNNER) {
		pid = st->pid;
		here = st->ppid;
		if (ssi_call(st->home, SSI_OP_DEPUTY_PPID, &pid, sizeof(pid), &ppid, sizeof(ppid),
			     MAX_SCHEDULE_TIMEOUT) == sizeof(ppid))
			here = ppid;
		else if (!ssi_cell_alive(st->home))
			here = 1;
	}
	ssi_task_put(st);
	return here;
}

pid_t __ssi_getpgid(struct task_struct *t, pid_t here)
{
	struct ssi_task *st = ssi_task_get(t, false);

	if (!st)
		return here;
	if (READ_ONCE(st->role) == SSI_RUNNER)
		here = st->pgrp;
	ssi_task_put(st);
	return here;
}

pid_t __ssi_getsid(struct task_struct *t, pid_t here)
{
	struct ssi_task *st = ssi_task_get(t, false);

	if (!st)
		return here;
	if (READ_ONCE(st->role) == SSI_RUNNER)
		here = st->sid;
	ssi_task_put(st);
	return here;
}

static int __init deputy_init(void)
{
	ssi_rpc_register(SSI_OP_DEPUTY_SIGNAL, handle_signal_to);
	ssi_rpc_register(SSI_OP_DEPUTY_KILL, handle_kill);
	ssi_rpc_register(SSI_OP_DEPUTY_EXIT, handle_exit);
	ssi_rpc_register(SSI_OP_DEPUTY_MOVED, handle_moved);
	ssi_rpc_register(SSI_OP_DEPUTY_PPID, handle_ppid);
	ssi_rpc_register(SSI_OP_DEPUTY_STAT, handle_stat);
	return 0;
}
fs_initcall(deputy_init);

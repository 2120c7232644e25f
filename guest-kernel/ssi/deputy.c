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
#include "pid.h"
#include "task.h"
#include "wire.h"

#define STRAYS_MAX	65536

/* @tid: the thread that it was sent to, as by tgkill(2); 0: to the process. 0: delivered. -ESRCH: the process is not there. */
static int send_to(u32 cell, pid_t pid, pid_t tid, int sig, const kernel_siginfo_t *info)
{
	struct ssi_signal msg = { .pid = pid, .tid = tid, .sig = sig, .info = *info };
	ssize_t n = ssi_call(cell, SSI_OP_DEPUTY_SIGNAL, &msg, sizeof(msg), NULL, 0, MAX_SCHEDULE_TIMEOUT);

	return n < 0 ? n : 0;
}

static bool over(struct ssi_task *st)
{
	return READ_ONCE(st->exited) || READ_ONCE(st->lost);
}

/* To a thread of this process, which is here, or to the process. */
static void send_here(pid_t tid, int sig, const kernel_siginfo_t *info)
{
	struct task_struct *t = tid ? ssi_get_thread(current, tid) : get_task_struct(current);

	if (!t)
		return;
	do_send_sig_info(sig, (void *)info, t, tid ? PIDTYPE_PID : PIDTYPE_TGID);
	put_task_struct(t);
}

/*
 * Sends a signal after the process. It may be between two cells: then the old one does not know it any more, and the new one
 * is about to say that it has it. False: it comes home, and takes the signal then.
 */
static bool forward(struct ssi_task *st, pid_t tid, int sig, const kernel_siginfo_t *info)
{
	u32 moves, where;

	for (;;) {
		spin_lock(&st->lock);
		where = st->where;
		moves = st->moves;
		spin_unlock(&st->lock);
		if (over(st) || send_to(where, st->pid, tid, sig, info) != -ESRCH)
			return true;
		wait_event(st->wait, over(st) || READ_ONCE(st->moves) != moves || READ_ONCE(st->coming));
		if (READ_ONCE(st->coming) && !over(st))
			return false;
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

static bool has_own_signal(void)
{
	sigset_t own = current->pending.signal;

	sigdelset(&own, SIGKILL);
	return !sigisemptyset(&own);
}

int ssi_add_stray(struct ssi_task *st, pid_t tid, const kernel_siginfo_t *info)
{
	struct ssi_stray *stray = kmalloc(sizeof(*stray), GFP_KERNEL);
	int err = -ESRCH;

	if (!stray)
		return -ENOMEM;
	stray->tid = tid;
	stray->info = *info;
	spin_lock(&st->lock);
	if (st->role == SSI_DEPUTY || st->role == SSI_GONE)
		err = st->nstrays < STRAYS_MAX ? 0 : -EAGAIN;
	if (!err) {
		list_add_tail(&stray->list, &st->strays);
		st->nstrays++;
	}
	spin_unlock(&st->lock);
	if (err)
		kfree(stray);
	else
		wake_up_all(&st->wait);
	return err;
}

static void leave_strays(struct ssi_task *st)
{
	kernel_siginfo_t info;
	enum pid_type type;

	block_all();
	while (has_own_signal() && take_signal(&info, &type))
		ssi_add_stray(st, type == PIDTYPE_PID ? task_pid_nr(current) : 0, &info);
}

static struct ssi_stray *take_stray(struct ssi_task *st)
{
	struct ssi_stray *stray;

	spin_lock(&st->lock);
	stray = list_first_entry_or_null(&st->strays, struct ssi_stray, list);
	if (stray) {
		list_del(&stray->list);
		st->nstrays--;
	}
	spin_unlock(&st->lock);
	return stray;
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
		if (over(st) || READ_ONCE(st->coming) || has_signal() || !list_empty_careful(&st->strays) ||
		    signal_pending(current))
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	remove_wait_queue(&current->sighand->signalfd_wqh, &on_signal);
	remove_wait_queue(&st->wait, &on_event);
}

static void __noreturn deputy_end(struct ssi_task *st)
{
	int status = SIGKILL;

	spin_lock(&st->lock);
	if (st->exited) {
		status = st->status;
		spin_unlock(&st->lock);
		ssi_usage_take(&st->usage);
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
		forward(st, 0, SIGKILL, &info);
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

/* What signals there are go after the process. If it comes home before it has got one, that waits for it here. */
static void follow_up(struct ssi_task *st)
{
	struct ssi_stray *stray = take_stray(st);
	kernel_siginfo_t info;
	enum pid_type type;
	pid_t tid = 0;

	if (stray) {
		tid = stray->tid;
		info = stray->info;
		kfree(stray);
	} else {
		if (!take_signal(&info, &type))
			return;
		if (type == PIDTYPE_PID)
			tid = task_pid_nr(current);
	}
	if (forward(st, tid, info.si_signo, &info))
		return;
	if (tid && tid != task_pid_nr(current))
		ssi_add_stray(st, tid, &info);
	else
		send_here(tid, info.si_signo, &info);
}

/* What still waits for its threads when it has come home. */
static void deliver_strays(struct ssi_task *st)
{
	struct ssi_stray *stray;

	while ((stray = take_stray(st))) {
		send_here(stray->tid, stray->info.si_signo, &stray->info);
		kfree(stray);
	}
}

static void deputy_run(struct ssi_task *st)
{
	block_all();
	if (task_work_pending(current))
		task_work_run();	/* files that it closed are closed now */
	for (;;) {
		deputy_sleep(st);
		if (over(st))
			deputy_end(st);
		if (fatal_signal_pending(current))
			deputy_killed(st);
		if (test_thread_flag(TIF_NOTIFY_SIGNAL))
			run_requests();
		if (!READ_ONCE(st->coming)) {
			follow_up(st);
		} else if (!come_home(st)) {
			deliver_strays(st);
			return;
		}
	}
}

static void tell_moved(struct ssi_task *st, u32 where)
{
	struct ssi_moved msg = { .pid = st->pid, .cell = where, .moves = st->moves };

	ssi_post(st->home, SSI_OP_DEPUTY_MOVED, &msg, sizeof(msg));
}

/* To the cell where it went; if it has left that one as well, its home knows, and waits until it is somewhere. */
static void send_after(struct ssi_task *st, u32 where, pid_t tid, const kernel_siginfo_t *info)
{
	struct ssi_kill msg = { .pid = st->pid, .tid = tid, .sig = info->si_signo, .thread = !!tid, .capable = true, .info = *info };

	if (send_to(where, st->pid, tid, info->si_signo, info) == -ESRCH)
		ssi_call(st->home, SSI_OP_DEPUTY_KILL, &msg, sizeof(msg), NULL, 0, MAX_SCHEDULE_TIMEOUT);
}

/* The rest of a process that was not born here: what signals came while it left follow it, then nothing is left. */
static void __noreturn vanish(struct ssi_task *st, u32 where)
{
	struct ssi_stray *stray;
	kernel_siginfo_t info;
	enum pid_type type;

	tell_moved(st, where);
	block_all();
	while ((stray = take_stray(st))) {
		send_after(st, where, stray->tid, &stray->info);
		kfree(stray);
	}
	while (take_signal(&info, &type))
		send_after(st, where, type == PIDTYPE_PID ? st->pid : 0, &info);
	if (fatal_signal_pending(current)) {
		clear_siginfo(&info);
		info.si_signo = SIGKILL;
		info.si_code = SI_USER;
		send_after(st, where, 0, &info);
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

/* A thread that had a number of this cell has ended elsewhere, or all those of a process. */
static ssize_t handle_tid(struct ssi_request *req)
{
	s32 tid;

	if (req->len != sizeof(tid))
		return -EINVAL;
	tid = *(const s32 *)req->body;
	if (tid < 0)
		ssi_pid_unkeep_all(-tid);
	else
		ssi_pid_unkeep(tid);
	return 0;
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
		st->usage = e->usage;
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

/* As wait(2) will have it: what exit_group(2) or a signal said, else what the main thread did. @code: of @tsk, the last one. */
static int exit_status(struct task_struct *tsk, long code)
{
	struct signal_struct *sig = tsk->signal;

	if (sig->flags & SIGNAL_GROUP_EXIT)
		return sig->group_exit_code;
	return thread_group_leader(tsk) ? code : tsk->group_leader->exit_code;
}

static void tell_exit(struct ssi_task *st, struct task_struct *tsk, long code)
{
	struct ssi_exit msg = { .pid = st->pid, .status = exit_status(tsk, code) };

	ssi_usage_of(tsk, &msg.usage);
	ssi_post(st->home, SSI_OP_DEPUTY_EXIT, &msg, sizeof(msg));
}

/*
 * The process has ended. Its threads' numbers are free, wherever they were given out. Each has said so, but those that died with a
 * cell, and one that became the main thread by execve(2).
 */
static void tell_over(struct ssi_task *st)
{
	s32 all = -st->pid;

	ssi_pid_unkeep_all(st->pid);
	for (u32 cell = 0; cell < ssi_cells(); cell++)
		if (cell != ssi_this_cell() && ssi_cell_alive(cell))
			ssi_post(cell, SSI_OP_DEPUTY_TID, &all, sizeof(all));
}

void __ssi_exit(struct task_struct *tsk, int group_dead, long code)
{
	struct ssi_task *st = ssi_task_get(tsk, false);
	s32 tid = task_pid_nr(tsk);
	enum ssi_role role;

	if (!st)
		return;
	role = READ_ONCE(st->role);
	if (role == SSI_RUNNER && group_dead)
		tell_exit(st, tsk, code);
	if (group_dead && st->home == ssi_this_cell() && st->moves)
		tell_over(st);
	/* One that ends because its process has left: what was sent to it is for the thread that it is elsewhere. */
	if ((role == SSI_DEPUTY || role == SSI_GONE) && !thread_group_leader(tsk))
		leave_strays(st);
	/* Not if it only ends because its process has left, or has not come after all. */
	if ((role == SSI_RUNNER || role == SSI_NATIVE) && !thread_group_leader(tsk) &&
	    ssi_home_of_pid(tid) != ssi_this_cell())
		ssi_post(ssi_home_of_pid(tid), SSI_OP_DEPUTY_TID, &tid, sizeof(tid));
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
	ssi_rpc_register(SSI_OP_DEPUTY_EXIT, handle_exit);
	ssi_rpc_register(SSI_OP_DEPUTY_MOVED, handle_moved);
	ssi_rpc_register(SSI_OP_DEPUTY_PPID, handle_ppid);
	ssi_rpc_register(SSI_OP_DEPUTY_STAT, handle_stat);
	ssi_rpc_register(SSI_OP_DEPUTY_TID, handle_tid);
	return 0;
}
fs_initcall(deputy_init);

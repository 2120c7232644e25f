// SPDX-License-Identifier: GPL-2.0
/*
 * kill(2), tkill(2) and their kind, of processes and threads that may be in another cell.
 *
 * The home of a number knows more of it than others: it has the process, or its deputy; or it keeps the number of a thread that has
 * left with its process, and knows whose it is. So a signal goes: to what runs here, else to the home of the number, from there
 * to the home of the process, and with the deputy (deputy.c) to where the process runs.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/signal.h>
#include <linux/ssi_move.h>

#include "pid.h"
#include "task.h"
#include "wire.h"

struct task_struct *ssi_get_thread(struct task_struct *t, pid_t tid)
{
	struct task_struct *thread = find_get_task_by_vpid(tid);

	if (thread && !same_thread_group(thread, t)) {
		put_task_struct(thread);
		thread = NULL;
	}
	return thread;
}

typedef int (*send_fn)(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type);

/*
 * A process that has moved, or one of its threads, gets the signal if it runs here; -ENOENT if it does not: what has its PID here
 * is about to become it, or was it. Under the lock, so that leave() comes after the signal, which then follows the process, or before.
 */
static int send_to_runner(struct task_struct *t, send_fn send, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	struct ssi_task *st = ssi_task_get(t, false);
	int err = -ENOENT;

	if (!st)
		return err;
	spin_lock(&st->lock);
	if (st->role == SSI_RUNNER || st->role == SSI_NATIVE)
		err = send(t, sig, info, type);
	spin_unlock(&st->lock);
	ssi_task_put(st);
	return err;
}

static int send_unchecked(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	return do_send_sig_info(sig, sig == SIGKILL ? SEND_SIG_PRIV : info, t, type);
}

static int send_nothing(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	return 0;
}

/* As kill(2) or tkill(2) of a process of this cell, permissions included. */
static int send_checked(struct task_struct *t, int sig, struct kernel_siginfo *info, enum pid_type type)
{
	return type == PIDTYPE_PID ? do_send_specific(0, task_pid_vnr(t), sig, info) : kill_pid_info(sig, info, task_tgid(t));
}

static ssize_t handle_signal_to(struct ssi_request *req)
{
	const struct ssi_signal *s = req->body;
	struct task_struct *t, *thread = NULL;
	struct kernel_siginfo info;
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
	if (s->tid)
		thread = ssi_get_thread(t, s->tid);
	info = s->info;
	if (s->tid && !thread)		/* it has ended; if the process is here at all, nothing is to be done */
		err = send_to_runner(t, send_nothing, s->sig, &info, PIDTYPE_PID);
	else
		err = send_to_runner(thread ?: t, send_unchecked, s->sig, &info, s->tid ? PIDTYPE_PID : PIDTYPE_TGID);
	if (thread)
		put_task_struct(thread);
	put_task_struct(t);
	return err == -ENOENT ? -ESRCH : 0;
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

/* To the thread @tid of the process of @t, if it is here. -ENOENT: it leaves just now. */
static int send_to_thread_here(struct task_struct *t, pid_t tid, bool moves, struct kernel_siginfo *info, enum pid_type type)
{
	struct task_struct *thread = ssi_get_thread(t, tid);
	int err;

	if (!thread)
		return -ESRCH;
	err = moves ? send_to_runner(thread, send_unchecked, info->si_signo, info, type) :
		      do_send_sig_info(info->si_signo, info, thread, type);
	put_task_struct(thread);
	return err;
}

/* To the thread @tid of the process of @t, which was born here. It may be anywhere. */
static int send_to_thread(struct task_struct *t, pid_t tid, struct kernel_siginfo *info, enum pid_type type)
{
	struct ssi_task *st = ssi_task_get(t, false);
	int err;

	if (!st)
		return send_to_thread_here(t, tid, false, info, type);
	do {
		ssi_task_arrived(st);
		err = -ESRCH;
		if (type == PIDTYPE_PID)
			err = ssi_add_stray(st, tid, info);
		else if (READ_ONCE(st->role) == SSI_DEPUTY)
			err = do_send_sig_info(info->si_signo, info, t, type);
		if (err == -ESRCH)
			err = send_to_thread_here(t, tid, true, info, type);
	} while (err == -ENOENT && !READ_ONCE(st->forgotten));
	ssi_task_put(st);
	return err == -ENOENT ? -ESRCH : err;
}

/* For a thread whose number was given out here and is kept, since it may be elsewhere: to the home of its process @owner. */
static int kill_owner(const struct ssi_kill *k, pid_t owner)
{
	struct ssi_kill msg = *k;
	ssize_t n;

	if (!owner || (k->tgid && k->tgid != owner))
		return -ESRCH;
	msg.pid = owner;
	msg.tid = k->pid;
	n = ssi_call(ssi_home_of_pid(owner), SSI_OP_DEPUTY_KILL, &msg, sizeof(msg), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	return n < 0 ? n : 0;
}

/* To what has a number of this cell that is not kept. */
static int send_to_number(struct task_struct *t, const struct ssi_kill *k, struct kernel_siginfo *info, enum pid_type type)
{
	int err = -ENOENT;

	if (!thread_group_leader(t))
		err = send_to_runner(t, send_unchecked, k->sig, info, type);
	if (err != -ENOENT)
		return err;
	/* A deputy takes it along; a thread that has never moved has no entry; one that leaves just now is kept by now. */
	return ssi_pid_owner(k->pid) ? kill_owner(k, ssi_pid_owner(k->pid)) : do_send_sig_info(k->sig, info, t, type);
}

static ssize_t handle_kill(struct ssi_request *req)
{
	const struct ssi_kill *k = req->body;
	enum pid_type type = k->thread ? PIDTYPE_PID : PIDTYPE_TGID;
	struct kernel_siginfo info;
	struct task_struct *t;
	int err;

	if (req->len != sizeof(*k) || !valid_signal(k->sig) || k->pid < RESERVED_PIDS || k->tid < 0)
		return -EINVAL;
	if (!k->tid && ssi_pid_owner(k->pid))
		return kill_owner(k, ssi_pid_owner(k->pid));
	t = find_get_task_by_vpid(k->pid);
	if (!t)
		return -ESRCH;
	info = k->info;
	info.si_signo = k->sig;
	err = k->tgid && k->tgid != task_tgid_vnr(t) ? -ESRCH : may_kill(k, t);
	if (!err && k->sig)
		err = k->tid && k->tid != k->pid ? send_to_thread(t, k->tid, &info, type) :
						   send_to_number(t, k, &info, type);
	put_task_struct(t);
	return err;
}

/* Is @pid the number of a process that another cell knows of, or of a thread that is elsewhere? */
bool __ssi_foreign(pid_t pid)
{
	u32 home = ssi_home_of_pid(pid);

	return (home != ssi_this_cell() || ssi_pid_owner(pid)) && home < ssi_cells() &&
	       task_active_pid_ns(current) == &init_pid_ns;
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

static int __init kill_init(void)
{
	ssi_rpc_register(SSI_OP_DEPUTY_SIGNAL, handle_signal_to);
	ssi_rpc_register(SSI_OP_DEPUTY_KILL, handle_kill);
	return 0;
}
fs_initcall(kill_init);

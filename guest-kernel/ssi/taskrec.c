// SPDX-License-Identifier: GPL-2.0
/*
 * What is left of a task: its name, scheduling, what it registered with the kernel, its times; and what it must not have.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/ipc_namespace.h>
#include <linux/nsproxy.h>
#include <linux/personality.h>
#include <linux/pid_namespace.h>
#include <linux/prctl.h>
#include <linux/ptrace.h>
#include <linux/rseq.h>
#include <linux/sched/coredump.h>
#include <linux/sched/cputime.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/seccomp.h>
#include <linux/syscall_user_dispatch.h>
#include <asm/unistd.h>
#include <uapi/linux/futex.h>
#include <uapi/linux/sched/types.h>

#include "move.h"
#include "task.h"

static int check_kin(struct ssi_save *s)
{
	bool children, traced;

	if (get_nr_threads(current) > 1)
		return ssi_why(s, "it has %d threads", get_nr_threads(current));
	if (current->vfork_done)
		return ssi_why(s, "its parent waits for it in vfork");
	if (test_bit(MMF_MULTIPROCESS, &current->mm->flags) && atomic_read(&current->mm->mm_users) > 1)
		return ssi_why(s, "it shares its memory with another process (CLONE_VM)");
	read_lock(&tasklist_lock);
	children = !list_empty(&current->children);
	traced = current->ptrace || !list_empty(&current->ptraced);
	read_unlock(&tasklist_lock);
	if (traced)
		return ssi_why(s, "it traces or is traced (ptrace)");
	if (children)
		return ssi_why(s, "it has child processes, running or not waited for");
	return 0;
}

/*
 * Is a system call in progress that waits for a priority-inheritance futex? It would be made again in the other cell, where
 * that is not supported in shared memory (futex.c), and alone a process has nobody to wait for.
 */
static bool waits_for_pi(void)
{
	const struct pt_regs *regs = task_pt_regs(current);
	long result = regs->ax;

	if (regs->orig_ax != __NR_futex)
		return false;
	switch (regs->si & FUTEX_CMD_MASK) {
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2:
		return result == -ERESTARTNOINTR;
	case FUTEX_WAIT_REQUEUE_PI:
		return result == -ERESTARTNOINTR || result == -EWOULDBLOCK;
	}
	return false;
}

static int task_check(struct ssi_save *s)
{
	struct nsproxy *ns = current->nsproxy, *init = init_task.nsproxy;

	if (check_kin(s))
		return -ENOTSUPP;
	if (current->io_uring)
		return ssi_why(s, "it uses io_uring");
	if (current->seccomp.mode != SECCOMP_MODE_DISABLED)
		return ssi_why(s, "seccomp is on");
	if (test_syscall_work(SYSCALL_USER_DISPATCH))
		return ssi_why(s, "it handles its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)");
	if (ns->mnt_ns != init->mnt_ns || ns->net_ns != init->net_ns || ns->ipc_ns != init->ipc_ns ||
	    ns->uts_ns != init->uts_ns || ns->time_ns != init->time_ns || ns->cgroup_ns != init->cgroup_ns ||
	    task_active_pid_ns(current) != &init_pid_ns || ns->pid_ns_for_children != &init_pid_ns)
		return ssi_why(s, "it is in namespaces of its own");
#ifdef CONFIG_SYSVIPC
	if (current->sysvsem.undo_list)
		return ssi_why(s, "it has System V semaphores to undo");
#endif
	if (!list_empty(&current->pi_state_list))
		return ssi_why(s, "it holds priority-inheritance futexes");
	if (waits_for_pi())
		return ssi_why(s, "it waits for a priority-inheritance futex");
	if (current->policy == SCHED_DEADLINE)
		return ssi_why(s, "it is scheduled by deadline");
	return 0;
}

static int task_save(struct ssi_save *s)
{
	struct task_struct *t = current;
	struct signal_struct *sig = t->signal;
	struct task_cputime used;
	struct ssi_rec_task rec = {
		.personality = t->personality,
		.nice = task_nice(t),
		.policy = t->policy,
		.rt_priority = t->rt_priority,
		.reset_on_fork = t->sched_reset_on_fork,
		.oom_score_adj = sig->oom_score_adj,
		.oom_score_adj_min = sig->oom_score_adj_min,
		.pdeath_signal = t->pdeath_signal,
		.dumpable = get_dumpable(t->mm),
		.subreaper = sig->is_child_subreaper,
		.timer_slack_ns = t->timer_slack_ns,
		.default_timer_slack_ns = t->default_timer_slack_ns,
		.clear_child_tid = (unsigned long)t->clear_child_tid,
		.set_child_tid = (unsigned long)t->set_child_tid,
		.robust_list = (unsigned long)t->robust_list,
		.rseq = (unsigned long)t->rseq,
		.rseq_len = t->rseq_len,
		.rseq_sig = t->rseq_sig,
		.start_time = t->start_time,
		.start_boottime = t->start_boottime,
		.cutime = sig->cutime,
		.cstime = sig->cstime,
		.min_flt = sig->min_flt + t->min_flt,
		.maj_flt = sig->maj_flt + t->maj_flt,
		.nvcsw = sig->nvcsw + t->nvcsw,
		.nivcsw = sig->nivcsw + t->nivcsw,
		.maxrss = max(sig->maxrss, get_mm_hiwater_rss(t->mm)),
		.ppid = ssi_ppid_of(t),
		.pgrp = ssi_pgrp_of(t),
		.sid = ssi_sid_of(t),
	};

	thread_group_cputime(t, &used);
	rec.utime = used.utime;
	rec.stime = used.stime;
	get_task_comm(rec.comm, t);
	return ssi_write_rec(s->sink, SSI_REC_TASK, &rec, sizeof(rec));
}

static void task_release(struct ssi_save *s, bool moved)
{
	if (!moved)
		return;
	/* What it registered moved with it: nothing is to be written at its end here. */
	current->robust_list = NULL;
	current->clear_child_tid = NULL;
	current->set_child_tid = NULL;
	current->rseq = NULL;
	current->rseq_len = 0;
	current->rseq_sig = 0;
	current->rseq_event_mask = 0;
	current->pdeath_signal = 0;
}

static int task_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_task *rec = ssi_rec_only(r, SSI_REC_TASK);

	if (rec->comm[sizeof(rec->comm) - 1] || rec->nice < MIN_NICE || rec->nice > MAX_NICE ||
	    rec->dumpable > SUID_DUMP_ROOT || !valid_signal(rec->pdeath_signal) ||
	    abs(rec->oom_score_adj) > 1000 || abs(rec->oom_score_adj_min) > 1000)
		return ssi_bad_image(r, "bad record of the task");
	if (rec->policy != SCHED_NORMAL && rec->policy != SCHED_BATCH && rec->policy != SCHED_IDLE &&
	    rec->policy != SCHED_FIFO && rec->policy != SCHED_RR)
		return ssi_bad_image(r, "scheduling policy %u", rec->policy);
	if (rec->clear_child_tid >= TASK_SIZE_MAX || rec->robust_list >= TASK_SIZE_MAX || rec->rseq >= TASK_SIZE_MAX ||
	    rec->set_child_tid >= TASK_SIZE_MAX || (rec->rseq && (rec->rseq_len < 20 || rec->rseq_len > 4096)) ||
	    rec->rseq & 31)
		return ssi_bad_image(r, "bad address in the record of the task");
	if (!r->deputy && (rec->oom_score_adj < current->signal->oom_score_adj_min || rec->policy == SCHED_FIFO ||
			   rec->policy == SCHED_RR || rec->nice < task_nice(current)) &&
	    !capable(CAP_SYS_ADMIN) && !(r->live && capable(CAP_CHECKPOINT_RESTORE)))
		return -EPERM;
	return 0;
}

static void commit_times(const struct ssi_rec_task *rec)
{
	struct task_struct *t = current;
	struct signal_struct *sig = t->signal;
	u64 utime, stime;

	task_cputime(t, &utime, &stime);
	write_seqlock_irq(&sig->stats_lock);
	sig->utime = rec->utime - min(rec->utime, utime);
	sig->stime = rec->stime - min(rec->stime, stime);
	sig->cutime = rec->cutime;
	sig->cstime = rec->cstime;
	sig->min_flt = rec->min_flt - min_t(u64, rec->min_flt, t->min_flt);
	sig->maj_flt = rec->maj_flt - min_t(u64, rec->maj_flt, t->maj_flt);
	sig->nvcsw = rec->nvcsw - min_t(u64, rec->nvcsw, t->nvcsw);
	sig->nivcsw = rec->nivcsw - min_t(u64, rec->nivcsw, t->nivcsw);
	sig->maxrss = rec->maxrss;
	write_sequnlock_irq(&sig->stats_lock);
}

static void task_commit(struct ssi_restore *r)
{
	const struct ssi_rec_task *rec = ssi_rec_only(r, SSI_REC_TASK);
	struct task_struct *t = current;
	struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = rec->policy,
		.sched_nice = rec->nice,
		.sched_flags = rec->reset_on_fork ? SCHED_FLAG_RESET_ON_FORK : 0,
		.sched_priority = rec->policy == SCHED_FIFO || rec->policy == SCHED_RR ? rec->rt_priority : 0,
	};
	int err = sched_setattr_nocheck(t, &attr);

	if (err)
		pr_notice_ratelimited("process %d: scheduling policy %u: error %d\n", r->hdr->pid, rec->policy, err);
	set_task_comm(t, rec->comm);
	t->personality = rec->personality;
	t->signal->oom_score_adj = rec->oom_score_adj;
	t->signal->oom_score_adj_min = rec->oom_score_adj_min;
	t->signal->is_child_subreaper = !!rec->subreaper;
	t->timer_slack_ns = rec->timer_slack_ns;
	t->default_timer_slack_ns = rec->default_timer_slack_ns;
	t->clear_child_tid = (int __user *)(unsigned long)rec->clear_child_tid;
	t->set_child_tid = (int __user *)(unsigned long)rec->set_child_tid;
	t->robust_list = (void __user *)(unsigned long)rec->robust_list;
	/* Its parent is in another cell when it is not the deputy: the deputy watches over that. */
	t->pdeath_signal = rec->pdeath_signal;
	set_dumpable(t->mm, rec->dumpable);
	if (r->live) {
		t->start_time = rec->start_time;
		t->start_boottime = rec->start_boottime;
	}
	commit_times(rec);
	/* As in execve(2): nobody who held on to the former program may take this for it. */
	t->self_exec_id++;
	t->flags &= ~(PF_FORKNOEXEC | PF_NOFREEZE | PF_NO_SETAFFINITY | PF_SUPERPRIV);

	t->rseq = (struct rseq __user *)(unsigned long)rec->rseq;
	t->rseq_len = rec->rseq_len;
	t->rseq_sig = rec->rseq_sig;
	t->rseq_event_mask = 0;
	/* A critical section that was under way is aborted, and the number of the CPU is written anew. */
	if (t->rseq)
		rseq_migrate(t);
	rseq_set_notify_resume(t);
}

static const struct ssi_rec_def task_recs[] = {
	{ SSI_REC_TASK, 1, sizeof(struct ssi_rec_task), sizeof(struct ssi_rec_task), 1, 1 },
	{}
};

const struct ssi_resource ssi_res_task = {
	.name = "task",
	.recs = task_recs,
	.check = task_check,
	.save = task_save,
	.release = task_release,
	.prepare = task_prepare,
	.commit = task_commit,
};

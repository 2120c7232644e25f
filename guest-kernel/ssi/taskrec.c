// SPDX-License-Identifier: GPL-2.0
/*
 * What is left of a thread: its name, scheduling, what it registered with the kernel; and what it must not have.
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
#include <linux/ssi_move.h>
#include <linux/syscall_user_dispatch.h>
#include <asm/unistd.h>
#include <uapi/linux/futex.h>
#include <uapi/linux/sched/types.h>

#include "move.h"
#include "task.h"

/*
 * Is a system call in progress that waits for a priority-inheritance futex? It would be made again in the other cell, where that is
 * not supported in shared memory (futex.c); in memory of its own, the thread that holds it cannot move.
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

	if (current->files != current->group_leader->files || current->fs != current->group_leader->fs)
		return ssi_why(s, "a thread has descriptors or a working directory of its own");
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
	if (ssi_sem_to_undo(current))
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
	struct ssi_rec_task rec = {
		.personality = t->personality,
		.nice = task_nice(t),
		.policy = t->policy,
		.rt_priority = t->rt_priority,
		.reset_on_fork = t->sched_reset_on_fork,
		.pdeath_signal = t->pdeath_signal,
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
	};

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

/* May the caller of restart() have more than it has now? */
int ssi_may_raise(struct ssi_restore *r)
{
	return r->deputy || capable(CAP_SYS_ADMIN) || (r->live && capable(CAP_CHECKPOINT_RESTORE)) ? 0 : -EPERM;
}

static int task_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_task *rec = ssi_rec_only(r, SSI_REC_TASK);

	if (rec->comm[sizeof(rec->comm) - 1] || rec->nice < MIN_NICE || rec->nice > MAX_NICE ||
	    !valid_signal(rec->pdeath_signal))
		return ssi_bad_image(r, "bad record of the task");
	if (rec->policy != SCHED_NORMAL && rec->policy != SCHED_BATCH && rec->policy != SCHED_IDLE &&
	    rec->policy != SCHED_FIFO && rec->policy != SCHED_RR)
		return ssi_bad_image(r, "scheduling policy %u", rec->policy);
	if (rec->clear_child_tid >= TASK_SIZE_MAX || rec->robust_list >= TASK_SIZE_MAX || rec->rseq >= TASK_SIZE_MAX ||
	    rec->set_child_tid >= TASK_SIZE_MAX || (rec->rseq && (rec->rseq_len < 20 || rec->rseq_len > 4096)) ||
	    rec->rseq & 31)
		return ssi_bad_image(r, "bad address in the record of the task");
	if (rec->policy == SCHED_FIFO || rec->policy == SCHED_RR || rec->nice < task_nice(current))
		return ssi_may_raise(r);
	return 0;
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
	t->timer_slack_ns = rec->timer_slack_ns;
	t->default_timer_slack_ns = rec->default_timer_slack_ns;
	t->clear_child_tid = (int __user *)(unsigned long)rec->clear_child_tid;
	t->set_child_tid = (int __user *)(unsigned long)rec->set_child_tid;
	t->robust_list = (void __user *)(unsigned long)rec->robust_list;
	/* Its parent is in another cell when it is not the deputy: the deputy watches over that. */
	t->pdeath_signal = rec->pdeath_signal;
	if (r->live) {
		t->start_time = rec->start_time;
		t->start_boottime = rec->start_boottime;
	}
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
	.thread = true,
	.check = task_check,
	.save = task_save,
	.release = task_release,
	.prepare = task_prepare,
	.commit = task_commit,
};

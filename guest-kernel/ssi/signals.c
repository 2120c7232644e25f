// SPDX-License-Identifier: GPL-2.0
/*
 * Signal handlers, masks, the alternate stack, and what is pending (MIG-6).
 *
 * Pending signals are taken out of the process when it is saved, so that those that come meanwhile can be told apart: if the
 * move fails they go back, to the front; if it succeeds they are at the destination, and the later ones are sent after it.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/signal.h>
#include <linux/slab.h>

#include "move.h"

enum { OWN, SHARED };	/* index of ssi_save.pending */

static struct sigpending *queue(int which)
{
	return which == OWN ? &current->pending : &current->signal->shared_pending;
}

static int save_queue(struct ssi_save *s, struct sigpending *p, u32 type)
{
	struct ssi_rec_siginfo rec = {};
	sigset_t left = p->signal;
	struct sigqueue *q;
	int err;

	list_for_each_entry(q, &p->list, list) {
		rec.info = q->info;
		sigdelset(&left, q->info.si_signo);
		err = ssi_write_rec(s->sink, type, &rec, sizeof(rec));
		if (err)
			return err;
	}
	/* Sent without siginfo: its queue was full. */
	for (int sig = 1; sig <= _NSIG; sig++) {
		if (!sigismember(&left, sig))
			continue;
		clear_siginfo(&rec.info);
		rec.info.si_signo = sig;
		err = ssi_write_rec(s->sink, type, &rec, sizeof(rec));
		if (err)
			return err;
	}
	return 0;
}

static int take_and_save(struct ssi_save *s, int which, u32 type)
{
	struct sigpending *from = queue(which), *to = &s->pending[which];

	spin_lock_irq(&current->sighand->siglock);
	init_sigpending(to);
	list_splice_init(&from->list, &to->list);
	to->signal = from->signal;
	sigemptyset(&from->signal);
	/* Death does not move: it stays here and ends the attempt. */
	if (sigismember(&to->signal, SIGKILL)) {
		sigdelset(&to->signal, SIGKILL);
		sigaddset(&from->signal, SIGKILL);
	}
	s->pending_taken[which] = true;
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
	return save_queue(s, to, type);
}

static void release_queue(struct ssi_save *s, int which, bool moved)
{
	struct sigpending *taken = &s->pending[which], *to = queue(which);

	if (!s->pending_taken[which])
		return;
	s->pending_taken[which] = false;
	if (moved) {
		flush_sigqueue(taken);
		return;
	}
	spin_lock_irq(&current->sighand->siglock);
	list_splice_init(&taken->list, &to->list);
	sigorsets(&to->signal, &to->signal, &taken->signal);
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
}

static int check_queue(struct ssi_restore *r, u32 type)
{
	struct ssi_rec *raw;

	ssi_for_each_rec(r, raw, type) {
		const struct ssi_rec_siginfo *si = (const void *)raw->data;

		if (si->info.si_signo < 1 || si->info.si_signo > _NSIG || si->info.si_signo == SIGKILL)
			return ssi_bad_image(r, "pending signal %d", si->info.si_signo);
	}
	return 0;
}

static void send_queue(struct ssi_restore *r, u32 type, enum pid_type to)
{
	struct ssi_rec *raw;

	ssi_for_each_rec(r, raw, type) {
		struct ssi_rec_siginfo *si = (void *)raw->data;

		do_send_sig_info(si->info.si_signo, si->info.si_code || si->info.si_pid ? &si->info : SEND_SIG_NOINFO,
				 current, to);
	}
	spin_lock_irq(&current->sighand->siglock);
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
}

static int handlers_check(struct ssi_save *s)
{
	if (refcount_read(&current->sighand->count) > get_nr_threads(current))
		return ssi_why(s, "it shares its signal handlers with another process");
	return 0;
}

static int handlers_save(struct ssi_save *s)
{
	struct ssi_sigaction *acts = kcalloc(_NSIG, sizeof(*acts), GFP_KERNEL);
	int err;

	if (!acts)
		return -ENOMEM;
	for (int i = 0; i < _NSIG; i++) {
		const struct sigaction *sa = &current->sighand->action[i].sa;

		acts[i] = (struct ssi_sigaction){ (u64)(unsigned long)sa->sa_handler, sa->sa_flags,
						  (u64)(unsigned long)sa->sa_restorer, sa->sa_mask.sig[0] };
	}
	err = ssi_write_rec(s->sink, SSI_REC_SIGACTIONS, acts, _NSIG * sizeof(*acts));
	kfree(acts);
	return err ?: take_and_save(s, SHARED, SSI_REC_SHARED_SIGINFO);
}

static void handlers_release(struct ssi_save *s, bool moved)
{
	release_queue(s, SHARED, moved);
}

static int handlers_prepare(struct ssi_restore *r)
{
	const struct ssi_sigaction *acts = ssi_rec_only(r, SSI_REC_SIGACTIONS);

	if (refcount_read(&current->sighand->count) > 1)
		return -EINVAL;
	if ((acts[SIGKILL - 1].handler || acts[SIGSTOP - 1].handler))
		return ssi_bad_image(r, "handlers for signals that cannot be handled");
	return check_queue(r, SSI_REC_SHARED_SIGINFO);
}

static void handlers_commit(struct ssi_restore *r)
{
	const struct ssi_sigaction *acts = ssi_rec_only(r, SSI_REC_SIGACTIONS);

	spin_lock_irq(&current->sighand->siglock);
	for (int i = 0; i < _NSIG; i++) {
		struct k_sigaction *k = &current->sighand->action[i];

		k->sa.sa_handler = (__sighandler_t)(unsigned long)acts[i].handler;
		k->sa.sa_flags = acts[i].flags & UAPI_SA_FLAGS;
		k->sa.sa_restorer = (__sigrestore_t)(unsigned long)acts[i].restorer;
		k->sa.sa_mask.sig[0] = acts[i].mask;
		sigdelsetmask(&k->sa.sa_mask, sigmask(SIGKILL) | sigmask(SIGSTOP));
	}
	spin_unlock_irq(&current->sighand->siglock);
	/* Those that are blocked and ignored are kept only if both is known. */
	send_queue(r, SSI_REC_SIGINFO, PIDTYPE_PID);
	send_queue(r, SSI_REC_SHARED_SIGINFO, PIDTYPE_TGID);
}

static const struct ssi_rec_def handlers_recs[] = {
	{ SSI_REC_SIGACTIONS, 1, _NSIG * sizeof(struct ssi_sigaction), _NSIG * sizeof(struct ssi_sigaction), 1, 1 },
	{ SSI_REC_SHARED_SIGINFO, 1, sizeof(struct ssi_rec_siginfo), sizeof(struct ssi_rec_siginfo), 0, 1 << 16 },
	{}
};

const struct ssi_resource ssi_res_handlers = {
	.name = "signal handlers",
	.recs = handlers_recs,
	.check = handlers_check,
	.save = handlers_save,
	.release = handlers_release,
	.prepare = handlers_prepare,
	.commit = handlers_commit,
};

static int signals_save(struct ssi_save *s)
{
	struct ssi_rec_signals rec = {
		.blocked = current->blocked.sig[0],
		.saved = current->saved_sigmask.sig[0],
		.restore_saved = test_restore_sigmask(),
		.altstack_sp = current->sas_ss_sp,
		.altstack_size = current->sas_ss_size,
		.altstack_flags = current->sas_ss_flags,
	};
	int err = ssi_write_rec(s->sink, SSI_REC_SIGNALS, &rec, sizeof(rec));

	return err ?: take_and_save(s, OWN, SSI_REC_SIGINFO);
}

static void signals_release(struct ssi_save *s, bool moved)
{
	release_queue(s, OWN, moved);
}

static int signals_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_signals *rec = ssi_rec_only(r, SSI_REC_SIGNALS);

	if (rec->altstack_sp >= TASK_SIZE_MAX || rec->altstack_size >= TASK_SIZE_MAX ||
	    rec->altstack_flags & ~(SS_DISABLE | SS_ONSTACK | SS_AUTODISARM))
		return ssi_bad_image(r, "bad alternate signal stack");
	return check_queue(r, SSI_REC_SIGINFO);
}

static void signals_commit(struct ssi_restore *r)
{
	const struct ssi_rec_signals *rec = ssi_rec_only(r, SSI_REC_SIGNALS);

	spin_lock_irq(&current->sighand->siglock);
	/* What came for the caller of restart() was not for this process; what came for a deputy was. */
	if (thread_group_leader(current) && !r->deputy) {
		flush_sigqueue(&current->pending);
		flush_sigqueue(&current->signal->shared_pending);
	}
	current->blocked.sig[0] = rec->blocked;
	sigdelsetmask(&current->blocked, sigmask(SIGKILL) | sigmask(SIGSTOP));
	current->saved_sigmask.sig[0] = rec->saved;
	sigdelsetmask(&current->saved_sigmask, sigmask(SIGKILL) | sigmask(SIGSTOP));
	spin_unlock_irq(&current->sighand->siglock);
	if (rec->restore_saved)
		set_restore_sigmask();
	else
		clear_restore_sigmask();
	current->sas_ss_sp = rec->altstack_sp;
	current->sas_ss_size = rec->altstack_size;
	current->sas_ss_flags = rec->altstack_flags;
	if (!thread_group_leader(current))	/* else handlers_commit() does it */
		send_queue(r, SSI_REC_SIGINFO, PIDTYPE_PID);
}

static const struct ssi_rec_def signals_recs[] = {
	{ SSI_REC_SIGNALS, 1, sizeof(struct ssi_rec_signals), sizeof(struct ssi_rec_signals), 1, 1 },
	{ SSI_REC_SIGINFO, 1, sizeof(struct ssi_rec_siginfo), sizeof(struct ssi_rec_siginfo), 0, 1 << 16 },
	{}
};

const struct ssi_resource ssi_res_signals = {
	.name = "signals",
	.recs = signals_recs,
	.thread = true,
	.save = signals_save,
	.release = signals_release,
	.prepare = signals_prepare,
	.commit = signals_commit,
};

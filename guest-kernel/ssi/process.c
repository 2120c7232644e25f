// SPDX-License-Identifier: GPL-2.0
/*
 * What is left of a process: what it used, its parent, how it is treated when memory is short or when it dumps.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/capability.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched/coredump.h>
#include <linux/sched/cputime.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "move.h"
#include "task.h"

static int process_check(struct ssi_save *s)
{
	if (test_bit(MMF_MULTIPROCESS, &current->mm->flags) &&
	    atomic_read(&current->mm->mm_users) > get_nr_threads(current))
		return ssi_why(s, "it shares its memory with another process (CLONE_VM)");
	return 0;
}

void ssi_usage_of(struct task_struct *t, struct ssi_usage *u)
{
	struct signal_struct *sig = t->signal;
	struct task_cputime used;
	struct task_struct *each;

	thread_group_cputime(t, &used);
	*u = (struct ssi_usage){
		.utime = used.utime, .stime = used.stime, .cutime = sig->cutime, .cstime = sig->cstime,
		.min_flt = sig->min_flt, .maj_flt = sig->maj_flt, .nvcsw = sig->nvcsw, .nivcsw = sig->nivcsw,
		.maxrss = sig->maxrss,
	};
	rcu_read_lock();
	for_each_thread(t, each) {
		u->min_flt += each->min_flt;
		u->maj_flt += each->maj_flt;
		u->nvcsw += each->nvcsw;
		u->nivcsw += each->nivcsw;
	}
	rcu_read_unlock();
}

void ssi_usage_take(const struct ssi_usage *u)
{
	struct signal_struct *sig = current->signal;
	struct task_struct *t = current;
	u64 utime, stime;

	task_cputime(t, &utime, &stime);
	write_seqlock_irq(&sig->stats_lock);
	sig->utime = u->utime - min(u->utime, utime);
	sig->stime = u->stime - min(u->stime, stime);
	sig->cutime = u->cutime;
	sig->cstime = u->cstime;
	sig->min_flt = u->min_flt - min_t(u64, u->min_flt, t->min_flt);
	sig->maj_flt = u->maj_flt - min_t(u64, u->maj_flt, t->maj_flt);
	sig->nvcsw = u->nvcsw - min_t(u64, u->nvcsw, t->nvcsw);
	sig->nivcsw = u->nivcsw - min_t(u64, u->nivcsw, t->nivcsw);
	sig->maxrss = u->maxrss;
	write_sequnlock_irq(&sig->stats_lock);
}

static int process_save(struct ssi_save *s)
{
	struct task_struct *t = current;
	struct signal_struct *sig = t->signal;
	struct ssi_rec_process rec = {
		.oom_score_adj = sig->oom_score_adj,
		.oom_score_adj_min = sig->oom_score_adj_min,
		.dumpable = get_dumpable(t->mm),
		.subreaper = sig->is_child_subreaper,
		.ppid = ssi_ppid_of(t),
		.pgrp = ssi_pgrp_of(t),
		.sid = ssi_sid_of(t),
	};

	ssi_usage_of(t, &rec.usage);
	rec.usage.maxrss = max_t(u64, rec.usage.maxrss, get_mm_hiwater_rss(t->mm));
	return ssi_write_rec(s->sink, SSI_REC_PROCESS, &rec, sizeof(rec));
}

static int process_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_process *rec = ssi_rec_only(r, SSI_REC_PROCESS);

	if (rec->dumpable > SUID_DUMP_ROOT || abs(rec->oom_score_adj) > 1000 || abs(rec->oom_score_adj_min) > 1000)
		return ssi_bad_image(r, "bad record of the process");
	return rec->oom_score_adj < current->signal->oom_score_adj_min ? ssi_may_raise(r) : 0;
}

static void process_commit(struct ssi_restore *r)
{
	const struct ssi_rec_process *rec = ssi_rec_only(r, SSI_REC_PROCESS);
	struct signal_struct *sig = current->signal;

	sig->oom_score_adj = rec->oom_score_adj;
	sig->oom_score_adj_min = rec->oom_score_adj_min;
	sig->is_child_subreaper = !!rec->subreaper;
	set_dumpable(current->mm, rec->dumpable);
	ssi_usage_take(&rec->usage);
}

static const struct ssi_rec_def process_recs[] = {
	{ SSI_REC_PROCESS, 1, sizeof(struct ssi_rec_process), sizeof(struct ssi_rec_process), 1, 1 },
	{}
};

const struct ssi_resource ssi_res_process = {
	.name = "process",
	.recs = process_recs,
	.check = process_check,
	.save = process_save,
	.prepare = process_prepare,
	.commit = process_commit,
};

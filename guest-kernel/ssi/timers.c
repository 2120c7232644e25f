// SPDX-License-Identifier: GPL-2.0
/*
 * Interval timers: alarm(2), setitimer(2). They travel as the time that is left.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/hrtimer.h>
#include <linux/kernel.h>
#include <linux/posix-timers.h>
#include <linux/sched/cputime.h>
#include <linux/sched/signal.h>

#include "move.h"

static int timers_check(struct ssi_save *s)
{
	if (!hlist_empty(&current->signal->posix_timers))
		return ssi_why(s, "it has POSIX timers (timer_create)");
	return 0;
}

static u64 cpu_left(const struct cpu_itimer *it, u64 used)
{
	if (!it->expires)
		return 0;
	return it->expires > used ? it->expires - used : 1;
}

static int timers_save(struct ssi_save *s)
{
	struct signal_struct *sig = current->signal;
	struct ssi_rec_timers rec = {};
	struct task_cputime used;

	thread_group_cputime(current, &used);
	spin_lock_irq(&current->sighand->siglock);
	if (hrtimer_active(&sig->real_timer))
		rec.real_left_ns = max_t(s64, ktime_to_ns(hrtimer_get_remaining(&sig->real_timer)), 1);
	rec.real_incr_ns = ktime_to_ns(sig->it_real_incr);
	rec.virt_left_ns = cpu_left(&sig->it[CPUCLOCK_VIRT], used.utime);
	rec.virt_incr_ns = sig->it[CPUCLOCK_VIRT].incr;
	rec.prof_left_ns = cpu_left(&sig->it[CPUCLOCK_PROF], used.utime + used.stime);
	rec.prof_incr_ns = sig->it[CPUCLOCK_PROF].incr;
	spin_unlock_irq(&current->sighand->siglock);
	return ssi_write_rec(s->sink, SSI_REC_TIMERS, &rec, sizeof(rec));
}

static void stop_timers(void)
{
	struct signal_struct *sig = current->signal;

	hrtimer_cancel(&sig->real_timer);
	spin_lock_irq(&current->sighand->siglock);
	sig->it_real_incr = 0;
	sig->it[CPUCLOCK_VIRT].expires = sig->it[CPUCLOCK_VIRT].incr = 0;
	sig->it[CPUCLOCK_PROF].expires = sig->it[CPUCLOCK_PROF].incr = 0;
	spin_unlock_irq(&current->sighand->siglock);
}

static void timers_release(struct ssi_save *s, bool moved)
{
	if (moved)
		stop_timers();
}

static void set_cpu_timer(unsigned int clock, u64 left, u64 incr)
{
	struct signal_struct *sig = current->signal;
	u64 old = 0;

	if (!left)
		return;
	spin_lock_irq(&current->sighand->siglock);
	set_process_cpu_timer(current, clock, &left, &old);	/* left becomes absolute */
	sig->it[clock].expires = left;
	sig->it[clock].incr = incr;
	spin_unlock_irq(&current->sighand->siglock);
}

static void timers_commit(struct ssi_restore *r)
{
	const struct ssi_rec_timers *rec = ssi_rec_only(r, SSI_REC_TIMERS);
	struct signal_struct *sig = current->signal;

	stop_timers();
	spin_lock_irq(&current->sighand->siglock);
	sig->it_real_incr = ns_to_ktime(rec->real_incr_ns);
	/* Not armed but repeating: its signal is pending, and taking that arms it. */
	if (rec->real_left_ns)
		hrtimer_start(&sig->real_timer, ns_to_ktime(rec->real_left_ns), HRTIMER_MODE_REL);
	spin_unlock_irq(&current->sighand->siglock);
	set_cpu_timer(CPUCLOCK_VIRT, rec->virt_left_ns, rec->virt_incr_ns);
	set_cpu_timer(CPUCLOCK_PROF, rec->prof_left_ns, rec->prof_incr_ns);
}

static int timers_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_timers *rec = ssi_rec_only(r, SSI_REC_TIMERS);
	const u64 v[] = { rec->real_left_ns, rec->real_incr_ns, rec->virt_left_ns, rec->virt_incr_ns,
			  rec->prof_left_ns, rec->prof_incr_ns };

	for (int i = 0; i < ARRAY_SIZE(v); i++)
		if (v[i] > KTIME_MAX / 2)
			return ssi_bad_image(r, "timer %d of %llu ns", i, v[i]);
	return 0;
}

static const struct ssi_rec_def timers_recs[] = {
	{ SSI_REC_TIMERS, 1, sizeof(struct ssi_rec_timers), sizeof(struct ssi_rec_timers), 1, 1 },
	{}
};

const struct ssi_resource ssi_res_timers = {
	.name = "timers",
	.recs = timers_recs,
	.check = timers_check,
	.save = timers_save,
	.release = timers_release,
	.prepare = timers_prepare,
	.commit = timers_commit,
};

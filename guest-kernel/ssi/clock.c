// SPDX-License-Identifier: GPL-2.0
/*
 * Cluster time.
 *
 * Every cell starts its monotonic clocks at (wall clock - epoch), the epoch being the same in all. What makes them agree
 * from then on is the machine's clock under them (kvm-clock, or a TSC whose rate kvm-clock gave: cells of one host run at
 * exactly one rate). Between hosts rates differ by parts per million; a cell that falls behind steps forward when a message
 * from a faster one arrives, so that no effect is earlier than its cause. Clocks only ever step forward.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/clocksource.h>
#include <linux/init.h>
#include <linux/mutex.h>
#include <linux/nmi.h>
#include <linux/rcupdate.h>
#include <linux/ssi.h>
#include <linux/timekeeping.h>

#include "clock.h"
#include "device.h"

/* A peer further ahead than this is broken, not fast. Nanoseconds. */
#define CLOCK_AHEAD_MAX_NS	(60 * NSEC_PER_SEC)

/* Steps from this on are told. Nanoseconds. */
#define STEP_TOLD_NS		(10 * NSEC_PER_MSEC)

static DEFINE_MUTEX(step_lock);		/* one step at a time; guards the two below */
static u64 steps_count;
static u64 stepped_ns;

void __init ssi_boot_offset(const struct timespec64 *wall_time, struct timespec64 *boot_offset)
{
	struct timespec64 epoch = ns_to_timespec64(ssi_params.epoch_ns);

	if (ssi_params.epoch_ns && timespec64_compare(wall_time, &epoch) > 0)
		*boot_offset = timespec64_sub(*wall_time, epoch);
}

static void step_to(u64 mono_ns)
{
	u64 now;

	mutex_lock(&step_lock);
	now = ktime_get_ns();
	if (mono_ns > now) {
		/* Jiffies follow; nothing has stalled for that long. */
		rcu_cpu_stall_reset();
		timekeeping_forward_monotonic(mono_ns);
		touch_all_softlockup_watchdogs();
		steps_count++;
		stepped_ns += mono_ns - now;
		if (mono_ns - now > STEP_TOLD_NS)
			pr_info("clock moved forward by %llu ms\n", div_u64(mono_ns - now, NSEC_PER_MSEC));
	}
	mutex_unlock(&step_lock);
}

int ssi_clock_not_before(u64 mono_ns)
{
	s64 behind = mono_ns - ktime_get_ns();

	if (behind <= 0)
		return 0;
	if (behind > CLOCK_AHEAD_MAX_NS) {
		pr_warn_ratelimited("a peer's clock is %lld s ahead: not followed; check ssi.epoch_ns and the hosts' clocks\n",
				    div_s64(behind, NSEC_PER_SEC));
		return -ERANGE;
	}
	step_to(mono_ns);
	return 0;
}

void ssi_clock_heard(u64 mono_ns, s64 slack_ns)
{
	if (ssi_params.epoch_ns && (s64)(mono_ns - ktime_get_ns()) > slack_ns)
		ssi_clock_not_before(mono_ns);
}

void ssi_clock_stats(u64 *steps, u64 *ns)
{
	mutex_lock(&step_lock);
	*steps = steps_count;
	*ns = stepped_ns;
	mutex_unlock(&step_lock);
}

/*
 * Until a real clock source is chosen (fs_initcall), time is counted in timer ticks, and misses those that early boot
 * slept through. Catch up with the wall clock once, before the first process looks.
 */
static int __init catch_up(void)
{
	struct timespec64 wall;
	u64 epoch = ssi_params.epoch_ns;

	if (!epoch)
		return 0;
	read_persistent_clock64(&wall);
	if (!timespec64_valid_settod(&wall) || timespec64_to_ns(&wall) <= epoch) {
		pr_warn("the wall clock is not after ssi.epoch_ns: time began at boot\n");
		return 0;
	}
	if (do_settimeofday64(&wall))
		pr_warn("could not set the wall clock\n");
	step_to(timespec64_to_ns(&wall) - epoch);
	return 0;
}
late_initcall(catch_up);

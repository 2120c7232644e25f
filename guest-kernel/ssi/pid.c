// SPDX-License-Identifier: GPL-2.0
/*
 * PIDs that are unique in the cluster: each cell gives out its own range.
 */
#include <linux/idr.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched.h>
#include <linux/ssi.h>
#include <linux/ssi_move.h>
#include <linux/threads.h>
#include <linux/xarray.h>

#include "device.h"
#include "pid.h"
#include "rpc.h"
#include "task.h"

#define SSI_PIDS	(1 << SSI_PID_SHIFT)

static_assert(SSI_CELLS_MAX * SSI_PIDS <= PID_MAX_LIMIT);

/* Every cell's numbers are valid in every cell; root may not lower the limit below them. Before pid_idr_init(). */
void __init ssi_pid_init(void)
{
	pid_max = max_t(int, pid_max, ssi_params.cells * SSI_PIDS);
	pid_max_min = max_t(int, pid_max_min, ssi_params.cells * SSI_PIDS);
}

void ssi_pid_range(struct pid_namespace *ns, int *min, int *end)
{
	int first = ssi_params.cell * SSI_PIDS;

	if (!ssi_params.given || ns != &init_pid_ns)
		return;

	/* init and the threads that the kernel starts before it: low numbers, the same in every cell; they never move. */
	if (system_state < SYSTEM_RUNNING && idr_get_cursor(&ns->idr) < RESERVED_PIDS) {
		*end = RESERVED_PIDS;
		return;
	}
	*min = first + RESERVED_PIDS;
	*end = first + SSI_PIDS;
}

static DEFINE_XARRAY(kept);	/* number -> that of its process */
static atomic_t nkept;

pid_t ssi_pid_owner(pid_t tid)
{
	return atomic_read(&nkept) ? xa_to_value(xa_load(&kept, tid) ?: xa_mk_value(0)) : 0;
}

void ssi_pid_keep(pid_t tid, pid_t tgid)
{
	if (ssi_home_of_pid(tid) != ssi_this_cell())
		return;
	atomic_inc(&nkept);
	if (xa_store(&kept, tid, xa_mk_value(tgid), GFP_KERNEL | __GFP_NOFAIL))
		atomic_dec(&nkept);	/* it came back, and leaves before that was noted */
}

void ssi_pid_unkeep(pid_t tid)
{
	if (!xa_erase(&kept, tid))
		return;
	atomic_dec(&nkept);
	spin_lock_irq(&pidmap_lock);
	if (!idr_find(&init_pid_ns.idr, tid))
		idr_remove(&init_pid_ns.idr, tid);
	spin_unlock_irq(&pidmap_lock);
}

void ssi_pid_unkeep_all(pid_t tgid)
{
	unsigned long tid;
	void *owner;

	xa_for_each(&kept, tid, owner)
		if (xa_to_value(owner) == tgid)
			ssi_pid_unkeep(tid);
}

/* Hooks in kernel/pid.c, under pidmap_lock. */

void __ssi_pid_remove(struct pid_namespace *ns, pid_t nr)
{
	if (ns == &init_pid_ns && ssi_pid_owner(nr))
		idr_replace(&ns->idr, NULL, nr);
	else
		idr_remove(&ns->idr, nr);
}

void __ssi_pid_claim(struct pid_namespace *ns, pid_t nr)
{
	if (ns == &init_pid_ns && ssi_pid_owner(nr) == task_tgid_nr(current) && !idr_find(&ns->idr, nr))
		idr_remove(&ns->idr, nr);
}

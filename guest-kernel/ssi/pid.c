// SPDX-License-Identifier: GPL-2.0
/*
 * PIDs that are unique in the cluster: each cell gives out its own range.
 */
#include <linux/idr.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/ssi.h>
#include <linux/threads.h>

#include "device.h"
#include "pid.h"

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

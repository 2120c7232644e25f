// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/ssi: the cluster as this cell sees it.
 *
 *	cell	this cell's number
 *	cells	one line per cell: number, "alive" or "dead", "this" at the own
 *	status	key and value per line: device, geometry, clock
 *	rpc	key and value per line: counters since boot
 */
#include <linux/init.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "clock.h"
#include "device.h"
#include "proc.h"
#include "rpc.h"
#include "rpc_stats.h"
#include "slices.h"

struct proc_dir_entry *ssi_proc_root;

static int cell_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%u\n", ssi_this_cell());
	return 0;
}

static int cells_show(struct seq_file *m, void *v)
{
	u32 cell;

	for (cell = 0; cell < ssi_cells(); cell++)
		seq_printf(m, "%u %s%s\n", cell,
			   cell == ssi_this_cell() || ssi_cell_alive(cell) ? "alive" : "dead",
			   cell == ssi_this_cell() ? " this" : "");
	return 0;
}

static int status_show(struct seq_file *m, void *v)
{
	u64 steps, stepped_ns;

	ssi_clock_stats(&steps, &stepped_ns);
	seq_printf(m, "device %s\n", ssi_present() ? "present" : "absent");
	seq_printf(m, "cell %u\ncells %u\n", ssi_this_cell(), ssi_cells());
	seq_printf(m, "alive %#llx\ngeneration %llu\n", ssi_dev_alive(), ssi_dev_generation());
	seq_printf(m, "slice0_base %#llx\nslice_stride_bytes %#llx\nslice_bytes %#llx\n", ssi_geometry.slice0_base,
		   ssi_geometry.slice_stride, ssi_geometry.slice_size);
	seq_printf(m, "remote_mapped_mib %lu\n", ssi_slices_mapped() * 2);
	seq_printf(m, "epoch_ns %llu\nmonotonic_ns %llu\n", ssi_params.epoch_ns, ktime_get_ns());
	seq_printf(m, "clock_steps_count %llu\nclock_stepped_ns %llu\n", steps, stepped_ns);
	return 0;
}

static void counter(struct seq_file *m, const char *name, atomic64_t *value)
{
	seq_printf(m, "%s %lld\n", name, atomic64_read(value));
}

static int rpc_show(struct seq_file *m, void *v)
{
	unsigned int threads, idle, queued;

	counter(m, "calls_count", &ssi_rpc_stats.calls_count);
	counter(m, "posts_count", &ssi_rpc_stats.posts_count);
	counter(m, "cancelled_count", &ssi_rpc_stats.cancelled_count);
	counter(m, "timed_out_count", &ssi_rpc_stats.timed_out_count);
	counter(m, "handled_count", &ssi_rpc_stats.handled_count);
	ssi_rpc_threads(&threads, &idle, &queued);
	seq_printf(m, "threads_count %u\nthreads_idle_count %u\nrequests_now_count %u\n", threads, idle, queued);
	counter(m, "tx_count", &ssi_dev_stats.tx_count);
	counter(m, "tx_bytes", &ssi_dev_stats.tx_bytes);
	counter(m, "tx_refused_count", &ssi_dev_stats.tx_refused_count);
	counter(m, "rx_count", &ssi_dev_stats.rx_count);
	counter(m, "rx_bytes", &ssi_dev_stats.rx_bytes);
	counter(m, "rx_malformed_count", &ssi_dev_stats.rx_malformed_count);
	counter(m, "page_request_count", &ssi_dev_stats.page_request_count);
	counter(m, "fetched_pages", &ssi_dev_stats.page_count);
	counter(m, "failed_pages", &ssi_dev_stats.page_failed_count);
	return 0;
}

static int __init ssi_proc_init(void)
{
	ssi_proc_root = proc_mkdir("ssi", NULL);
	if (!ssi_proc_root ||
	    !proc_create_single("cell", 0444, ssi_proc_root, cell_show) ||
	    !proc_create_single("cells", 0444, ssi_proc_root, cells_show) ||
	    !proc_create_single("status", 0444, ssi_proc_root, status_show) ||
	    !proc_create_single("rpc", 0444, ssi_proc_root, rpc_show))
		return -ENOMEM;
	return 0;
}
fs_initcall(ssi_proc_init);

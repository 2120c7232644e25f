// SPDX-License-Identifier: GPL-2.0
/*
 * ssi.cell=, ssi.cells= and ssi.epoch_ns= on the command line: what the kernel must know about the cluster before the
 * device can say it, because PIDs and time begin earlier.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/pid.h>
#include <linux/ssi.h>
#include <linux/string.h>

#include "device.h"
#include "pid.h"

struct ssi_params ssi_params __ro_after_init;

static bool cell_given __initdata, cells_given __initdata;

static void __init check_params(void)
{
	if (!cell_given || !cells_given)
		return;
	if (!ssi_params.cells || ssi_params.cells > SSI_CELLS_MAX || ssi_params.cell >= ssi_params.cells) {
		pr_err("ssi.cell=%u ssi.cells=%u: want a cell below cells, and 1 to %u cells; this kernel runs alone\n",
		       ssi_params.cell, ssi_params.cells, SSI_CELLS_MAX);
		return;
	}
	ssi_params.given = true;
	ssi_pid_init();
}

bool ssi_shares_memory(void)
{
	return ssi_params.given;
}

static int __init parse_cell(char *arg)
{
	cell_given = arg && !kstrtou32(arg, 10, &ssi_params.cell);
	check_params();
	return 0;
}
early_param("ssi.cell", parse_cell);

static int __init parse_cells(char *arg)
{
	cells_given = arg && !kstrtou32(arg, 10, &ssi_params.cells);
	check_params();
	return 0;
}
early_param("ssi.cells", parse_cells);

static int __init parse_epoch(char *arg)
{
	if (!arg || kstrtou64(arg, 10, &ssi_params.epoch_ns) || ssi_params.epoch_ns > S64_MAX) {
		pr_err("ssi.epoch_ns=%s: want nanoseconds of CLOCK_REALTIME; time begins at boot\n", arg ?: "");
		ssi_params.epoch_ns = 0;
	}
	return 0;
}
early_param("ssi.epoch_ns", parse_epoch);

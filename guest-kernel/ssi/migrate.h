/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SSI_MIGRATE_H
#define _SSI_MIGRATE_H

#include <linux/types.h>

struct file;
struct ssi_task;
struct task_struct;

/* Writes the image of @pid to @file; for SSI_IOC_CHECKPOINT. */
int ssi_checkpoint(pid_t pid, struct file *file, u32 flags);
void ssi_incoming_cell_died(u32 cell);

/* deputy.c: current has left for cell @where. Does not return, unless the process comes home: then current is it again. */
void ssi_depart(struct ssi_task *st, u32 where);
/* current, which the process in @st has become in this cell, runs from now on; it came from cell @source. */
void ssi_arrive(struct ssi_task *st, u32 source);
void ssi_tell_figures(struct ssi_task *st);
void ssi_deputy_cell_died(u32 cell);

#endif

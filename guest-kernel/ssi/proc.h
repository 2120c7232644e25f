/* SPDX-License-Identifier: GPL-2.0 */
/*
 * /proc/ssi
 */
#ifndef _SSI_PROC_H
#define _SSI_PROC_H

struct proc_dir_entry;

/* The directory, there from fs_initcall on (also in a kernel that is no cell, where the files say so). */
extern struct proc_dir_entry *ssi_proc_root;

#endif

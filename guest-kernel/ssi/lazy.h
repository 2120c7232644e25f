/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Memory that follows its process.
 *
 * At the source the address space stays as it was, without a process. At the destination the same mappings are there, empty.
 * The first touch of a page asks the source which frames a region of 2 MiB has (one call), and fetches the 128 KiB around it
 * (one page request); a thread pulls the rest behind, and then tells the source to let go. So the stop takes the same time
 * whatever the size of the process.
 */
#ifndef _SSI_LAZY_H
#define _SSI_LAZY_H

#include <linux/types.h>

#include "move.h"

/* Destination. */
int ssi_lazy_prepare(struct ssi_restore *r);
void ssi_lazy_commit(struct ssi_restore *r);
void ssi_lazy_abort(struct ssi_restore *r);
int ssi_lazy_finish(struct mm_struct *mm);	/* waits until every page is here; 0 or -errno */

/* Source. */
struct ssi_lazy_src;
/* For the time of a move: ends with abandon (it failed) or left. NULL: no memory. */
struct ssi_lazy_src *ssi_lazy_keep(struct mm_struct *mm, pid_t pid, u32 dest, u64 *id);
void ssi_lazy_abandon(struct ssi_lazy_src *src);
void ssi_lazy_left(struct ssi_lazy_src *src, bool eager);	/* eager: the destination has everything */
void ssi_lazy_cell_died(u32 cell);

#endif

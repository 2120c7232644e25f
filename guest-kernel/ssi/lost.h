/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Memory that died with another node: lost.c.
 */
#ifndef _SSI_LOST_H
#define _SSI_LOST_H

#include <linux/types.h>

struct page;
struct seq_file;

/* Learns which frames of the own slice are lost by now. Cheap when there are no more of them than before. May sleep. */
void ssi_lost_learn(void);

/* Takes those out of use that ssi_lost_learn() knows of. Waits for folio locks. */
void ssi_lost_settle(void);

/* Is this frame of the own slice known to be lost? Its content is nobody's, and the allocator must not get it. */
bool ssi_lost_frame(struct page *page);

/* Was it, and is it memory of this cell again? To other cells it stays lost: it must not be lent. */
bool ssi_lost_renewed(struct page *page);

/* @page was lent and is given back, with a reference. True: it is lost, and the reference stays for ever. */
bool ssi_lost_keep(struct page *page);

void ssi_lost_show(struct seq_file *m);		/* for /proc/ssi/shared */

/* shared_remote.c: @page, of cell @home, is lost: unmaps it from all processes. False: nothing maps it. May sleep. */
bool ssi_object_lost(struct page *page, u32 home);

#endif

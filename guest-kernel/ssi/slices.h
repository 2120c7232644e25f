/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The cluster's memory: whose a guest-physical address is, and page structs for the frames of other cells.
 */
#ifndef _SSI_SLICES_H
#define _SSI_SLICES_H

#include <linux/types.h>

struct page;

/* The cell whose slice holds guest-physical @phys, or -ENXIO. */
int ssi_slice_home(u64 phys);

/* Whether the frame at @phys is in this cell's own slice, so that other cells can map it. */
bool ssi_slice_own(u64 phys);

/*
 * The page of a frame of any slice, for mapping, pinning and page_address(). For another cell's frame its page struct is
 * made on the first call, for 2 MiB around it (may sleep, takes milliseconds then), and stays for ever; the contents
 * are coherent through the VMM. Takes no reference. ERR_PTR: -ENXIO (not in a slice), -ENODEV, -ENOMEM.
 */
struct page *ssi_remote_page(u64 phys);

/* 2 MiB steps mapped so far. */
unsigned long ssi_slices_mapped(void);

#endif

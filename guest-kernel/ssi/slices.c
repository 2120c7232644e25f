// SPDX-License-Identifier: GPL-2.0
/*
 * Other cells' slices. The own slice is ordinary RAM (it is in the e820 map); the others are windows at the same
 * guest-physical addresses everywhere, which the VMM keeps coherent. They get page structs, and a place in the direct
 * map, only where something is used of them.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/err.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "device.h"
#include "rpc.h"
#include "slices.h"

/* What is mapped in one go: a subsection, the least that can have page structs of its own. */
#define STEP_BYTES	SZ_2M
#define STEP_SHIFT	21
static_assert(STEP_BYTES == 1UL << STEP_SHIFT);

static DEFINE_XARRAY(steps);		/* phys >> STEP_SHIFT -> struct dev_pagemap, once mapped; never removed */
static DEFINE_MUTEX(steps_lock);	/* writers of @steps */
static unsigned long steps_count;	/* under steps_lock */

int ssi_slice_home(u64 phys)
{
	u64 offset, cell;

	if (!ssi_present() || phys < ssi_geometry.slice0_base)
		return -ENXIO;
	offset = phys - ssi_geometry.slice0_base;
	cell = div64_u64(offset, ssi_geometry.slice_stride);
	if (cell >= ssi_cells() || offset - cell * ssi_geometry.slice_stride >= ssi_geometry.slice_size)
		return -ENXIO;
	return cell;
}

bool ssi_slice_own(u64 phys)
{
	return ssi_slice_home(phys) == (int)ssi_this_cell();
}

static int map_step(u64 start)
{
	struct dev_pagemap *map = kzalloc(sizeof(*map), GFP_KERNEL);
	void *address;
	int error;

	if (!map)
		return -ENOMEM;
	map->type = MEMORY_DEVICE_GENERIC;
	map->nr_range = 1;
	map->range.start = start;
	map->range.end = start + STEP_BYTES - 1;
	address = memremap_pages(map, numa_mem_id());
	if (IS_ERR(address)) {
		kfree(map);
		return PTR_ERR(address);
	}
	error = xa_err(xa_store(&steps, start >> STEP_SHIFT, map, GFP_KERNEL));
	if (error) {
		memunmap_pages(map);
		kfree(map);
		return error;
	}
	steps_count++;
	return 0;
}

struct page *ssi_remote_page(u64 phys)
{
	int home = ssi_slice_home(phys), error = 0;

	might_sleep();
	if (home < 0)
		return ERR_PTR(ssi_present() ? -ENXIO : -ENODEV);
	if (home == (int)ssi_this_cell())
		return pfn_valid(PHYS_PFN(phys)) ? pfn_to_page(PHYS_PFN(phys)) : ERR_PTR(-ENXIO);

	/* The store is after the page structs are complete, and the XArray orders it so for who finds it. */
	if (!xa_load(&steps, phys >> STEP_SHIFT)) {
		mutex_lock(&steps_lock);
		if (!xa_load(&steps, phys >> STEP_SHIFT))
			error = map_step(round_down(phys, STEP_BYTES));
		mutex_unlock(&steps_lock);
		if (error) {
			pr_warn_ratelimited("no page structs for %#llx (cell %d): error %d\n", phys, home, error);
			return ERR_PTR(error);
		}
	}
	return pfn_to_page(PHYS_PFN(phys));
}

unsigned long ssi_slices_mapped(void)
{
	unsigned long count;

	mutex_lock(&steps_lock);
	count = steps_count;
	mutex_unlock(&steps_lock);
	return count;
}

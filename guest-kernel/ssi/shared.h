/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared memory of moved processes (DSM-5, DSM-6).
 *
 * A *region* is the page cache of one inode in the cell where it is: its home. Other cells map the very frames of the home,
 * which the VMM keeps coherent, through a *remote object*: an inode of ours, one per region and cell. A region is made by the
 * first move that needs it and lives until no other cell uses it any more.
 *
 *	shared.c		home: regions, who claims them, which pages are lent
 *	shared_home.c		home: what other cells ask for
 *	shared_remote.c		borrower: remote objects, page faults, unmapping
 *	shared_file.c		borrower: descriptors whose file is a region
 *	shared_sysv.c		System V segments
 */
#ifndef _SSI_SHARED_H
#define _SSI_SHARED_H

#include <linux/types.h>

struct address_space;
struct file;
struct ssi_rfile_ref;
struct vm_area_struct;

/* The cell that a region's number says. The number is never used again within a boot. */
#define SSI_REGION_HOME(id)	((u32)((id) >> 48))

/* A place in shared memory, the same in all cells: what a futex in it is known by. */
struct ssi_shared_key {
	u64 region;
	u64 offset;		/* bytes */
	u32 home;
};

/*
 * The place at @addr of @vma, if that is a shared mapping of a region: of a remote object, or at the home of the real one.
 * False: no other cell knows this memory. Under mmap_lock or the lock of the mapping.
 */
bool ssi_shared_key_of_vma(struct vm_area_struct *vma, unsigned long addr, struct ssi_shared_key *key);

/* At home: the same for a page cache that may be a region's. */
bool ssi_shared_key_of_mapping(struct address_space *mapping, u64 offset, struct ssi_shared_key *key);

/* Is this an inode of a remote object? */
bool ssi_shared_is_remote(struct address_space *mapping);

/* ---- for moves: mm.c, files.c, rfile.c ---- */

/* Must @vma move as a mapping of a region? */
bool ssi_shared_vma(struct vm_area_struct *vma);
/* Can it? */
bool ssi_shared_vma_capable(struct vm_area_struct *vma);

/*
 * The region of the inode that @file is open for, with a reference that ssi_shared_put() gives back; made if there is none. For
 * a file of a remote object: its region, elsewhere. 0 or -errno.
 */
int ssi_shared_get(struct file *file, u64 *id);
void ssi_shared_put(u64 id);

/*
 * An open file to map region @id through: of the inode itself in its home, else of the remote object. @write: it may be mapped
 * writable. Whoever moved it holds a reference on the region until this has returned.
 */
struct file *ssi_shared_open(u64 id, bool write);

/* Can a descriptor of @file be carried from another cell? */
bool ssi_shared_file_capable(struct file *file);

/* Must it be carried: is the file in one cell's memory? */
bool ssi_shared_file_stays(struct file *file);

/* A descriptor of a remote object: its ticket (rfile_wire.h), and in which cell. False: it is none. */
bool ssi_shared_file_ticket(struct file *file, u32 *cell, u64 *id);

/* A descriptor for ticket @ref->id of cell @ref->cell on region @ref->region, of any cell, not claimed yet. ERR_PTR. */
struct file *ssi_shared_file_open(const struct ssi_rfile_ref *ref);
/* It has no ticket any more: closing drops none. */
void ssi_shared_file_forget(struct file *file);

#endif

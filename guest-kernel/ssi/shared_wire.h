/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared memory on the wire, and what the files of shared*.c share. Little-endian.
 */
#ifndef _SSI_SHARED_WIRE_H
#define _SSI_SHARED_WIRE_H

#include <linux/fs.h>
#include <linux/io.h>
#include <linux/path.h>
#include <linux/mm_types.h>
#include <linux/refcount.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>


#include "device.h"
#include "rpc.h"
#include "shared.h"

enum {
	OP_SHM_CLAIM = SSI_OP_SHM,	/* ssi_shm_id -> ssi_shm_about: this cell uses it, once more */
	OP_SHM_RELEASE,			/* one-way, ssi_shm_id: @count uses less; at 0 all that was lent is returned */
	OP_SHM_FAULT,			/* ssi_shm_range -> ssi_shm_frames */
	OP_SHM_ZAP,			/* home to borrower, ssi_shm_range -> le64 frames that are pinned yet */
	OP_SHM_RETURN,			/* one-way, le64 frames: pinned no longer */
	OP_SHM_STAT,			/* ssi_shm_id -> ssi_shm_about */
	OP_SHM_SETATTR,			/* ssi_shm_setattr */
	OP_SHM_FALLOCATE,		/* ssi_shm_range: @flags is the mode; bytes */
	OP_SHM_SYNC,			/* ssi_shm_range: bytes; @flags: data only */
	OP_SHM_SEALS,			/* ssi_shm_range: @flags is the command, @first its argument -> le32 */
	OP_SHM_WRITERS,			/* ssi_shm_id: @count more (or less) writable mappings */
	OP_SHM_ATTACH,			/* ssi_shm_attach: of a System V segment */
	OP_SHM_CTL,			/* ssi_shm_ctl: shmctl(2), shmat(2) of another cell's segment */
	OP_SHM_ANNOUNCE,		/* home to all: a file of the root file system has its pages there, or no longer */
	OP_SHM_READ,			/* ssi_rfile_fop with the region's number -> the bytes */
	OP_SHM_WRITE,			/* ssi_rfile_fop, the bytes -> ssi_rfile_fdone */
};
static_assert((int)OP_SHM_WRITE < (int)SSI_OP_NET);

struct ssi_shm_id {
	__le64 id;
	__le32 count;
	__le32 flags;
};

struct ssi_shm_range {
	__le64 id;
	__le64 first;			/* page, or byte where OP_SHM_ says so */
	__le64 count;
	__le32 flags;
	__le32 pid;
};

#define SSI_SHM_WRITE		1	/* FAULT: it is to be written */
#define SSI_SHM_EVEN_COWS	1	/* ZAP: copies of private mappings too */

#define SSI_SHM_RUN		16	/* pages that a fault asks for at most: of the aligned run around it */

struct ssi_shm_frames {
	__le64 first;			/* page of frames[0] */
	__le64 frames[SSI_SHM_RUN];	/* guest-physical; 0: none */
};

#define SSI_SHM_ZAP_MAX		2048	/* lent pages that one ZAP is about */

struct ssi_shm_about {
	__le32 kind;			/* SSI_SHM_KIND_* */
	__le32 shmid;
	__le64 size, blocks, ino;
	__le32 mode, uid, gid, nlink;
	__le64 atime, mtime, ctime;	/* ns */
	char name[256];			/* what /proc/<pid>/maps shows; ends with 0 */
};

enum { SSI_SHM_KIND_MEMORY = 1, SSI_SHM_KIND_SYSV, SSI_SHM_KIND_FILE, SSI_SHM_KINDS };

struct ssi_shm_setattr {
	__le64 id;
	__le32 valid;			/* ATTR_SIZE, _MODE, _UID, _GID, _ATIME, _MTIME, and _SET */
	__le32 mode, uid, gid;
	__le64 size;
	__le64 atime, mtime;		/* ns */
};

struct ssi_shm_attach {
	__le64 id;
	__le32 count;			/* one more for each; -1: one less */
	__le32 pid;
};

/* ---- home ---- */

struct ssi_region {
	struct hlist_node by_id, by_inode;	/* under regions_lock */
	refcount_t ref;			/* one of all claims of each cell, one of each move and ticket */
	u64 id;
	u32 kind;
	int shmid;
	struct path path;		/* keeps the inode, deleted or not */
	struct inode *inode;
	struct file *file;		/* of SSI_SHM_KIND_FILE: reads */
	struct file *writer;		/* likewise, once needed: writes, and takes what was written through mappings */
	spinlock_t lock;		/* what follows */
	bool making, yielded;		/* of SSI_SHM_KIND_FILE: not announced everywhere, or it failed; another cell's counts */
	struct work_struct end;		/* likewise */
	u32 claims[SSI_CELLS_MAX];
	s32 writers[SSI_CELLS_MAX];	/* writable shared mappings there, counted in i_mmap_writable */
	s32 attaches[SSI_CELLS_MAX];	/* of the segment, counted in its nattch */
	struct xarray lent;		/* page -> struct ssi_lent; under its own lock */
};

struct ssi_region *ssi_region_get(u64 id);			/* NULL: none of this number */
struct ssi_region *ssi_region_of(struct address_space *mapping);	/* the same, at once false if there is none */
struct ssi_region *ssi_region_make(struct file *file);		/* or ERR_PTR */
void ssi_region_put(struct ssi_region *region);
bool ssi_region_claimed(struct ssi_region *region, u32 cell);
/* The frame of page @index, now lent to @cell; with @create false only if that needs no waiting. 0 or -errno. */
int ssi_region_lend(struct ssi_region *region, pgoff_t index, u32 cell, bool create, bool write, u64 *phys);
struct page *ssi_region_lent_page(struct ssi_region *region, pgoff_t index, u32 cell);	/* with a reference; NULL: not lent to it */
bool ssi_region_lends(struct page *page);			/* is this page, of a file's cache, lent to anybody? */
void ssi_region_return_all(struct ssi_region *region, u32 cell);
void ssi_region_claim(struct ssi_region *region, u32 cell);
/* @count uses of @cell end; the last one returns all that was lent to it. */
void ssi_region_unclaim(struct ssi_region *region, u32 cell, u32 count);
u64 ssi_region_lent_now(u32 cell);				/* pages that @cell has of this one */
/* The file to write a file's region through; without a reference. ERR_PTR. */
struct file *ssi_region_writer(struct ssi_region *region);
/* @cell announces one for the same file: does this one yield? */
bool ssi_region_yield(struct ssi_region *region, u32 cell);
/* 0; -EINPROGRESS: it is being made still, and may have to yield. Until it is ready no other cell can use it. */
int ssi_region_ready(struct ssi_region *region);
int ssi_shared_home_init(void);

/* shared_fs.c */
bool ssi_shared_on_root(struct inode *inode);	/* a regular file of the root file system */
u64 ssi_shared_away(struct inode *inode);	/* the region of another cell that such a file's pages are in; 0: none */
/* Calls @enter, unless another cell has announced a region of the same file: -EBUSY. Meanwhile no announcement is received. */
int ssi_shared_enter(struct ssi_region *region, void (*enter)(struct ssi_region *region));
int ssi_shared_announce(struct ssi_region *region, bool gone, bool *known);

/* ---- borrower ---- */

/* ssi_call() to the home of region @id, which is waited for if it is being made; -EINTR after a fatal signal. */
ssize_t ssi_region_call(u64 id, u16 op, const void *body, size_t len, void *reply, size_t cap);

struct ssi_object {
	u64 id;
	u32 home;
	u32 kind;
	int shmid;
	u64 ino;			/* what stat(2) says, at the home too */
	bool dead;			/* its home is; never cleared */
	struct inode *inode;		/* NULL: closing */
	struct inode *local;		/* under @lock: a file of this cell whose mappings it serves, or NULL */
	struct list_head list;		/* objects, or closing */
	struct mutex lock;		/* @asking, changes of @pages, @writers while it becomes 0 or 1 */
	struct list_head asking;	/* faults that wait for the home */
	struct xarray pages;		/* page -> struct page, as lent */
	u32 writers;			/* writable shared mappings */
	char name[256];
};

struct ssi_object *ssi_object_of(struct inode *inode);		/* NULL: no inode of ours */
struct inode *ssi_object_get(u64 id);				/* or ERR_PTR */
struct inode *ssi_object_find(u64 id);				/* NULL: there is none here */
struct file *ssi_object_file(struct inode *inode, unsigned int flags);	/* takes over the reference of @inode if it succeeds */
int ssi_object_stat(struct ssi_object *object);			/* brings the inode up to date */
extern const struct file_operations ssi_object_fops;
extern const struct inode_operations ssi_object_iops;
int ssi_object_attach(struct ssi_object *object, s32 count);	/* of a System V segment: tells nattch */
vm_fault_t ssi_object_fault(struct ssi_object *object, struct vm_fault *vmf);
void ssi_object_set_local(struct ssi_object *object, struct inode *local);
int ssi_object_mmap(struct file *file, struct vm_area_struct *vma);
/* One whose home is this cell: the file itself is mapped. */
int ssi_object_map_here(struct ssi_object *object, struct file *file, struct vm_area_struct *vma);

extern struct ssi_shared_stats {
	atomic64_t regions_made, regions_gone, lent, lent_runs, returned, objects, faults, borrowed, zaps, zapped_pages, pinned, moved_frames,
		   refused;
} ssi_shared_stats;

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Remote descriptors: an open file whose operations run in the cell where the object lives.
 */
#ifndef _SSI_RFILE_H
#define _SSI_RFILE_H

#include <linux/types.h>

struct file;

/* Names an exported open file in the cluster; travels in the image. */
struct ssi_rfile_ref {
	__le32 cell;		/* where the object lives */
	__le32 f_flags;
	__le64 id;		/* never reused within a boot */
	__le32 mode;		/* inode mode: S_IFCHR, S_IFIFO, ... */
	__le32 rdev;		/* of a character device, else 0 */
	__le64 region;		/* of a regular file (shared.h), else 0 */
};

/* Can operations on this file be carried from another cell? (tty, pipe, fifo, file in memory; not sockets, epoll, ...) */
bool ssi_rfile_capable(struct file *file);

/*
 * Name @file for another cell. At its home: enters it into the export table with a reference for the holder. For a file that
 * is itself remote: names the object, with a new reference taken at its home. 0 or -errno.
 */
int ssi_rfile_export(struct file *file, struct ssi_rfile_ref *ref);

/* Drop the reference that an export took and that nobody imported (a move that was aborted). */
void ssi_rfile_unexport(const struct ssi_rfile_ref *ref);

/*
 * Turn a name into an open file, taking over its reference: the object's own struct file if it lives in this cell
 * (unwrapped), else a remote descriptor. ERR_PTR on failure; the reference is then still the caller's.
 */
struct file *ssi_rfile_import(const struct ssi_rfile_ref *ref);

#endif

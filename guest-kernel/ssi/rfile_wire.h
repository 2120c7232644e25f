/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Remote descriptors on the wire: rfile.c (holder) and rfile_home.c (home).
 *
 * A *ticket* is one holder's right to one open file at its home: made by export, owned by the cell that may use it, gone
 * when that drops it or dies. Its number is never used again.
 *
 *	home or a holder: export   -> ticket, unclaimed, owned by the exporter
 *	holder: import             -> CLAIM: claimed, owned by the claimer (or, at home: taken back, and the file itself)
 *	holder: read, write, poll, ioctl
 *	holder: last close         -> DROP
 *
 * Streams (rfile.c) and files with an offset (shared_file.c) have operations of their own.
 */
#ifndef _SSI_RFILE_WIRE_H
#define _SSI_RFILE_WIRE_H

#include <linux/poll.h>
#include <linux/types.h>

#include "rfile.h"
#include "rpc.h"

struct file;

enum {
	OP_RFILE_CLAIM = SSI_OP_RFILE,
	OP_RFILE_DUP,			/* another ticket for the same file, unclaimed, owned by the asker */
	OP_RFILE_DROP,
	OP_RFILE_READ,
	OP_RFILE_WRITE,
	OP_RFILE_POLL,
	OP_RFILE_IOCTL,
	OP_RFILE_NOTIFY,		/* home to holder: what it waits for may be there */
	OP_RFILE_FREAD,			/* ssi_rfile_fop -> the bytes */
	OP_RFILE_FWRITE,		/* ssi_rfile_fop, the bytes -> ssi_rfile_fdone */
	OP_RFILE_FSEEK,			/* ssi_rfile_fop: op.flags is lseek(2)'s whence -> le64 */
};

/*
 * Begins every request. READ: @count bytes at most; answer: the bytes. WRITE: @count bytes follow; answer: le32 of bytes
 * taken. POLL: answer: le32 of events.
 */
struct ssi_rfile_op {
	__le64 id;
	__le32 count;
	__le32 flags;
};

/* The holder does not want to sleep: -EAGAIN at once. */
#define SSI_RFILE_NONBLOCK	1
/* If the answer is -EAGAIN (or at POLL): send NOTIFY at the next wake-up. */
#define SSI_RFILE_NOTIFY	2

#define SSI_RFILE_WRITE_MAX	(SSI_RPC_MAX - sizeof(struct ssi_rfile_op))

/* On a file with an offset: at @pos, or where that says so at the open file's own offset, which moves on. */
struct ssi_rfile_fop {
	struct ssi_rfile_op op;
	__le64 pos;
};

#define SSI_RFILE_POS_HOME	(1LL << 62)	/* beyond any file */
#define SSI_RFILE_APPEND	4
#define SSI_RFILE_DSYNC		8
#define SSI_RFILE_FWRITE_MAX	(SSI_RPC_MAX - sizeof(struct ssi_rfile_fop))

struct ssi_rfile_fdone {
	__le32 taken;			/* bytes */
	__le32 pad;
	__le64 pos;			/* behind them */
};

struct ssi_rfile_ioctl {
	__le64 id;
	__le32 cmd;
	__le32 session;			/* PID of the session of the process that asks */
	__le64 arg;			/* where the argument is a value */
	u8 data[64];			/* where it points to something that is read */
};

struct ssi_rfile_ioctl_reply {
	__le32 result;
	__le32 pad;
	u8 data[64];			/* where the argument points to something that is written */
};

struct ssi_rfile_notify {
	__le64 id;
	__le32 events;
	__le32 pad;
};

/* The ioctls that travel: what their argument is. */
enum ssi_ioctl_kind { SSI_IOCTL_VALUE, SSI_IOCTL_IN, SSI_IOCTL_OUT, SSI_IOCTL_JOB_GET, SSI_IOCTL_JOB_SET };

struct ssi_ioctl {
	u32 cmd;
	u16 kind;
	u16 size;			/* bytes that the argument points to */
};

/* NULL: does not travel. */
const struct ssi_ioctl *ssi_rfile_ioctl_find(u32 cmd);

/* rfile_home.c, for rfile.c */
bool ssi_rfile_home_capable(struct file *file);
/* @region: the file's, with a reference that the ticket takes over, unless there is an error too; or 0. */
int ssi_rfile_home_export(struct file *file, u32 owner, u64 region, u64 *id);
struct file *ssi_rfile_home_take(u64 id);	/* an unclaimed ticket: its file, with the ticket's reference; or ERR_PTR */
void ssi_rfile_home_drop(u64 id, u32 owner);
int ssi_rfile_home_init(void);

#endif

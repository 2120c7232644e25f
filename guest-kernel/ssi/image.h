/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The image of a process: a stream of tagged records. docs/image-format.md describes each field.
 *
 * HEADER, then the records of the resources in any order; for each thread but the main one: THREAD, then the records of what
 * it has of its own; then PAGES (checkpoints only), then END. Little-endian; this layer
 * exists on x86-64 only, so the structures are used as they are.
 */
#ifndef _SSI_IMAGE_H
#define _SSI_IMAGE_H

#include <linux/list.h>
#include <linux/types.h>
#include <linux/auxvec.h>
#include <linux/capability.h>
#include <linux/mm_types.h>
#include <linux/resource.h>
#include <linux/signal_types.h>

#include "rfile.h"

struct file;

#define SSI_IMAGE_MAGIC		0x4547414d49495353ULL	/* "SSIIMAGE" */
#define SSI_IMAGE_VERSION	2

/* Bytes of state (everything but pages) that a reader takes. */
#define SSI_IMAGE_MAX		(32U << 20)

enum ssi_rec_type {
	SSI_REC_HEADER		= 1,
	SSI_REC_REGS		= 2,
	SSI_REC_FPU		= 3,
	SSI_REC_MM		= 4,
	SSI_REC_VMA		= 5,
	SSI_REC_FILE		= 6,
	SSI_REC_FDS		= 7,
	SSI_REC_FS		= 8,
	SSI_REC_SIGACTIONS	= 9,
	SSI_REC_SIGNALS		= 10,
	SSI_REC_SIGINFO		= 11,
	SSI_REC_TIMERS		= 12,
	SSI_REC_CREDS		= 13,
	SSI_REC_LIMITS		= 14,
	SSI_REC_TASK		= 15,
	SSI_REC_PAGES		= 16,
	SSI_REC_LAZY		= 17,
	SSI_REC_END		= 18,
	SSI_REC_SHARED_SIGINFO	= 19,
	SSI_REC_PROCESS		= 20,
	SSI_REC_THREAD		= 21,
};

/* What every record starts with. */
struct ssi_rec_hdr {
	u32 type;
	u16 version;
	u16 flags;		/* 0 */
	u64 length;		/* bytes that follow */
} __packed;

struct ssi_rec_header {
	u64 magic;
	u32 version;
	u32 flags;		/* SSI_IMAGE_* */
	s32 pid;
	u32 uid;		/* real */
	u32 home;		/* cell in which it was born */
	u32 source;		/* cell from which this image comes */
	u64 mono_ns;		/* CLOCK_MONOTONIC when it was made */
	u32 moves;		/* of this process so far */
	u32 pad;
	char kernel[128];	/* release and version: the same build only (MIG-8) */
} __packed;

#define SSI_IMAGE_LIVE	1	/* a move between cells of one cluster: clocks and descriptors are shared */
#define SSI_IMAGE_EAGER	2
#define SSI_IMAGE_FLAGS	3

enum ssi_restart_kind {		/* how restart_syscall(2) goes on */
	SSI_RESTART_NONE,
	SSI_RESTART_NANOSLEEP,
	SSI_RESTART_ALARM_NANOSLEEP,
	SSI_RESTART_POLL,
	SSI_RESTART_FUTEX,
	SSI_RESTART_MAX,
};

struct ssi_rec_regs {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
	u64 fsbase, gsbase;
	u32 restart_kind;
	u32 restart_i[3];
	u64 restart_u[4];
} __packed;

#define SSI_FPU_FXSAVE	1	/* 512 bytes */
#define SSI_FPU_XSAVE	2	/* the standard format, as in signal frames */

struct ssi_rec_fpu {
	u32 kind;
	u32 pad;
	u8 data[];
} __packed;

struct ssi_rec_mm {
	u64 start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
	u64 arg_start, arg_end, env_start, env_end;
	u64 mmap_base, mmap_legacy_base, flags, context_flags;
	u64 vdso;		/* address of the vdso's text, 0: none */
	u64 vvar;		/* address at which vvar and vdso begin */
	u32 membarrier;
	u32 exe_len;		/* with the final 0 */
	u64 auxv[AT_VECTOR_SIZE];
	char exe[];		/* path */
} __packed;

#define SSI_VMA_SHARED	1	/* MAP_SHARED: of a file opened read-only, or of a region */
#define SSI_VMA_ANON	2	/* there may be pages of its own in it */
#define SSI_VMA_MAYWRITE	4	/* of a region: it may become writable */

struct ssi_rec_vma {
	u64 start, end;
	u64 vm_flags;
	u64 pgoff;		/* pages */
	u32 flags;		/* SSI_VMA_* */
	u32 mode, uid, gid;	/* of the file */
	u32 path_len;		/* with the final 0; 0: anonymous, or of a region */
	u64 region;		/* of shared memory (shared.h), else 0; in moves only */
	char path[];
} __packed;

#define SSI_FILE_PATH	1
#define SSI_FILE_REMOTE	2

struct ssi_rec_file {
	u32 index;		/* counts from 0 */
	u32 kind;
	u32 f_flags;
	u32 mode, uid, gid;	/* of the inode */
	u64 pos;
	u32 rdev;
	u32 path_len;		/* with the final 0 */
	struct ssi_rfile_ref ref;
	char path[];
} __packed;

struct ssi_fd {
	u32 fd;
	u32 index;		/* of the FILE */
	u32 cloexec;
} __packed;

struct ssi_rec_fs {
	u32 umask;
	u32 cwd_len, root_len;	/* with their final 0 */
	char paths[];		/* cwd, then root */
} __packed;

struct ssi_sigaction {
	u64 handler, flags, restorer, mask;
} __packed;

struct ssi_rec_signals {
	u64 blocked, saved;
	u32 restore_saved;	/* the mask to restore at the end of the call in progress is in saved */
	u32 altstack_flags;
	u64 altstack_sp, altstack_size;
} __packed;

/* SIGINFO: of the thread; SHARED_SIGINFO: of the process. */
struct ssi_rec_siginfo {
	kernel_siginfo_t info;
} __packed;

struct ssi_rec_timers {
	u64 real_left_ns;	/* 0: not armed */
	u64 real_incr_ns;
	u64 virt_left_ns, virt_incr_ns, prof_left_ns, prof_incr_ns;
} __packed;

struct ssi_rec_creds {
	u32 uid, euid, suid, fsuid, gid, egid, sgid, fsgid;
	u64 cap_inheritable, cap_permitted, cap_effective, cap_bset, cap_ambient;
	u32 securebits;
	u32 no_new_privs;
	u32 ngroups;
	u32 pad;
	u32 groups[];
} __packed;

struct ssi_rec_limits {
	u64 lim[RLIM_NLIMITS][2];	/* soft, hard */
} __packed;

struct ssi_rec_task {
	char comm[16];
	u32 personality;
	s32 nice;
	u32 policy;
	u32 rt_priority;
	u32 reset_on_fork;
	u32 pdeath_signal;
	u64 timer_slack_ns, default_timer_slack_ns;
	u64 clear_child_tid, set_child_tid, robust_list;
	u64 rseq;
	u32 rseq_len, rseq_sig;
	u64 start_time, start_boottime;		/* ns */
} __packed;

/* What a process has used; also told to its home when it ends. */
struct ssi_usage {
	u64 utime, stime, cutime, cstime;	/* ns */
	u64 min_flt, maj_flt, nvcsw, nivcsw, maxrss;
} __packed;

struct ssi_rec_process {
	s32 oom_score_adj;
	s32 oom_score_adj_min;
	u32 dumpable;
	u32 subreaper;
	struct ssi_usage usage;
	s32 ppid, pgrp, sid;			/* at home */
	u32 pad;
} __packed;

#define SSI_THREADS_MAX	32767	/* beside the main one */

struct ssi_rec_thread {
	u32 tid;
	u32 pad;
} __packed;

#define SSI_RUN_PAGES	64	/* at most in one PAGES record */

struct ssi_rec_pages {
	u64 addr;
	u32 count;
	u32 pad;
	/* count * 4096 bytes */
} __packed;

struct ssi_rec_lazy {
	u32 cell;		/* whose frames they are */
	u32 pad;
	u64 id;			/* of the address space there */
} __packed;

struct ssi_rec_end {
	u32 records;		/* before this one */
	u32 crc;		/* CRC-32 of every byte before this record */
} __packed;

/* Where an image goes: to a file or to a cell. Buffered. */
struct ssi_sink {
	int (*flush)(struct ssi_sink *sink);	/* takes buf[0..used] */
	void *buf;
	u32 used, room;				/* bytes */
	u32 crc;
	u32 records;
	u64 bytes;
	/* of a file */
	struct file *file;
	loff_t pos;
	/* of a cell */
	u32 cell;
	u64 id;
};

int ssi_sink_file(struct ssi_sink *sink, struct file *file);
void ssi_sink_release(struct ssi_sink *sink);
int ssi_write(struct ssi_sink *sink, const void *data, size_t len);
int ssi_write_hdr(struct ssi_sink *sink, u32 type, u64 len);
int ssi_write_rec(struct ssi_sink *sink, u32 type, const void *data, size_t len);
int ssi_write_rec2(struct ssi_sink *sink, u32 type, const void *a, size_t alen, const void *b, size_t blen);
int ssi_write_end(struct ssi_sink *sink);

/* Where an image comes from. */
struct ssi_source {
	/* fills all of @len bytes, or -errno; -ENODATA: the stream ended */
	int (*read)(struct ssi_source *src, void *buf, size_t len);
	struct file *file;
	struct ssi_incoming_move *in;
	u32 crc;
	u32 crc_before;		/* crc before the last record header */
	u32 records;
	u64 bytes;
};

/* A record as read. */
struct ssi_rec {
	struct list_head list;
	u32 type;
	u32 len;
	u8 data[];
};

/* What a reader accepts: a record that is not in a resource's list is foreign. */
struct ssi_rec_def {
	u32 type;
	u16 version;
	u32 min_len, max_len;	/* bytes */
	u32 min_count, max_count;
};

int ssi_read(struct ssi_source *src, void *buf, size_t len);
int ssi_read_hdr(struct ssi_source *src, struct ssi_rec_hdr *hdr);
int ssi_read_file(struct ssi_source *src, void *buf, size_t len);

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Messages of moves between cells. Little-endian.
 */
#ifndef _SSI_WIRE_H
#define _SSI_WIRE_H

#include <linux/types.h>

#include "move.h"
#include "rpc.h"

enum {
	SSI_OP_MIGRATE_OFFER	= SSI_OP_MIGRATE + 0,	/* source -> destination: ssi_offer -> u64 id of the move */
	SSI_OP_MIGRATE_DATA	= SSI_OP_MIGRATE + 1,	/* u64 id, then bytes of the image */
	SSI_OP_MIGRATE_READY	= SSI_OP_MIGRATE + 2,	/* u64 id -> ssi_ready: is everything built? waits */
	SSI_OP_MIGRATE_COMMIT	= SSI_OP_MIGRATE + 3,	/* ssi_commit -> nothing: the process runs there */
	SSI_OP_MIGRATE_ABORT	= SSI_OP_MIGRATE + 4,	/* u64 id; one-way */
	SSI_OP_MIGRATE_ASK	= SSI_OP_MIGRATE + 5,	/* ssi_ask -> ssi_asked: migrate(2) on a process that is elsewhere */
	SSI_OP_MIGRATE_MAP	= SSI_OP_MIGRATE + 6,	/* destination -> source: ssi_map_request -> u64 frames[SSI_MAP_PAGES] */
	SSI_OP_MIGRATE_FREE	= SSI_OP_MIGRATE + 7,	/* ssi_lazy_done -> ssi_lazy_counts */

	SSI_OP_DEPUTY_SIGNAL	= SSI_OP_DEPUTY + 0,	/* home -> runner: ssi_signal; -ESRCH: not here (any more) */
	SSI_OP_DEPUTY_KILL	= SSI_OP_DEPUTY + 1,	/* anywhere -> home: ssi_kill: kill(2) of a PID unknown there */
	SSI_OP_DEPUTY_EXIT	= SSI_OP_DEPUTY + 2,	/* runner -> home: ssi_exit */
	SSI_OP_DEPUTY_MOVED	= SSI_OP_DEPUTY + 3,	/* new cell -> home: ssi_moved */
	SSI_OP_DEPUTY_PPID	= SSI_OP_DEPUTY + 4,	/* runner -> home: s32 pid -> s32 ppid */
	SSI_OP_DEPUTY_STAT	= SSI_OP_DEPUTY + 5,	/* runner -> home: ssi_figures: what a move between others took */
	SSI_OP_DEPUTY_TID	= SSI_OP_DEPUTY + 6,	/* -> home of a thread's number: s32: it has ended; negative: all of that process */
};

#define SSI_MAP_PAGES	512	/* a region of 2 MiB */

struct ssi_offer {
	s32 pid;
	u32 home;
	u32 uid;
	u32 flags;		/* SSI_INCOMING_* */
	char comm[16];
} __packed;

struct ssi_ready {
	s32 error;
	u64 t3_us;		/* eager: what bringing the pages took */
	char why[SSI_WHY_MAX];
} __packed;

struct ssi_commit {
	u64 id;
	u64 stop_ns;		/* CLOCK_MONOTONIC at which the process stopped */
	u64 t0_us, t1_us, t2_us;
	u64 image_bytes;
} __packed;

struct ssi_ask {
	s32 pid;
	u32 dest;
	u64 flags;		/* SSI_MOVE_* */
	u32 uid, euid;		/* of who asks */
	u32 capable;		/* CAP_SYS_PTRACE */
} __packed;

struct ssi_asked {
	s32 error;
	char why[SSI_WHY_MAX];
} __packed;

struct ssi_map_request {
	u64 id;
	u64 addr;		/* of a region */
} __packed;

struct ssi_lazy_done {
	u64 id;
} __packed;

struct ssi_lazy_counts {
	u64 pages_sent, pages_absent, pages_unmodified;
} __packed;

struct ssi_signal {
	s32 pid;		/* of a process */
	s32 tid;		/* one of its threads: to that; 0: to the process */
	s32 sig;
	kernel_siginfo_t info;
} __packed;

struct ssi_kill {
	s32 pid;		/* of a process or thread whose number is the receiver's */
	s32 sig;		/* 0: is it there? */
	u32 thread;		/* to the thread @pid, not to its process */
	s32 tgid;		/* then: the process that this has to be a thread of; 0: any */
	s32 tid;		/* the receiver is the home of process @pid: this is a thread of it, which may be elsewhere; 0: none */
	u32 uid, euid;
	u32 capable;		/* CAP_KILL */
	kernel_siginfo_t info;
} __packed;

struct ssi_exit {
	s32 pid;
	s32 status;
	struct ssi_usage usage;
} __packed;

struct ssi_moved {
	s32 pid;
	u32 cell;
	u32 moves;		/* so far: an older message is of no interest */
} __packed;

struct ssi_figures {
	s32 pid;
	u32 moves;		/* so far: of which one these are */
	struct ssi_move_stat stat;
} __packed;

#endif

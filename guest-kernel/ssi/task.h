/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is known of a process that has moved, moves, or could not: /proc/ssi/<pid>/{stat,why}.
 */
#ifndef _SSI_TASK_H
#define _SSI_TASK_H

#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "move.h"

struct ssi_incoming_move;

enum ssi_role {
	SSI_NATIVE,	/* born here and here */
	SSI_DEPUTY,	/* born here and elsewhere */
	SSI_RUNNER,	/* born elsewhere and here */
	SSI_GONE,	/* born elsewhere and elsewhere again: what is left ends silently */
	SSI_ARRIVING,	/* born elsewhere, and being built here */
};

/* One per process that the layer has had to do with, from then until it ends. */
struct ssi_task {
	struct hlist_node node;		/* in the table by sig: tasks_lock */
	struct signal_struct *sig;	/* the process; only compared */
	refcount_t ref;
	pid_t pid;
	struct proc_dir_entry *proc;

	spinlock_t lock;		/* of what follows */
	enum ssi_role role;
	bool moving;
	u32 home;
	u32 where;			/* cell in which it runs */
	u32 moves;
	s32 ppid, pgrp, sid;		/* at home; of a runner */
	char why[SSI_WHY_MAX];
	struct ssi_move_stat stat;
	u64 stop_ns;			/* when the last move stopped it */

	/* of a deputy */
	wait_queue_head_t wait;
	bool exited;			/* status and usage are valid */
	bool lost;			/* the cell where it ran died */
	bool forgotten;			/* the process has ended here, and its PID is free */
	int status;			/* as wait(2) gives it */
	struct ssi_usage usage;
	struct ssi_incoming_move *coming;	/* it comes home; with a reference */
	struct list_head strays;	/* of struct ssi_stray: signals for threads that are elsewhere */
	unsigned int nstrays;
};

/* A signal for a thread that was found where the thread is not. */
struct ssi_stray {
	struct list_head list;
	pid_t tid;
	kernel_siginfo_t info;
};

/* 0, -ENOMEM, -EAGAIN: too many wait, or -ESRCH: the process is here, and so are its threads. */
int ssi_add_stray(struct ssi_task *st, pid_t tid, const kernel_siginfo_t *info);

/* The entry of the process of @t, with a reference; NULL if there is none and @create is not set, or it has ended, or no memory. */
struct ssi_task *ssi_task_get(struct task_struct *t, bool create);
struct ssi_task *ssi_task_get_pid(pid_t pid);	/* among those that there are */
void ssi_task_put(struct ssi_task *st);
void ssi_task_forget(struct ssi_task *st);	/* the process ends */
void ssi_task_arrived(struct ssi_task *st);	/* waits while it has been committed to this cell, and is not it yet */
void ssi_task_each(void (*fn)(struct ssi_task *st, u32 arg), u32 arg);	/* those that there are now */

/* kill.c: the thread @tid of the process of @t, if it is here, with a reference; else NULL. */
struct task_struct *ssi_get_thread(struct task_struct *t, pid_t tid);

u32 ssi_home_of_pid(pid_t pid);
u32 ssi_home_of(struct task_struct *t);
u32 ssi_moves_of(struct task_struct *t);
s32 ssi_ppid_of(struct task_struct *t);
s32 ssi_pgrp_of(struct task_struct *t);
s32 ssi_sid_of(struct task_struct *t);

#endif

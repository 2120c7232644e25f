// SPDX-License-Identifier: GPL-2.0
/*
 * restart(2): the caller becomes the process in an image (MIG-1, MIG-2).
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/syscalls.h>

#include "fault.h"
#include "incoming.h"
#include "migrate.h"
#include "task.h"
#include "uapi.h"

/* Where a move that came in belongs: a new entry for a process from elsewhere, the deputy's own for one that comes home. */
static int prepare_entry(struct ssi_restore *r, struct ssi_task **st)
{
	if (r->hdr->pid != task_tgid_nr(current))
		return ssi_bad_image(r, "it needs that PID, and the caller's is %d", task_tgid_nr(current));
	if (!r->deputy && r->hdr->home == ssi_this_cell()) {
		pr_notice_ratelimited("process %d comes home, but nobody waits for it\n", r->hdr->pid);
		return -ESRCH;
	}
	*st = ssi_task_get(current, true);
	if (!*st)
		return -ENOMEM;
	if (!r->deputy)
		WRITE_ONCE((*st)->role, SSI_ARRIVING);
	return 0;
}

static void fill_entry(struct ssi_restore *r, struct ssi_task *st, u64 bytes)
{
	const struct ssi_rec_process *t = ssi_rec_only(r, SSI_REC_PROCESS);
	const struct ssi_commit *c = &r->src->in->commit;

	spin_lock(&st->lock);
	st->home = r->hdr->home;
	st->where = ssi_this_cell();
	st->moves = r->hdr->moves + 1;
	st->ppid = t->ppid;
	st->pgrp = t->pgrp;
	st->sid = t->sid;
	st->why[0] = 0;
	st->stop_ns = c->stop_ns;
	st->stat = r->stat;
	st->stat.t0_us = c->t0_us;
	st->stat.t1_us = c->t1_us;
	st->stat.t2_us = c->t2_us;
	st->stat.image_bytes = bytes;
	st->stat.stop_us = div_u64(ktime_get_ns() - c->stop_ns, NSEC_PER_USEC);
	if (r->hdr->flags & SSI_IMAGE_EAGER)
		st->stat.total_us = st->stat.stop_us;
	spin_unlock(&st->lock);
}

/* Signals and requests that follow the process reach it from here on. */
static void now_here(struct ssi_task *st, bool deputy)
{
	spin_lock(&st->lock);
	st->role = deputy ? SSI_NATIVE : SSI_RUNNER;
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
}

int ssi_restart(struct ssi_source *src, bool deputy)
{
	struct ssi_restore *r = kzalloc(sizeof(*r), GFP_KERNEL);
	struct ssi_task *st = NULL;
	int err;

	if (!r)
		return -ENOMEM;
	r->src = src;
	r->deputy = deputy;
	err = ssi_restore_read(r);
	ssi_fault_point(SSI_FAULT_BUILD);
	if (!err && r->live)
		err = prepare_entry(r, &st);
	if (!err)
		err = ssi_restore_prepare(r);
	ssi_fault_point(SSI_FAULT_READY);
	if (!err && r->live)
		err = ssi_incoming_ready(src->in, r->stat.t3_us);
	if (!err) {
		if (st)
			fill_entry(r, st, src->bytes);
		ssi_restore_commit(r);
		if (st)
			now_here(st, deputy);
		ssi_threads_run(r);
		ssi_fault_point(SSI_FAULT_RUN);
		/* To user mode through the signal code, which restarts the call in progress or interrupts it (MIG-5). */
		set_thread_flag(TIF_SIGPENDING);
		if (st)
			ssi_arrive(st, r->hdr->source);
	} else if (src->in) {
		ssi_incoming_fail(src->in, err, "the destination could not build it: see its kernel log");
	}
	ssi_restore_abort(r);
	if (st)
		ssi_task_put(st);
	kfree(r);
	return err;
}

/* The process comes home: its deputy becomes it, and the caller has only brought it the stream. */
static int give_to_deputy(struct ssi_incoming_move *in)
{
	struct ssi_task *st = ssi_task_get_pid(in->offer.pid);
	int err = 0;

	if (!st)
		return -ESRCH;
	spin_lock(&st->lock);
	if (st->role != SSI_DEPUTY || st->coming || st->exited || st->lost) {
		err = -ESRCH;
	} else {
		refcount_inc(&in->ref);
		st->coming = in;
	}
	spin_unlock(&st->lock);
	wake_up_all(&st->wait);
	ssi_task_put(st);
	if (err)
		return err;
	if (wait_event_killable(in->wait, READ_ONCE(in->state) >= SSI_IN_COMMITTED))
		return -EINTR;
	return in->state == SSI_IN_COMMITTED ? 0 : in->error;
}

static int restart_incoming(struct ssi_incoming_move *in)
{
	struct ssi_source src = { .read = ssi_incoming_read, .in = in };
	int err;

	if (in->offer.flags & SSI_INCOMING_HOME) {
		err = give_to_deputy(in);
		if (err)
			ssi_incoming_fail(in, err, "its deputy did not take it");
		return err;
	}
	err = ssi_incoming_take(in);
	return err ?: ssi_restart(&src, false);
}

SYSCALL_DEFINE1(restart, int, fd)
{
	struct ssi_incoming_move *in;
	bool home = false;
	struct file *file;
	int err;

	file = fget(fd);
	if (!file)
		return -EBADF;
	in = ssi_incoming_of(file);
	/* As execve(2), but a caller with threads or shared memory is told to go without. */
	if (get_nr_threads(current) > 1 || current->vfork_done ||
	    (test_bit(MMF_MULTIPROCESS, &current->mm->flags) && atomic_read(&current->mm->mm_users) > 1) ||
	    atomic_read(&current->files->count) > 1 || current->fs->users > 1) {
		err = -EINVAL;
		if (in)
			ssi_incoming_fail(in, err, "the caller of restart() has threads, or shares memory or files");
	} else if (in) {
		home = in->offer.flags & SSI_INCOMING_HOME;
		err = restart_incoming(in);
	} else if (!(file->f_mode & FMODE_READ)) {
		err = -EBADF;
	} else {
		struct ssi_source src = { .read = ssi_read_file, .file = file };

		err = ssi_restart(&src, false);
	}
	if (in)
		ssi_incoming_put(in);
	fput(file);
	if (err || home)
		return err;
	/* Every register is the process's now: this one as well. */
	return task_pt_regs(current)->ax;
}

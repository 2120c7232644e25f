// SPDX-License-Identifier: GPL-2.0
/*
 * The threads of a process that moves: the destination's side.
 *
 * Before the destination says that it is ready, there is a thread for each, with the number that it had, since making one can
 * fail. Each waits in the kernel. After the commit it takes on what it was, and its registers last of all: in work that it does
 * on its way to user mode, which then sees a system call to resume, as the main thread does.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/cred.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <linux/task_work.h>
#include <linux/wait.h>

#include "incoming.h"
#include "move.h"
#include "pid.h"

/* As pthread_create(3) makes them, but for what they register themselves. */
#define CLONE_FLAGS	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_UNTRACED)

enum state { NOT_MADE, WAITS, RUN, END, RUNS };

struct ssi_new_thread {
	struct list_head list;		/* in ssi_restore.threads of the process */
	struct ssi_restore r;		/* its own records, and what is built of them */
	pid_t tid;
	enum state state;		/* under nobody's lock: each step has one who makes it */
	struct callback_head work;
};

static DECLARE_WAIT_QUEUE_HEAD(events);

int ssi_new_thread(struct ssi_restore *r, const struct ssi_rec *rec)
{
	const struct ssi_rec_thread *t = (const void *)rec->data;
	struct ssi_new_thread *n;

	if (t->tid < RESERVED_PIDS || t->tid > PID_MAX_LIMIT || t->pad || t->tid == r->hdr->pid)
		return ssi_bad_image(r, "thread %u", t->tid);
	n = kzalloc(sizeof(*n), GFP_KERNEL_ACCOUNT);
	if (!n)
		return -ENOMEM;
	n->tid = t->tid;
	n->r = (struct ssi_restore){
		.src = r->src, .hdr = r->hdr, .live = r->live, .deputy = r->deputy, .shift_ns = r->shift_ns,
	};
	INIT_LIST_HEAD(&n->r.recs);
	INIT_LIST_HEAD(&n->r.threads);
	INIT_LIST_HEAD(&n->r.opened);
	list_add_tail(&n->list, &r->threads);
	r->last = &n->r;
	return 0;
}

int ssi_threads_counts(struct ssi_restore *r)
{
	struct ssi_new_thread *n;
	int err = 0;

	list_for_each_entry(n, &r->threads, list)
		err = err ?: ssi_thread_counts(&n->r);
	return err;
}

/* The last thing that it does as another: what comes next in user mode is the program. */
static void become(struct callback_head *work)
{
	struct ssi_new_thread *n = container_of(work, struct ssi_new_thread, work);

	ssi_res_regs.commit(&n->r);
	/* Through the signal code, which restarts the call in progress or interrupts it (MIG-5). */
	set_thread_flag(TIF_SIGPENDING);
	smp_store_release(&n->state, RUNS);	/* @n may be gone */
	wake_up_all(&events);
}

static int thread_main(void *arg)
{
	struct ssi_new_thread *n = arg;

	wait_event_idle(events, smp_load_acquire(&n->state) != WAITS);
	if (n->state == END)
		do_exit(0);
	ssi_thread_commit(&n->r);
	init_task_work(&n->work, become);
	task_work_add(current, &n->work, TWA_RESUME);
	return 0;
}

/* The number is in use by what the thread was when it was here last, and is about to end, or by an attempt that has failed. */
static int make(struct ssi_new_thread *n)
{
	struct kernel_clone_args args = {
		.flags = CLONE_FLAGS,
		.fn = thread_main,
		.fn_arg = n,
		.set_tid = &n->tid,
		.set_tid_size = 1,
	};
	pid_t pid;

	n->state = WAITS;
	pid = kernel_clone(&args);
	if (pid == -EEXIST && n->r.live && !ssi_incoming_wait_pid(n->tid))
		pid = kernel_clone(&args);
	if (pid >= 0)
		return 0;
	n->state = NOT_MADE;
	pr_notice_ratelimited("image of %d: thread %d: error %d\n", n->r.hdr->pid, n->tid, pid);
	return pid;
}

/* A thread begins with what the main one has: nothing that was sent is for it before it is what it will be. */
static void block_signals(struct ssi_restore *r)
{
	spin_lock_irq(&current->sighand->siglock);
	r->blocked = current->blocked;
	r->blocks = true;
	sigfillset(&current->blocked);
	sigdelset(&current->blocked, SIGKILL);
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
}

static void unblock_signals(struct ssi_restore *r)
{
	r->blocks = false;
	spin_lock_irq(&current->sighand->siglock);
	current->blocked = r->blocked;
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
}

static int make_all(struct ssi_restore *r)
{
	const struct cred *caller = NULL;
	struct ssi_new_thread *n;
	struct cred *kernel = NULL;
	int err = 0;

	if (r->live) {		/* numbers may be asked for by few, and a process that comes home need not be one of those */
		kernel = prepare_kernel_cred(&init_task);
		if (!kernel)
			return -ENOMEM;
		caller = override_creds(kernel);
	}
	list_for_each_entry(n, &r->threads, list) {
		err = make(n);
		if (err)
			break;
	}
	if (caller) {
		revert_creds(caller);
		put_cred(kernel);
	}
	return err;
}

int ssi_threads_prepare(struct ssi_restore *r)
{
	struct ssi_new_thread *n;
	int err;

	if (list_empty(&r->threads))
		return 0;
	list_for_each_entry(n, &r->threads, list) {
		err = ssi_thread_prepare(&n->r);
		if (err)
			return err;
	}
	block_signals(r);
	return make_all(r);
}

static void tell_all(struct ssi_restore *r, enum state state)
{
	struct ssi_new_thread *n;

	list_for_each_entry(n, &r->threads, list)
		if (n->state == WAITS)
			smp_store_release(&n->state, state);
	wake_up_all(&events);
}

void ssi_threads_abort(struct ssi_restore *r)
{
	struct ssi_new_thread *n;

	if (list_empty(&r->threads))
		return;
	if (get_nr_threads(current) > 1) {
		tell_all(r, END);
		ssi_wait_others_gone();
	}
	if (r->blocks)
		unblock_signals(r);
	list_for_each_entry(n, &r->threads, list)
		ssi_thread_abort(&n->r);
}

static bool all_run(struct ssi_restore *r)
{
	struct ssi_new_thread *n;

	list_for_each_entry(n, &r->threads, list)
		if (smp_load_acquire(&n->state) != RUNS)
			return false;
	return true;
}

void ssi_threads_run(struct ssi_restore *r)
{
	struct ssi_new_thread *n;

	if (list_empty(&r->threads))
		return;
	list_for_each_entry(n, &r->threads, list)
		ssi_pid_unkeep(n->tid);
	tell_all(r, RUN);
	wait_event(events, all_run(r));
}

void ssi_threads_free(struct ssi_restore *r)
{
	struct ssi_new_thread *n, *next;

	list_for_each_entry_safe(n, next, &r->threads, list) {
		ssi_put_recs(&n->r);
		kfree(n);
	}
	INIT_LIST_HEAD(&r->threads);
}

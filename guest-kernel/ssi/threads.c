// SPDX-License-Identifier: GPL-2.0
/*
 * The threads of a process that moves: the source's side.
 *
 * The main thread does the work of a move, since it is what becomes the deputy. It has all others come to their signal points
 * and wait there. Each then checks and saves what is its own, when its turn comes, and goes on, or ends when it has left.
 *
 *	main thread			another
 *	gather: task work for each  ->	follow: waits
 *	CHECK, SAVE of each in turn ->	does it, with itself as current
 *	go on, or leave             ->	returns to user mode, or ends without a word
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <linux/task_work.h>
#include <linux/wait.h>

#include "move.h"
#include "pid.h"

#define GATHER_TIMEOUT	(30 * HZ)
#define LOOK_AGAIN	(HZ / 10)	/* a thread that has been stopped by a signal tells nobody */

enum order { NONE, CHECK, SAVE };
enum state { COMING, HERE, GONE };

struct follower {
	struct callback_head work;
	bool queued_again;
	struct list_head list;
	struct ssi_threads *g;
	struct task_struct *task;	/* with a reference */
	wait_queue_head_t wait;
	enum state state;		/* set by itself */
	enum order order;		/* set by the main thread, and to NONE by itself */
	int err;			/* of the last one */
	struct ssi_save save;
};

struct ssi_threads {
	refcount_t ref;			/* the main thread's, and one of each follower's */
	struct list_head all;		/* changed by the main thread only, once it has begun */
	unsigned int known;		/* how many these are */
	atomic_t here;
	bool begun;			/* by the main thread */
	bool over;			/* everybody goes on */
	bool left;			/* everybody has left */
	bool done;			/* the move has ended with: */
	int result;
};

/* Whoever waits for threads to come, to have done something, or to end. */
static DECLARE_WAIT_QUEUE_HEAD(events);

struct ssi_threads *ssi_threads_new(void)
{
	struct ssi_threads *g = kzalloc(sizeof(*g), GFP_KERNEL);

	if (!g)
		return NULL;
	refcount_set(&g->ref, 1);
	INIT_LIST_HEAD(&g->all);
	return g;
}

struct ssi_threads *ssi_threads_get(struct ssi_threads *g)
{
	if (g)
		refcount_inc(&g->ref);
	return g;
}

void ssi_threads_put(struct ssi_threads *g)
{
	struct follower *f, *next;

	if (!g || !refcount_dec_and_test(&g->ref))
		return;
	list_for_each_entry_safe(f, next, &g->all, list) {
		put_task_struct(f->task);
		kfree(f);
	}
	kfree(g);
}

static void set_state(struct follower *f, enum state state)
{
	if (state == HERE)
		atomic_inc(&f->g->here);
	else if (f->state == HERE)
		atomic_dec(&f->g->here);
	smp_store_release(&f->state, state);
	wake_up_all(&events);
}

static int carry_out(struct follower *f, enum order order)
{
	struct ssi_rec_thread rec = { .tid = task_pid_nr(current) };
	int err;

	if (order == CHECK)
		return ssi_check(&f->save);
	ssi_pid_keep(rec.tid, task_tgid_nr(current));
	err = ssi_write_rec(f->save.sink, SSI_REC_THREAD, &rec, sizeof(rec));
	return err ?: ssi_save_mine(&f->save);
}

/* Until the move has been decided; does not return if the process has left. -EINTR: killed. */
static int follow(struct follower *f)
{
	struct ssi_threads *g = f->g;
	int err;

	for (;;) {
		err = wait_event_killable(f->wait, READ_ONCE(f->order) != NONE || READ_ONCE(g->over) || READ_ONCE(g->left));
		if (err || READ_ONCE(f->order) == NONE)
			break;
		f->err = carry_out(f, f->order);
		smp_store_release(&f->order, NONE);
		wake_up_all(&events);
	}
	ssi_save_release(&f->save, READ_ONCE(g->left));
	set_state(f, GONE);
	if (READ_ONCE(g->left)) {
		ssi_threads_put(g);
		do_exit(0);		/* what signals it has still go after it: __ssi_exit() */
	}
	ssi_pid_unkeep(task_pid_nr(current));
	return err ? -EINTR : 0;
}

/* Other work of the same round may be behind this one, and is lost if this does not return: it goes to the end of the queue. */
bool ssi_work_again(struct callback_head *work, bool *again)
{
	if (*again)
		return false;
	*again = true;
	return !task_work_add(current, work, TWA_RESUME);
}

static void follower_work(struct callback_head *work)
{
	struct follower *f = container_of(work, struct follower, work);
	struct ssi_threads *g = f->g;

	clear_notify_signal();
	if (current->flags & PF_EXITING) {
		set_state(f, GONE);
	} else {
		if (ssi_work_again(work, &f->queued_again))
			return;
		set_state(f, HERE);
		follow(f);
	}
	ssi_threads_put(g);
}

static struct follower *new_follower(struct ssi_threads *g)
{
	struct follower *f = kzalloc(sizeof(*f), GFP_KERNEL);

	if (!f)
		return NULL;
	f->g = g;
	init_waitqueue_head(&f->wait);
	init_task_work(&f->work, follower_work);
	return f;
}

/* @f is that of @t from now on. */
static void bind(struct follower *f, struct task_struct *t)
{
	f->task = get_task_struct(t);
	list_add_tail(&f->list, &f->g->all);
	f->g->known++;
	refcount_inc(&f->g->ref);
}

/* The one of current, which has asked for the move, and waits from now on. */
int ssi_threads_join(struct ssi_threads *g)
{
	struct follower *f = new_follower(g);

	if (!f)
		return -ENOMEM;
	f->save.self = true;
	bind(f, current);
	set_state(f, HERE);
	return 0;
}

static struct follower *joined(struct ssi_threads *g)
{
	return list_first_entry(&g->all, struct follower, list);	/* nothing is put before it */
}

int ssi_threads_await(struct ssi_threads *g, long timeout)
{
	long left = wait_event_killable_timeout(joined(g)->wait, READ_ONCE(g->begun) || READ_ONCE(g->over), timeout);

	return left > 0 ? 0 : left ? -EINTR : -ETIMEDOUT;
}

int ssi_threads_follow(struct ssi_threads *g)
{
	struct follower *f = joined(g);
	int err = follow(f);

	if (!err) {
		wait_event(f->wait, smp_load_acquire(&g->done));
		err = g->result;
	}
	ssi_threads_put(g);
	return err;
}

static void tell_all(struct ssi_threads *g, bool *what)
{
	struct follower *f;

	WRITE_ONCE(*what, true);
	list_for_each_entry(f, &g->all, list) {
		if (what != &g->begun && READ_ONCE(f->state) == COMING && task_work_cancel(f->task, &f->work)) {
			f->state = GONE;
			ssi_threads_put(g);
			continue;
		}
		wake_up_all(&f->wait);
	}
}

void ssi_threads_done(struct ssi_threads *g, int result)
{
	if (!g || g->left)
		return;
	g->result = result;
	smp_store_release(&g->done, true);
	tell_all(g, &g->over);
}

static bool known(struct ssi_threads *g, struct task_struct *t)
{
	struct follower *f;

	list_for_each_entry(f, &g->all, list)
		if (f->task == t)
			return true;
	return false;
}

/* What stands against a move of @t, which need not have come. Under tasklist_lock. */
static int check_kin(struct ssi_save *s, struct task_struct *t)
{
	if (t->ptrace || !list_empty(&t->ptraced))
		return ssi_why(s, "it traces or is traced (ptrace)");
	if (!list_empty(&t->children))
		return ssi_why(s, "it has child processes, running or not waited for");
	return 0;
}

/* Has those threads come that have not been told to. Sets @seen to the number of all. -EAGAIN: @spare was not enough. */
static int look(struct ssi_save *s, struct list_head *spare, int *seen)
{
	struct ssi_threads *g = s->threads;
	struct task_struct *t;
	int err = 0;

	read_lock(&tasklist_lock);
	*seen = get_nr_threads(current);
	for_each_thread(current, t) {
		struct follower *f = list_first_entry_or_null(spare, struct follower, list);

		err = check_kin(s, t);
		if (err)
			break;
		if (t == current || t->flags & PF_EXITING || known(g, t))
			continue;
		if (!f) {
			err = -EAGAIN;
			break;
		}
		list_del(&f->list);
		bind(f, t);
		if (task_work_add(t, &f->work, TWA_SIGNAL)) {	/* it ends */
			f->state = GONE;
			refcount_dec(&g->ref);
		}
	}
	read_unlock(&tasklist_lock);
	return err;
}

static int ask_all(struct ssi_save *s, int *seen)
{
	struct ssi_threads *g = s->threads;
	struct follower *f, *next;
	LIST_HEAD(spare);
	int err;

	do {
		int wanted = get_nr_threads(current) - 1 - (int)g->known;

		for (err = 0; !err && wanted-- > 0;) {
			f = new_follower(g);
			if (f)
				list_add(&f->list, &spare);
			else
				err = -ENOMEM;
		}
		err = err ?: look(s, &spare, seen);
	} while (err == -EAGAIN && !fatal_signal_pending(current));
	list_for_each_entry_safe(f, next, &spare, list)
		kfree(f);
	return err;
}

static bool being_stopped(void)
{
	return READ_ONCE(current->signal->group_stop_count) || READ_ONCE(current->signal->flags) & SIGNAL_STOP_STOPPED;
}

static bool all_here(struct ssi_threads *g)
{
	return atomic_read(&g->here) == get_nr_threads(current) - 1;
}

static int cannot_wait(struct ssi_save *s, unsigned long deadline)
{
	struct follower *f;

	if (being_stopped())
		return ssi_why(s, "it is stopped: continue it first");
	if (time_before(jiffies, deadline))
		return 0;
	list_for_each_entry(f, &s->threads->all, list)
		if (READ_ONCE(f->state) == COMING)
			ssi_why(s, "its thread %d is in a system call that cannot be interrupted", task_pid_nr(f->task));
	return -ETIMEDOUT;
}

/* All threads but current wait from here on. */
static int gather(struct ssi_save *s)
{
	unsigned long deadline = jiffies + GATHER_TIMEOUT;
	struct ssi_threads *g = s->threads;
	int err, seen;

	do {
		err = ask_all(s, &seen);
		if (!err && !all_here(g) &&
		    wait_event_killable_timeout(events, all_here(g) || get_nr_threads(current) != seen, LOOK_AGAIN) < 0)
			err = -EINTR;
		if (!err && !all_here(g))
			err = cannot_wait(s, deadline);
	} while (!err && !all_here(g));
	return err;
}

/* Has @f do @order. */
static int tell(struct ssi_save *s, struct follower *f, enum order order)
{
	f->save.sink = s->sink;
	f->save.live = s->live;
	f->save.dest = s->dest;
	f->save.flags = s->flags;
	f->save.why = s->why;
	smp_store_release(&f->order, order);
	wake_up_all(&f->wait);
	wait_event(events, smp_load_acquire(&f->order) == NONE || READ_ONCE(f->state) == GONE);
	return f->order == NONE ? f->err : -EINTR;
}

static int tell_each(struct ssi_save *s, enum order order)
{
	struct follower *f;
	int err = 0;

	if (s->threads)
		list_for_each_entry(f, &s->threads->all, list)
			if (READ_ONCE(f->state) == HERE && !err)
				err = tell(s, f, order);
	return err;
}

static int threads_check(struct ssi_save *s)
{
	int err;

	if (current->vfork_done)
		return ssi_why(s, "its parent waits for it in vfork");
	if (!s->threads && get_nr_threads(current) > 1) {
		s->threads = ssi_threads_new();
		if (!s->threads)
			return -ENOMEM;
	}
	if (!s->threads) {
		read_lock(&tasklist_lock);
		err = check_kin(s, current);
		read_unlock(&tasklist_lock);
		return err;
	}
	tell_all(s->threads, &s->threads->begun);
	err = gather(s);
	return err ?: tell_each(s, CHECK);
}

static int threads_save(struct ssi_save *s)
{
	return tell_each(s, SAVE);
}

static bool others_gone(void)
{
	struct task_struct *t;
	bool gone = true;

	rcu_read_lock();
	for_each_thread(current, t)
		gone &= t == current || READ_ONCE(t->exit_state);
	rcu_read_unlock();
	return gone;
}

void ssi_wait_others_gone(void)
{
	wait_event(events, others_gone());
}

static void threads_release(struct ssi_save *s, bool moved)
{
	struct ssi_threads *g = s->threads;

	if (!g)
		return;
	s->threads = NULL;
	if (moved) {
		tell_all(g, &g->left);
		ssi_wait_others_gone();
	} else {
		tell_all(g, &g->over);
	}
	ssi_threads_put(g);
}

/* do_exit() of a thread, when it is no thread of its process any more. */
void __ssi_thread_exited(void)
{
	if (wq_has_sleeper(&events))
		wake_up_all(&events);
}

static const struct ssi_rec_def threads_recs[] = {
	{ SSI_REC_THREAD, 1, sizeof(struct ssi_rec_thread), sizeof(struct ssi_rec_thread), 0, SSI_THREADS_MAX },
	{}
};

const struct ssi_resource ssi_res_threads = {
	.name = "threads",
	.recs = threads_recs,
	.check = threads_check,
	.save = threads_save,
	.release = threads_release,
	.prepare = ssi_threads_prepare,
	.abort = ssi_threads_abort,
};

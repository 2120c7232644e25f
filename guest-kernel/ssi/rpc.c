// SPDX-License-Identifier: GPL-2.0
/*
 * Calls between cells.
 *
 *	caller                                   callee
 *	------                                   ------
 *	REQUEST (tag: call's number) ----------> queued, a thread takes it, handler runs
 *	CANCEL (same tag) ---------------------> the thread's signal_pending() becomes true      [maybe]
 *	        <--------------------------- REPLY (same tag; bytes, or an errno in the type)
 *
 *	POST ---------------------------------> as REQUEST
 *	        <--------------------------- REPLY without a body, when the handler has returned
 *
 * Order. Requests of one peer run side by side, but a post is a step: what the peer sent after it does not begin before
 * its handler has returned. So posts are handled one after the other, and a request finds all earlier posts done.
 * NESTED requests, those that a handler makes, wait for nothing: otherwise posts whose handlers call back could wait for
 * each other.
 *
 * Bounds. A cell has at most CREDITS requests and posts at a peer that are not replied to; what comes on top waits at
 * the sender. So what a cell queues is bounded by cells * CREDITS, although the rx ring is always emptied at once:
 * replies never wait behind requests. A handler's own calls need no credit (a thread has one call at a time, so the
 * threads bound them), hence a handler may call back the cell that asks. A handler of such a call back must not make
 * calls itself.
 *
 * Version rule: all cells run one build, so that the wire format has no version.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/completion.h>
#include <linux/hashtable.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "clock.h"
#include "device.h"
#include "rpc.h"
#include "rpc_stats.h"

/* The type of a message: kind (bits 31-28), errno of a reply (27-16), operation (15-0). */
#define TYPE(kind, errno, op)	((u32)(kind) << 28 | (u32)(errno) << 16 | (op))
#define TYPE_KIND(type)		((type) >> 28)
#define TYPE_ERRNO(type)	((type) >> 16 & 0xfff)
#define TYPE_OP(type)		((type) & 0xffff)

enum { KIND_REQUEST = 1, KIND_POST, KIND_REPLY, KIND_CANCEL, KIND_NESTED };

#define CREDITS		128	/* requests and posts under way from one cell to another */
#define QUEUED_MAX	1024	/* of one peer; an honest one stays far below: CREDITS, and SSI_RPC_THREADS calls back */
#define THREADS_START	4
#define THREADS_IDLE	8	/* that many may idle for ever */
#define IDLE_JIFFIES	(30 * HZ)

/* A call or a post under way, on its caller's stack. */
struct call {
	struct hlist_node node;		/* calls; under calls_lock */
	u64 id;
	u32 cell;
	bool post;			/* done when the device has taken it */
	void *reply;
	size_t cap;			/* bytes of @reply */
	ssize_t result;
	struct completion done;
};

static DEFINE_SPINLOCK(calls_lock);		/* taken in interrupts, inside the device's tx_lock */
static DEFINE_HASHTABLE(calls, 8);
static u64 last_id;				/* under calls_lock */

/* What this cell has under way at each peer. */
static struct peer {
	atomic_t under_way;			/* without a reply yet */
	wait_queue_head_t credit;
} peers[SSI_CELLS_MAX];

/* A request of a peer, from its arrival to its reply. */
struct request {
	struct list_head link;			/* waiting, running, or the peer's held */
	u32 cell;
	u32 kind;
	u16 op;
	u64 id;
	size_t len;
	void *body;				/* kvmalloc */
	int error;				/* cannot be handled: what to answer */
	bool cancelled;
	struct task_struct *thread;		/* that runs it, or NULL */
};

static DEFINE_SPINLOCK(requests_lock);		/* all that follows, and struct request */
static LIST_HEAD(waiting);
static LIST_HEAD(running);
static struct arrivals {
	unsigned int queued;			/* waiting, running or held */
	bool post_open;				/* one of its posts is waiting or running */
	struct list_head held;			/* what it sent after that */
} arrivals[SSI_CELLS_MAX];			/* per peer */
static unsigned int threads, idle;
static DECLARE_WAIT_QUEUE_HEAD(work);		/* idle threads */

static ssi_handler_t handlers[SSI_OP_MAX];	/* written at init time only */
static void (*death_callbacks[8])(u32 cell);	/* likewise */

struct ssi_rpc_stats ssi_rpc_stats;

static bool is_rpc_thread(void);

/* ---- the cluster ---- */

u32 ssi_this_cell(void)
{
	return ssi_params.given ? ssi_params.cell : 0;
}

u32 ssi_cells(void)
{
	return ssi_params.given ? ssi_params.cells : 1;
}

bool ssi_cell_alive(u32 cell)
{
	return cell < ssi_cells() && (ssi_dev_alive() & BIT_ULL(cell));
}

void ssi_rpc_register(u16 op, ssi_handler_t handler)
{
	if (WARN_ON(op >= SSI_OP_MAX || handlers[op]))
		return;
	WRITE_ONCE(handlers[op], handler);
}

void ssi_on_cell_death(void (*fn)(u32 cell))
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(death_callbacks); i++) {
		if (!death_callbacks[i]) {
			death_callbacks[i] = fn;
			return;
		}
	}
	WARN(1, "ssi: no room for another death callback");
}

/* ---- caller ---- */

/* Whoever takes a call out of the table may, and must, say how it ended. */
static struct call *take_call(u64 id)
{
	struct call *call;

	lockdep_assert_held(&calls_lock);
	hash_for_each_possible(calls, call, node, id) {
		if (call->id == id) {
			hash_del(&call->node);
			return call;
		}
	}
	return NULL;
}

static bool take_back(struct call *call)
{
	unsigned long flags;
	bool mine;

	spin_lock_irqsave(&calls_lock, flags);
	mine = take_call(call->id) == call;
	spin_unlock_irqrestore(&calls_lock, flags);
	return mine;
}

/* @cell has replied to something, or refused it. */
static void give_credit(u32 cell)
{
	atomic_dec_if_positive(&peers[cell].under_way);
	wake_up(&peers[cell].credit);
}

/* Interrupt: the device has taken the message of call @arg, or refused it. */
static void tx_done(void *arg, int error)
{
	struct call *call = NULL, *each;
	u64 id = (u64)arg;
	unsigned long flags;

	spin_lock_irqsave(&calls_lock, flags);
	hash_for_each_possible(calls, each, node, id) {
		if (each->id == id && (error || each->post)) {
			call = each;
			hash_del(&call->node);
			break;
		}
	}
	spin_unlock_irqrestore(&calls_lock, flags);
	if (!call)
		return;
	if (error)
		give_credit(call->cell);	/* nothing will come */
	call->result = error;
	complete(&call->done);
}

static bool try_credit(u32 cell)
{
	return !ssi_cell_alive(cell) || atomic_add_unless(&peers[cell].under_way, 1, CREDITS);
}

/* Waits for a credit. 0, -ERESTARTSYS (only if @interruptible) or -ETIMEDOUT. */
static int get_credit(u32 cell, bool interruptible, unsigned long timeout)
{
	struct peer *peer = &peers[cell];

	if (is_rpc_thread()) {
		atomic_inc(&peer->under_way);
		return 0;
	}
	if (interruptible)
		return wait_event_interruptible(peer->credit, try_credit(cell));
	return wait_event_timeout(peer->credit, try_credit(cell), timeout) ? 0 : -ETIMEDOUT;
}

static int send(u32 cell, u32 type, u64 id, const void *body, size_t len, void (*done)(void *, int))
{
	struct ssi_tx tx = {
		.cell = cell,
		.type = type,
		.tag = id,
		.cookie = ktime_get_ns(),
		.body = body,
		.len = len,
		.done = done,
		.arg = (void *)id,
	};

	return ssi_dev_send(&tx);
}

static void cancel(struct call *call)
{
	atomic64_inc(&ssi_rpc_stats.cancelled_count);
	/* A failure is the cell's death, or no memory: then the handler just runs to its end. */
	send(call->cell, TYPE(KIND_CANCEL, 0, 0), call->id, NULL, 0, NULL);
}

/* Sends a request or post. Afterwards the call is in the table, or has ended; or -errno, and it never was. */
static int start_call(struct call *call, u16 op, const void *body, size_t len, bool interruptible,
		      unsigned long timeout)
{
	unsigned long flags;
	int error;
	u32 kind;

	if (!ssi_present())
		return -ENODEV;
	if (len > SSI_RPC_MAX)
		return -EMSGSIZE;
	if (!ssi_cell_alive(call->cell))
		return -EHOSTUNREACH;
	error = get_credit(call->cell, interruptible, timeout);
	if (error)
		return error;

	init_completion(&call->done);
	spin_lock_irqsave(&calls_lock, flags);
	/* ssi_rpc_cells_died() clears the table after the bit: either it sees this call or this sees the bit. */
	if (!ssi_cell_alive(call->cell)) {
		spin_unlock_irqrestore(&calls_lock, flags);
		give_credit(call->cell);
		return -EHOSTUNREACH;
	}
	call->id = ++last_id;
	hash_add(calls, &call->node, call->id);
	spin_unlock_irqrestore(&calls_lock, flags);

	kind = call->post ? KIND_POST : is_rpc_thread() ? KIND_NESTED : KIND_REQUEST;
	error = send(call->cell, TYPE(kind, 0, op), call->id, body, len, tx_done);
	if (!error)
		return 0;
	if (take_back(call)) {
		give_credit(call->cell);
		return error;
	}
	return 0;	/* the cell died meanwhile: that is the answer, and on its way */
}

/* To this cell itself: in the caller's thread, with its rights. */
static ssize_t call_here(u16 op, const void *body, size_t len, void *reply, size_t cap)
{
	struct ssi_request req = { .cell = ssi_this_cell(), .op = op, .body = body, .len = len };
	ssi_handler_t handler = op < SSI_OP_MAX ? READ_ONCE(handlers[op]) : NULL;
	ssize_t n;

	if (!handler)
		return -EOPNOTSUPP;
	req.reply = kvmalloc(SSI_RPC_MAX, GFP_KERNEL);
	if (!req.reply)
		return -ENOMEM;
	n = handler(&req);
	if (n > 0 && n > cap)
		n = -EMSGSIZE;
	if (n > 0)
		memcpy(reply, req.reply, n);
	kvfree(req.reply);
	return n;
}

ssize_t ssi_call(u32 cell, u16 op, const void *body, size_t len, void *reply, size_t cap, unsigned long timeout)
{
	struct call call = { .cell = cell, .reply = reply, .cap = cap };
	int error;

	might_sleep();
	/* One that is to end after a time goes by the device like all others: its handler runs elsewhere, and can be cancelled. */
	if (cell == ssi_this_cell() && timeout == MAX_SCHEDULE_TIMEOUT)
		return call_here(op, body, len, reply, cap);
	error = start_call(&call, op, body, len, false, timeout);
	if (error)
		return error;
	atomic64_inc(&ssi_rpc_stats.calls_count);
	if (!wait_for_completion_timeout(&call.done, timeout)) {
		if (take_back(&call)) {
			atomic64_inc(&ssi_rpc_stats.timed_out_count);
			cancel(&call);
			return -ETIMEDOUT;
		}
		wait_for_completion(&call.done);	/* the answer is being copied */
	}
	/* A handler that was disturbed: nothing that a caller without signals can restart. */
	return call.result <= -ERESTARTSYS && call.result >= -ERESTART_RESTARTBLOCK ? -EINTR : call.result;
}

ssize_t ssi_call_interruptible(u32 cell, u16 op, const void *body, size_t len, void *reply, size_t cap)
{
	struct call call = { .cell = cell, .reply = reply, .cap = cap };
	int error;

	might_sleep();
	error = start_call(&call, op, body, len, true, MAX_SCHEDULE_TIMEOUT);
	if (error)
		return error;
	atomic64_inc(&ssi_rpc_stats.calls_count);
	if (!wait_for_completion_interruptible(&call.done))
		return call.result;

	cancel(&call);
	if (!wait_for_completion_killable(&call.done))
		return call.result;
	if (take_back(&call))
		return -EINTR;
	wait_for_completion(&call.done);
	return call.result;
}

int ssi_post(u32 cell, u16 op, const void *body, size_t len)
{
	struct call call = { .cell = cell, .post = true };
	int error;

	might_sleep();
	if (cell == ssi_this_cell()) {
		call_here(op, body, len, NULL, 0);
		return 0;
	}
	error = start_call(&call, op, body, len, false, MAX_SCHEDULE_TIMEOUT);
	if (error)
		return error;
	atomic64_inc(&ssi_rpc_stats.posts_count);
	wait_for_completion(&call.done);
	return call.result;
}

int ssi_fetch(u32 cell, const u64 *remote_phys, struct page **pages, unsigned int count)
{
	if (!ssi_present())
		return -ENODEV;
	if (!ssi_cell_alive(cell))
		return -EHOSTUNREACH;
	return ssi_dev_page_request(SSI_PAGE_FETCH, cell, remote_phys, pages, count);
}

/* ---- callee ---- */

static void free_request(struct request *req)
{
	kvfree(req->body);
	kfree(req);
}

static void reply_to(struct request *req, const void *body, ssize_t result)
{
	u32 error = result < 0 ? min_t(u32, -result, 0xfff) : 0;
	size_t len = result < 0 || req->kind == KIND_POST ? 0 : result;
	int failed;

	failed = send(req->cell, TYPE(KIND_REPLY, error, req->op), req->id, body, len, NULL);
	if (failed == -ENOMEM) {	/* the caller waits: something shorter must get through */
		pr_warn_ratelimited("no memory for a reply of %zu bytes to cell %u\n", len, req->cell);
		while (failed == -ENOMEM && ssi_cell_alive(req->cell)) {
			schedule_timeout_uninterruptible(HZ / 10);
			failed = send(req->cell, TYPE(KIND_REPLY, ENOMEM, req->op), req->id, NULL, 0, NULL);
		}
	}
}

/* A post of this peer is over: lets in what came after it, up to and including the next post. */
static void close_post(struct arrivals *from)
{
	struct request *req, *next;

	lockdep_assert_held(&requests_lock);
	from->post_open = false;
	list_for_each_entry_safe(req, next, &from->held, link) {
		list_move_tail(&req->link, &waiting);
		wake_up(&work);
		if (req->kind == KIND_POST) {
			from->post_open = true;
			break;
		}
	}
}

static void finish(struct request *req)
{
	struct arrivals *from = &arrivals[req->cell];

	spin_lock(&requests_lock);
	list_del(&req->link);
	from->queued--;
	req->thread = NULL;		/* from here on no cancel reaches this thread */
	if (req->kind == KIND_POST)
		close_post(from);
	spin_unlock(&requests_lock);
}

static void handle(struct request *req, void *reply)
{
	struct ssi_request arg = {
		.cell = req->cell, .op = req->op, .body = req->body, .len = req->len, .reply = reply,
	};
	ssi_handler_t handler = req->op < SSI_OP_MAX ? READ_ONCE(handlers[req->op]) : NULL;
	ssize_t result;

	spin_lock(&requests_lock);
	req->thread = current;
	if (req->cancelled)
		send_sig(SIGINT, current, 1);
	spin_unlock(&requests_lock);

	if (req->error)
		result = req->error;
	else if (!handler)
		result = -EOPNOTSUPP;
	else
		result = handler(&arg);
	if (WARN_ONCE(result > SSI_RPC_MAX, "ssi: handler of %#x says %zd bytes", req->op, result))
		result = -EMSGSIZE;

	finish(req);
	flush_signals(current);

	atomic64_inc(&ssi_rpc_stats.handled_count);
	reply_to(req, reply, result);
	free_request(req);
}

static int rpc_thread(void *reply);

static bool is_rpc_thread(void)
{
	return (current->flags & PF_KTHREAD) && kthread_func(current) == rpc_thread;
}

/* Adds a thread, already counted in @threads and @idle. */
static int spawn(void)
{
	void *reply = kvmalloc(SSI_RPC_MAX, GFP_KERNEL);
	struct task_struct *thread = ERR_PTR(-ENOMEM);

	if (reply)
		thread = kthread_run(rpc_thread, reply, "ssi-rpc");
	if (!IS_ERR(thread))
		return 0;
	kvfree(reply);
	spin_lock(&requests_lock);
	threads--;
	idle--;
	spin_unlock(&requests_lock);
	return PTR_ERR(thread);
}

/*
 * Takes the next request. If that leaves nobody idle, the taker first makes a successor, so that a queue never stands
 * still while all threads are blocked. NULL: this thread, no longer counted, should go.
 */
static struct request *next_request(void)
{
	struct request *req;
	bool grow;

	for (;;) {
		long left = wait_event_idle_exclusive_timeout(work, !list_empty(&waiting), IDLE_JIFFIES);

		spin_lock(&requests_lock);
		req = list_first_entry_or_null(&waiting, struct request, link);
		if (req)
			break;
		if (!left && idle > THREADS_IDLE) {
			idle--;
			threads--;
			spin_unlock(&requests_lock);
			return NULL;
		}
		spin_unlock(&requests_lock);
	}
	list_move_tail(&req->link, &running);
	idle--;
	grow = !idle && threads < SSI_RPC_THREADS;
	if (grow) {
		threads++;
		idle++;
	}
	spin_unlock(&requests_lock);
	if (grow && spawn())
		pr_warn_ratelimited("cannot start another thread for requests\n");
	return req;
}

static int rpc_thread(void *reply)
{
	struct request *req;

	allow_kernel_signal(SIGINT);
	while ((req = next_request())) {
		handle(req, reply);
		spin_lock(&requests_lock);
		idle++;
		spin_unlock(&requests_lock);
	}
	kvfree(reply);
	return 0;
}

int ssi_rpc_start(void)
{
	unsigned int i;
	int error;

	for (i = 0; i < SSI_CELLS_MAX; i++) {
		init_waitqueue_head(&peers[i].credit);
		INIT_LIST_HEAD(&arrivals[i].held);
	}
	for (i = 0; i < THREADS_START; i++) {
		spin_lock(&requests_lock);
		threads++;
		idle++;
		spin_unlock(&requests_lock);
		error = spawn();
		if (error && !i)
			return error;
	}
	return 0;
}

static void receive_request(u32 cell, const struct ssi_msg *msg, const void *payload, size_t len)
{
	u32 type = le32_to_cpu(msg->type);
	struct request *req = kzalloc(sizeof(*req), GFP_KERNEL | __GFP_NOFAIL);
	struct arrivals *from = &arrivals[cell];
	bool full;

	req->cell = cell;
	req->kind = TYPE_KIND(type);
	req->op = TYPE_OP(type);
	req->id = le64_to_cpu(msg->tag);
	req->len = len;
	if (len > SSI_RPC_MAX) {
		req->error = -EMSGSIZE;
	} else {
		req->body = kvmalloc(len ?: 1, GFP_KERNEL);
		if (req->body)
			memcpy(req->body, payload, len);
		else
			req->error = -ENOMEM;
	}

	spin_lock(&requests_lock);
	full = from->queued >= QUEUED_MAX;
	if (!full) {
		from->queued++;
		if (from->post_open && req->kind != KIND_NESTED) {
			list_add_tail(&req->link, &from->held);
		} else {
			list_add_tail(&req->link, &waiting);
			from->post_open |= req->kind == KIND_POST;
		}
	}
	spin_unlock(&requests_lock);
	if (full) {
		pr_warn_ratelimited("cell %u sent more than %u requests at once: dropped one\n", cell, QUEUED_MAX);
		free_request(req);
		return;
	}
	wake_up(&work);
}

static void receive_reply(u32 cell, const struct ssi_msg *msg, const void *payload, size_t len)
{
	u32 error = TYPE_ERRNO(le32_to_cpu(msg->type));
	struct call *call;
	unsigned long flags;

	spin_lock_irqsave(&calls_lock, flags);
	call = take_call(le64_to_cpu(msg->tag));
	if (call && call->cell != cell) {	/* not its to answer */
		hash_add(calls, &call->node, call->id);
		call = NULL;
	}
	if (call && call->post) {		/* overtook the news that it was taken */
		call->result = 0;
		error = 0;
	}
	spin_unlock_irqrestore(&calls_lock, flags);

	give_credit(cell);
	if (!call)
		return;		/* timed out, killed, or a post */
	if (error) {
		call->result = -(ssize_t)error;
	} else if (len > call->cap) {
		call->result = call->post ? 0 : -EMSGSIZE;
	} else {
		memcpy(call->reply, payload, len);
		call->result = len;
	}
	complete(&call->done);
}

static void receive_cancel(u32 cell, u64 id)
{
	struct list_head *lists[] = { &waiting, &running, &arrivals[cell].held };
	struct request *req;
	unsigned int i;

	spin_lock(&requests_lock);
	for (i = 0; i < ARRAY_SIZE(lists); i++) {
		list_for_each_entry(req, lists[i], link) {
			if (req->cell != cell || req->id != id)
				continue;
			req->cancelled = true;
			if (req->thread)
				send_sig(SIGINT, req->thread, 1);
			goto out;
		}
	}
out:
	spin_unlock(&requests_lock);
}

void ssi_rpc_receive(u32 cell, const struct ssi_msg *msg, const void *payload, size_t len)
{
	u32 kind = TYPE_KIND(le32_to_cpu(msg->type)), op = TYPE_OP(le32_to_cpu(msg->type));
	/* A process may travel in it, that has read the sender's clock. */
	bool moves = op >= SSI_OP_MIGRATE && op < SSI_OP_DEPUTY;

	ssi_clock_heard(le64_to_cpu(msg->cookie), moves ? 0 : SSI_CLOCK_SLACK_NS);
	switch (kind) {
	case KIND_REQUEST:
	case KIND_NESTED:
	case KIND_POST:
		receive_request(cell, msg, payload, len);
		break;
	case KIND_REPLY:
		receive_reply(cell, msg, payload, len);
		break;
	case KIND_CANCEL:
		receive_cancel(cell, le64_to_cpu(msg->tag));
		break;
	default:
		pr_warn_ratelimited("cell %u sent a message of kind %u: dropped\n", cell, kind);
	}
}

/* ---- death ---- */

static void end_calls(u32 cell)
{
	struct hlist_node *next;
	struct call *call;
	unsigned long flags;
	int bucket;

	spin_lock_irqsave(&calls_lock, flags);
	hash_for_each_safe(calls, bucket, next, call, node) {
		if (call->cell != cell)
			continue;
		hash_del(&call->node);
		call->result = -EHOSTUNREACH;
		complete(&call->done);
	}
	spin_unlock_irqrestore(&calls_lock, flags);
	atomic_set(&peers[cell].under_way, 0);
	wake_up_all(&peers[cell].credit);
}

static void drop_requests(u32 cell)
{
	struct arrivals *from = &arrivals[cell];
	struct request *req, *next;
	LIST_HEAD(dropped);

	spin_lock(&requests_lock);
	list_splice_init(&from->held, &dropped);
	list_for_each_entry_safe(req, next, &waiting, link) {
		if (req->cell != cell)
			continue;
		list_move(&req->link, &dropped);
		if (req->kind == KIND_POST)
			from->post_open = false;
	}
	list_for_each_entry(req, &dropped, link)
		from->queued--;
	list_for_each_entry(req, &running, link) {
		if (req->cell == cell) {
			req->cancelled = true;
			if (req->thread)
				send_sig(SIGINT, req->thread, 1);
		}
	}
	spin_unlock(&requests_lock);
	list_for_each_entry_safe(req, next, &dropped, link)
		free_request(req);
}

void ssi_rpc_cells_died(u64 dead)
{
	unsigned int i;
	u32 cell;

	for (cell = 0; cell < ssi_cells(); cell++) {
		if (!(dead & BIT_ULL(cell)))
			continue;
		pr_warn("cell %u died\n", cell);
		end_calls(cell);
		drop_requests(cell);
		for (i = 0; i < ARRAY_SIZE(death_callbacks) && death_callbacks[i]; i++)
			death_callbacks[i](cell);
	}
}

/* ---- ping and figures ---- */

/* Answers with what it was sent. */
static ssize_t ping(struct ssi_request *req)
{
	memcpy(req->reply, req->body, req->len);
	return req->len;
}

void ssi_rpc_threads(unsigned int *total, unsigned int *idle_now, unsigned int *queued_now)
{
	u32 cell;

	spin_lock(&requests_lock);
	*total = threads;
	*idle_now = idle;
	for (*queued_now = 0, cell = 0; cell < SSI_CELLS_MAX; cell++)
		*queued_now += arrivals[cell].queued;
	spin_unlock(&requests_lock);
}

static int __init ssi_rpc_init(void)
{
	ssi_rpc_register(SSI_OP_PING, ping);
	return 0;
}
subsys_initcall(ssi_rpc_init);

// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/ssi/selftest: the device, the calls and the shared memory of the cells that run, tried on each other.
 *
 *	run [iterations [handoffs]]	every cell, at the same time, in pages of every cell's slice: atomic additions to
 *					one counter, plain additions to a counter of its own beside the others' (false
 *					sharing), and for each pair plain additions in turns. Then a FETCH of a page.
 *	rpc [rounds]			calls of all sizes by many threads at once, calls back, posts in order, a call that
 *					times out
 *	ping cell [count [bytes]]	round trips, with their time
 *	clock cell [count]		whether CLOCK_MONOTONIC there is between its readings here before and after
 *
 * Writing runs the test and fails with EIO if it failed; reading shows what the last one found, PASS or FAIL first.
 *
 * A run, coordinated by the cell where it was asked for:
 *	PREPARE (all): clear pages, tell where they are -> START (all): work in a thread -> FINISH (all): wait for it
 */
#define pr_fmt(fmt) "ssi: selftest: " fmt

#include <linux/completion.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_buf.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "clock.h"
#include "device.h"
#include "proc.h"
#include "rpc.h"
#include "slices.h"

enum {
	OP_PREPARE = SSI_OP_SELFTEST,
	OP_START,
	OP_FINISH,
	OP_CALL_BACK,
	OP_SLEEP,
	OP_SLEEPERS,
	OP_CLOCK,
	OP_STEP,
	OP_STEPS = SSI_OP_SELFTEST + 9,	/* 8 is rfile_test.c's */
};

#define CALL_TIMEOUT	(30 * HZ)
#define WORK_TIMEOUT	(900 * HZ)
#define TURN_TIMEOUT	(120 * HZ)
#define ITERATIONS_MAX	10000000U
#define CALLERS		16

/* One page of each home, for all cells. */
struct counters {
	atomic64_t sum;			/* all cells add */
	u64 pad[7];
	u64 own[SSI_CELLS_MAX];		/* cell n adds to own[n] only */
};
static_assert(sizeof(struct counters) <= PAGE_SIZE);

/* Another page of each home: turns between it and each partner. */
struct turns {
	struct {
		u64 turn;		/* 0: the home's, 1: the partner's */
		u64 value;
	} with[SSI_CELLS_MAX];
};
static_assert(sizeof(struct turns) <= PAGE_SIZE);

enum { PAGE_COUNTERS, PAGE_TURNS, PAGE_FETCHED, PAGES };

struct prepare_reply {
	__le64 phys[PAGES];
};

struct start_request {
	__le64 mask;			/* the cells that take part */
	__le32 iterations;
	__le32 handoffs;
	__le64 phys[SSI_CELLS_MAX][PAGES];
};

struct finish_reply {
	__le32 error;			/* 0 or errno of the work */
	__le32 pad;
	__le64 sum;			/* counters.sum, as its home sees it */
};

/* This cell's part in a run. */
static struct {
	struct mutex lock;		/* all but what the worker uses while it runs */
	void *pages[PAGES];		/* in the own slice; made by the first PREPARE */
	bool working;
	struct completion finished;
	int error;			/* of the worker; valid once finished */
	struct start_request job;	/* the worker's own while working */
} part = { .lock = __MUTEX_INITIALIZER(part.lock) };

static DEFINE_MUTEX(test_lock);		/* one test at a time is coordinated here; guards @report */
static char report[4096];

/* ---- the work ---- */

static void *remote_page(u64 phys)
{
	struct page *page = ssi_remote_page(phys);

	return IS_ERR(page) ? ERR_CAST(page) : page_address(page);
}

static int await_turn(u64 *turn, u64 mine, u32 other)
{
	unsigned long deadline = jiffies + TURN_TIMEOUT;

	while (smp_load_acquire(turn) != mine) {
		if (!ssi_cell_alive(other))
			return -EHOSTUNREACH;
		if (time_after(jiffies, deadline))
			return -ETIMEDOUT;
		cpu_relax();
		cond_resched();
	}
	return 0;
}

/* Both cells of a pair add one in turns: no addition is atomic, and each is seen by the next. */
static int take_turns(struct turns *turns, u32 home, u32 partner, u32 handoffs)
{
	u64 mine = ssi_this_cell() == home ? 0 : 1;
	u32 other = mine ? home : partner, i;
	u64 *turn = &turns->with[partner].turn;
	int error;

	for (i = 0; i < handoffs; i++) {
		error = await_turn(turn, mine, other);
		if (error)
			return error;
		turns->with[partner].value++;
		smp_store_release(turn, !mine);
	}
	return 0;
}

static int work(const struct start_request *job)
{
	u64 mask = le64_to_cpu(job->mask);
	u32 this = ssi_this_cell(), home, partner, i;
	void *pages[SSI_CELLS_MAX][PAGES];
	int error;

	for (home = 0; home < ssi_cells(); home++) {
		for (i = 0; (mask & BIT_ULL(home)) && i < PAGES; i++) {
			pages[home][i] = remote_page(le64_to_cpu(job->phys[home][i]));
			if (IS_ERR(pages[home][i]))
				return PTR_ERR(pages[home][i]);
		}
	}

	for (i = 0; i < le32_to_cpu(job->iterations); i++) {
		for (home = 0; home < ssi_cells(); home++) {
			struct counters *counters = pages[home][PAGE_COUNTERS];

			if (!(mask & BIT_ULL(home)))
				continue;
			atomic64_inc(&counters->sum);
			WRITE_ONCE(counters->own[this], READ_ONCE(counters->own[this]) + 1);
		}
		cond_resched();
	}

	/* The same order of pairs in every cell: none waits for one that waits for it. */
	for (home = 0; home < ssi_cells(); home++) {
		for (partner = 0; partner < ssi_cells(); partner++) {
			if (home == partner || (home != this && partner != this) ||
			    !(mask & BIT_ULL(home)) || !(mask & BIT_ULL(partner)))
				continue;
			error = take_turns(pages[home][PAGE_TURNS], home, partner, le32_to_cpu(job->handoffs));
			if (error)
				return error;
		}
	}
	return 0;
}

static int worker(void *arg)
{
	part.error = work(&part.job);
	complete_all(&part.finished);
	return 0;
}

/* ---- handlers ---- */

/* A page of the own slice. Low RAM is the kernel's last resort, so that one from the slice comes soon. */
static void *slice_page(void)
{
	struct page *refused[64], *page;
	unsigned int n = 0;
	void *found = NULL;

	while (n < ARRAY_SIZE(refused)) {
		page = alloc_page(GFP_KERNEL);
		if (!page)
			break;
		if (ssi_slice_own(page_to_phys(page))) {
			found = page_address(page);
			break;
		}
		refused[n++] = page;
	}
	while (n)
		__free_page(refused[--n]);
	return found;
}

static void fill_fetched(u64 *page, u32 cell)
{
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i++)
		page[i] = (u64)cell << 32 | (i * 2654435761U);
}

static ssize_t prepare(struct ssi_request *req)
{
	struct prepare_reply *reply = req->reply;
	ssize_t error = 0;
	unsigned int i;

	mutex_lock(&part.lock);
	if (part.working) {
		error = -EBUSY;
		goto out;
	}
	for (i = 0; i < PAGES; i++) {
		if (!part.pages[i])
			part.pages[i] = slice_page();
		if (!part.pages[i]) {
			error = -ENOMEM;
			goto out;
		}
		/* PAGE_FETCHED never gets under coherence: nobody else may ever write it. */
		if (i == PAGE_FETCHED)
			fill_fetched(part.pages[i], ssi_this_cell());
		else
			memset(part.pages[i], 0, PAGE_SIZE);
		reply->phys[i] = cpu_to_le64(virt_to_phys(part.pages[i]));
	}
out:
	mutex_unlock(&part.lock);
	return error ?: sizeof(*reply);
}

static ssize_t start(struct ssi_request *req)
{
	const struct start_request *job = req->body;
	struct task_struct *thread;
	ssize_t error = 0;

	if (req->len != sizeof(*job) || le32_to_cpu(job->iterations) > ITERATIONS_MAX ||
	    le32_to_cpu(job->handoffs) > ITERATIONS_MAX)
		return -EINVAL;
	mutex_lock(&part.lock);
	if (part.working || !part.pages[PAGE_COUNTERS]) {
		error = -EBUSY;
		goto out;
	}
	part.job = *job;
	init_completion(&part.finished);
	thread = kthread_run(worker, NULL, "ssi-selftest");
	if (IS_ERR(thread))
		error = PTR_ERR(thread);
	else
		part.working = true;
out:
	mutex_unlock(&part.lock);
	return error;
}

static ssize_t finish(struct ssi_request *req)
{
	struct finish_reply *reply = req->reply;
	struct counters *counters;

	mutex_lock(&part.lock);
	if (!part.working) {
		mutex_unlock(&part.lock);
		return -EINVAL;
	}
	wait_for_completion(&part.finished);	/* bounded: TURN_TIMEOUT */
	part.working = false;
	counters = part.pages[PAGE_COUNTERS];
	*reply = (struct finish_reply) {
		.error = cpu_to_le32(-part.error),
		.sum = cpu_to_le64(atomic64_read(&counters->sum)),
	};
	mutex_unlock(&part.lock);
	return sizeof(*reply);
}

/* Calls the caller back with what it sent. */
static ssize_t call_back(struct ssi_request *req)
{
	return ssi_call(req->cell, SSI_OP_PING, req->body, req->len, req->reply, SSI_RPC_MAX, CALL_TIMEOUT);
}

static atomic_t sleepers = ATOMIC_INIT(0);

/* Sleeps until it is cancelled. */
static ssize_t sleep(struct ssi_request *req)
{
	atomic_inc(&sleepers);
	while (!signal_pending(current))
		schedule_timeout_interruptible(MAX_SCHEDULE_TIMEOUT);
	atomic_dec(&sleepers);
	return -ERESTARTSYS;
}

static ssize_t count_sleepers(struct ssi_request *req)
{
	__le32 count = cpu_to_le32(atomic_read(&sleepers));

	memcpy(req->reply, &count, sizeof(count));
	return sizeof(count);
}

/* The last step of each caller of each cell; U32_MAX once one came out of turn. Posts are handled one by one: no lock. */
static u32 steps[SSI_CELLS_MAX][CALLERS];

struct step {
	__le32 caller;
	__le32 number;			/* from 0, which begins a new series */
};

static ssize_t step(struct ssi_request *req)
{
	const struct step *step = req->body;
	u32 caller, number, *last;

	if (req->len != sizeof(*step) || le32_to_cpu(step->caller) >= CALLERS)
		return -EINVAL;
	caller = le32_to_cpu(step->caller);
	number = le32_to_cpu(step->number);
	last = &steps[req->cell][caller];
	if (number % 8 == 1)		/* others would overtake, if they might */
		schedule_timeout_uninterruptible(1);
	if (!number || *last == number - 1)
		*last = number;
	else
		*last = U32_MAX;
	return 0;
}

static ssize_t tell_steps(struct ssi_request *req)
{
	const struct step *step = req->body;
	__le32 *last = req->reply;

	if (req->len != sizeof(*step) || le32_to_cpu(step->caller) >= CALLERS)
		return -EINVAL;
	*last = cpu_to_le32(steps[req->cell][le32_to_cpu(step->caller)]);
	return sizeof(*last);
}

static ssize_t tell_clock(struct ssi_request *req)
{
	__le64 now = cpu_to_le64(ktime_get_ns());

	memcpy(req->reply, &now, sizeof(now));
	return sizeof(now);
}

/* ---- run ---- */

static bool check(struct seq_buf *out, const char *what, u32 cell, u64 found, u64 expected)
{
	if (found == expected)
		return true;
	seq_buf_printf(out, "cell %u: %s is %llu, not %llu\n", cell, what, found, expected);
	return false;
}

static bool check_fetch(struct seq_buf *out, u32 cell, u64 phys)
{
	struct page *page = alloc_page(GFP_KERNEL);
	u64 *expected = kmalloc(PAGE_SIZE, GFP_KERNEL);
	int error = -ENOMEM;
	bool same = false;

	if (page && expected) {
		fill_fetched(expected, cell);
		error = ssi_fetch(cell, &phys, &page, 1);
		same = !error && !memcmp(page_address(page), expected, PAGE_SIZE);
		if (!same)
			seq_buf_printf(out, "cell %u: FETCH of %#llx: error %d, or other contents\n", cell, phys, error);
	}
	if (page)
		__free_page(page);
	kfree(expected);
	return same;
}

/* Sums up what all cells have left in the pages of cell @home, seen from here. */
static bool check_home(struct seq_buf *out, const struct start_request *job, u32 home)
{
	u64 mask = le64_to_cpu(job->mask), iterations = le32_to_cpu(job->iterations);
	struct counters *counters = remote_page(le64_to_cpu(job->phys[home][PAGE_COUNTERS]));
	struct turns *turns = remote_page(le64_to_cpu(job->phys[home][PAGE_TURNS]));
	bool good = true;
	u32 cell;

	if (IS_ERR(counters) || IS_ERR(turns)) {
		seq_buf_printf(out, "cell %u: no page structs\n", home);
		return false;
	}
	good &= check(out, "the common sum", home, atomic64_read(&counters->sum), hweight64(mask) * iterations);
	for (cell = 0; cell < ssi_cells(); cell++) {
		if (!(mask & BIT_ULL(cell)))
			continue;
		good &= check(out, "a cell's own sum", home, READ_ONCE(counters->own[cell]), iterations);
		if (cell != home)
			good &= check(out, "the sum in turns", home, READ_ONCE(turns->with[cell].value),
				      2ULL * le32_to_cpu(job->handoffs));
	}
	return good;
}

static bool run_phases(struct seq_buf *out, struct start_request *job)
{
	u64 mask = le64_to_cpu(job->mask), started = 0;
	struct prepare_reply prepared;
	struct finish_reply finished;
	bool good = true;
	ssize_t n;
	u32 cell, i;

	for (cell = 0; cell < ssi_cells(); cell++) {
		if (!(mask & BIT_ULL(cell)))
			continue;
		n = ssi_call(cell, OP_PREPARE, NULL, 0, &prepared, sizeof(prepared), CALL_TIMEOUT);
		if (n != sizeof(prepared)) {
			seq_buf_printf(out, "cell %u: cannot prepare: %zd\n", cell, n);
			return false;
		}
		for (i = 0; i < PAGES; i++) {
			job->phys[cell][i] = prepared.phys[i];
			if (ssi_slice_home(le64_to_cpu(prepared.phys[i])) != (int)cell) {
				seq_buf_printf(out, "cell %u: its page is in another slice\n", cell);
				return false;
			}
		}
	}
	for (cell = 0; cell < ssi_cells() && good; cell++) {
		if (!(mask & BIT_ULL(cell)))
			continue;
		n = ssi_call(cell, OP_START, job, sizeof(*job), NULL, 0, CALL_TIMEOUT);
		if (n) {
			seq_buf_printf(out, "cell %u: cannot start: %zd\n", cell, n);
			good = false;
		} else {
			started |= BIT_ULL(cell);
		}
	}
	for (cell = 0; cell < ssi_cells(); cell++) {
		if (!(started & BIT_ULL(cell)))
			continue;
		n = ssi_call(cell, OP_FINISH, NULL, 0, &finished, sizeof(finished), WORK_TIMEOUT);
		if (n != sizeof(finished) || finished.error) {
			seq_buf_printf(out, "cell %u: did not finish: %zd, error %u\n", cell, n,
				       n == sizeof(finished) ? le32_to_cpu(finished.error) : 0);
			good = false;
		}
	}
	return good;
}

static bool test_run(struct seq_buf *out, unsigned int iterations, unsigned int handoffs)
{
	struct start_request *job = kzalloc(sizeof(*job), GFP_KERNEL);
	u64 mask = ssi_dev_alive();
	ktime_t begin = ktime_get();
	bool good;
	u32 cell;

	if (!job) {
		seq_buf_printf(out, "no memory\n");
		return false;
	}
	job->mask = cpu_to_le64(mask);
	job->iterations = cpu_to_le32(iterations);
	job->handoffs = cpu_to_le32(handoffs);
	good = run_phases(out, job);
	for (cell = 0; good && cell < ssi_cells(); cell++) {
		if (!(mask & BIT_ULL(cell)))
			continue;
		good &= check_home(out, job, cell);
		good &= check_fetch(out, cell, le64_to_cpu(job->phys[cell][PAGE_FETCHED]));
	}
	seq_buf_printf(out, "cells %u\niterations %u\nhandoffs %u\ncommon_sum_expected %llu\nelapsed_us %lld\n",
		       (unsigned int)hweight64(mask), iterations, handoffs, hweight64(mask) * (u64)iterations,
		       ktime_us_delta(ktime_get(), begin));
	kfree(job);
	return good;
}

/* ---- rpc ---- */

struct caller {
	unsigned int number, rounds;
	u64 failed_count;
	struct completion done;
};

/* A post, and a call that must find it, and all before it, done. */
static bool take_step(u32 cell, u32 caller, u32 number)
{
	struct step step = { .caller = cpu_to_le32(caller), .number = cpu_to_le32(number) };
	__le32 last;

	return !ssi_post(cell, OP_STEP, &step, sizeof(step)) &&
	       (number % 4 || (ssi_call(cell, OP_STEPS, &step, sizeof(step), &last, sizeof(last), CALL_TIMEOUT) ==
			       sizeof(last) && le32_to_cpu(last) == number));
}

static int caller_thread(void *arg)
{
	struct caller *caller = arg;
	u8 *body = kvmalloc(SSI_RPC_MAX, GFP_KERNEL), *reply = kvmalloc(SSI_RPC_MAX, GFP_KERNEL);
	unsigned int i, j;

	for (i = 0; body && reply && i < caller->rounds; i++) {
		u32 cell = (caller->number + i) % ssi_cells();
		size_t len = i % 8 ? (i * 61 + caller->number) % 512 : (i * 7919U) % (SSI_RPC_MAX + 1);
		u16 op = i % 3 ? SSI_OP_PING : OP_CALL_BACK;
		ssize_t n;

		for (j = 0; j < len; j++)
			body[j] = i + j * 7 + caller->number;
		n = ssi_call(cell, op, body, len, reply, SSI_RPC_MAX, CALL_TIMEOUT);
		if (n != len || memcmp(body, reply, len))
			caller->failed_count++;
		if (!take_step(cell, caller->number, i / ssi_cells()))
			caller->failed_count++;
	}
	if (!body || !reply)
		caller->failed_count++;
	kvfree(body);
	kvfree(reply);
	complete(&caller->done);
	return 0;
}

/* A call that times out ends there too: its handler is cancelled. */
static bool test_cancel(struct seq_buf *out, u32 cell)
{
	unsigned long deadline = jiffies + CALL_TIMEOUT;
	__le32 count = cpu_to_le32(1);
	ssize_t n = ssi_call(cell, OP_SLEEP, NULL, 0, NULL, 0, HZ / 5);

	if (n != -ETIMEDOUT) {
		seq_buf_printf(out, "cell %u: a call that should time out says %zd\n", cell, n);
		return false;
	}
	while (count && time_before(jiffies, deadline)) {
		n = ssi_call(cell, OP_SLEEPERS, NULL, 0, &count, sizeof(count), CALL_TIMEOUT);
		if (n != sizeof(count))
			break;
		schedule_timeout_uninterruptible(1);
	}
	if (count)
		seq_buf_printf(out, "cell %u: a cancelled handler goes on\n", cell);
	return !count;
}

static bool test_rpc(struct seq_buf *out, unsigned int rounds)
{
	struct caller *callers = kcalloc(CALLERS, sizeof(*callers), GFP_KERNEL);
	ktime_t begin = ktime_get();
	u64 failed = 0;
	unsigned int i;
	bool good = true;

	for (i = 0; callers && i < CALLERS; i++) {
		callers[i].number = i;
		callers[i].rounds = rounds;
		init_completion(&callers[i].done);
		if (IS_ERR(kthread_run(caller_thread, &callers[i], "ssi-selftest"))) {
			callers[i].failed_count = 1;
			complete(&callers[i].done);
		}
	}
	for (i = 0; callers && i < CALLERS; i++) {
		wait_for_completion(&callers[i].done);
		failed += callers[i].failed_count;
	}
	for (i = 0; i < ssi_cells(); i++) {
		if (ssi_cell_alive(i))
			good &= test_cancel(out, i);
	}
	seq_buf_printf(out, "cells %u\ncallers %u\nrounds %u\nfailed_count %llu\nelapsed_us %lld\n", ssi_cells(), CALLERS,
		       rounds, failed, ktime_us_delta(ktime_get(), begin));
	good &= callers && !failed;
	kfree(callers);
	return good;
}

static bool test_ping(struct seq_buf *out, unsigned int cell, unsigned int count, unsigned int bytes)
{
	void *body = kvzalloc(bytes ?: 1, GFP_KERNEL);
	u64 ns, least = U64_MAX, most = 0, sum = 0;
	unsigned int i;
	ssize_t n = 0;

	for (i = 0; body && i < count; i++) {
		ktime_t begin = ktime_get();

		n = ssi_call(cell, SSI_OP_PING, body, bytes, body, bytes, CALL_TIMEOUT);
		ns = ktime_to_ns(ktime_sub(ktime_get(), begin));
		if (n != bytes)
			break;
		least = min(least, ns);
		most = max(most, ns);
		sum += ns;
	}
	kvfree(body);
	if (!body || i < count || !count) {
		seq_buf_printf(out, "cell %u: call %u of %u: %zd\n", cell, i + 1, count, n);
		return false;
	}
	seq_buf_printf(out, "cell %u\ncount %u\nbytes %u\nmin_us %llu\nmean_us %llu\nmax_us %llu\n", cell, count, bytes,
		       least / 1000, div_u64(sum, count) / 1000, most / 1000);
	return true;
}

/* No reading of a process that went there and back may be less than the one before. */
static bool test_clock(struct seq_buf *out, unsigned int cell, unsigned int count)
{
	s64 behind = 0, ahead = 0;
	unsigned int i;
	ssize_t n = 0;

	for (i = 0; i < count; i++) {
		u64 before = ktime_get_ns(), there, after;
		__le64 answer;

		n = ssi_call(cell, OP_CLOCK, NULL, 0, &answer, sizeof(answer), CALL_TIMEOUT);
		if (n != sizeof(answer))
			break;
		after = ktime_get_ns();
		there = le64_to_cpu(answer);
		behind = max_t(s64, behind, before - there);
		ahead = max_t(s64, ahead, there - after);
	}
	seq_buf_printf(out, "cell %u\ncount %u of %u (last answer %zd)\nbehind_us %lld\nahead_us %lld\n", cell, i, count, n,
		       div_s64(behind, 1000), div_s64(ahead, 1000));
	return count && i == count && behind <= SSI_CLOCK_SLACK_NS && ahead <= SSI_CLOCK_SLACK_NS;
}

/* ---- /proc/ssi/selftest ---- */

static bool run_test(struct seq_buf *out, const char *line, int *error)
{
	unsigned int a, b = 0, c = 64;
	int n;

	if (!strcmp(line, "run") || sscanf(line, "run %u %u", &a, &b) >= 1) {
		n = sscanf(line, "run %u %u", &a, &b);
		a = n >= 1 ? a : 1000;
		b = n >= 2 ? b : a / 10 + 1;
		if (a && a <= ITERATIONS_MAX && b <= ITERATIONS_MAX)
			return test_run(out, a, b);
	} else if (!strcmp(line, "rpc") || sscanf(line, "rpc %u", &a) == 1) {
		a = sscanf(line, "rpc %u", &a) == 1 ? a : 100;
		if (a && a <= ITERATIONS_MAX)
			return test_rpc(out, a);
	} else if (sscanf(line, "ping %u %u %u", &a, &b, &c) >= 1) {
		if (c <= SSI_RPC_MAX && b <= ITERATIONS_MAX)
			return test_ping(out, a, b ?: 100, c);
	} else if (sscanf(line, "clock %u %u", &a, &b) >= 1) {
		if (b <= ITERATIONS_MAX)
			return test_clock(out, a, b ?: 100);
	}
	*error = -EINVAL;
	return false;
}

static ssize_t selftest_write(struct file *file, const char __user *from, size_t size, loff_t *pos)
{
	char line[64];
	struct seq_buf out;
	int error = 0;
	bool good;

	if (!size || size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, size))
		return -EFAULT;
	line[size] = '\0';
	strim(line);
	if (!ssi_present())
		return -ENODEV;
	if (mutex_lock_interruptible(&test_lock))
		return -ERESTARTSYS;
	seq_buf_init(&out, report, sizeof(report));
	/* Verdict first: room for it now, the word when it is known. */
	seq_buf_printf(&out, "FAIL %s\n", line);
	good = run_test(&out, line, &error);
	if (good)
		memcpy(report, "PASS", 4);
	if (!good && !error)
		error = -EIO;
	mutex_unlock(&test_lock);
	return error ?: size;
}

static int selftest_show(struct seq_file *m, void *v)
{
	mutex_lock(&test_lock);
	seq_puts(m, report[0] ? report : "nothing run yet: write \"run [iterations [handoffs]]\", \"rpc [rounds]\", \"ping cell [count [bytes]]\" or \"clock cell [count]\"\n");
	mutex_unlock(&test_lock);
	return 0;
}

static int selftest_open(struct inode *inode, struct file *file)
{
	return single_open(file, selftest_show, NULL);
}

static const struct proc_ops selftest_ops = {
	.proc_open = selftest_open,
	.proc_read = seq_read,
	.proc_write = selftest_write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static int __init selftest_init(void)
{
	ssi_rpc_register(OP_PREPARE, prepare);
	ssi_rpc_register(OP_START, start);
	ssi_rpc_register(OP_FINISH, finish);
	ssi_rpc_register(OP_CALL_BACK, call_back);
	ssi_rpc_register(OP_SLEEP, sleep);
	ssi_rpc_register(OP_SLEEPERS, count_sleepers);
	ssi_rpc_register(OP_CLOCK, tell_clock);
	ssi_rpc_register(OP_STEP, step);
	ssi_rpc_register(OP_STEPS, tell_steps);
	return proc_create("selftest", 0600, ssi_proc_root, &selftest_ops) ? 0 : -ENOMEM;
}
rootfs_initcall(selftest_init);

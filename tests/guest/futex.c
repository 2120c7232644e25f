// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * futex(2) in shared memory, anonymous or of a file, between processes in several cells: each operation but those of priority inheritance, with
 * exact counts; timeouts, signals, the end of a waiter. Process 0 leads, the others wait.
 *
 * How many wait is asked with a requeue from a futex to itself, which wakes nobody and says how many there are. In a storm a
 * waiter may be on its way for a moment, so that less than all are found; what is checked then is the sum: each wake-up that
 * was counted has ended exactly one wait.
 */
#define _GNU_SOURCE
#include <linux/futex.h>

#include "crowd.h"

#define WAITERS 3
#define NR_WAITV 449

enum { PLAIN, BITS, SIGNAL, DEADLINE, OTHER, END };

struct board {
	/* What the waiters are to do, and how often they have been told. */
	volatile uint32_t step, what;
	volatile uint32_t done;			/* waiters that have done it */
	uint32_t a, b;				/* the futexes, in one page */
	char gap[PAGE];
	uint32_t far;				/* and in another */
	volatile uint32_t ended;		/* waits that returned 0 */
	volatile uint32_t handled;		/* signals */
	volatile uint32_t interrupted;		/* waits that returned EINTR */
};

static struct board *board;
static struct crowd *crowd;
static int file;		/* crowd_memory() */

static long futex(uint32_t *word, int op, uint32_t val, const void *time, uint32_t *word2, uint32_t val3)
{
	return syscall(SYS_futex, word, op, val, time, word2, val3);
}

static long wake(uint32_t *word, int count)
{
	return futex(word, FUTEX_WAKE, (uint32_t)count, NULL, NULL, 0);
}

static long waiting(uint32_t *word)
{
	return futex(word, FUTEX_REQUEUE, 0, (void *)(long)INT_MAX, word, 0);
}

/* Until @count wait there. */
static void await_waiters(uint32_t *word, long count, const char *what)
{
	long n = 0;

	TRACE("%s: until %ld wait", what, count);
	for (int i = 0; i < 60000; i++) {
		n = waiting(word);
		CHECK(n >= 0 && n <= count, "%s: %ld wait, not %ld", what, n, count);
		if (n == count) {
			TRACE("%s: %ld wait, after %d looks", what, n, i);
			return;
		}
		breathe();
	}
	CHECK(0, "%s: %ld wait, and never %ld", what, n, count);
}

static void await_value(volatile uint32_t *word, uint32_t value, const char *what)
{
	await(word, value, what);
}

/* A number of wake-ups: exactly, unless a storm has waiters on their way just then. */
static long expect(long got, long most, const char *what)
{
	CHECK(got >= 0 && got <= most && (crowd->m.mode == STORM || got == most), "%s: woke %ld of %ld", what, got, most);
	return got;
}

static void on_signal(int number)
{
	(void)number;
	__atomic_fetch_add(&board->handled, 1, __ATOMIC_SEQ_CST);
}

/* ---- waiters ---- */

static void wait_once(uint32_t *word, uint32_t value, uint32_t bits)
{
	while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value) {
		long n = futex(word, FUTEX_WAIT_BITSET, value, NULL, NULL, bits);

		if (!n) {
			__atomic_fetch_add(&board->ended, 1, __ATOMIC_SEQ_CST);
		} else if (errno == EINTR) {
			__atomic_fetch_add(&board->interrupted, 1, __ATOMIC_SEQ_CST);
			return;
		} else {
			CHECK(errno == EAGAIN, "FUTEX_WAIT_BITSET");
		}
	}
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct timespec in_ns(int64_t ns)
{
	return (struct timespec){ ns / 1000000000, ns % 1000000000 };
}

#define SHORT_NS 20000000LL

/* Nobody wakes: the wait ends when it should, not before. */
static void wait_deadlines(void)
{
	struct timespec t = in_ns(SHORT_NS);
	int64_t since = now_ns(CLOCK_MONOTONIC);

	CHECK(futex(&board->a, FUTEX_WAIT, board->a, &t, NULL, 0) == -1 && errno == ETIMEDOUT, "a relative timeout");
	CHECK(now_ns(CLOCK_MONOTONIC) - since >= SHORT_NS, "a relative timeout came early");
	for (int real = 0; real < 2; real++) {
		clockid_t clock = real ? CLOCK_REALTIME : CLOCK_MONOTONIC;
		int op = FUTEX_WAIT_BITSET | (real ? FUTEX_CLOCK_REALTIME : 0);

		since = now_ns(clock);
		t = in_ns(since + SHORT_NS);
		CHECK(futex(&board->a, op, board->a, &t, NULL, 1) == -1 && errno == ETIMEDOUT, "clock %d", (int)clock);
		CHECK(now_ns(clock) - since >= SHORT_NS, "clock %d: early", (int)clock);
		t = in_ns(since);
		CHECK(futex(&board->a, op, board->a, &t, NULL, 1) == -1 && errno == ETIMEDOUT, "clock %d, over", (int)clock);
	}
}

/* What futex(2) refuses, as it does in one cell. */
static void wait_refusals(int away)
{
	struct futex_waitv v = { .val = board->a, .uaddr = (uintptr_t)&board->a, .flags = FUTEX_32 };
	struct timespec t = in_ns(SHORT_NS);
	uint32_t private = 1, *none = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(futex(&board->a, FUTEX_WAIT, board->a + 1, NULL, NULL, 0) == -1 && errno == EAGAIN, "another value");
	CHECK(futex((uint32_t *)((char *)&board->a + 1), FUTEX_WAIT, 0, NULL, NULL, 0) == -1 && errno == EINVAL, "unaligned");
	CHECK(futex(&board->a, FUTEX_WAIT_BITSET, board->a, NULL, NULL, 0) == -1 && errno == EINVAL, "no bits");
	CHECK(futex(&board->a, FUTEX_WAKE_BITSET, 1, NULL, NULL, 0) == -1 && errno == EINVAL, "no bits to wake");
	CHECK(futex(none, FUTEX_WAIT, 0, NULL, NULL, 0) == -1 && errno == EFAULT, "no memory");
	munmap(none, PAGE);
	CHECK(futex(&private, FUTEX_WAIT_PRIVATE, 1, &t, NULL, 0) == -1 && errno == ETIMEDOUT, "a private futex");
	CHECK(futex(&private, FUTEX_WAIT, 1, &t, NULL, 0) == -1 && errno == ETIMEDOUT, "memory of its own");
	if (!away)
		return;
	CHECK(futex(&board->far, FUTEX_LOCK_PI, 0, NULL, NULL, 0) == -1 && errno == EOPNOTSUPP, "priority inheritance");
	CHECK(syscall(NR_WAITV, &v, 1, 0, NULL, 0) == -1 && errno == EOPNOTSUPP, "futex_waitv");
}

static void be_waiter(int me)
{
	struct sigaction act = { .sa_handler = on_signal };
	uint32_t step = 0;

	for (;;) {
		await(&board->step, ++step, "the next step");
		switch (board->what) {
		case PLAIN:
			wait_once(&board->a, 0, FUTEX_BITSET_MATCH_ANY);
			break;
		case BITS:
			wait_once(&board->a, 0, 1u << me);
			break;
		case OTHER:	/* the last one waits at the other futex */
			wait_once(me == WAITERS ? &board->far : &board->a, 0, FUTEX_BITSET_MATCH_ANY);
			break;
		case SIGNAL:
			act.sa_flags = me == 1 ? 0 : SA_RESTART;
			CHECK(!sigaction(SIGUSR1, &act, NULL), "sigaction");
			wait_once(&board->a, 0, FUTEX_BITSET_MATCH_ANY);
			break;
		case DEADLINE:
			wait_refusals(crowd->m.mode == ONCE && crowd_cell(crowd, me));
			wait_deadlines();
			break;
		case END:
			return;
		}
		__atomic_fetch_add(&board->done, 1, __ATOMIC_SEQ_CST);
	}
}

/* ---- the leader ---- */

static void begin(uint32_t what)
{
	board->done = 0;
	board->ended = 0;
	board->what = what;
	__sync_synchronize();
	board->step++;
}

/* All are let go, by a new value: whoever waits at either futex. @woken were woken before. */
static void finish(uint32_t *first, uint32_t *second, long woken, const char *what)
{
	__atomic_store_n(first, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(second, 1, __ATOMIC_SEQ_CST);
	while (board->done < WAITERS) {
		long n = wake(first, INT_MAX), more = wake(second, INT_MAX);

		CHECK(n >= 0 && more >= 0, "%s: %ld and %ld", what, n, more);
		woken += n + more;
		breathe();
	}
	CHECK(board->ended == (uint32_t)woken, "%s: %u waits ended, %ld were woken", what, board->ended, woken);
	__atomic_store_n(first, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(second, 0, __ATOMIC_SEQ_CST);
}

static void lead_plain(void)
{
	uint32_t *a = &board->a;
	long woken = 0;

	CHECK(!wake(a, INT_MAX), "nobody waits");
	begin(PLAIN);
	for (int count = 1; count <= WAITERS; count++) {
		await_waiters(a, WAITERS, "plain");
		woken += expect(wake(a, count), count, "plain");
	}
	await_waiters(a, WAITERS, "plain, again");
	finish(a, a, woken, "plain");
	CHECK(!wake(a, INT_MAX), "nobody waits any more");
}

static void lead_bits(void)
{
	uint32_t *a = &board->a;
	long woken = 0;

	begin(BITS);
	await_waiters(a, WAITERS, "bits");
	CHECK(futex(a, FUTEX_WAKE_BITSET, INT_MAX, NULL, NULL, 1u << 31) == 0, "a bit that nobody has");
	woken += expect(futex(a, FUTEX_WAKE_BITSET, INT_MAX, NULL, NULL, 1u << 2), 1, "one bit");
	await_waiters(a, WAITERS, "bits, again");
	woken += expect(futex(a, FUTEX_WAKE_BITSET, INT_MAX, NULL, NULL, 1u << 1 | 1u << 3), 2, "two bits");
	await_waiters(a, WAITERS, "bits, at last");
	finish(a, a, woken, "bits");
}

static void lead_requeue(uint32_t *to)
{
	uint32_t *a = &board->a;
	long n, woken;

	begin(PLAIN);
	await_waiters(a, WAITERS, "requeue");
	CHECK(futex(a, FUTEX_CMP_REQUEUE, 1, (void *)1L, to, 7) == -1 && errno == EAGAIN, "another value");
	n = expect(futex(a, FUTEX_CMP_REQUEUE, 0, (void *)1L, to, 0), 1, "requeue of one");
	n += expect(futex(a, FUTEX_CMP_REQUEUE, 0, (void *)(long)INT_MAX, to, 0), WAITERS - 1, "requeue of the rest");
	if (crowd->m.mode != STORM) {
		CHECK(!wake(a, INT_MAX), "nobody waits where all were");
		CHECK(waiting(to) == WAITERS, "all wait where they were put");
	}
	woken = expect(wake(to, 1), 1, "after a requeue");
	finish(a, to, woken, "requeue");
}

static void lead_wake_op(void)
{
	uint32_t *a = &board->a, *far = &board->far;
	long woken;

	begin(OTHER);
	await_waiters(a, WAITERS - 1, "the first futex of two");
	await_waiters(far, 1, "the second futex of two");
	/* far becomes 5; it was not 9, so that only the first is woken. */
	woken = expect(futex(a, FUTEX_WAKE_OP, 1, (void *)(long)INT_MAX, far, (uint32_t)FUTEX_OP(FUTEX_OP_SET, 5, FUTEX_OP_CMP_EQ, 9)),
		       1, "FUTEX_WAKE_OP, one futex");
	CHECK(__atomic_load_n(far, __ATOMIC_SEQ_CST) == 5, "it is %u", board->far);
	if (crowd->m.mode != STORM)
		await_waiters(a, WAITERS - 1, "the first futex, again");
	/* 5 and 3 are 8; it was more than 4: the second too. */
	woken += expect(futex(a, FUTEX_WAKE_OP, INT_MAX, (void *)(long)INT_MAX, far,
			      (uint32_t)FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_GT, 4)), WAITERS, "FUTEX_WAKE_OP, both");
	CHECK(__atomic_load_n(far, __ATOMIC_SEQ_CST) == 8, "it is %u", board->far);
	finish(a, far, woken, "FUTEX_WAKE_OP");
}

/* A handler interrupts the one that has no SA_RESTART; the others go on waiting. */
static void lead_signals(void)
{
	uint32_t *a = &board->a;

	board->handled = board->interrupted = 0;
	begin(SIGNAL);
	await_waiters(a, WAITERS, "signals");
	for (int i = 1; i <= WAITERS; i++)
		CHECK(!kill(crowd->pids[i], SIGUSR1), "kill");
	await_value(&board->handled, WAITERS, "handlers");
	if (crowd->m.mode != STORM) {
		await_value(&board->interrupted, 1, "the interrupted one");
		await_waiters(a, WAITERS - 1, "those that go on");
	}
	finish(a, a, 0, "signals");
	CHECK(board->interrupted <= 1, "%u were interrupted", board->interrupted);
}

/* A waiter that is killed is in no queue any more. */
static void lead_kill(void)
{
	begin(PLAIN);
	await_waiters(&board->a, WAITERS, "before the kill");
	crowd->killed = WAITERS;
	CHECK(!kill(crowd->pids[WAITERS], SIGKILL), "kill");
	for (int i = 0; crowd->m.mode != STORM && waiting(&board->a) != WAITERS - 1; i++) {
		CHECK(i < 60000, "the dead one waits still");
		breathe();
	}
	__atomic_store_n(&board->a, 1, __ATOMIC_SEQ_CST);
	for (long woken = 0; board->done < WAITERS - 1; woken += wake(&board->a, INT_MAX))
		breathe();
	board->a = 0;
	CHECK(!wake(&board->a, INT_MAX), "nobody waits in the end");
}

static void work(struct crowd *c, int me, void *arg)
{
	(void)arg;
	board = crowd_own(c, me, board, sizeof(*board), file);
	if (me) {
		be_waiter(me);
		return;
	}
	for (long round = 0; round < c->m.rounds; round++) {
		lead_plain();
		lead_bits();
		lead_requeue(&board->b);
		lead_requeue(&board->far);
		lead_wake_op();
		lead_signals();
		begin(DEADLINE);
		await_value(&board->done, WAITERS, "deadlines");
	}
	lead_kill();
	begin(END);
}

/* ---- two homes ---- */

static void move_self(int cell)
{
	while (crowd->m.mode != STAY && syscall(NR_MIGRATE, 0, (unsigned long)cell))
		CHECK(errno == EBUSY || errno == EINTR || errno == EAGAIN, "a move to cell %d", cell);
}

/* The other process, in cell 0: each requeues the other to the home where that cannot wait, so that it is woken instead. */
static void requeue_from(uint32_t *from, uint32_t *to)
{
	await_waiters(from, 1, "two homes");
	CHECK(futex(from, FUTEX_CMP_REQUEUE, 0, (void *)1L, to, 0) == 1, "a requeue to another home");
	CHECK(wake(to, 1) == (crowd->m.mode == STAY), "it was woken before");
}

/* A futex whose home is cell 0, and one whose home is cell 1. */
static void two_homes(void)
{
	pid_t child = fork(), other;
	uint32_t *word;
	int number;

	CHECK(child >= 0, "fork");
	if (child) {
		join(child, "the process with a futex at home in cell 1");
		return;
	}
	move_self(1);
	word = crowd_memory(crowd, PAGE, &number);
	other = fork();
	CHECK(other >= 0, "fork");
	if (!other) {
		move_self(0);
		requeue_from(&board->a, word);
		CHECK(!futex(word, FUTEX_WAIT, 0, NULL, NULL, 0), "a wait in cell 0, at home in cell 1");
		_exit(0);
	}
	CHECK(!futex(&board->a, FUTEX_WAIT, 0, NULL, NULL, 0), "a wait in cell 1, at home in cell 0");
	requeue_from(word, &board->a);
	join(other, "the process that came to cell 0");
	crowd_forget(crowd);
	_exit(0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	crowd = crowd_new(argc, argv, WAITERS + 1, 3);
	board = crowd_memory(crowd, sizeof(*board), &file);
	crowd_run(crowd, work, NULL);
	if (crowd->m.mode != STORM)
		two_homes();
	crowd_forget(crowd);
	return pass();
}

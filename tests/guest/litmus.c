// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * litmus [CELLS [ROUNDS]]: the classic programs of x86's memory model (Sewell et al., "x86-TSO", 2010) in shared memory, by four
 * processes in different cells. Only outcomes that one x86 machine allows may appear (DSM-3). Prints how often each was seen,
 * and PASS, or FAIL with the first that x86 forbids. vmm/tests/litmus.rs does the same without guests.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define PAGE 4096UL
#define LINE 64UL
#define SLOTS (PAGE / LINE)
#define WORKERS 4
#define SPLIT (PAGE - 4)	/* of a word over a border of pages */

/* x, y: a line for each instance. With `together` y lies in x's line. */
struct vars {
	volatile uint64_t *x, *y;
	uint64_t fresh;
};

struct program {
	const char *name;
	int threads;
	unsigned (*run)(int thread, struct vars v);
	int (*forbidden)(const unsigned *seen, struct vars v);
};

static unsigned is_new(struct vars v, volatile uint64_t *at)
{
	return *at == v.fresh;
}

static unsigned y_then_x(struct vars v)
{
	unsigned y = is_new(v, v.y);

	return y | is_new(v, v.x) << 1;
}

static unsigned sb(int thread, struct vars v)
{
	*(thread ? v.y : v.x) = v.fresh;
	__sync_synchronize();
	return is_new(v, thread ? v.x : v.y);
}

static int sb_forbids(const unsigned *seen, struct vars v)
{
	(void)v;
	return !seen[0] && !seen[1];
}

static unsigned mp(int thread, struct vars v)
{
	if (thread)
		return y_then_x(v);
	*v.x = v.fresh;
	*v.y = v.fresh;
	return 0;
}

static int mp_forbids(const unsigned *seen, struct vars v)
{
	(void)v;
	return seen[1] == 1;
}

static unsigned lb(int thread, struct vars v)
{
	unsigned seen = is_new(v, thread ? v.y : v.x);

	*(thread ? v.x : v.y) = v.fresh;
	return seen;
}

static int lb_forbids(const unsigned *seen, struct vars v)
{
	(void)v;
	return seen[0] && seen[1];
}

static unsigned iriw(int thread, struct vars v)
{
	unsigned x;

	switch (thread) {
	case 0:
		*v.x = v.fresh;
		return 0;
	case 1:
		*v.y = v.fresh;
		return 0;
	case 2:
		x = is_new(v, v.x);
		return x | is_new(v, v.y) << 1;
	default:
		return y_then_x(v);
	}
}

static int iriw_forbids(const unsigned *seen, struct vars v)
{
	(void)v;
	return seen[2] == 1 && seen[3] == 1;
}

static unsigned ww(int thread, struct vars v)
{
	*(thread ? v.y : v.x) = v.fresh;
	*(thread ? v.x : v.y) = v.fresh + 1;
	return 0;
}

static int ww_forbids(const unsigned *seen, struct vars v)
{
	(void)seen;
	return is_new(v, v.x) && is_new(v, v.y);
}

static const struct program programs[] = {
	{ "sb", 2, sb, sb_forbids },	    { "mp", 2, mp, mp_forbids }, { "lb", 2, lb, lb_forbids },
	{ "iriw", 4, iriw, iriw_forbids }, { "2+2w", 2, ww, ww_forbids },
};

#define PROGRAMS (sizeof(programs) / sizeof(programs[0]))

struct board {
	volatile uint32_t arrived, passed;	/* of the barrier */
	uint8_t seen[WORKERS][SLOTS];
	uint64_t outcomes[PROGRAMS][256];
};

struct ground {
	struct board *board;
	char *pages[2];		/* of two objects */
	char *locked;
	int cells;
	long rounds;
};

/* All four have come here. */
static void meet(struct board *b)
{
	struct timespec pause = { 0, 500000 };
	uint32_t mine = __atomic_add_fetch(&b->arrived, 1, __ATOMIC_SEQ_CST);
	uint32_t goal = (mine + WORKERS - 1) / WORKERS;

	if (mine % WORKERS == 0)
		__atomic_store_n(&b->passed, goal, __ATOMIC_SEQ_CST);
	for (long i = 0; (int32_t)(__atomic_load_n(&b->passed, __ATOMIC_SEQ_CST) - goal) < 0; i++) {
		CHECK(i < 200000, "the others do not come: %u of round %u", b->arrived, goal);
		nanosleep(&pause, NULL);
	}
}

static struct vars place(const struct ground *g, long round, unsigned long slot)
{
	char *x = g->pages[round & 1] + slot * LINE;
	char *y = g->pages[round >> 1 & 1] + PAGE + slot * LINE;

	if (round % 5 == 4)
		y = x + LINE / 2;
	return (struct vars){ (void *)x, (void *)y, 2 * ((uint64_t)round + 1) };
}

static void check_round(struct ground *g, const struct program *p, long round, int first)
{
	uint64_t *outcomes = g->board->outcomes[p - programs];

	for (unsigned long slot = 0; slot < SLOTS; slot++) {
		unsigned seen[WORKERS] = { 0 }, outcome = 0;

		for (int thread = 0; thread < p->threads; thread++) {
			seen[thread] = g->board->seen[(first + thread) % WORKERS][slot];
			outcome |= seen[thread] << 2 * thread;
		}
		CHECK(!p->forbidden(seen, place(g, round, slot)), "%s, round %ld, slot %lu: x86 forbids %u %u %u %u", p->name,
		      round, slot, seen[0], seen[1], seen[2], seen[3]);
		outcomes[outcome]++;
	}
}

static void run_program(struct ground *g, int me, const struct program *p, long base)
{
	for (long i = 0; i < g->rounds; i++) {
		long round = base + i;
		int first = round % WORKERS, thread = (me + WORKERS - first) % WORKERS;

		meet(g->board);
		for (unsigned long slot = 0; thread < p->threads && slot < SLOTS; slot++)
			g->board->seen[me][slot] = p->run(thread, place(g, round, slot));
		meet(g->board);
		if (!me)
			check_round(g, p, round, first);
	}
}

/* Both halves of 16 bytes go up together. */
static void add_pair(char *at)
{
	uint64_t low = 0, high = 0;

	for (;;) {
		uint64_t was_low = low, was_high = high;
		uint8_t done;

		CHECK(low == high, "cmpxchg16b saw a pair in halves: %lu %lu", (unsigned long)low, (unsigned long)high);
		asm volatile("lock cmpxchg16b %1\n\tsete %0"
			     : "=q"(done), "+m"(*(char(*)[16])at), "+a"(low), "+d"(high)
			     : "b"(was_low + 1), "c"(was_high + 1)
			     : "cc", "memory");
		if (done)
			return;
	}
}

static void add_all(struct ground *g)
{
	for (long i = 0; i < 4 * g->rounds; i++) {
		asm volatile("lock incq %0" : "+m"(*(uint64_t *)g->locked)::"memory");
		asm volatile("lock incq %0" : "+m"(*(uint64_t *)(g->locked + LINE - 4))::"memory");
		add_pair(g->locked + 2 * LINE);
		if (i % 4 == 0)
			asm volatile("lock incq %0" : "+m"(*(uint64_t *)(g->locked + SPLIT))::"memory");
	}
}

static uint64_t word(const char *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static void check_sums(struct ground *g)
{
	uint64_t all = 4 * (uint64_t)g->rounds * WORKERS;

	CHECK(word(g->locked) == all, "locked adds: %lu of %lu", (unsigned long)word(g->locked), (unsigned long)all);
	CHECK(word(g->locked + LINE - 4) == all, "locked adds over a border of lines: %lu of %lu",
	      (unsigned long)word(g->locked + LINE - 4), (unsigned long)all);
	CHECK(word(g->locked + 2 * LINE) == all, "cmpxchg16b: %lu of %lu", (unsigned long)word(g->locked + 2 * LINE),
	      (unsigned long)all);
	CHECK(word(g->locked + SPLIT) == (uint64_t)g->rounds * WORKERS, "locked adds over a border of pages: %lu of %lu",
	      (unsigned long)word(g->locked + SPLIT), (unsigned long)g->rounds * WORKERS);
}

/* rep movs from one object into the other while the next worker does the same elsewhere: each its own stripe of every page. */
static void copy_stripes(struct ground *g, int me)
{
	const unsigned long stripe = PAGE / WORKERS;
	char *from = g->pages[me & 1] + 2 * PAGE, *to = g->pages[!(me & 1)] + 2 * PAGE;

	for (long round = 1; round <= g->rounds; round++) {
		for (int page = 0; page < 2; page++) {
			char *source = from + page * PAGE + me * stripe, *target = to + page * PAGE + me * stripe;
			const void *si = source;
			void *di = target;
			unsigned long count = stripe;

			memset(source, (int)(me * 50 + round % 50), stripe);
			asm volatile("rep movsb" : "+S"(si), "+D"(di), "+c"(count)::"memory");
			for (unsigned long i = 0; i < stripe; i++)
				CHECK((uint8_t)target[i] == me * 50 + round % 50, "rep movs: byte %lu of worker %d is %d", i, me,
				      target[i]);
		}
	}
}

static void worker(struct ground *g, int me)
{
	if (g->cells > 1)
		while (syscall(NR_MIGRATE, 0, (unsigned long)(me % g->cells)) && me % g->cells)
			CHECK(errno == EBUSY || errno == EINTR || errno == EAGAIN, "moving to cell %d", me % g->cells);
	for (unsigned long i = 0; i < PROGRAMS; i++)
		run_program(g, me, &programs[i], (long)i * g->rounds);
	meet(g->board);
	add_all(g);
	meet(g->board);
	if (!me)
		check_sums(g);
	copy_stripes(g, me);
	meet(g->board);
}

static char *shared(unsigned long pages)
{
	char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED, "shared memory");
	return at;
}

int main(int argc, char **argv)
{
	struct ground g = { 0 };
	int status = 0;
	pid_t children[WORKERS];

	g.cells = argc > 1 ? atoi(argv[1]) : 2;
	g.rounds = argc > 2 ? atol(argv[2]) : 20;
	if (g.cells < 1 || g.rounds < 1) {
		fprintf(stderr, "usage: %s [CELLS [ROUNDS]]\n", argv[0]);
		return 2;
	}
	g.board = (void *)shared((sizeof(*g.board) + PAGE - 1) / PAGE);
	g.pages[0] = shared(4);
	g.pages[1] = shared(4);
	g.locked = shared(2);
	for (int i = 0; i < WORKERS; i++) {
		children[i] = fork();
		CHECK(children[i] >= 0, "fork");
		if (!children[i]) {
			worker(&g, i);
			_exit(0);
		}
	}
	for (int i = 0; i < WORKERS && !status; i++)
		CHECK(wait(&status) > 0, "waiting");
	if (status) {
		printf("FAIL: a worker ended with status %#x\n", (unsigned)status);
		/* The others would wait for it. */
		for (int i = 0; i < WORKERS; i++)
			kill(children[i], SIGKILL);
		return 1;
	}
	for (unsigned long i = 0; i < PROGRAMS; i++) {
		printf("%s:", programs[i].name);
		for (int outcome = 0; outcome < 256; outcome++)
			if (g.board->outcomes[i][outcome])
				printf(" %d%d%d%d:%lu", outcome & 3, outcome >> 2 & 3, outcome >> 4 & 3, outcome >> 6,
				       (unsigned long)g.board->outcomes[i][outcome]);
		printf("\n");
	}
	return pass();
}

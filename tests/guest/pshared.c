// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * What POSIX shares between processes, between cells: mutexes (plain, error-checking, robust), condition variables, barriers,
 * semaphores, read-write locks, all in one shared mapping, anonymous or of a file. Under each lock two numbers are counted that are in
 * different pages, so that two holders at a time, or one that sees stale memory, would be found out.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>

#include "crowd.h"

#define CROWD 4
#define EACH 4			/* per round and lock */

enum { PLAIN, CHECKED, ROBUST, SEMAPHORE, READ_WRITE, LOCKS };

static const char *const names[LOCKS] = { "a mutex", "an error-checking mutex", "a robust mutex", "a semaphore", "a read-write lock" };

struct board {
	pthread_mutex_t mutexes[3];
	sem_t semaphore;
	pthread_rwlock_t rwlock;
	pthread_barrier_t barrier;
	pthread_mutex_t turn_mutex;
	pthread_cond_t turn_changed;
	uint32_t turn;
	volatile uint64_t count[LOCKS];
	volatile uint32_t serial;	/* threads to which the barrier gave this title */
	volatile uint32_t deaths;
	char gap[PAGE];
	volatile uint64_t same[LOCKS];
};

static struct board *board;
static int file;		/* crowd_memory() */

#define DO(call)	do { int result_ = (call); CHECK(!result_, "result %d", result_); } while (0)

static void lock(int which)
{
	if (which <= ROBUST)
		DO(pthread_mutex_lock(&board->mutexes[which]));
	else if (which == SEMAPHORE)
		DO(sem_wait(&board->semaphore));
	else
		DO(pthread_rwlock_wrlock(&board->rwlock));
}

static void unlock(int which)
{
	if (which <= ROBUST)
		DO(pthread_mutex_unlock(&board->mutexes[which]));
	else if (which == SEMAPHORE)
		DO(sem_post(&board->semaphore));
	else
		DO(pthread_rwlock_unlock(&board->rwlock));
}

static void check_equal(int which, const char *how)
{
	uint64_t a = board->count[which], b = board->same[which];

	CHECK(a == b, "%s, %s: %lu and %lu", names[which], how, (unsigned long)a, (unsigned long)b);
}

static void count_under(int which)
{
	uint64_t now;

	lock(which);
	check_equal(which, "on entry");
	now = board->count[which];
	board->count[which] = now + 1;
	sched_yield();
	board->same[which] = now + 1;
	check_equal(which, "at the end");
	unlock(which);
}

/* Each in turn, through a condition variable that wakes all. */
static void take_turns(int me)
{
	DO(pthread_mutex_lock(&board->turn_mutex));
	while (board->turn % CROWD != (uint32_t)me)
		DO(pthread_cond_wait(&board->turn_changed, &board->turn_mutex));
	board->turn++;
	DO(pthread_cond_broadcast(&board->turn_changed));
	DO(pthread_mutex_unlock(&board->turn_mutex));
}

static struct timespec soon(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	t.tv_nsec += 10000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	return t;
}

/* Whoever waits with a deadline gets it. */
static void time_out(void)
{
	struct timespec t = soon(CLOCK_REALTIME);
	int result;

	DO(pthread_mutex_lock(&board->turn_mutex));
	do	/* others may change the turn */
		result = pthread_cond_timedwait(&board->turn_changed, &board->turn_mutex, &t);
	while (!result);
	CHECK(result == ETIMEDOUT, "pthread_cond_timedwait: %d", result);
	DO(pthread_mutex_unlock(&board->turn_mutex));
	for (int i = 0; i < 3; i++) {
		t = soon(CLOCK_MONOTONIC);
		result = pthread_mutex_clocklock(&board->mutexes[PLAIN], CLOCK_MONOTONIC, &t);
		CHECK(!result || result == ETIMEDOUT, "pthread_mutex_clocklock: %d", result);
		if (!result)
			DO(pthread_mutex_unlock(&board->mutexes[PLAIN]));
	}
}

static void barrier(void)
{
	int result = pthread_barrier_wait(&board->barrier);

	CHECK(!result || result == PTHREAD_BARRIER_SERIAL_THREAD, "pthread_barrier_wait: %d", result);
	if (result)
		__atomic_fetch_add(&board->serial, 1, __ATOMIC_SEQ_CST);
}

/* The last one dies with the robust mutex, then the next to last, ...: the rest contend for it, and one is told. */
static void die_in_turn(int me)
{
	struct timespec t = { 0, 20000000 };
	pthread_mutex_t *m = &board->mutexes[ROBUST];

	for (int dying = CROWD - 1; dying > 0; dying--) {
		int result;

		if (me == dying) {
			result = pthread_mutex_lock(m);
			CHECK(!result, "the one that dies: %d", result);
			__atomic_fetch_add(&board->deaths, 1, __ATOMIC_SEQ_CST);
			nanosleep(&t, NULL);	/* so that some wait by then; it works in any case */
			_exit(0);
		}
		for (int i = 0; board->deaths < (uint32_t)(2 * (CROWD - 1 - dying) + 1); i++) {
			CHECK(i < 60000, "process %d does not take the lock to die with it", dying);
			breathe();
		}
		result = pthread_mutex_lock(m);
		CHECK(!result || result == EOWNERDEAD, "pthread_mutex_lock of a robust mutex: %d", result);
		if (result == EOWNERDEAD) {
			DO(pthread_mutex_consistent(m));
			__atomic_fetch_add(&board->deaths, 1, __ATOMIC_SEQ_CST);
		}
		CHECK(board->deaths == (uint32_t)(2 * (CROWD - dying)), "%u deaths told", board->deaths);
		DO(pthread_mutex_unlock(m));
		if (dying > 1) {
			/* The next one dies when all that are left have had the mutex. */
			__atomic_fetch_add(&board->turn, 1, __ATOMIC_SEQ_CST);
			for (int i = 0; me == dying - 1 && board->turn != (uint32_t)dying; i++) {
				CHECK(i < 60000, "%u have had it", board->turn);
				breathe();
			}
			if (me == dying - 1)
				board->turn = 0;
		}
	}
}

static void work(struct crowd *c, int me, void *arg)
{
	(void)arg;
	board = crowd_own(c, me, board, sizeof(*board), file);
	for (long round = 0; round < c->m.rounds; round++) {
		for (int i = 0; i < EACH; i++)
			for (int which = 0; which < LOCKS; which++)
				count_under(which);
		for (int i = 0; i < 2; i++) {
			DO(pthread_rwlock_rdlock(&board->rwlock));
			check_equal(READ_WRITE, "read");
			DO(pthread_rwlock_unlock(&board->rwlock));
		}
		take_turns(me);
		time_out();
		barrier();
		CHECK(board->turn == (uint32_t)((round + 1) * CROWD), "turn %u after round %ld", board->turn, round);
		barrier();
		CHECK(board->serial >= (uint32_t)(2 * round + 1), "%u serial threads", board->serial);
	}
	for (int which = 0; which < LOCKS; which++) {
		uint64_t want = (uint64_t)c->m.rounds * EACH * CROWD;

		CHECK(board->count[which] == want, "%s: %lu of %lu", names[which], (unsigned long)board->count[which], (unsigned long)want);
	}
	barrier();
	if (!me)
		board->turn = 0;
	barrier();
	die_in_turn(me);
}

static void init_board(void)
{
	pthread_mutexattr_t m;
	pthread_condattr_t v;
	pthread_barrierattr_t b;
	pthread_rwlockattr_t rw;

	DO(pthread_mutexattr_init(&m));
	DO(pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED));
	DO(pthread_mutex_init(&board->mutexes[PLAIN], &m));
	DO(pthread_mutex_init(&board->turn_mutex, &m));
	DO(pthread_mutexattr_settype(&m, PTHREAD_MUTEX_ERRORCHECK));
	DO(pthread_mutex_init(&board->mutexes[CHECKED], &m));
	DO(pthread_mutexattr_settype(&m, PTHREAD_MUTEX_NORMAL));
	DO(pthread_mutexattr_setrobust(&m, PTHREAD_MUTEX_ROBUST));
	DO(pthread_mutex_init(&board->mutexes[ROBUST], &m));
	DO(pthread_condattr_init(&v));
	DO(pthread_condattr_setpshared(&v, PTHREAD_PROCESS_SHARED));
	DO(pthread_cond_init(&board->turn_changed, &v));
	DO(pthread_barrierattr_init(&b));
	DO(pthread_barrierattr_setpshared(&b, PTHREAD_PROCESS_SHARED));
	DO(pthread_barrier_init(&board->barrier, &b, CROWD));
	DO(pthread_rwlockattr_init(&rw));
	DO(pthread_rwlockattr_setpshared(&rw, PTHREAD_PROCESS_SHARED));
	DO(pthread_rwlock_init(&board->rwlock, &rw));
	DO(sem_init(&board->semaphore, 1, 1));
}

int main(int argc, char **argv)
{
	struct crowd *c;

	setvbuf(stdout, NULL, _IONBF, 0);
	c = crowd_new(argc, argv, CROWD, 4);
	board = crowd_memory(c, sizeof(*board), &file);
	init_board();
	crowd_run(c, work, NULL);
	CHECK(board->deaths == 2 * (CROWD - 1), "%u deaths", board->deaths);
	crowd_forget(c);
	return pass();
}

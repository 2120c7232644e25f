// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * How a database server of many processes uses shared memory: one anonymous segment, made before they fork; in it spinlocks
 * (an exchange, then pauses, then naps that grow), and queues of those that sleep, each on a POSIX semaphore of its own. Each
 * lock guards two numbers in different pages; they have to be equal whenever it is held, and right in the end.
 */
#define _GNU_SOURCE
#include <semaphore.h>

#include "crowd.h"

#define CROWD	12
#define LOCKS	6
#define SPINS	50
#define NOBODY	(-1)

/* A lock that processes sleep for: who holds it gives it to the first in the queue. */
struct heavy {
	uint32_t spin;
	int held, first, last;
	uint64_t count;
	char pad[64 - 4 * 4 - 8];
};

struct segment {
	struct {
		uint32_t spin;
		uint64_t count;
		char pad[64 - 16];
	} light[LOCKS];
	struct heavy heavy[LOCKS];
	char gap[PAGE];
	uint64_t light_same[LOCKS], heavy_same[LOCKS];
	char gap2[PAGE];
	struct {
		sem_t wakes;
		int next;
		char pad[128 - sizeof(sem_t) - 4];
	} process[CROWD];
};

static struct segment *segment;

static void spin_lock(uint32_t *spin)
{
	long us = 500;

	for (int i = 1; __atomic_exchange_n(spin, 1, __ATOMIC_ACQUIRE); i++) {
		struct timespec nap = { 0, us * 1000 };

		if (i % SPINS) {
			__builtin_ia32_pause();
			continue;
		}
		CHECK(i < SPINS * 20000, "a spinlock is stuck");
		nanosleep(&nap, NULL);
		us = us < 8000 ? us * 2 : 500;
	}
}

static void spin_unlock(uint32_t *spin)
{
	__atomic_store_n(spin, 0, __ATOMIC_RELEASE);
}

static void heavy_lock(struct heavy *lock, int me)
{
	spin_lock(&lock->spin);
	if (!lock->held) {
		lock->held = 1;
		spin_unlock(&lock->spin);
		return;
	}
	segment->process[me].next = NOBODY;
	if (lock->last == NOBODY)
		lock->first = me;
	else
		segment->process[lock->last].next = me;
	lock->last = me;
	spin_unlock(&lock->spin);
	while (sem_wait(&segment->process[me].wakes))
		CHECK(errno == EINTR, "sem_wait");
	/* Given by the one before: @held has been set all the time. */
}

static void heavy_unlock(struct heavy *lock)
{
	int next;

	spin_lock(&lock->spin);
	next = lock->first;
	if (next == NOBODY) {
		lock->held = 0;
	} else {
		lock->first = segment->process[next].next;
		if (lock->first == NOBODY)
			lock->last = NOBODY;
	}
	spin_unlock(&lock->spin);
	if (next != NOBODY)
		CHECK(!sem_post(&segment->process[next].wakes), "sem_post");
}

static void count_light(int which)
{
	uint64_t now;

	spin_lock(&segment->light[which].spin);
	now = segment->light[which].count;
	CHECK(segment->light_same[which] == now, "light lock %d: %lu and %lu", which, (unsigned long)now,
	      (unsigned long)segment->light_same[which]);
	segment->light[which].count = now + 1;
	segment->light_same[which] = now + 1;
	spin_unlock(&segment->light[which].spin);
}

static void count_heavy(int which, int me)
{
	struct heavy *lock = &segment->heavy[which];
	uint64_t now;

	heavy_lock(lock, me);
	now = lock->count;
	CHECK(segment->heavy_same[which] == now, "heavy lock %d: %lu and %lu", which, (unsigned long)now,
	      (unsigned long)segment->heavy_same[which]);
	lock->count = now + 1;
	sched_yield();
	segment->heavy_same[which] = now + 1;
	heavy_unlock(lock);
}

static void work(struct crowd *c, int me, void *arg)
{
	(void)arg;
	for (long round = 0; round < c->m.rounds; round++)
		for (int i = 0; i < LOCKS; i++) {
			count_light((me + i) % LOCKS);
			count_heavy((me * 5 + i) % LOCKS, me);
		}
}

int main(int argc, char **argv)
{
	uint64_t want;
	struct crowd *c;

	setvbuf(stdout, NULL, _IONBF, 0);
	c = crowd_new(argc, argv, CROWD, 10);
	segment = mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(segment != MAP_FAILED, "mapping");
	for (int i = 0; i < LOCKS; i++)
		segment->heavy[i].first = segment->heavy[i].last = NOBODY;
	for (int i = 0; i < CROWD; i++)
		CHECK(!sem_init(&segment->process[i].wakes, 1, 0), "sem_init");
	crowd_run(c, work, NULL);
	want = (uint64_t)c->m.rounds * CROWD;
	for (int i = 0; i < LOCKS; i++) {
		CHECK(segment->light[i].count == want && segment->light_same[i] == want, "light lock %d: %lu of %lu", i,
		      (unsigned long)segment->light[i].count, (unsigned long)want);
		CHECK(segment->heavy[i].count == want && segment->heavy_same[i] == want, "heavy lock %d: %lu of %lu", i,
		      (unsigned long)segment->heavy[i].count, (unsigned long)want);
	}
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: System V shared memory: a segment attached before and after moves, at several addresses, read-only too; shmdt(2) of an
 * attach that mprotect(2) has cut into parts; nattch; a segment that was removed lives until the last detach in any cell.
 */
#define _GNU_SOURCE
#include <sys/ipc.h>
#include <sys/shm.h>

#include "shared.h"

#define PAGES 6UL

struct ground {
	int id;
	char *area;
};

/* A detach in another cell may be told late. */
static void await_attaches(int id, unsigned long want)
{
	struct shmid_ds ds = { 0 };

	for (int i = 0; i < 2000; i++) {
		CHECK(shmctl(id, IPC_STAT, &ds) == 0, "IPC_STAT");
		if (ds.shm_nattch == want)
			return;
		breathe();
	}
	CHECK(ds.shm_nattch == want, "%lu attaches, not %lu", (unsigned long)ds.shm_nattch, want);
}

static void attach_again(struct mover *m, struct ground *g, uint32_t round)
{
	char *second = shmat(g->id, NULL, 0), *view = shmat(g->id, NULL, SHM_RDONLY);

	CHECK(second != (void *)-1 && view != (void *)-1, "shmat where segment %#x is not", g->id);
	check_words((uint32_t *)(second + PAGE), PAGE / 4, round, "a second attach");
	check_words((uint32_t *)(view + PAGE), PAGE / 4, round, "a read-only attach");
	fill_words((uint32_t *)(second + 2 * PAGE), PAGE / 4, round + 7);
	check_words((uint32_t *)(view + 2 * PAGE), PAGE / 4, round + 7, "what the second attach wrote");
	check_words((uint32_t *)(g->area + 2 * PAGE), PAGE / 4, round + 7, "what the second attach wrote");
	/* Cut in three, and moved so. */
	CHECK(mprotect(second + PAGE, PAGE, PROT_READ) == 0, "mprotect");
	maybe_move(m);
	check_words((uint32_t *)(second + PAGE), PAGE / 4, round, "a part of the attach");
	CHECK(shmdt(second) == 0, "shmdt of an attach in parts");
	for (unsigned long i = 0; i < PAGES; i++) {
		unsigned char resident;

		CHECK(mincore(second + i * PAGE, PAGE, &resident) < 0 && errno == ENOMEM, "page %lu is mapped after shmdt", i);
	}
	CHECK(shmdt(view) == 0, "shmdt of the view");
	CHECK(shmdt(view) < 0 && errno == EINVAL, "shmdt twice");
}

static void work(struct mover *m, int me, void *arg)
{
	struct ground *g = arg;
	volatile uint32_t *turn = (uint32_t *)g->area;
	struct shmid_ds ds;

	for (uint32_t round = 1; round <= (uint32_t)m->rounds; round++) {
		await(turn, (uint32_t)me, "segment");
		if (round > 1 || me)
			check_words((uint32_t *)(g->area + 3 * PAGE), PAGE / 4, (round - !me) * 2 + !me, "what the other wrote");
		fill_words((uint32_t *)(g->area + PAGE), PAGE / 4, round);
		attach_again(m, g, round);
		CHECK(shmctl(g->id, IPC_STAT, &ds) == 0 && ds.shm_segsz == PAGES * PAGE, "IPC_STAT: %zu bytes", ds.shm_segsz);
		/* This one, its parent, and the other, once that has been born. */
		CHECK(ds.shm_nattch >= (round > 1 || me ? 3 : 2), "%lu attaches", (unsigned long)ds.shm_nattch);
		fill_words((uint32_t *)(g->area + 3 * PAGE), PAGE / 4, round * 2 + me);
		maybe_move(m);
		give(turn, !me);
		maybe_move(m);
	}
	await(turn, (uint32_t)me, "the end");
	if (me) {
		await_attaches(g->id, 3);	/* two workers and their parent: main has detached */
		CHECK(shmctl(g->id, IPC_RMID, NULL) == 0, "IPC_RMID");
		strcpy(g->area + 5 * PAGE, "after its removal");
		give(turn, 2);
		CHECK(shmdt(g->area) == 0, "shmdt");
	} else {
		give(turn, 1);
		await(turn, 2, "the removal");
		maybe_move(m);
		CHECK(!strcmp(g->area + 5 * PAGE, "after its removal"), "the segment has %s", g->area + 5 * PAGE);
		CHECK(shmctl(g->id, IPC_STAT, &ds) == 0 && ds.shm_perm.mode & 01000, "it is marked as removed");
		CHECK(shmdt(g->area) == 0, "shmdt");
	}
}

int main(int argc, char **argv)
{
	struct mover m;
	struct ground g;
	struct shmid_ds ds;
	pid_t child;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 4);
	g.id = shmget(IPC_PRIVATE, PAGES * PAGE, IPC_CREAT | 0600);
	CHECK(g.id >= 0, "shmget");
	g.area = shmat(g.id, NULL, 0);
	CHECK(g.area != (void *)-1, "shmat");
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		run_workers(&m, 2, work, &g);
		_exit(0);
	}
	/* Two workers, their parent and this one. */
	await_attaches(g.id, 4);
	CHECK(shmdt(g.area) == 0, "shmdt");
	join(child, "the workers' parent");
	for (int i = 0; shmctl(g.id, IPC_STAT, &ds) == 0; i++) {
		CHECK(i < 2000, "the segment is still there after its last detach, with %lu attaches", (unsigned long)ds.shm_nattch);
		breathe();
	}
	CHECK(errno == EINVAL || errno == EIDRM, "IPC_STAT of a segment that is gone");
	return pass();
}

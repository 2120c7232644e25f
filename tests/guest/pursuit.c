// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * `pursuit CELLS SEED MOVES`: a process that goes to and fro between cells as fast as it can be moved, while a process in each
 * cell sends it queued signals by every call that there is, to the process and to its threads, of which one has a number of its
 * home and one of another cell. Each signal is handled once, by the thread that it was sent to, wherever the process is: at its
 * home, away, just arriving or just leaving. Then one that is moved again as soon as a move was
 * refused, and some that are killed in the middle of a move.
 *
 * A move is refused for no other reason than that the process has just been moved.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "crowd.h"

#define SENDERS 4
#define THREADS 3		/* of the process: the main one, one made at home, one made elsewhere */
#define AHEAD 16		/* signals of one sender that are under way */
#define KILLS 8
#define REFUSALS 6

struct chase {
	volatile uint32_t stop, go;
	volatile uint32_t by_pidfd;
	volatile pid_t threads[THREADS];
	struct {
		volatile uint32_t sent, handled, there;
		char gap[PAGE / SENDERS - 12];
	} of[SENDERS];
};

static struct chase *chase;

/* Signal SIGRTMIN + n * SENDERS + m: of sender m, for thread n. */
static void on_signal(int number)
{
	int which = (number - SIGRTMIN) / SENDERS;

	CHECK(syscall(SYS_gettid) == chase->threads[which], "a signal for thread %d of %d", which, THREADS);
	__atomic_fetch_add(&chase->of[(number - SIGRTMIN) % SENDERS].handled, 1, __ATOMIC_SEQ_CST);
}

static void *take_signals(void *arg)
{
	int which = (int)(intptr_t)arg;
	sigset_t mine;

	sigfillset(&mine);
	for (int i = 0; i < SENDERS; i++)
		sigdelset(&mine, SIGRTMIN + which * SENDERS + i);
	chase->threads[which] = (pid_t)syscall(SYS_gettid);
	for (;;)
		sigsuspend(&mine);
	return NULL;
}

static void make_thread(int which)
{
	pthread_t thread;

	chase->threads[which] = 0;
	CHECK(!(errno = pthread_create(&thread, NULL, take_signals, (void *)(intptr_t)which)), "pthread_create");
	while (!chase->threads[which])
		breathe();
}

static void be_chased(void)
{
	sigset_t all;

	sigfillset(&all);
	CHECK(!sigprocmask(SIG_SETMASK, &all, NULL), "sigprocmask");
	for (int i = 0; i < THREADS * SENDERS; i++) {
		struct sigaction act = { .sa_handler = on_signal };

		CHECK(!sigaction(SIGRTMIN + i, &act, NULL), "sigaction");
	}
	make_thread(1);
	CHECK(!syscall(NR_MIGRATE, 0, 1UL), "to cell 1");
	make_thread(2);
	CHECK(!syscall(NR_MIGRATE, 0, 0UL), "and home");
	chase->go = 1;
	take_signals(NULL);
}

/*
 * By a descriptor of what is here. Once it has left, the descriptor says that it has ended, and so does pidfd_open(2): 0. Wherever
 * there is something, the signal reaches the process.
 */
static int send_by_pidfd(pid_t chased, int number)
{
	int fd = (int)syscall(SYS_pidfd_open, chased, 0), sent;

	if (fd < 0) {
		CHECK(errno == ESRCH || errno == EINVAL, "pidfd_open");
		return 0;
	}
	sent = !syscall(SYS_pidfd_send_signal, fd, number, NULL, 0);
	CHECK(sent || errno == ESRCH, "pidfd_send_signal");
	close(fd);
	return sent;
}

static void send_to_thread(pid_t chased, int which, int me, uint32_t way)
{
	int number = SIGRTMIN + which * SENDERS + me;
	siginfo_t info = { .si_signo = number, .si_code = SI_QUEUE };
	pid_t tid = chase->threads[which];

	switch (way) {
	case 0:
		CHECK(!syscall(SYS_tgkill, chased, tid, number), "tgkill of thread %d", which);
		return;
	case 1:
		CHECK(!syscall(SYS_tkill, tid, number), "tkill of thread %d", which);
		return;
	}
	CHECK(!syscall(SYS_rt_tgsigqueueinfo, chased, tid, number, &info), "rt_tgsigqueueinfo of thread %d", which);
}

static void send_one(pid_t chased, int me, uint32_t sent)
{
	uint32_t way = sent % 5;

	if (way < 3) {
		send_to_thread(chased, (int)(sent / 5 % THREADS), me, way);
	} else if (way == 3 && send_by_pidfd(chased, SIGRTMIN + me)) {
		__atomic_fetch_add(&chase->by_pidfd, 1, __ATOMIC_SEQ_CST);
	} else {
		CHECK(!sigqueue(chased, SIGRTMIN + me, (union sigval){ 0 }), "sigqueue");
	}
}

static void be_sender(int me, pid_t chased)
{
	uint32_t sent = 0;

	CHECK(syscall(SYS_tgkill, getpid(), chased, 0) && errno == ESRCH, "it is no thread of this process");
	for (int i = 0; i < THREADS; i++)
		CHECK(!syscall(SYS_tgkill, chased, chase->threads[i], 0), "thread %d is there", i);

	/* Not before: a process that has a pidfd open cannot move. */
	await(&chase->of[me].there, 1, "its cell");
	while (!chase->stop) {
		while (sent - chase->of[me].handled < AHEAD && !chase->stop) {
			send_one(chased, me, sent);
			chase->of[me].sent = ++sent;
		}
		breathe();
	}
	_exit(0);
}

static pid_t child_of(struct crowd *c, int i)
{
	pid_t child = fork();

	CHECK(child >= 0, "fork");
	if (child) {
		c->pids[i] = child;
		c->count = i + 1;
	}
	return child;
}

static void chase_signals(struct crowd *c)
{
	int senders = c->m.cells < SENDERS ? c->m.cells : SENDERS;
	uint32_t all = 0;

	if (!child_of(c, 0))
		be_chased();
	await(&chase->go, 1, "the one that is chased");
	for (int i = 0; i < senders; i++) {
		if (!child_of(c, i + 1))
			be_sender(i, c->pids[0]);
		crowd_move(c, i + 1, i);
		chase->of[i].there = 1;
	}
	/* There and back, twice in three times. */
	for (long i = 0, a = 1, b = 0; i < c->m.rounds; i++) {
		if (i % 3 == 0) {
			b = a;
			a = (long)mover_number(&c->m, (uint32_t)c->m.cells);
		}
		CHECK(crowd_move(c, 0, (int)(i % 3 == 1 ? b : a)), "it has ended");
	}
	chase->stop = 1;
	for (int i = 0; i < senders; i++) {
		join(c->pids[i + 1], "a sender");
		c->pids[i + 1] = 0;
	}
	for (int i = 0; i < senders; i++) {
		await(&chase->of[i].handled, chase->of[i].sent, "signals");
		all += chase->of[i].sent;
	}
	CHECK(!kill(c->pids[0], SIGKILL) && waitpid(c->pids[0], NULL, 0) == c->pids[0], "its end");
	printf("%u signals, %u of them by pidfd, %ld moves\n", all, chase->by_pidfd, c->m.rounds);
	CHECK(chase->by_pidfd, "none by pidfd");
}

/* It is killed from the cell where it is about to arrive. */
static void chase_and_kill(struct crowd *c, int from, int to)
{
	int status = 0;

	chase->stop = chase->go = 0;
	if (!child_of(c, 0))
		be_chased();
	await(&chase->go, 1, "the one that is killed");
	if (!child_of(c, 1)) {
		await(&chase->stop, 1, "the word to kill");
		CHECK(!kill(c->pids[0], SIGKILL), "kill");
		_exit(0);
	}
	crowd_move(c, 0, from);
	crowd_move(c, 1, to);
	chase->stop = 1;
	crowd_move(c, 0, to);
	join(c->pids[1], "the killer");
	for (int i = 0; waitpid(c->pids[0], &status, WNOHANG) != c->pids[0]; i++) {
		CHECK(i < 20000, "it lives, though it was killed from cell %d on its way from cell %d", to, from);
		breathe();
	}
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
}

/*
 * A process with a child is refused, but what was to become it in the other cell has its PID there for a moment still. Without
 * the child it goes there at once, and back.
 */
static void move_after_refusals(struct crowd *c)
{
	for (int i = 0; i < REFUSALS; i++) {
		int to = 1 + i % (c->m.cells - 1), back = (to + 1) % c->m.cells;
		pid_t child = fork();

		CHECK(child >= 0, "fork");
		if (!child) {
			pause();
			_exit(1);
		}
		CHECK(syscall(NR_MIGRATE, 0, (unsigned long)to) && errno == EOPNOTSUPP, "a process with a child moves");
		CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child, "the end of the child");
		CHECK(!syscall(NR_MIGRATE, 0, (unsigned long)to), "to cell %d, after it was refused", to);
		CHECK(!syscall(NR_MIGRATE, 0, (unsigned long)back), "on to cell %d", back);
		CHECK(!syscall(NR_MIGRATE, 0, (unsigned long)to), "and back to cell %d", to);
		CHECK(!syscall(NR_MIGRATE, 0, 0UL), "and home");
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	char *arguments[] = { argv[0], "storm", argc > 1 ? argv[1] : "2", argc > 2 ? argv[2] : "1", argc > 3 ? argv[3] : "20", NULL };
	struct crowd *c = crowd_new(5, arguments, 1 + SENDERS, 20);

	pid_t mover;

	setvbuf(stdout, NULL, _IONBF, 0);
	CHECK(c->m.cells > 1, "it needs two cells");
	chase = mmap(NULL, sizeof(*chase), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(chase != MAP_FAILED, "mapping");
	chase_signals(c);
	mover = fork();
	CHECK(mover >= 0, "fork");
	if (!mover)
		move_after_refusals(c);
	join(mover, "the one that is refused first");
	for (int i = 0; i < KILLS; i++)
		chase_and_kill(c, (i + 1) % c->m.cells, i % c->m.cells);
	return pass();
}

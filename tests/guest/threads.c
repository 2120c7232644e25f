// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * `threads`: processes with threads, and what threads do to the whole: one of them asks for the move, exits the process, executes
 * another program, is the last one after the main thread has ended, or the process is killed; at home and elsewhere. The parent
 * gets what it would get on one machine (MIG-2). Numbers of threads that have moved away or ended elsewhere are not given
 * out twice, nor lost. A move that is refused, here or there, leaves all threads as they were.
 *
 * `threads lost CELL`: CELL is to die when a process with a thread arrives there.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define ASKERS 4
#define MOVES 6
#define RING 4
#define REFUSALS 5

static const char *self;

static int move_to(unsigned long cell)
{
	return syscall(NR_MIGRATE, 0, cell) ? errno : 0;
}

static pthread_t start(void *(*body)(void *), long arg)
{
	pthread_t thread;

	CHECK(!(errno = pthread_create(&thread, NULL, body, (void *)(intptr_t)arg)), "pthread_create");
	return thread;
}

/* Threads that all want the process to be elsewhere. One at a time gets its way; the others are told so. */
static void *ask(void *arg)
{
	long me = (long)(intptr_t)arg;

	for (int moved = 0; moved < MOVES;) {
		int error = move_to((unsigned long)(me + moved) % 2);

		CHECK(!error || error == EBUSY || error == EAGAIN, "migrate by thread %ld", me);
		if (!error)
			moved++;
		else
			breathe();
	}
	return (void *)(intptr_t)me;
}

static void all_ask(void)
{
	pthread_t askers[ASKERS];
	void *result;

	for (long i = 0; i < ASKERS; i++)
		askers[i] = start(ask, i);
	for (long i = 0; i < ASKERS; i++)
		CHECK(!pthread_join(askers[i], &result) && result == (void *)(intptr_t)i, "joining");
	exit(0);
}

static void *wait_for_ever(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

static void *leave_by_exit(void *arg)
{
	CHECK(!move_to((unsigned long)(intptr_t)arg), "migrate");
	_exit(7);
}

static void exit_by_thread(long cell)
{
	start(wait_for_ever, 0);
	start(leave_by_exit, cell);
	wait_for_ever(NULL);
}

static void *leave_by_exec(void *arg)
{
	CHECK(!move_to((unsigned long)(intptr_t)arg), "migrate");
	execl(self, self, "executed", NULL);
	CHECK(0, "exec");
	return NULL;
}

static void exec_by_thread(long cell)
{
	start(wait_for_ever, 0);
	start(leave_by_exec, cell);
	wait_for_ever(NULL);
}

static pthread_t main_thread;

/* The main thread ends with 3 as its status for nobody; the process ends with its last thread, and says 0. */
static void *be_last(void *arg)
{
	CHECK(!pthread_join(main_thread, NULL), "joining the main thread");
	CHECK(move_to((unsigned long)(1 - (long)(intptr_t)arg)) == EOPNOTSUPP, "a process without its main thread moves");
	return NULL;
}

static void end_main_first(long cell)
{
	main_thread = pthread_self();
	start(be_last, cell);
	CHECK(!move_to((unsigned long)cell), "migrate");
	pthread_exit(NULL);
}

static void *kill_all(void *arg)
{
	(void)arg;
	kill(getpid(), SIGTERM);
	return wait_for_ever(NULL);
}

static void killed_by_thread(long cell)
{
	start(wait_for_ever, 0);
	CHECK(!move_to((unsigned long)cell), "migrate");
	start(kill_all, 0);
	wait_for_ever(NULL);
}

/* They take turns, so that one that does not go on holds up all. */
static pthread_mutex_t ring_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ring_turn = PTHREAD_COND_INITIALIZER;
static volatile int turns, stop;

static void *ring(void *arg)
{
	int me = (int)(intptr_t)arg;

	pthread_mutex_lock(&ring_mutex);
	while (!stop) {
		while (turns % RING != me && !stop)
			pthread_cond_wait(&ring_turn, &ring_mutex);
		turns += !stop;
		pthread_cond_broadcast(&ring_turn);
	}
	pthread_mutex_unlock(&ring_mutex);
	return NULL;
}

/* More threads than one request has room for, in whatever cell, made and moved again and again; all numbers different. */
static void *tell_number(void *arg)
{
	*(pid_t *)arg = (pid_t)syscall(SYS_gettid);
	return NULL;
}

static void make_many(long cell)
{
	enum { MANY = 200 };
	pthread_t threads[MANY];
	pid_t numbers[MANY];

	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < MANY; i++)
			threads[i] = start(wait_for_ever, 0);
		CHECK(!move_to((unsigned long)(round + cell) % 2), "migrate");
		for (int i = 0; i < MANY; i++)
			CHECK(!pthread_cancel(threads[i]) && !pthread_join(threads[i], NULL), "thread %d", i);
	}
	for (int i = 0; i < MANY; i++) {
		CHECK(!(errno = pthread_create(&threads[i], NULL, tell_number, &numbers[i])), "pthread_create");
		CHECK(!pthread_join(threads[i], NULL), "joining");
		for (int j = 0; j < i; j++)
			CHECK(numbers[i] != numbers[j], "number %d twice", (int)numbers[i]);
	}
	exit(0);
}

/* The number of a thread that is elsewhere is its own, though nothing has it here; when the thread has ended it is free again. */

struct keeper {
	int say[2], hear[2];
};

static void *end_when_told(void *arg)
{
	const struct keeper *k = arg;
	pid_t me = (pid_t)syscall(SYS_gettid);
	char go;

	CHECK(write(k->say[1], &me, sizeof(me)) == sizeof(me) && read(k->hear[0], &go, 1) == 1, "pipes");
	return NULL;
}

static void keep_number(const struct keeper *k, unsigned long cell)
{
	pthread_t thread = start(end_when_told, (long)(intptr_t)k);
	char done = 1;

	CHECK(!move_to(cell), "migrate");
	CHECK(write(k->say[1], &done, 1) == 1 && !pthread_join(thread, NULL) && write(k->say[1], &done, 1) == 1, "pipes");
	wait_for_ever(NULL);
}

/* The number that the next process gets if the one after @before may be given out. */
static pid_t next_after(pid_t before)
{
	FILE *last = fopen("/proc/sys/kernel/ns_last_pid", "w");
	pid_t child;

	CHECK(last && fprintf(last, "%d", (int)before) > 0 && !fclose(last), "ns_last_pid");
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child)
		_exit(0);
	CHECK(waitpid(child, NULL, 0) == child, "waitpid");
	return child;
}

static void await_free(pid_t tid)
{
	for (int i = 0; next_after(tid - 1) != tid; i++) {
		CHECK(i < 10000, "the number of a thread that ended elsewhere is not free again");
		breathe();
	}
}

/* A process with a thread that goes to @cell. Returns its PID; *@tid is the thread's number. */
static pid_t start_keeper(struct keeper *k, unsigned long cell, pid_t *tid)
{
	pid_t child;

	CHECK(!pipe(k->say) && !pipe(k->hear), "pipe");
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child)
		keep_number(k, cell);
	CHECK(read(k->say[0], tid, sizeof(*tid)) == sizeof(*tid), "pipes");
	return child;
}

static void numbers_are_kept(void)
{
	struct keeper k;
	pid_t tid, child = start_keeper(&k, 1, &tid);
	char byte;

	CHECK(read(k.say[0], &byte, 1) == 1, "pipes");
	CHECK(!syscall(SYS_tgkill, child, tid, 0), "a thread that is elsewhere can be sent to");
	for (int i = 0; i < 3; i++)
		CHECK(next_after(tid - 1) != tid, "the number of a thread that is elsewhere was given out again");
	CHECK(write(k.hear[1], &byte, 1) == 1 && read(k.say[0], &byte, 1) == 1, "pipes");
	await_free(tid);
	CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child, "its end");
}

/* Its cell dies with it. */
static void numbers_are_not_lost(unsigned long cell)
{
	struct keeper k;
	pid_t tid, child = start_keeper(&k, cell, &tid);
	int status;

	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
	await_free(tid);
}

static void says_why(const char *word)
{
	char path[40], why[200] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/ssi/%d/why", (int)getpid());
	file = fopen(path, "r");
	CHECK(file && fgets(why, sizeof(why), file) && strstr(why, word), "the reason is %s, not %s", why, word);
	fclose(file);
}

/* Refused by this cell for a descriptor, by the other one for a directory that only this one has. */
static void be_refused(long cell)
{
	char path[] = "/dev/shm/threads-XXXXXX";
	pthread_t others[RING];
	int ends[2], was;

	CHECK(mkdtemp(path) && !socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "set up");
	for (long i = 0; i < RING; i++)
		others[i] = start(ring, i);
	for (int i = 0; i < REFUSALS; i++) {
		was = turns;
		CHECK(move_to(1) == EOPNOTSUPP, "a process with a socket moves");
		says_why("is a socket");
		while (turns - was < RING * 3)
			breathe();
	}
	close(ends[0]);
	close(ends[1]);
	ends[0] = (int)syscall(SYS_pidfd_open, getpid(), 0);
	CHECK(ends[0] >= 0 && move_to(1) == EOPNOTSUPP, "a process with a pidfd moves");
	says_why("is a pidfd");
	close(ends[0]);
	CHECK(!chdir(path), "%s", path);
	for (int i = 0; i < REFUSALS; i++) {
		was = turns;
		CHECK(move_to(1), "a process moves to where its directory is not");
		while (turns - was < RING * 3)
			breathe();
	}
	CHECK(!chdir("/") && !rmdir(path) && !move_to((unsigned long)cell), "after that it moves");
	was = turns;
	while (turns - was < RING * 3)
		breathe();
	stop = 1;
	for (long i = 0; i < RING; i++)
		CHECK(!pthread_join(others[i], NULL), "joining");
	exit(0);
}

static int status_of(void (*body)(long cell), long cell)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0, "fork");
	if (!child) {
		body(cell);
		_exit(99);
	}
	CHECK(waitpid(child, &status, 0) == child, "waitpid");
	return status;
}

static void any_ask(long cell)
{
	(void)cell;
	all_ask();
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*body)(long cell);
		int exited, by_signal;
	} ways[] = {
		{ "each thread asks for moves", any_ask, 0, 0 },
		{ "a thread exits the process", exit_by_thread, 7, 0 },
		{ "a thread executes a program", exec_by_thread, 5, 0 },
		{ "the main thread ends first", end_main_first, 0, 0 },
		{ "a thread kills the process", killed_by_thread, 0, SIGTERM },
		{ "many threads", make_many, 0, 0 },
		{ "moves are refused", be_refused, 0, 0 },
	};

	if (argc > 1 && !strcmp(argv[1], "executed"))
		return 5;
	self = argv[0];
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc > 2 && !strcmp(argv[1], "lost")) {
		numbers_are_not_lost(strtoul(argv[2], NULL, 0));
		return pass();
	}
	for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++)
		for (long cell = 0; cell < 2; cell++) {
			int status = status_of(ways[i].body, cell);

			CHECK(ways[i].by_signal ? WIFSIGNALED(status) && WTERMSIG(status) == ways[i].by_signal :
						  WIFEXITED(status) && WEXITSTATUS(status) == ways[i].exited,
			      "%s, cell %ld: status %#x", ways[i].name, cell, status);
			printf("threads: %s, cell %ld\n", ways[i].name, cell);
		}
	numbers_are_kept();
	puts("threads: numbers are kept");
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * MIG-6: all threads of a process. Each keeps what it has of its own: its number, registers and floating-point control, signal
 * mask, alternate stack, name, niceness, user memory of its own (TLS), a call in progress. Between them go on: mutexes, condition
 * variables, barriers, semaphores, signals sent to a thread and to the process, making threads and joining them, pipes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "resource.h"

#define RING 3
#define KEEPERS 3
#define KEPT 16

static volatile int stop;
static long rounds;

static int number_here(void)
{
	return (int)syscall(SYS_gettid);
}

/* Keepers: each has everything different from the others'. */

static __thread uint64_t own[KEPT];

struct keeper {
	pthread_t thread;
	int me;
};

static uint64_t spin(uint64_t value)
{
	uint64_t back;

	asm volatile("movq %[v], %%xmm5\n\tmov %[v], %%r12\n\tmov $20000, %%ecx\n\t1: dec %%ecx\n\tjnz 1b\n\t"
		     "movq %%xmm5, %[b]\n\txor %%r12, %[b]"
		     : [b] "=&r"(back)
		     : [v] "r"(value)
		     : "xmm5", "r12", "rcx", "cc");
	return back;
}

static void *keep(void *arg)
{
	struct keeper *k = arg;
	uint32_t mxcsr = 0x1f80 | (uint32_t)(k->me % 4) << 13, now_mxcsr;	/* rounding */
	int number = number_here(), nice_mine = 1 + k->me;
	stack_t stack = { .ss_size = 65536 }, now_stack;
	char name[16], now_name[16];
	sigset_t mask, now_mask;
	pthread_t self = pthread_self();

	stack.ss_sp = malloc(stack.ss_size);
	snprintf(name, sizeof(name), "keeper-%d", k->me);
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + k->me);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGUSR2);
	CHECK(!pthread_sigmask(SIG_SETMASK, &mask, NULL) && !sigaltstack(&stack, NULL) && !prctl(PR_SET_NAME, name) &&
		      !setpriority(PRIO_PROCESS, 0, nice_mine), "set up");
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
	for (int i = 0; i < KEPT; i++)
		own[i] = (uint64_t)number * 1000 + (uint64_t)i;
	while (!stop) {
		CHECK(!spin((uint64_t)number << 32 | 0x5a5a), "registers");
		asm volatile("stmxcsr %0" : "=m"(now_mxcsr));
		CHECK((now_mxcsr & 0x6000) == (mxcsr & 0x6000), "rounding %x, not %x", now_mxcsr, mxcsr);
		CHECK(number_here() == number && pthread_equal(pthread_self(), self), "number %d, not %d", number_here(), number);
		CHECK(!pthread_sigmask(SIG_SETMASK, NULL, &now_mask) && sigismember(&now_mask, SIGRTMIN + k->me) &&
			      sigismember(&now_mask, SIGUSR1) && !sigismember(&now_mask, SIGRTMIN + k->me + 1), "mask");
		CHECK(!sigaltstack(NULL, &now_stack) && now_stack.ss_sp == stack.ss_sp, "alternate stack");
		CHECK(!prctl(PR_GET_NAME, now_name) && !strcmp(name, now_name), "name %s", now_name);
		errno = 0;
		CHECK(getpriority(PRIO_PROCESS, 0) == nice_mine && !errno, "niceness");
		for (int i = 0; i < KEPT; i++)
			CHECK(own[i] == (uint64_t)number * 1000 + (uint64_t)i, "memory of thread %d", number);
		breathe();
	}
	return NULL;
}

/* A ring: a turn is handed on by mutex and condition variable. */

static pthread_mutex_t ring_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ring_turn = PTHREAD_COND_INITIALIZER;
static long turns;

static void *ring(void *arg)
{
	long me = (long)(intptr_t)arg;
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	CHECK(!pthread_sigmask(SIG_UNBLOCK, &mask, NULL), "mask");
	pthread_mutex_lock(&ring_mutex);
	while (!stop) {
		while (turns % RING != me && !stop)
			pthread_cond_wait(&ring_turn, &ring_mutex);
		if (!stop)
			turns++;
		pthread_cond_broadcast(&ring_turn);
	}
	pthread_mutex_unlock(&ring_mutex);
	return NULL;
}

/* Threads come and go. */

static atomic_long born;

static void *be_short(void *arg)
{
	int number = number_here();

	CHECK(number != getpid(), "number of the process");
	atomic_fetch_add(&born, 1);
	if ((intptr_t)arg % 3 == 0)
		breathe();
	CHECK(number_here() == number, "number");
	return (void *)((intptr_t)arg ^ 0x55);
}

static void *make(void *arg)
{
	long made = 0;

	(void)arg;
	for (intptr_t i = 0; !stop; i++, made++) {
		pthread_t thread;
		void *result;

		CHECK(!(errno = pthread_create(&thread, NULL, be_short, (void *)i)), "pthread_create");
		CHECK(!(errno = pthread_join(thread, &result)) && result == (void *)(i ^ 0x55), "pthread_join");
	}
	CHECK(made == atomic_load(&born), "%ld made, %ld born", made, atomic_load(&born));
	return NULL;
}

/* Signals: to one thread, and to the process, of which one thread takes each. */

static volatile int receiver, received_all;
static atomic_long to_thread, to_process;
static sem_t received;

static void on_usr1(int signal)
{
	(void)signal;
	CHECK(number_here() == receiver, "a signal for thread %d was handled by %d", receiver, number_here());
	atomic_fetch_add(&to_thread, 1);
	sem_post(&received);
}

static void on_usr2(int signal)
{
	(void)signal;
	atomic_fetch_add(&to_process, 1);
	sem_post(&received);
}

static void *receive(void *arg)
{
	sigset_t all, mine;

	(void)arg;
	sigfillset(&all);
	mine = all;
	sigdelset(&mine, SIGUSR1);
	sigdelset(&mine, SIGUSR2);
	CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL), "mask");
	receiver = number_here();
	while (!received_all)	/* not before the sender has ended: somebody has to take what it sends */
		sigsuspend(&mine);
	return NULL;
}

static void wait_received(void)
{
	while (sem_wait(&received))
		CHECK(errno == EINTR, "sem_wait");
}

static void *send(void *arg)
{
	pthread_t to = *(pthread_t *)arg;
	long sent = 0;

	while (!receiver)
		breathe();
	for (; !stop; sent++) {
		CHECK(!(errno = pthread_kill(to, SIGUSR1)), "pthread_kill");
		wait_received();
		CHECK(!kill(getpid(), SIGUSR2), "kill");
		wait_received();
		CHECK(atomic_load(&to_thread) == sent + 1 && atomic_load(&to_process) == sent + 1,
		      "%ld sent each, %ld to the thread and %ld to the process came", sent + 1, atomic_load(&to_thread),
		      atomic_load(&to_process));
	}
	return NULL;
}

/* Calls in progress: a pipe that is empty most of the time, and sleeps with an end. */

static int ends[2];

static void *drain(void *arg)
{
	uint32_t expected = 0, came;
	ssize_t n;

	(void)arg;
	while ((n = read(ends[0], &came, sizeof(came))) == sizeof(came)) {
		CHECK(came == expected, "%u came through the pipe, not %u", came, expected);
		expected++;
	}
	CHECK(!n, "read of a pipe: %zd", n);
	return (void *)(intptr_t)expected;
}

static void *nap(void *arg)
{
	(void)arg;
	while (!stop) {
		struct timespec start, now, t = { 0, 3000000 };

		clock_gettime(CLOCK_MONOTONIC, &start);
		CHECK(!(errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL)), "clock_nanosleep");
		clock_gettime(CLOCK_MONOTONIC, &now);
		CHECK((now.tv_sec - start.tv_sec) * 1000000000LL + now.tv_nsec - start.tv_nsec >= t.tv_nsec, "it slept too short");
	}
	return NULL;
}

static pthread_barrier_t gate;

static void *meet(void *arg)
{
	(void)arg;
	for (long i = 0; i < rounds; i++)
		pthread_barrier_wait(&gate);
	return NULL;
}

static pthread_t start(void *(*body)(void *), void *arg)
{
	pthread_t thread;

	CHECK(!(errno = pthread_create(&thread, NULL, body, arg)), "pthread_create");
	return thread;
}

int main(int argc, char **argv)
{
	struct sigaction one = { .sa_handler = on_usr1, .sa_flags = SA_RESTART }, two = { .sa_handler = on_usr2, .sa_flags = SA_RESTART };
	struct keeper keepers[KEEPERS];
	pthread_t others[RING + 5], receiving, draining;
	int n = 0, main_number = number_here();
	void *drained;
	sigset_t mask;

	rounds = rounds_of(argc, argv);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGUSR2);	/* left to the receiver and the ring */
	CHECK(!sigaction(SIGUSR1, &one, NULL) && !sigaction(SIGUSR2, &two, NULL) && !pthread_sigmask(SIG_BLOCK, &mask, NULL), "set up");
	CHECK(!sem_init(&received, 0, 0) && !pipe(ends) && !pthread_barrier_init(&gate, NULL, 2), "set up");
	for (int i = 0; i < KEEPERS; i++) {
		keepers[i].me = i;
		keepers[i].thread = start(keep, &keepers[i]);
	}
	for (long i = 0; i < RING; i++)
		others[n++] = start(ring, (void *)(intptr_t)i);
	others[n++] = start(make, NULL);
	receiving = start(receive, NULL);
	others[n++] = start(send, &receiving);
	others[n++] = start(nap, NULL);
	others[n++] = start(meet, NULL);
	draining = start(drain, NULL);
	for (uint32_t i = 0; i < (uint32_t)rounds; i++) {
		CHECK(write(ends[1], &i, sizeof(i)) == sizeof(i), "writing to the pipe");
		pthread_barrier_wait(&gate);
		CHECK(number_here() == main_number && main_number == getpid(), "number of the main thread");
		breathe();
	}
	stop = 1;
	close(ends[1]);
	CHECK(!pthread_join(draining, &drained) && (long)(intptr_t)drained == rounds, "%ld came through the pipe", (long)(intptr_t)drained);
	for (int i = 0; i < KEEPERS; i++)
		CHECK(!pthread_join(keepers[i].thread, NULL), "joining");
	for (int i = 0; i < n; i++)
		CHECK(!pthread_join(others[i], NULL), "joining");
	received_all = 1;
	CHECK(!pthread_kill(receiving, SIGUSR1) && !pthread_join(receiving, NULL), "joining");
	CHECK(turns > 0, "no turn was handed on");
	return pass();
}

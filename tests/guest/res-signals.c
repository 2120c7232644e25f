// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * MIG-6: signal handlers and masks; pending signals with what they carry, alternate stack, ignored signals. No signal is
 * lost and none comes twice (queued real-time signals are counted).
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

#include "resource.h"

static volatile sig_atomic_t usr1, queued_sum, queued_count, on_alternate, sender_wrong;
static char *stack_low, *stack_high;

static void on_usr1(int signal)
{
	char here;

	(void)signal;
	usr1++;
	on_alternate += &here >= stack_low && &here < stack_high;
}

static void on_queued(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	queued_sum += info->si_value.sival_int;
	queued_count++;
	sender_wrong += info->si_code != SI_QUEUE || info->si_pid != getpid() || info->si_uid != getuid();
}

int main(int argc, char **argv)
{
	long rounds = rounds_of(argc, argv);
	stack_t stack = { .ss_size = 64 * 1024 };
	struct sigaction one = { .sa_handler = on_usr1, .sa_flags = SA_ONSTACK | SA_RESTART },
			 rt = { .sa_sigaction = on_queued, .sa_flags = SA_SIGINFO }, check;
	sigset_t block, none, pending, now;

	stack.ss_sp = stack_low = malloc(stack.ss_size);
	stack_high = stack_low + stack.ss_size;
	sigaddset(&rt.sa_mask, SIGUSR1);
	CHECK(sigaltstack(&stack, NULL) == 0 && sigaction(SIGUSR1, &one, NULL) == 0 && sigaction(SIGRTMIN + 3, &rt, NULL) == 0, "set up");
	signal(SIGUSR2, SIG_IGN);
	sigemptyset(&block);
	sigemptyset(&none);
	sigaddset(&block, SIGUSR1);
	sigaddset(&block, SIGRTMIN + 3);
	CHECK(sigprocmask(SIG_BLOCK, &block, NULL) == 0, "block");
	for (long round = 0; round < rounds; round++) {
		usr1 = queued_sum = queued_count = on_alternate = sender_wrong = 0;
		raise(SIGUSR2);
		kill(getpid(), SIGUSR1);	/* pending for the process; twice is once */
		kill(getpid(), SIGUSR1);
		for (int i = 1; i <= 5; i++)
			CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = i }) == 0, "sigqueue");
		breathe();			/* may move here, with all of them pending */
		CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 3), "pending");
		CHECK(!usr1 && !queued_count, "a blocked signal was delivered");
		sigsuspend(&none);
		CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGUSR1) && !sigismember(&now, SIGUSR2), "mask");
		if (sigpending(&pending) == 0 && (sigismember(&pending, SIGUSR1) || sigismember(&pending, SIGRTMIN + 3)))
			sigsuspend(&none);
		CHECK(usr1 == 1 && on_alternate == 1, "SIGUSR1 came %d times, %d on the alternate stack", usr1, on_alternate);
		CHECK(queued_count == 5 && queued_sum == 15, "%d queued signals came, sum %d", queued_count, queued_sum);
		CHECK(!sender_wrong, "%d with another sender", sender_wrong);
		CHECK(sigaction(SIGRTMIN + 3, NULL, &check) == 0 && check.sa_sigaction == on_queued && check.sa_flags & SA_SIGINFO &&
			      sigismember(&check.sa_mask, SIGUSR1), "handler");
		CHECK(sigaction(SIGUSR2, NULL, &check) == 0 && check.sa_handler == SIG_IGN, "ignored signal");
		CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_sp == stack_low, "alternate stack");
	}
	return pass();
}

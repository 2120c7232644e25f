// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * MIG-5, MIG-6: timers and the system calls that wait. An interval timer keeps its interval and what is left of it; alarm
 * too; sleeps, polls and waits for signals go on for what is left; no clock goes backwards.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include "resource.h"

static volatile sig_atomic_t ticks;

static void on_tick(int signal)
{
	(void)signal;
	ticks++;
}

static long long now_ns(clockid_t clock)
{
	struct timespec t;

	CHECK(clock_gettime(clock, &t) == 0, "clock_gettime");
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv)
{
	long rounds = rounds_of(argc, argv);
	struct sigaction action = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	struct itimerval timer = { .it_interval = { 0, 20000 }, .it_value = { 0, 20000 } }, left;
	long long start = now_ns(CLOCK_MONOTONIC), last[3] = { 0, 0, 0 };
	static const clockid_t clocks[3] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME };

	sigaction(SIGALRM, &action, NULL);
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0, "setitimer");
	for (long round = 0; round < rounds; round++) {
		for (int i = 0; i < 3; i++) {
			long long now = now_ns(clocks[i]);

			CHECK(now >= last[i], "clock %d went back by %lld ns", clocks[i], last[i] - now);
			last[i] = now;
		}
		/* A poll that times out: it took at least its time, though a tick or a move came in between. */
		long long before = now_ns(CLOCK_MONOTONIC);
		int result = poll(NULL, 0, 3);

		CHECK(result == 0 || (result == -1 && errno == EINTR), "poll");
		if (result == 0)
			CHECK(now_ns(CLOCK_MONOTONIC) - before >= 3000000, "a poll of 3 ms took %lld ns", now_ns(CLOCK_MONOTONIC) - before);
		/* An absolute sleep. */
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += 2000000;
		if (until.tv_nsec >= 1000000000)
			until.tv_sec++, until.tv_nsec -= 1000000000;
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
			;
		CHECK(now_ns(CLOCK_MONOTONIC) >= until.tv_sec * 1000000000LL + until.tv_nsec, "an absolute sleep ended early");
		CHECK(getitimer(ITIMER_REAL, &left) == 0 && left.it_interval.tv_usec == 20000, "the interval is %ld us",
		      (long)left.it_interval.tv_usec);
		CHECK(left.it_value.tv_sec == 0 && left.it_value.tv_usec <= 20000, "%ld us are left of the interval", (long)left.it_value.tv_usec);
	}
	/* It ticked all the time; not more often than its interval allows. */
	long long elapsed = now_ns(CLOCK_MONOTONIC) - start;

	CHECK(ticks > 0 || elapsed < 20000000, "the timer never ticked in %lld ns", elapsed);
	CHECK(ticks <= elapsed / 20000000 + 1, "the timer ticked %d times in %lld ns", ticks, elapsed);
	timer.it_value.tv_usec = timer.it_interval.tv_usec = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
	return pass();
}

/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Accesses that may raise a signal: the handler goes back to where the access was tried. */
#ifndef CATCH_H
#define CATCH_H

#include <setjmp.h>
#include <signal.h>

static sigjmp_buf back;
/* What the signal said, if on_fault_info() took it. */
static siginfo_t fault_info;

static inline void on_fault(int signal)
{
	siglongjmp(back, signal);
}

/* The same, for SA_SIGINFO. */
static inline void on_fault_info(int signal, siginfo_t *info, void *context)
{
	(void)context;
	fault_info = *info;
	siglongjmp(back, signal);
}

/* The signal that reading a byte raises, 0 if it succeeds. on_fault() is its handler. */
static inline int read_raises(volatile char *at)
{
	int signal = sigsetjmp(back, 1);

	if (!signal)
		(void)*at;
	return signal;
}

/* The same of writing one. */
static inline int write_raises(volatile char *at)
{
	int signal = sigsetjmp(back, 1);

	if (!signal)
		*at = 1;
	return signal;
}

#endif

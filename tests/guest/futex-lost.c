// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * futex-lost CELL FILE: shares a page with a child, which goes to CELL and waits at a futex in it for ever. The child writes
 * what its wait came to, and what a wake-up says then, into FILE. The parent prints "waits PID" as soon as it does, then
 * waits for its end.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>

#include "shared.h"

#define MOVE_EAGER (1UL << 32)	/* nothing of its own is left in the cell that dies */

static long futex(uint32_t *word, int op, uint32_t val, const void *time, uint32_t *word2)
{
	return syscall(SYS_futex, word, op, val, time, word2, 0);
}

static const char *name_of(long result)
{
	return result < 0 ? strerrorname_np(errno) : "nothing";
}

int main(int argc, char **argv)
{
	uint32_t *word = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const char *first, *second;
	int status, out;
	char line[80];
	pid_t child;

	setvbuf(stdout, NULL, _IONBF, 0);
	CHECK(argc == 3 && word != MAP_FAILED, "usage: futex-lost CELL FILE");
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		while (syscall(NR_MIGRATE, 0, strtoul(argv[1], NULL, 0) | MOVE_EAGER))
			CHECK(errno == EBUSY || errno == EINTR || errno == EAGAIN, "a move");
		first = name_of(futex(word, FUTEX_WAIT, 0, NULL, NULL));
		second = name_of(futex(word, FUTEX_WAKE, 1, NULL, NULL));
		snprintf(line, sizeof(line), "wait %s, wake %s\n", first, second);
		out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
		CHECK(out >= 0 && write(out, line, strlen(line)) == (ssize_t)strlen(line), "%s", argv[2]);
		_exit(0);
	}
	while (futex(word, FUTEX_REQUEUE, 0, (void *)(long)INT_MAX, word) != 1)
		breathe();
	printf("waits %d\n", (int)child);
	CHECK(waitpid(child, &status, 0) == child, "waiting");
	printf("ended %#x, %ld wait\n", status, futex(word, FUTEX_REQUEUE, 0, (void *)(long)INT_MAX, word));
	return 0;
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * `closed`: what a process has open does not stay open in the cell that it has left (MIG-6). A program that it has written, and
 * closed in another cell, can be executed at home: nobody there has it open for writing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define ROUNDS 5

static void write_and_leave(const char *path, int done)
{
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
	struct stat st;
	char byte = 1;

	CHECK(from >= 0 && to >= 0 && !fstat(from, &st), "opening %s", path);
	CHECK(sendfile(to, from, NULL, (size_t)st.st_size) == st.st_size, "copying");
	close(from);
	CHECK(!syscall(NR_MIGRATE, 0, 1UL), "to cell 1");
	CHECK(!close(to) && write(done, &byte, 1) == 1, "closing");
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	char path[40];

	if (argc > 1 && !strcmp(argv[1], "executed"))
		return 5;
	snprintf(path, sizeof(path), "/var/tmp/closed-%d", (int)getpid());
	for (int i = 0; i < ROUNDS; i++) {
		int ends[2], status;
		pid_t writer, child;
		char byte;

		CHECK(!pipe(ends), "pipe");
		writer = fork();
		CHECK(writer >= 0, "fork");
		if (!writer)
			write_and_leave(path, ends[1]);
		close(ends[1]);
		CHECK(read(ends[0], &byte, 1) == 1, "the writer");
		child = fork();
		CHECK(child >= 0, "fork");
		if (!child) {
			execl(path, path, "executed", NULL);
			CHECK(0, "executing what another has written");
		}
		CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5, "status %#x", status);
		CHECK(!kill(writer, SIGKILL) && waitpid(writer, NULL, 0) == writer, "its end");
		close(ends[0]);
	}
	CHECK(!unlink(path), "removing %s", path);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* MIG-6: open file names, offsets and descriptor numbers; flags, close-on-exec, dup, working directory, umask, a pipe to itself. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "resource.h"

int main(int argc, char **argv)
{
	long rounds = rounds_of(argc, argv);
	char folder[] = "/var/tmp/res-files-XXXXXX", cwd[PATH_MAX], path[PATH_MAX + 16];
	int pipes[2];

	CHECK(mkdtemp(folder) && chdir(folder) == 0, "folder");
	int writer = open("data", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int reader = open("data", O_RDONLY);
	int append = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
	int high = fcntl(reader, F_DUPFD, 200);	/* one open file, two numbers: one offset */
	int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), directory = open(".", O_RDONLY | O_DIRECTORY);

	CHECK(writer >= 0 && reader >= 0 && append >= 0 && high == 200 && null >= 0 && zero >= 0 && directory >= 0, "open");
	CHECK(pipe(pipes) == 0 && fcntl(pipes[0], F_SETFL, O_NONBLOCK) == 0, "pipe");
	umask(027);
	for (long round = 0; round < rounds; round++) {
		char line[64], got[64];
		int length = snprintf(line, sizeof(line), "round %ld of %s\n", round, argv[0]);
		off_t before = lseek(writer, 0, SEEK_CUR);

		CHECK(write(writer, line, length) == length, "write");
		CHECK(lseek(writer, 0, SEEK_CUR) == before + length, "offset after a write");
		CHECK(lseek(reader, 0, SEEK_CUR) == before, "the reader's offset is %ld, not %ld", lseek(reader, 0, SEEK_CUR), before);
		breathe();
		/* Half through one number, half through the other. */
		CHECK(read(reader, got, 4) == 4 && read(high, got + 4, length - 4) == length - 4, "read");
		CHECK(!memcmp(line, got, length), "read %.*s", length, got);
		lseek(append, 0, SEEK_SET);
		CHECK(write(append, "x", 1) == 1 && lseek(append, 0, SEEK_CUR) == round + 1, "O_APPEND");
		CHECK((fcntl(writer, F_GETFL) & O_ACCMODE) == O_RDWR && fcntl(writer, F_GETFD) == FD_CLOEXEC, "flags");
		CHECK(fcntl(append, F_GETFL) & O_APPEND && fcntl(append, F_GETFD) == 0, "flags of the log");
		CHECK(read(writer, got, 0) == 0 && read(append, got, 1) == -1 && errno == EBADF, "access mode");
		CHECK(getcwd(cwd, sizeof(cwd)) && !strcmp(cwd, folder), "cwd is %s", cwd);
		CHECK(write(null, line, length) == length && read(null, got, 1) == 0, "/dev/null");
		got[0] = 1;
		CHECK(read(zero, got, 1) == 1 && got[0] == 0, "/dev/zero");
		struct stat st;

		CHECK(fstat(directory, &st) == 0 && S_ISDIR(st.st_mode), "directory");
		snprintf(path, sizeof(path), "new-%ld", round % 4);
		int fresh = openat(directory, path, O_WRONLY | O_CREAT | O_EXCL, 0666);

		CHECK(fresh >= 0 && fstat(fresh, &st) == 0 && (st.st_mode & 0777) == 0640, "umask: mode %o", st.st_mode);
		CHECK(close(fresh) == 0 && unlink(path) == 0, "close and unlink");
		/* What is in the pipe when it moves comes out afterwards. */
		CHECK(write(pipes[1], line, length) == length, "pipe write");
		breathe();
		CHECK(read(pipes[0], got, sizeof(got)) == length && !memcmp(line, got, length), "pipe read");
		CHECK(read(pipes[0], got, 1) == -1 && errno == EAGAIN, "an empty pipe that does not block");
	}
	CHECK(unlink("data") == 0 && unlink("log") == 0 && chdir("/") == 0 && rmdir(folder) == 0, "cleaning up");
	return pass();
}

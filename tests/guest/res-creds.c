// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Credentials, groups, limits, priority, name, process group and session, and other attributes of the task. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "resource.h"

int main(int argc, char **argv)
{
	long rounds = rounds_of(argc, argv);
	gid_t groups[3] = { 4, 33, 1000 }, got[8];
	struct rlimit files = { 77, 99 }, core = { 4096, RLIM_INFINITY }, limit;
	pid_t pid = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0);
	uid_t r, e, s;
	char name[16];

	CHECK(setpriority(PRIO_PROCESS, 0, 7) == 0, "nice");
	CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0 && setrlimit(RLIMIT_CORE, &core) == 0, "limits");
	CHECK(prctl(PR_SET_NAME, "(odd) name") == 0 && prctl(PR_SET_TIMERSLACK, 123456) == 0, "prctl");
	if (geteuid() == 0)
		CHECK(setgroups(3, groups) == 0 && setresgid(33, 34, 35) == 0 && setresuid(33, 34, 33) == 0, "identity");
	uid_t ruid, euid, suid;

	getresuid(&ruid, &euid, &suid);
	int count = getgroups(8, got);

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	for (long round = 0; round < rounds; round++) {
		breathe();
		CHECK(getresuid(&r, &e, &s) == 0 && r == ruid && e == euid && s == suid, "users %d %d %d", r, e, s);
		gid_t now[8];

		CHECK(getgroups(8, now) == count && !memcmp(now, got, count * sizeof(*now)), "groups");
		CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 77 && limit.rlim_max == 99, "RLIMIT_NOFILE");
		CHECK(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 4096 && limit.rlim_max == RLIM_INFINITY, "RLIMIT_CORE");
		errno = 0;
		CHECK(getpriority(PRIO_PROCESS, 0) == 7 && !errno, "nice is %d", getpriority(PRIO_PROCESS, 0));
		CHECK(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "(odd) name"), "name is %s", name);
		CHECK(prctl(PR_GET_TIMERSLACK) == 123456 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "prctl");
		CHECK(getpid() == pid && getppid() == parent, "PID %d, parent %d, not %d, %d", getpid(), getppid(), pid, parent);
		CHECK(getpgrp() == group && getsid(0) == session, "group %d, session %d, not %d, %d", getpgrp(), getsid(0), group, session);
		CHECK(personality(0xffffffff) == 0, "personality %x", personality(0xffffffff));
	}
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * stress SEED CELLS MOVES STRESSOR OPTION...: runs one instance of a stressor of stress-ng with --verify, without end, and moves
 * what can move of it: its leaves, which are the processes that have no children. One of them at random, to a random other
 * cell, a pause, again. After MOVES moves it is interrupted, as by Ctrl-C. Ends with PASS if stress-ng then ends with 0. If
 * moves are refused REFUSALS times in all, it is interrupted too, and the driver fails.
 *
 * What is refused is counted by depth below stress-ng and by the kernel's reason (/proc/ssi/PID/why).
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"
#include "resource.h"

#define NR_MIGRATE 600	/* docs/interfaces.md */
#define FOLDER "/usr/lib/ssi/tests/stress-ng"
#define PAUSE_US 20000
#define REFUSALS 200
#define TASKS 512
#define PLACES 1024	/* a power of two */
#define REASONS 24
#define WHY 160

struct task {
	int pid, parent, zombie;
};

struct reason {
	char text[WHY];
	unsigned long times;
};

static uint64_t state;
/* Where they were moved last: the rest is in this cell. */
static struct {
	int pid;
	uint32_t cell;
} places[PLACES];
static struct reason reasons[REASONS];
static unsigned long refused;

static uint32_t number(uint32_t below)
{
	return random_below(&state, below);
}

static void read_line(int pid, const char *prefix, const char *name, char *line, size_t size)
{
	char path[64];
	FILE *file;

	*line = 0;
	snprintf(path, sizeof(path), "%s/%d/%s", prefix, pid, name);
	file = fopen(path, "r");
	if (!file)
		return;
	if (!fgets(line, (int)size, file))
		*line = 0;
	fclose(file);
	line[strcspn(line, "\n")] = 0;
}

/* All processes of this cell. Those that are away have their deputies here, with their PIDs and parents. */
static int read_tasks(struct task *all)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int count = 0;

	CHECK(proc, "opening /proc");
	while ((entry = readdir(proc))) {
		char line[512], *after, status;
		int pid = atoi(entry->d_name), parent;

		if (!isdigit((unsigned char)*entry->d_name))
			continue;
		read_line(pid, "/proc", "stat", line, sizeof(line));
		after = strrchr(line, ')');
		if (!after || sscanf(after, ") %c %d", &status, &parent) != 2)
			continue;	/* it has ended */
		CHECK(count < TASKS, "too many processes");
		all[count++] = (struct task){ pid, parent, status == 'Z' || status == 'X' };
	}
	closedir(proc);
	return count;
}

static const struct task *find(const struct task *all, int count, int pid)
{
	for (int i = 0; i < count; i++)
		if (all[i].pid == pid)
			return all + i;
	return NULL;
}

/* A leaf below @top at random; 0 if there is none now. Depth below @top is at *@depth. */
static int pick(int top, int *depth)
{
	static struct task all[TASKS];
	int count = read_tasks(all), leaves[TASKS], depths[TASKS], found = 0;

	for (int i = 0; i < count; i++) {
		const struct task *up = &all[i];
		int children = 0, steps = 0;

		for (int j = 0; j < count; j++)
			children += all[j].parent == all[i].pid;
		while (up && up->pid != top && steps < TASKS) {
			up = find(all, count, up->parent);
			steps++;
		}
		if (!up || up->pid != top || !steps || children || all[i].zombie)
			continue;
		leaves[found] = all[i].pid;
		depths[found++] = steps;
	}
	if (!found)
		return 0;
	count = (int)number((uint32_t)found);
	*depth = depths[count];
	return leaves[count];
}

/* Addresses and numbers of descriptors differ from time to time: one reason all the same. */
static void normalise(char *text)
{
	char *at = strstr(text, " at "), *to = text;

	if (at)
		*at = 0;
	for (char *from = text; *from; from++)
		if (!isdigit((unsigned char)*from) || to == text || to[-1] != '#')
			*to++ = isdigit((unsigned char)*from) ? '#' : *from;
	*to = 0;
}

static void count_refusal(int pid, int depth, int error)
{
	char why[WHY - 60], text[WHY];
	int i;

	read_line(pid, "/proc/ssi", "why", why, sizeof(why));
	normalise(why);
	snprintf(text, sizeof(text), "depth %d: %s: %s", depth, strerrorname_np(error), why);
	for (i = 0; i < REASONS - 1 && reasons[i].times && strcmp(reasons[i].text, text); i++)
		;
	strcpy(reasons[i].text, i < REASONS - 1 ? text : "other reasons");
	reasons[i].times++;
	refused++;
}

static pid_t start(char **argv)
{
	char *options[32] = { "stress-ng" }, name[40];
	int count = 1;
	pid_t child = fork();

	CHECK(child >= 0, "fork");
	if (child)
		return child;
	snprintf(name, sizeof(name), "--%s", *argv++);
	options[count++] = name;
	options[count++] = "1";
	options[count++] = "--verify";
	options[count++] = "--no-rand-seed";
	options[count++] = "--metrics-brief";
	while (*argv && count < 31)
		options[count++] = *argv++;
	setenv("LD_LIBRARY_PATH", FOLDER, 1);
	dup2(1, 2);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	execv(FOLDER "/stress-ng", options);
	perror(FOLDER "/stress-ng");
	_exit(127);
}

static int report(const char *name, unsigned long moves, const unsigned long *at, unsigned long wanted, int status)
{
	printf("stress: %s: %lu moves", name, moves);
	for (int i = 1; i < 4; i++)
		if (at[i])
			printf(", %lu at depth %d", at[i], i);
	printf("\n");
	for (int i = 0; i < REASONS && reasons[i].times; i++)
		printf("stress: refused %lu times: %s\n", reasons[i].times, reasons[i].text);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "%s ended with status %#x", name, status);
	CHECK(moves >= wanted, "%s was moved %lu times, not %lu", name, moves, wanted);
	return pass();
}

int main(int argc, char **argv)
{
	unsigned long moves = 0, wanted = argc > 4 ? strtoul(argv[3], NULL, 0) : 0, at[4] = { 0 };
	uint32_t cells = argc > 4 ? (uint32_t)atoi(argv[2]) : 0;
	int status = 0, interrupted = 0;
	pid_t top;

	if (cells < 2 || !wanted || !(state = strtoull(argv[1], NULL, 0))) {
		fprintf(stderr, "usage: %s SEED CELLS MOVES STRESSOR OPTION...\n", argv[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	top = start(argv + 4);
	for (;;) {
		struct timespec pause = { 0, 1000L * (1000 + number(PAUSE_US)) };
		pid_t ended = waitpid(top, &status, WNOHANG);
		int depth = 0, pid, place;
		uint32_t here, to;

		CHECK(ended >= 0, "waiting");
		if (ended == top)
			return report(argv[4], moves, at, wanted, status);
		if (!interrupted && (moves >= wanted || refused >= REFUSALS)) {
			interrupted = 1;
			CHECK(!kill(top, SIGINT), "interrupting it");
		}
		pid = interrupted ? 0 : pick(top, &depth);
		place = pid & (PLACES - 1);
		here = places[place].pid == pid ? places[place].cell : 0;
		to = (here + 1 + number(cells - 1)) % cells;
		if (pid && !syscall(NR_MIGRATE, pid, (unsigned long)to)) {
			places[place].pid = pid;
			places[place].cell = to;
			moves++;
			at[depth < 3 ? depth : 3]++;
		} else if (pid && errno != ESRCH) {	/* ESRCH: it has ended, or is about to */
			count_refusal(pid, depth, errno);
		}
		nanosleep(&pause, NULL);
	}
}

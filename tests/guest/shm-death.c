// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: cells that die. `home`: this process makes shared memory in cell 1, goes on to cell 2, says `ready`, and touches the
 * memory until cell 1 is gone: that raises SIGBUS, and nothing hangs. `borrower`: its child goes to cell 2, says `ready`, and is
 * lost with it: nothing stays lent to that cell.
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "shared.h"

#define PAGES 32UL

static sigjmp_buf back;

static void on_fault(int signal)
{
	siglongjmp(back, signal);
}

static int home(struct mover *m)
{
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	char *area;

	move_to(m, 1);
	area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED, "mapping");
	for (unsigned long i = 0; i < PAGES / 2; i++)
		fill_words((uint32_t *)(area + i * PAGE), 16, i);
	move_to(m, 2);
	for (unsigned long i = 0; i < PAGES / 2; i++)
		check_words((uint32_t *)(area + i * PAGE), 16, i, "before");
	sigaction(SIGBUS, &action, NULL);
	puts("ready");
	if (!sigsetjmp(back, 1)) {
		for (unsigned long i = 0; i < 60000; i++) {
			((volatile char *)area)[i % (PAGES / 2) * PAGE]++;
			breathe();
		}
		CHECK(0, "the memory of a dead cell is still there");
	}
	/* A page that was never asked for is as lost. */
	if (!sigsetjmp(back, 1)) {
		((volatile char *)area)[(PAGES - 1) * PAGE] = 1;
		CHECK(0, "a page of a dead cell was lent");
	}
	CHECK(munmap(area, PAGES * PAGE) == 0, "munmap");
	return pass();
}

/* Nothing is lent to cell 2 any more. */
static void await_returned(void)
{
	char line[128];
	long lent = -1;

	for (int i = 0; i < 5000 && lent; i++) {
		FILE *file = fopen("/proc/ssi/shared", "r");

		CHECK(file, "/proc/ssi/shared");
		while (fgets(line, sizeof(line), file))
			if (sscanf(line, "lent_now_pages_to_2 %ld", &lent) == 1)
				break;
		fclose(file);
		breathe();
	}
	CHECK(!lent, "%ld pages are lent to a cell that is dead", lent);
}

static int borrower(struct mover *m)
{
	char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t child;

	CHECK(area != MAP_FAILED, "mapping");
	for (unsigned long i = 0; i < PAGES; i++)
		fill_words((uint32_t *)(area + i * PAGE), 16, i);
	child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		move_to(m, 2);
		for (unsigned long i = 0; i < PAGES; i++)
			check_words((uint32_t *)(area + i * PAGE), 16, i, "before");
		puts("ready");
		for (;;)
			pause();
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "the child's status is %#x", status);
	await_returned();
	pass();
	/* The pages stay as they are: one whose only copy was in the other cell is lost, and to touch it ends this cell. */
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	char *args[] = { argv[0], "once", "3" };
	struct mover m;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, 3, args, 1);
	if (argc == 2 && !strcmp(argv[1], "home"))
		return home(&m);
	if (argc == 2 && !strcmp(argv[1], "borrower"))
		return borrower(&m);
	fprintf(stderr, "usage: %s home|borrower\n", argv[0]);
	return 2;
}

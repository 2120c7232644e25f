// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5, DSM-I4: cells that die.
 *
 * `home`: this process makes shared memory in cell 1, comes back to cell 0, says `ready`, and touches the memory until cell 1 is
 * gone: that raises SIGBUS, and nothing hangs.
 *
 * `lost`: memory of cell 0 is shared with a process in cell 1 and one in cell 2, which says `ready` and is lost with it. What it
 * alone had is lost: in cell 0 and in cell 1 an access raises SIGBUS at that address, a system call fails, and nothing else
 * happens to anybody. What it had only read, what the other one has and what nobody touched is as it was, nothing stays lent to
 * it, and all memory that is left works.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>

#include "catch.h"
#include "shared.h"

#define PAGES 64UL
/* In `lost`: pages that cell 2 writes, pages that it reads, pages that cell 1 writes; nobody touches the rest. */
#define WRITTEN 16UL
#define READ 32UL
#define OTHERS 48UL

static void catch_sigbus(void)
{
	struct sigaction action = { .sa_sigaction = on_fault_info, .sa_flags = SA_NODEFER | SA_SIGINFO };

	CHECK(sigaction(SIGBUS, &action, NULL) == 0, "sigaction");
}

static uint32_t *page(char *area, unsigned long n)
{
	return (uint32_t *)(area + n * PAGE);
}

static int home(struct mover *m)
{
	char *area;

	move_to(m, 1);
	area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED, "mapping");
	for (unsigned long i = 0; i < PAGES / 2; i++)
		fill_words(page(area, i), 16, i);
	move_to(m, 0);
	for (unsigned long i = 0; i < PAGES / 2; i++)
		check_words(page(area, i), 16, i, "before");
	catch_sigbus();
	puts("ready");
	if (!sigsetjmp(back, 1)) {
		for (unsigned long i = 0; i < 60000; i++) {
			((volatile char *)area)[i % (PAGES / 2) * PAGE]++;
			breathe();
		}
		CHECK(0, "the memory of a dead cell is still there");
	}
	/* A page that was never asked for is as lost. */
	CHECK(write_raises(area + (PAGES - 1) * PAGE) == SIGBUS, "a page of a dead cell was lent");
	CHECK(munmap(area, PAGES * PAGE) == 0, "munmap");
	return pass();
}

/* The value of a line `KEY VALUE` of /proc/ssi/shared. */
static long shared_figure(const char *key)
{
	FILE *file = fopen("/proc/ssi/shared", "r");
	char line[128], name[64];
	long value, found = -1;

	CHECK(file, "/proc/ssi/shared");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "%63s %ld", name, &value) == 2 && !strcmp(name, key))
			found = value;
	fclose(file);
	CHECK(found >= 0, "/proc/ssi/shared does not say %s", key);
	return found;
}

/* What page @n holds in `lost`, by whoever wrote it last. */
static unsigned long content(unsigned long n)
{
	return n < WRITTEN || (n >= READ && n < OTHERS) ? n + 1000 : n;
}

static void check_lost(char *area, unsigned long n, int fd, int spare, const char *who)
{
	char *at = area + n * PAGE + 100 + n;
	char byte;
	int signal;

	/* Odd pages are met by the kernel first. */
	if (n % 2) {
		CHECK(write(spare, at, 1) == -1 && errno == EFAULT, "%s: write from page %lu: errno %d", who, n, errno);
		CHECK(syscall(SYS_futex, page(area, n), FUTEX_WAIT, 1, NULL, NULL, 0) == -1 && errno == EFAULT,
		      "%s: futex in page %lu: errno %d", who, n, errno);
	}
	for (int twice = 0; twice < 2; twice++) {
		memset(&fault_info, 0, sizeof(fault_info));
		signal = twice ? write_raises(at) : read_raises(at);
		CHECK(signal == SIGBUS, "%s: page %lu is lost, and touching it raised %d", who, n, signal);
		CHECK(fault_info.si_addr == at, "%s: SIGBUS at %p, not %p", who, fault_info.si_addr, at);
		CHECK(fault_info.si_code == BUS_MCEERR_AR || fault_info.si_code == BUS_ADRERR, "%s: SIGBUS with code %d", who,
		      fault_info.si_code);
	}
	CHECK(pread(fd, &byte, 1, at - area) == -1 && errno == EIO, "%s: pread of page %lu: errno %d", who, n, errno);
}

static void check_after(char *area, int fd, const char *who)
{
	int spare[2];

	CHECK(pipe(spare) == 0, "pipe");
	catch_sigbus();
	for (unsigned long i = 0; i < WRITTEN; i++)
		check_lost(area, i, fd, spare[1], who);
	for (unsigned long i = WRITTEN; i < PAGES; i++)
		check_words(page(area, i), 1024, content(i), who);
	close(spare[0]);
	close(spare[1]);
}

/* All memory that this cell has left works. */
static void use_all_memory(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	unsigned long kib = 0;
	uint32_t *all;

	CHECK(file, "/proc/meminfo");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %lu", &kib) == 1)
			break;
	fclose(file);
	CHECK(kib > 64 << 10, "%lu KiB are available", kib);
	kib -= 32 << 10;
	all = mmap(NULL, kib << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(all != MAP_FAILED, "mapping %lu KiB", kib);
	for (unsigned long i = 0; i < kib / 4; i++)
		all[i * 1024] = i;
	for (unsigned long i = 0; i < kib / 4; i++)
		CHECK(all[i * 1024] == i && !all[i * 1024 + 1], "page %lu of all memory", i);
	munmap(all, kib << 10);
}

/* The process in cell @cell: writes or reads its pages, says so, and waits for a word. */
static pid_t start(struct mover *m, int cell, char *area, int fd, const int say[2], const int hear[2])
{
	pid_t child = fork();
	char word;

	CHECK(child >= 0, "fork");
	if (child)
		return child;
	move_to(m, cell);
	if (cell == 2) {
		for (unsigned long i = 0; i < WRITTEN; i++)
			fill_words(page(area, i), 1024, content(i));
		for (unsigned long i = WRITTEN; i < READ; i++)
			check_words(page(area, i), 1024, content(i), "before");
	} else {
		for (unsigned long i = READ; i < OTHERS; i++)
			fill_words(page(area, i), 1024, content(i));
		/* Pages that are mapped here, and that cell 2 takes again. */
		for (unsigned long i = 0; i < WRITTEN; i += 3)
			check_words(page(area, i), 1024, i, "before");
	}
	CHECK(write(say[1], "r", 1) == 1, "ready");
	CHECK(read(hear[0], &word, 1) == 1, "the word to go on");
	check_after(area, fd, "in cell 1");
	_exit(0);
}

static int lost(struct mover *m)
{
	int fd = memfd_create("lost", 0), say[2], go[2], never[2], status;
	pid_t third, dies;
	char *area, word;

	CHECK(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "memfd");
	area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(area != MAP_FAILED, "mapping");
	for (unsigned long i = 0; i < PAGES; i++)
		fill_words(page(area, i), 1024, i < WRITTEN ? i : i >= READ && i < OTHERS ? i : content(i));
	CHECK(pipe(say) == 0 && pipe(go) == 0 && pipe(never) == 0, "pipes");
	third = start(m, 1, area, fd, say, go);
	CHECK(read(say[0], &word, 1) == 1, "cell 1");
	dies = start(m, 2, area, fd, say, never);
	CHECK(read(say[0], &word, 1) == 1, "cell 2");
	puts("ready");
	CHECK(waitpid(dies, &status, 0) == dies && WIFSIGNALED(status), "the child's status is %#x", status);

	CHECK(write(go[1], "g", 1) == 1, "go");
	join(third, "the process in cell 1");
	check_after(area, fd, "at home");
	CHECK(shared_figure("lent_now_pages_to_2") == 0, "pages are lent to a cell that is dead");
	CHECK(shared_figure("lost_pages") >= (long)WRITTEN, "%ld pages are lost", shared_figure("lost_pages"));
	use_all_memory();
	/* A page is new when what was lost of the file has been cut off. */
	CHECK(ftruncate(fd, 0) == 0 && ftruncate(fd, PAGES * PAGE) == 0, "ftruncate");
	for (unsigned long i = 0; i < PAGES; i++)
		CHECK(!*page(area, i), "a new page %lu", i);
	CHECK(munmap(area, PAGES * PAGE) == 0 && close(fd) == 0, "the end");
	use_all_memory();
	return pass();
}

int main(int argc, char **argv)
{
	char *args[] = { argv[0], "once", "3" };
	struct mover m;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, 3, args, 1);
	if (argc == 2 && !strcmp(argv[1], "home"))
		return home(&m);
	if (argc == 2 && !strcmp(argv[1], "lost"))
		return lost(&m);
	fprintf(stderr, "usage: %s home|lost\n", argv[0]);
	return 2;
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * DSM-5: shared pages in memory that no other cell can reach (a cell's low RAM, the allocator's last resort) move into the slice
 * when they are lent. `shm-low [MODE [CELLS]]`: private memory fills the cell up while the shared pages are made.
 */
#define _GNU_SOURCE
#include "shared.h"

#define PAGES 256UL
#define STEP (2UL << 20)
#define STEPS 512UL

static long figure(const char *path, const char *name)
{
	char line[128];
	long value = 0;
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			value = atol(line + strlen(name));
	if (file)
		fclose(file);
	return value;
}

static void work(struct mover *m, int me, void *arg)
{
	char *area = arg;

	(void)me;
	(void)m;
	for (unsigned long i = 0; i < PAGES; i++)
		check_words((uint32_t *)(area + i * PAGE), 64, (uint32_t)i, "a page from low memory");
	for (unsigned long i = 0; i < PAGES; i += 8)
		fill_words((uint32_t *)(area + i * PAGE), 64, (uint32_t)i + 5);
}

int main(int argc, char **argv)
{
	char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *fill = mmap(NULL, STEPS * STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long before = figure("/proc/ssi/shared", "moved_frames_count ");
	struct mover m;

	setvbuf(stdout, NULL, _IONBF, 0);
	mover_init(&m, argc, argv, 1);
	CHECK(area != MAP_FAILED && fill != MAP_FAILED, "mapping");
	/* Until the slice is full, and some of the low RAM. */
	for (unsigned long i = 0; i < STEPS && figure("/proc/meminfo", "MemFree:") > 64 << 10; i++)
		madvise(fill + i * STEP, STEP, MADV_POPULATE_WRITE);
	for (unsigned long i = 0; i < PAGES; i++)
		fill_words((uint32_t *)(area + i * PAGE), 64, (uint32_t)i);
	munmap(fill, STEPS * STEP);
	run_workers(&m, 1, work, area);
	for (unsigned long i = 0; i < PAGES; i++)
		check_words((uint32_t *)(area + i * PAGE), 64, (uint32_t)i + (i % 8 ? 0 : 5), "afterwards");
	printf("%ld frames moved\n", figure("/proc/ssi/shared", "moved_frames_count ") - before);
	return pass();
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * `images SEED COUNT`: a process with threads is written to a file, ended, and restarted from it; it goes on where it was. Then COUNT
 * images that were damaged in a few places and carry the right check sum: each is refused, or becomes something that can be
 * killed. The kernel has to outlive all of it; the log is for the driver to look at.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"
#include "resource.h"

/* docs/interfaces.md, guest-kernel/ssi/uapi.h */
#define NR_RESTART 601
struct checkpoint {
	uint32_t size;
	int32_t pid, fd;
	uint32_t flags;
};
#define IOC_CHECKPOINT _IOW('S', 2, struct checkpoint)
#define CHECKPOINT_KILL 1

/* docs/image-format.md */
struct record {
	uint32_t type;
	uint16_t version, flags;
	uint64_t length;
};
#define PAGES 16
#define END 18
#define RECORDS 4096
#define THREADS 2
#define LIVES_MS 500

static uint64_t state;

static uint32_t number(uint32_t below)
{
	return random_below(&state, below);
}

static int beats;	/* a file with a counter of each thread */

static void *beat(void *arg)
{
	uint64_t n = 0;

	for (;;) {
		n++;
		CHECK(pwrite(beats, &n, sizeof(n), (long)(intptr_t)arg * (long)sizeof(n)) == sizeof(n), "beat");
		breathe();
	}
	return NULL;
}

static void on_signal(int sig)
{
	(void)sig;
}

static void live(const char *path)
{
	sigset_t some;

	/* Pipes, terminals and devices are in no image, nor are offsets that others use. */
	CHECK(!close_range(0, ~0U, 0), "descriptors");
	for (int fd = 0; fd < 3; fd++)
		CHECK(open("/dev/null", O_RDWR) == fd, "/dev/null");
	beats = open(path, O_RDWR);
	sigemptyset(&some);
	sigaddset(&some, SIGUSR2);
	CHECK(!sigprocmask(SIG_BLOCK, &some, NULL) && signal(SIGUSR1, on_signal) != SIG_ERR && !raise(SIGUSR2), "signals");
	for (intptr_t i = 1; i <= THREADS; i++) {
		pthread_t thread;

		CHECK(!(errno = pthread_create(&thread, NULL, beat, (void *)i)), "pthread_create");
	}
	beat(NULL);
}

static void read_beats(uint64_t now[THREADS + 1])
{
	CHECK(pread(beats, now, (THREADS + 1) * sizeof(*now), 0) == (ssize_t)((THREADS + 1) * sizeof(*now)), "beats");
}

/* Has each thread counted on from @from? */
static int beat_on(const uint64_t from[THREADS + 1])
{
	uint64_t now[THREADS + 1] = { 0 };
	int on = pread(beats, now, sizeof(now), 0) == sizeof(now);

	for (int i = 0; i <= THREADS; i++)
		on &= now[i] != from[i];
	return on;
}

static pid_t restart(const uint8_t *image, size_t size)
{
	pid_t child = fork();

	CHECK(child >= 0, "fork");
	if (!child) {
		int fd = memfd_create("image", MFD_CLOEXEC);

		if (fd < 0 || write(fd, image, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET))
			_exit(3);
		syscall(NR_RESTART, fd);
		_exit(errno == EOPNOTSUPP ? 2 : 1);
	}
	return child;
}

/* Its status when it has ended, or 0: it runs as it should, or does nothing of note for a while, and is killed. */
static int end(pid_t child, const uint64_t before[THREADS + 1])
{
	int status;

	for (int i = 0; i < LIVES_MS && !beat_on(before); i++) {
		if (waitpid(child, &status, WNOHANG) == child)
			return status;
		breathe();
	}
	CHECK(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child, "killing it");
	return 0;
}

static uint32_t crc32(const uint8_t *at, size_t size)
{
	uint32_t crc = 0;

	while (size--) {
		crc ^= *at++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return crc;
}

struct image {
	uint8_t *data;
	size_t size, room;
	size_t at[RECORDS];	/* of record headers; the last is END */
	int count;
};

static struct record *record(struct image *image, int i)
{
	return (struct record *)(image->data + image->at[i]);
}

static void index_image(struct image *image)
{
	size_t at = 0;

	image->count = 0;
	while (at < image->size) {
		const struct record *r = (const struct record *)(image->data + at);

		CHECK(image->count < RECORDS && r->length <= image->size - at - sizeof(*r), "image");
		image->at[image->count++] = at;
		at += sizeof(*r) + r->length;
	}
	CHECK(record(image, image->count - 1)->type == END, "image without an end");
}

static void seal(struct image *image)
{
	size_t end_at = image->size - sizeof(struct record) - 8;
	uint32_t *last = (uint32_t *)(image->data + image->size - 8);

	last[0] = (uint32_t)image->count - 1;
	last[1] = crc32(image->data, end_at);
}

/* Any record but END; pages seldom. */
static int some_record(struct image *image)
{
	int i;

	do {
		i = (int)number((uint32_t)image->count - 1);
	} while (record(image, i)->type == PAGES && number(20));
	return i;
}

static void repeat(struct image *image, int i)
{
	size_t size = sizeof(struct record) + record(image, i)->length, at = image->at[number((uint32_t)image->count)];
	uint8_t *copy = malloc(size);

	if (image->size + size <= image->room) {
		memcpy(copy, record(image, i), size);
		memmove(image->data + at + size, image->data + at, image->size - at);
		memcpy(image->data + at, copy, size);
		image->size += size;
	}
	free(copy);
}

static void leave_out(struct image *image, int i)
{
	size_t size = sizeof(struct record) + record(image, i)->length;

	memmove(image->data + image->at[i], image->data + image->at[i] + size, image->size - image->at[i] - size);
	image->size -= size;
}

static void damage(struct image *image)
{
	static const uint64_t odd[] = { 0, 1, 8, 0xfff, 0x1000, 0x7fffffff, 0x80000000, 0xffffffff, 0x7ffffffff000, 0x800000000000,
					0x8000000000000000, 0xffffffff81000000, 0xffffffffffffffff };
	int i = some_record(image);
	struct record *r = record(image, i);
	uint8_t *body = (uint8_t *)(r + 1);
	uint64_t value = odd[number(sizeof(odd) / sizeof(*odd))];

	switch (number(10)) {
	case 0:
		r->type = number(24);
		break;
	case 1:
		repeat(image, i);
		break;
	case 2:
		leave_out(image, i);
		break;
	case 3:	/* a byte */
		if (r->length)
			body[number((uint32_t)r->length)] = (uint8_t)number(256);
		break;
	default:	/* a field */
		if (r->length >= 8)
			memcpy(body + 4 * number((uint32_t)r->length / 4 - 1), &value, number(2) ? 4 : 8);
	}
	index_image(image);
}

static void read_image(struct image *image, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	CHECK(fd >= 0 && !fstat(fd, &st), "%s", path);
	image->size = (size_t)st.st_size;
	image->room = image->size * 2;
	image->data = malloc(image->room);
	CHECK(image->data && read(fd, image->data, image->size) == st.st_size, "reading %s", path);
	close(fd);
	index_image(image);
}

int main(int argc, char **argv)
{
	char beats_path[48], image_path[48];
	uint64_t before[THREADS + 1] = { 0 };
	struct checkpoint c = { .size = sizeof(c), .flags = CHECKPOINT_KILL };
	int ssi, status, count, refused = 0, ran = 0;
	struct image whole = { 0 }, image;

	if (argc != 3 || !(state = strtoull(argv[1], NULL, 0)) || (count = atoi(argv[2])) < 1) {
		fprintf(stderr, "usage: %s SEED COUNT\n", argv[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	snprintf(beats_path, sizeof(beats_path), "/var/tmp/images-beats-%d", (int)getpid());
	snprintf(image_path, sizeof(image_path), "/var/tmp/images-image-%d", (int)getpid());
	beats = open(beats_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	ssi = open("/dev/ssi", O_RDWR | O_CLOEXEC);
	c.fd = open(image_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(beats >= 0 && ssi >= 0 && c.fd >= 0, "set up");
	c.pid = fork();
	CHECK(c.pid >= 0, "fork");
	if (!c.pid) {
		setsid();
		live(beats_path);
	}
	while (!beat_on(before))
		breathe();
	CHECK(!ioctl(ssi, IOC_CHECKPOINT, &c), "checkpoint");
	CHECK(waitpid(c.pid, &status, 0) == c.pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x", status);
	read_image(&whole, image_path);

	read_beats(before);
	c.pid = restart(whole.data, whole.size);
	while (!beat_on(before))
		CHECK(!waitpid(c.pid, &status, WNOHANG), "it was not restarted: status %#x", status);
	CHECK(!kill(c.pid, SIGKILL) && waitpid(c.pid, &status, 0) == c.pid, "its end");

	image.room = whole.room;
	image.data = malloc(image.room);
	CHECK(image.data, "memory");
	for (int i = 0; i < count; i++) {
		image.size = whole.size;
		memcpy(image.data, whole.data, whole.size);
		index_image(&image);
		for (uint32_t n = 1 + number(3); n; n--)
			damage(&image);
		seal(&image);
		read_beats(before);
		status = end(restart(image.data, image.size), before);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
			refused++;
		else
			ran++;
	}
	printf("images: seed %s: of %d damaged images %d were refused, %d ran until their end\n", argv[1], count, refused, ran);
	unlink(beats_path);
	unlink(image_path);
	return pass();
}

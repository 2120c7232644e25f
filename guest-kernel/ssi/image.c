// SPDX-License-Identifier: GPL-2.0
/*
 * Writing and reading the image of a process: bytes, records, check sum.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/crc32.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "image.h"

#define FILE_BUF	(128U << 10)

static int flush_to_file(struct ssi_sink *sink)
{
	loff_t *pos = sink->file->f_mode & FMODE_STREAM ? NULL : &sink->pos;
	u32 done = 0;

	while (done < sink->used) {
		ssize_t n = kernel_write(sink->file, sink->buf + done, sink->used - done, pos);

		if (n == -ERESTARTSYS)
			return -EINTR;
		if (n < 0)
			return n;
		if (!n)
			return -ENOSPC;
		done += n;
	}
	sink->used = 0;
	return 0;
}

int ssi_sink_file(struct ssi_sink *sink, struct file *file)
{
	memset(sink, 0, sizeof(*sink));
	sink->buf = kvmalloc(FILE_BUF, GFP_KERNEL);
	if (!sink->buf)
		return -ENOMEM;
	sink->room = FILE_BUF;
	sink->file = file;
	sink->pos = file->f_pos;
	sink->flush = flush_to_file;
	return 0;
}

void ssi_sink_release(struct ssi_sink *sink)
{
	kvfree(sink->buf);
	sink->buf = NULL;
}

int ssi_write(struct ssi_sink *sink, const void *data, size_t len)
{
	sink->crc = crc32_le(sink->crc, data, len);
	sink->bytes += len;
	while (len) {
		size_t n = min_t(size_t, len, sink->room - sink->used);
		int err;

		memcpy(sink->buf + sink->used, data, n);
		sink->used += n;
		data += n;
		len -= n;
		if (sink->used < sink->room)
			break;
		err = sink->flush(sink);
		if (err)
			return err;
	}
	return 0;
}

int ssi_write_hdr(struct ssi_sink *sink, u32 type, u64 len)
{
	struct ssi_rec_hdr hdr = { .type = type, .version = 1, .length = len };

	sink->records++;
	return ssi_write(sink, &hdr, sizeof(hdr));
}

int ssi_write_rec(struct ssi_sink *sink, u32 type, const void *data, size_t len)
{
	return ssi_write_rec2(sink, type, data, len, NULL, 0);
}

int ssi_write_rec2(struct ssi_sink *sink, u32 type, const void *a, size_t alen, const void *b, size_t blen)
{
	int err = ssi_write_hdr(sink, type, alen + blen);

	if (!err)
		err = ssi_write(sink, a, alen);
	if (!err && blen)
		err = ssi_write(sink, b, blen);
	return err;
}

int ssi_write_end(struct ssi_sink *sink)
{
	struct ssi_rec_end end = { .records = sink->records, .crc = sink->crc };	/* before this record */
	int err = ssi_write_rec(sink, SSI_REC_END, &end, sizeof(end));

	if (!err && sink->used)
		err = sink->flush(sink);
	if (!err && sink->file && !(sink->file->f_mode & FMODE_STREAM))
		sink->file->f_pos = sink->pos;
	return err;
}

int ssi_read_file(struct ssi_source *src, void *buf, size_t len)
{
	loff_t *pos = src->file->f_mode & FMODE_STREAM ? NULL : &src->file->f_pos;

	while (len) {
		ssize_t n = kernel_read(src->file, buf, len, pos);

		if (n == -ERESTARTSYS || n == -ERESTARTNOINTR)
			return -EINTR;
		if (n < 0)
			return n;
		if (!n)
			return -ENODATA;
		buf += n;
		len -= n;
	}
	return 0;
}

int ssi_read(struct ssi_source *src, void *buf, size_t len)
{
	int err = src->read(src, buf, len);

	if (err)
		return err;
	src->crc = crc32_le(src->crc, buf, len);
	src->bytes += len;
	return 0;
}

int ssi_read_hdr(struct ssi_source *src, struct ssi_rec_hdr *hdr)
{
	int err;

	src->crc_before = src->crc;
	err = ssi_read(src, hdr, sizeof(*hdr));
	if (!err)
		src->records++;
	return err;
}

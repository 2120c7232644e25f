// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/ssi/rfile_test (root only): hands open files from one cell to another, so that remote descriptors can be tried
 * with ordinary programs and without moving a process.
 *
 *	offer NAME FD	exports the writer's descriptor FD under NAME, in this cell
 *	take CELL NAME	imports what CELL offers as NAME into the writer's descriptor table; the next read of the same
 *			open file says which descriptor it became. ENOENT: nothing offered (yet).
 */
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "proc.h"
#include "rfile.h"
#include "rpc.h"

#define OP_TAKE		(SSI_OP_SELFTEST + 8)
#define NAME_BYTES	16
#define OFFERS_MAX	256

struct offer {
	struct list_head link;
	char name[NAME_BYTES];
	struct ssi_rfile_ref ref;
};

static DEFINE_MUTEX(offers_lock);
static LIST_HEAD(offers);
static unsigned int offers_count;

static int offer(const char *name, int fd)
{
	struct offer *offer;
	struct file *file;
	int error;

	if (offers_count >= OFFERS_MAX)
		return -ENOSPC;
	offer = kzalloc(sizeof(*offer), GFP_KERNEL);
	file = fget(fd);
	error = !offer ? -ENOMEM : !file ? -EBADF : ssi_rfile_export(file, &offer->ref);
	if (file)
		fput(file);
	if (error) {
		kfree(offer);
		return error;
	}
	strscpy(offer->name, name, NAME_BYTES);
	mutex_lock(&offers_lock);
	list_add_tail(&offer->link, &offers);
	offers_count++;
	mutex_unlock(&offers_lock);
	return 0;
}

static ssize_t handle_take(struct ssi_request *req)
{
	struct offer *offer, *found = NULL;

	if (req->len != NAME_BYTES)
		return -EINVAL;
	mutex_lock(&offers_lock);
	list_for_each_entry(offer, &offers, link) {
		if (!strncmp(offer->name, req->body, NAME_BYTES)) {
			found = offer;
			list_del(&found->link);
			offers_count--;
			break;
		}
	}
	mutex_unlock(&offers_lock);
	if (!found)
		return -ENOENT;
	memcpy(req->reply, &found->ref, sizeof(found->ref));
	kfree(found);
	return sizeof(struct ssi_rfile_ref);
}

static int take(u32 cell, const char *name)
{
	char padded[NAME_BYTES] = "";
	struct ssi_rfile_ref ref;
	struct file *file;
	ssize_t n;
	int fd;

	strscpy(padded, name, NAME_BYTES);
	n = ssi_call(cell, OP_TAKE, padded, sizeof(padded), &ref, sizeof(ref), 30 * HZ);
	if (n != sizeof(ref))
		return n < 0 ? n : -EIO;
	fd = get_unused_fd_flags(0);
	if (fd < 0) {
		ssi_rfile_unexport(&ref);
		return fd;
	}
	file = ssi_rfile_import(&ref);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		ssi_rfile_unexport(&ref);
		return PTR_ERR(file);
	}
	fd_install(fd, file);
	return fd;
}

static ssize_t rfile_test_write(struct file *file, const char __user *from, size_t size, loff_t *pos)
{
	char line[64], name[NAME_BYTES];
	int number, result;

	if (!size || size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, size))
		return -EFAULT;
	line[size] = '\0';
	if (sscanf(line, "offer %15s %d", name, &number) == 2)
		result = offer(name, number);
	else if (sscanf(line, "take %d %15s", &number, name) == 2)
		result = take(number, name);
	else
		result = -EINVAL;
	if (result < 0)
		return result;
	WRITE_ONCE(file->private_data, (void *)(long)result);
	return size;
}

static ssize_t rfile_test_read(struct file *file, char __user *to, size_t size, loff_t *pos)
{
	char line[16];
	int n = scnprintf(line, sizeof(line), "%ld\n", (long)READ_ONCE(file->private_data));

	return simple_read_from_buffer(to, size, pos, line, n);
}

static const struct proc_ops rfile_test_ops = {
	.proc_read = rfile_test_read,
	.proc_write = rfile_test_write,
	.proc_lseek = default_llseek,
};

static int __init rfile_test_init(void)
{
	ssi_rpc_register(OP_TAKE, handle_take);
	return proc_create("rfile_test", 0600, ssi_proc_root, &rfile_test_ops) ? 0 : -ENOMEM;
}
rootfs_initcall(rfile_test_init);

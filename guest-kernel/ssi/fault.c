// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/ssi/fault: write the name of a step, and this cell dies when it comes to it; "none" disarms. Reading lists the
 * steps, one per line, the armed one marked. For tests: a cell that dies by chance never dies where it matters.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/proc_fs.h>
#include <linux/reboot.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "fault.h"
#include "proc.h"

static const char *const names[SSI_FAULTS] = {
	[SSI_FAULT_NONE] = "none",
	[SSI_FAULT_OFFER] = "offer",
	[SSI_FAULT_SAVE] = "save",
	[SSI_FAULT_IMAGE] = "image",
	[SSI_FAULT_BUILD] = "build",
	[SSI_FAULT_READY] = "ready",
	[SSI_FAULT_COMMIT] = "commit",
	[SSI_FAULT_LEFT] = "left",
	[SSI_FAULT_RUN] = "run",
};

enum ssi_fault ssi_fault_armed;

void ssi_fault_die(enum ssi_fault at)
{
	pr_emerg("dies at \"%s\", as it was told\n", names[at]);
	emergency_restart();
}

static int fault_show(struct seq_file *m, void *v)
{
	int i;

	for (i = 0; i < SSI_FAULTS; i++)
		seq_printf(m, "%s%s\n", names[i], i == READ_ONCE(ssi_fault_armed) ? " armed" : "");
	return 0;
}

static int fault_open(struct inode *inode, struct file *file)
{
	return single_open(file, fault_show, NULL);
}

static ssize_t fault_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char word[16];
	int i;

	if (!size || size >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, from, size))
		return -EFAULT;
	word[size] = '\0';
	i = match_string(names, SSI_FAULTS, strim(word));
	if (i < 0)
		return -EINVAL;
	WRITE_ONCE(ssi_fault_armed, i);
	return size;
}

static const struct proc_ops fault_ops = {
	.proc_open = fault_open,
	.proc_read = seq_read,
	.proc_write = fault_write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static int __init fault_init(void)
{
	return proc_create("fault", 0600, ssi_proc_root, &fault_ops) ? 0 : -ENOMEM;
}
rootfs_initcall(fault_init);

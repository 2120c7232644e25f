// SPDX-License-Identifier: GPL-2.0
/*
 * Working directory, root directory, umask.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/kernel.h>
#include <linux/namei.h>
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "move.h"

static int fs_check(struct ssi_save *s)
{
	if (current->fs->users > get_nr_threads(current))
		return ssi_why(s, "it shares its working directory with another process (CLONE_FS)");
	return 0;
}

static int fs_save(struct ssi_save *s)
{
	struct ssi_rec_fs rec = { .umask = current_umask() };
	char *buf = kmalloc(4 * PATH_MAX, GFP_KERNEL);
	struct path cwd, root;
	char *c, *o;
	int err;

	if (!buf)
		return -ENOMEM;
	get_fs_root(current->fs, &root);
	get_fs_pwd(current->fs, &cwd);
	c = ssi_path_of(&cwd, buf, PATH_MAX);
	o = ssi_path_of(&root, buf + PATH_MAX, PATH_MAX);
	if (IS_ERR(c) || IS_ERR(o)) {
		err = ssi_why(s, "its %s directory has been deleted or cannot be reached", IS_ERR(c) ? "working" : "root");
	} else {
		char *both = buf + 2 * PATH_MAX;

		rec.cwd_len = strlen(c) + 1;
		rec.root_len = strlen(o) + 1;
		memcpy(both, c, rec.cwd_len);
		memcpy(both + rec.cwd_len, o, rec.root_len);
		err = ssi_write_rec2(s->sink, SSI_REC_FS, &rec, sizeof(rec), both, rec.cwd_len + rec.root_len);
	}
	path_put(&cwd);
	path_put(&root);
	kfree(buf);
	return err;
}

/* A deputy is in the root of the system: paths in an image begin there, and nobody's directory is kept busy. */
static void fs_release(struct ssi_save *s, bool moved)
{
	struct path root;

	if (!moved)
		return;
	task_lock(init_pid_ns.child_reaper);
	get_fs_root(init_pid_ns.child_reaper->fs, &root);
	task_unlock(init_pid_ns.child_reaper);
	set_fs_root(current->fs, &root);
	set_fs_pwd(current->fs, &root);
	path_put(&root);
}

static int fs_prepare(struct ssi_restore *r)
{
	const struct ssi_rec *raw = ssi_rec_next(r, NULL, SSI_REC_FS);
	const struct ssi_rec_fs *rec = (const void *)raw->data;
	const char *cwd = rec->paths, *root;
	int err;

	if (!rec->cwd_len || !rec->root_len || rec->cwd_len > PATH_MAX || rec->root_len > PATH_MAX ||
	    raw->len != sizeof(*rec) + rec->cwd_len + rec->root_len)
		return ssi_bad_image(r, "directories: bad length");
	root = cwd + rec->cwd_len;
	if (cwd[rec->cwd_len - 1] || root[rec->root_len - 1] || cwd[0] != '/' || root[0] != '/')
		return ssi_bad_image(r, "directories: bad path");
	err = kern_path(cwd, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, &r->cwd);
	if (!err)
		err = kern_path(root, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, &r->root);
	if (err)
		pr_notice_ratelimited("image of %d: directory %s or %s: error %d\n", r->hdr->pid, cwd, root, err);
	return err;
}

static void fs_put(struct ssi_restore *r)
{
	path_put(&r->cwd);	/* nothing for an empty one */
	path_put(&r->root);
	memset(&r->cwd, 0, sizeof(r->cwd));
	memset(&r->root, 0, sizeof(r->root));
}

static void fs_commit(struct ssi_restore *r)
{
	const struct ssi_rec_fs *rec = ssi_rec_only(r, SSI_REC_FS);

	set_fs_root(current->fs, &r->root);
	set_fs_pwd(current->fs, &r->cwd);
	current->fs->umask = rec->umask & 0777;
	fs_put(r);
}

static const struct ssi_rec_def fs_recs[] = {
	{ SSI_REC_FS, 1, sizeof(struct ssi_rec_fs) + 4, sizeof(struct ssi_rec_fs) + 2 * PATH_MAX, 1, 1 },
	{}
};

const struct ssi_resource ssi_res_fs = {
	.name = "directories",
	.recs = fs_recs,
	.check = fs_check,
	.save = fs_save,
	.release = fs_release,
	.prepare = fs_prepare,
	.commit = fs_commit,
	.abort = fs_put,
};

// SPDX-License-Identifier: GPL-2.0
/*
 * Open files (MIG-6). Regular files and directories are opened anew by their path, with flags and offset; terminals, pipes, files
 * in memory, deleted files and those whose offset is shared stay where they are and become remote descriptors (rfile.h).
 * Descriptors that share one open file go on sharing it.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/filelock.h>
#include <linux/fs.h>
#include <linux/kdev_t.h>
#include <linux/kernel.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <linux/mm.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "move.h"
#include "shared.h"

#define FILES_MAX	65536	/* in one process */
#define REOPEN_FLAGS	(O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | __O_SYNC | O_DIRECT | O_LARGEFILE | O_NOATIME | \
			 O_DIRECTORY)

/* null, zero, full, random, urandom: the same in every cell. */
static bool is_plain_device(dev_t rdev)
{
	switch (MINOR(rdev)) {
	case 3: case 5: case 7: case 8: case 9:
		return MAJOR(rdev) == MEM_MAJOR;
	}
	return false;
}

/* References that this process has to @file: descriptors and mappings. */
static long own_refs(struct file *file)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	struct file *f;
	unsigned int fd = 0;
	long n = 0;

	rcu_read_lock();
	for (; (f = task_lookup_next_fdget_rcu(current, &fd)); fd++) {
		if (f == file)
			n++;
		fput(f);
	}
	rcu_read_unlock();
	mmap_read_lock(mm);
	{
		VMA_ITERATOR(vmi, mm, 0);

		for_each_vma(vmi, vma)
			n += vma->vm_file == file;
	}
	mmap_read_unlock(mm);
	return n;
}

static bool holds_lock(struct list_head *list, struct file *file)
{
	struct file_lock_core *c;

	list_for_each_entry(c, list, flc_list)
		if (c->flc_owner == current->files || c->flc_file == file)
			return true;
	return false;
}

static bool has_locks(struct file *file)
{
	struct file_lock_context *ctx = locks_inode_context(file_inode(file));
	bool held;

	if (!ctx)
		return false;
	spin_lock(&ctx->flc_lock);
	held = holds_lock(&ctx->flc_flock, file) || holds_lock(&ctx->flc_posix, file) ||
	       holds_lock(&ctx->flc_lease, file);
	spin_unlock(&ctx->flc_lock);
	return held;
}

/* How @file moves: SSI_FILE_PATH, SSI_FILE_REMOTE, or -errno with the reason. @extra: references that we hold ourselves. */
static int file_kind(struct ssi_save *s, struct file *file, unsigned int fd, long extra)
{
	struct inode *inode = file_inode(file);
	bool remote = s->live && ssi_rfile_capable(file);

	if (file->f_mode & FMODE_PATH)
		return ssi_why(s, "descriptor %u (%pD4) was opened with O_PATH", fd, file);
	if (!IS_ERR(pidfd_pid(file)))
		return ssi_why(s, "descriptor %u is a pidfd", fd);
	switch (inode->i_mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
		if (has_locks(file))
			return ssi_why(s, "it holds a lock or lease on descriptor %u (%pD4)", fd, file);
		if (remote && ssi_shared_file_stays(file))
			return SSI_FILE_REMOTE;
		if (d_unlinked(file->f_path.dentry))
			return remote ? SSI_FILE_REMOTE :
					ssi_why(s, "descriptor %u is a deleted file (%pD4)", fd, file);
		/* An offset that somebody else moves too: harmless where every write goes to the end. */
		if (S_ISREG(inode->i_mode) && file_count(file) - extra > own_refs(file) &&
		    !((file->f_flags & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY)))
			return remote ? SSI_FILE_REMOTE :
			       ssi_why(s, "descriptor %u (%pD4) shares its offset with another process", fd, file);
		if (inode->i_sb->s_magic == PROC_SUPER_MAGIC)
			return ssi_why(s, "descriptor %u is in /proc (%pD4)", fd, file);
		return SSI_FILE_PATH;
	case S_IFCHR:
		if (is_plain_device(inode->i_rdev))
			return SSI_FILE_PATH;
		return remote ? SSI_FILE_REMOTE :
		       ssi_why(s, "descriptor %u is a device (%u:%u %pD4)", fd, MAJOR(inode->i_rdev),
			       MINOR(inode->i_rdev), file);
	case S_IFIFO:
		return remote ? SSI_FILE_REMOTE : ssi_why(s, "descriptor %u is a pipe", fd);
	case S_IFSOCK:
		return ssi_why(s, "descriptor %u is a socket", fd);
	case S_IFBLK:
		return ssi_why(s, "descriptor %u is a block device", fd);
	}
	return remote ? SSI_FILE_REMOTE : ssi_why(s, "descriptor %u cannot move (%pD4)", fd, file);
}

static int files_check(struct ssi_save *s)
{
	unsigned int fd = 0;
	struct file *f;
	int err = 0;

	if (atomic_read(&current->files->count) > get_nr_threads(current))
		return ssi_why(s, "it shares its descriptors with another process");
	for (;; fd++) {
		rcu_read_lock();
		f = task_lookup_next_fdget_rcu(current, &fd);
		rcu_read_unlock();
		if (!f)
			return 0;
		err = file_kind(s, f, fd, 1);
		fput(f);
		if (err < 0)
			return err;
	}
}

struct open_files {
	struct file **files;	/* with a reference each */
	struct ssi_fd *fds;
	u32 nfiles, nfds, room;
};

static int gather(struct open_files *o)
{
	unsigned int fd = 0;
	struct file *f;
	u32 i;

	o->room = files_fdtable(current->files)->max_fds;
	o->files = kvcalloc(o->room, sizeof(*o->files), GFP_KERNEL);
	o->fds = kvcalloc(o->room, sizeof(*o->fds), GFP_KERNEL);
	if (!o->files || !o->fds)
		return -ENOMEM;
	for (;; fd++) {
		rcu_read_lock();
		f = task_lookup_next_fdget_rcu(current, &fd);
		rcu_read_unlock();
		if (!f)
			return 0;
		for (i = 0; i < o->nfiles && o->files[i] != f; i++)
			;
		if (i == o->nfiles)
			o->files[o->nfiles++] = f;
		else
			fput(f);
		o->fds[o->nfds++] = (struct ssi_fd){ .fd = fd, .index = i, .cloexec = get_close_on_exec(fd) };
	}
}

static int save_file(struct ssi_save *s, struct file *file, u32 index, unsigned int fd, char *buf)
{
	struct ssi_rec_file rec = {
		.index = index,
		.f_flags = file->f_flags,
		.mode = file_inode(file)->i_mode,
		.uid = from_kuid(&init_user_ns, file_inode(file)->i_uid),
		.gid = from_kgid(&init_user_ns, file_inode(file)->i_gid),
		.rdev = file_inode(file)->i_rdev,
		.pos = file->f_pos,
	};
	int err, kind = file_kind(s, file, fd, 1);
	char *path = NULL;

	if (kind < 0)
		return kind;
	rec.kind = kind;
	if (kind == SSI_FILE_PATH) {
		path = ssi_path_of(&file->f_path, buf, PATH_MAX);
		if (IS_ERR(path))
			return ssi_why(s, "descriptor %u (%pD4) has no path that leads to it", fd, file);
		rec.path_len = strlen(path) + 1;
	} else {
		err = ssi_rfile_export(file, &rec.ref);
		if (err)
			return err;
		s->refs[s->nrefs++] = rec.ref;
	}
	return ssi_write_rec2(s->sink, SSI_REC_FILE, &rec, sizeof(rec), path, rec.path_len);
}

static int files_save(struct ssi_save *s)
{
	char *buf = kmalloc(PATH_MAX, GFP_KERNEL);
	struct open_files o = {};
	int err = buf ? gather(&o) : -ENOMEM;

	if (!err && o.nfiles) {
		s->refs = kvcalloc(o.nfiles, sizeof(*s->refs), GFP_KERNEL);
		if (!s->refs)
			err = -ENOMEM;
	}
	for (u32 i = 0; !err && i < o.nfiles; i++) {
		u32 j = 0;

		while (o.fds[j].index != i)
			j++;
		err = save_file(s, o.files[i], i, o.fds[j].fd, buf);
	}
	if (!err)
		err = ssi_write_rec(s->sink, SSI_REC_FDS, o.fds, o.nfds * sizeof(*o.fds));
	for (u32 i = 0; i < o.nfiles; i++)
		fput(o.files[i]);
	kvfree(o.files);
	kvfree(o.fds);
	kfree(buf);
	return err;
}

static void close_all(void)
{
	unsigned int fd = 0;
	struct file *f;

	for (;; fd++) {
		rcu_read_lock();
		f = task_lookup_next_fdget_rcu(current, &fd);
		rcu_read_unlock();
		if (!f)
			return;
		fput(f);
		close_fd(fd);
		cond_resched();
	}
}

static void files_release(struct ssi_save *s, bool moved)
{
	if (moved)
		close_all();
	else
		for (u32 i = 0; i < s->nrefs; i++)
			ssi_rfile_unexport(&s->refs[i]);
	kvfree(s->refs);
	s->refs = NULL;
	s->nrefs = 0;
}

static struct file *open_path(struct ssi_restore *r, const struct ssi_rec_file *rec)
{
	struct file *f = ssi_reopen(r, rec->path, rec->f_flags & REOPEN_FLAGS, rec->mode, rec->uid, rec->gid);
	loff_t pos = rec->pos;

	if (IS_ERR(f))
		return f;
	if (file_inode(f)->i_rdev != rec->rdev) {
		fput(f);
		pr_notice_ratelimited("image of %d: %s is another kind of file now\n", r->hdr->pid, rec->path);
		return ERR_PTR(-ESTALE);
	}
	if (pos && f->f_mode & FMODE_LSEEK) {
		pos = vfs_llseek(f, pos, SEEK_SET);
		if (pos < 0) {
			fput(f);
			return ERR_PTR(pos);
		}
	}
	return f;
}

static int prepare_file(struct ssi_restore *r, struct ssi_rec *raw)
{
	const struct ssi_rec_file *rec = (const void *)raw->data;
	struct file *f;

	if (raw->len != sizeof(*rec) + rec->path_len || rec->index != r->nfiles)
		return ssi_bad_image(r, "file %u: bad length or order", rec->index);
	switch (rec->kind) {
	case SSI_FILE_PATH:
		if (!rec->path_len || rec->path[rec->path_len - 1] || rec->path[0] != '/')
			return ssi_bad_image(r, "file %u: bad path", rec->index);
		f = open_path(r, rec);
		break;
	case SSI_FILE_REMOTE:
		if (!r->live)
			return ssi_bad_image(r, "file %u: a descriptor of a cell, in a checkpoint", rec->index);
		f = ssi_rfile_import(&rec->ref);
		break;
	default:
		return ssi_bad_image(r, "file %u: unknown kind %u", rec->index, rec->kind);
	}
	if (IS_ERR(f))
		return PTR_ERR(f);
	r->files[r->nfiles++] = f;
	return 0;
}

/* Room in the table of descriptors for the highest one, so that nothing needs memory after commit. */
static int reserve_fd(struct ssi_restore *r, u32 fd)
{
	struct file *null;
	int err;

	if (fd < files_fdtable(current->files)->max_fds)
		return 0;
	null = filp_open("/dev/null", O_RDONLY, 0);
	if (IS_ERR(null))
		return PTR_ERR(null);
	err = replace_fd(fd, null, 0);
	fput(null);
	if (!err)
		close_fd(fd);
	return err;
}

static int files_prepare(struct ssi_restore *r)
{
	const struct ssi_rec *raw = ssi_rec_next(r, NULL, SSI_REC_FDS);
	const struct ssi_fd *fds = (const void *)raw->data;
	u32 nfds = raw->len / sizeof(*fds), nfiles = 0, max = 0;
	struct ssi_rec *rec;
	int err;

	ssi_for_each_rec(r, rec, SSI_REC_FILE)
		nfiles++;
	for (u32 i = 0; i < nfds; i++) {
		if (fds[i].index >= nfiles || fds[i].fd >= sysctl_nr_open || (i && fds[i].fd <= fds[i - 1].fd))
			return ssi_bad_image(r, "descriptor %u: bad or not in order", fds[i].fd);
		max = fds[i].fd;
	}
	if (raw->len % sizeof(*fds))
		return ssi_bad_image(r, "descriptors: bad length");
	r->files = kvcalloc(nfiles ?: 1, sizeof(*r->files), GFP_KERNEL);
	if (!r->files)
		return -ENOMEM;
	ssi_for_each_rec(r, rec, SSI_REC_FILE) {
		err = prepare_file(r, rec);
		if (err)
			return err;
	}
	return reserve_fd(r, max);
}

static void put_files(struct ssi_restore *r)
{
	for (u32 i = 0; i < r->nfiles; i++)
		fput(r->files[i]);
	kvfree(r->files);
	r->files = NULL;
	r->nfiles = 0;
}

static void files_commit(struct ssi_restore *r)
{
	const struct ssi_rec *raw = ssi_rec_next(r, NULL, SSI_REC_FDS);
	const struct ssi_fd *fds = (const void *)raw->data;
	struct rlimit *lim = &current->signal->rlim[RLIMIT_NOFILE];

	close_all();
	/* The limit of the process itself comes later, and may be below what it has open already. */
	task_lock(current->group_leader);
	lim->rlim_cur = max_t(unsigned long, lim->rlim_cur, sysctl_nr_open);
	task_unlock(current->group_leader);
	for (u32 i = 0; i < raw->len / sizeof(*fds); i++) {
		int err = replace_fd(fds[i].fd, r->files[fds[i].index], fds[i].cloexec ? O_CLOEXEC : 0);

		if (err)
			pr_err("process %d: descriptor %u: error %d\n", r->hdr->pid, fds[i].fd, err);
	}
	put_files(r);
}

static const struct ssi_rec_def files_recs[] = {
	{ SSI_REC_FILE, 1, sizeof(struct ssi_rec_file), sizeof(struct ssi_rec_file) + PATH_MAX, 0, FILES_MAX },
	{ SSI_REC_FDS, 1, 0, FILES_MAX * sizeof(struct ssi_fd), 1, 1 },
	{}
};

const struct ssi_resource ssi_res_files = {
	.name = "files",
	.recs = files_recs,
	.check = files_check,
	.save = files_save,
	.release = files_release,
	.prepare = files_prepare,
	.commit = files_commit,
	.abort = put_files,
};

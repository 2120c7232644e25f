// SPDX-License-Identifier: GPL-2.0
/*
 * The table of resources, and saving, reading and building all of it.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/namei.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/uts.h>
#include <linux/utsname.h>
#include <generated/utsrelease.h>

#include "move.h"
#include "rpc.h"
#include "task.h"
#include "uapi.h"

/*
 * What a process consists of. In the order in which it is built: the address space first, since it can take long and is
 * easily dropped; credentials later, since opening needs those of the caller; other threads last, since they share all of that.
 */
static const struct ssi_resource *const resources[] = {
	&ssi_res_mm,
	&ssi_res_files,
	&ssi_res_fs,
	&ssi_res_regs,
	&ssi_res_signals,
	&ssi_res_handlers,
	&ssi_res_timers,
	&ssi_res_creds,
	&ssi_res_limits,
	&ssi_res_task,
	&ssi_res_process,
	&ssi_res_threads,
};

/* The main thread sees to what is the process's, and to its own; another thread only to what is its own. */
static bool is_mine(const struct ssi_resource *res)
{
	return res->thread || thread_group_leader(current);
}

/*
 * The last one first: the other threads come here before anything is looked at, and shared memory gets a region only if nothing
 * else stands against the move.
 */
int ssi_check(struct ssi_save *s)
{
	for (int i = ARRAY_SIZE(resources); i--;) {
		int err = is_mine(resources[i]) && resources[i]->check ? resources[i]->check(s) : 0;

		if (err)
			return err;
	}
	return 0;
}

static void kernel_name(char name[128])
{
	/* The version of the build, not of a namespace. */
	snprintf(name, 128, "%s %s", init_uts_ns.name.release, init_uts_ns.name.version);
}

static int save_header(struct ssi_save *s)
{
	struct ssi_rec_header h = {
		.magic = SSI_IMAGE_MAGIC,
		.version = SSI_IMAGE_VERSION,
		.flags = (s->live ? SSI_IMAGE_LIVE : 0) | (s->flags & SSI_MOVE_EAGER ? SSI_IMAGE_EAGER : 0),
		.pid = task_tgid_nr(current),
		.uid = from_kuid(&init_user_ns, current_uid()),
		.home = ssi_home_of(current),
		.source = ssi_this_cell(),
		.mono_ns = ktime_get_ns(),
		.moves = ssi_moves_of(current),
	};

	kernel_name(h.kernel);
	return ssi_write_rec(s->sink, SSI_REC_HEADER, &h, sizeof(h));
}

int ssi_save_mine(struct ssi_save *s)
{
	int err = 0;

	for (int i = 0; !err && i < ARRAY_SIZE(resources); i++)
		if (is_mine(resources[i]))
			err = resources[i]->save(s);
	return err;
}

int ssi_save(struct ssi_save *s)
{
	int err = save_header(s);

	if (!err)
		err = ssi_save_mine(s);
	if (!err && !s->live)
		err = ssi_save_pages(s);
	if (!err)
		err = ssi_write_end(s->sink);
	s->stat.image_bytes = s->sink->bytes;
	return err;
}

void ssi_save_release(struct ssi_save *s, bool moved)
{
	for (int i = ARRAY_SIZE(resources) - 1; i >= 0; i--)
		if (is_mine(resources[i]) && resources[i]->release)
			resources[i]->release(s, moved);
}

int ssi_thread_prepare(struct ssi_restore *r)
{
	int err = 0;

	for (int i = 0; !err && i < ARRAY_SIZE(resources); i++)
		if (resources[i]->thread && resources[i]->prepare)
			err = resources[i]->prepare(r);
	return err;
}

/* All but the registers, which are the last. */
void ssi_thread_commit(struct ssi_restore *r)
{
	for (int i = 0; i < ARRAY_SIZE(resources); i++)
		if (resources[i]->thread && resources[i]->commit && resources[i] != &ssi_res_regs)
			resources[i]->commit(r);
}

void ssi_thread_abort(struct ssi_restore *r)
{
	for (int i = ARRAY_SIZE(resources) - 1; i >= 0; i--)
		if (resources[i]->thread && resources[i]->abort)
			resources[i]->abort(r);
}

static const struct ssi_rec_def header_def = {
	SSI_REC_HEADER, 1, sizeof(struct ssi_rec_header), sizeof(struct ssi_rec_header), 1, 1,
};

/* @thread: among the records that a thread has of its own. */
static const struct ssi_rec_def *find_def(u32 type, bool thread)
{
	if (type == SSI_REC_HEADER)
		return thread ? NULL : &header_def;
	for (int i = 0; i < ARRAY_SIZE(resources); i++)
		for (const struct ssi_rec_def *d = resources[i]->recs; d->type; d++)
			if (d->type == type)
				return thread && !resources[i]->thread ? NULL : d;
	return NULL;
}

struct ssi_rec *ssi_rec_next(struct ssi_restore *r, struct ssi_rec *after, u32 type)
{
	struct ssi_rec *rec = after ?: list_entry(&r->recs, struct ssi_rec, list);

	list_for_each_entry_continue(rec, &r->recs, list)
		if (rec->type == type)
			return rec;
	return NULL;
}

const void *ssi_rec_only(struct ssi_restore *r, u32 type)
{
	return ssi_rec_next(r, NULL, type)->data;
}

static int check_header(struct ssi_restore *r)
{
	const struct ssi_rec_header *h = r->hdr;
	char kernel[128] = {};

	if (h->magic != SSI_IMAGE_MAGIC)
		return ssi_bad_image(r, "not an image of a process (magic %llx)", h->magic);
	if (h->version != SSI_IMAGE_VERSION || h->flags & ~SSI_IMAGE_FLAGS)
		return ssi_bad_image(r, "version %u, flags %x: this kernel reads version %u", h->version, h->flags,
				     SSI_IMAGE_VERSION);
	kernel_name(kernel);
	if (strncmp(kernel, h->kernel, sizeof(kernel)))
		return ssi_bad_image(r, "made by another kernel (%.127s)", h->kernel);
	r->live = h->flags & SSI_IMAGE_LIVE;
	if (r->live && !r->src->in)
		return ssi_bad_image(r, "it says that it is a move, but came from a file");
	r->shift_ns = r->live ? 0 : ktime_get_ns() - h->mono_ns;
	return 0;
}

static int read_rec(struct ssi_restore *r, const struct ssi_rec_hdr *hdr)
{
	struct ssi_restore *whose = hdr->type == SSI_REC_THREAD || !r->last ? r : r->last;
	const struct ssi_rec_def *d = find_def(hdr->type, whose != r);
	struct ssi_rec *rec;
	int err;

	if (!d)
		return ssi_bad_image(r, "unknown record %u of %llu bytes", hdr->type, hdr->length);
	if (hdr->version != d->version || hdr->flags)
		return ssi_bad_image(r, "record %u: version %u, flags %x", hdr->type, hdr->version, hdr->flags);
	if (hdr->length < d->min_len || hdr->length > d->max_len)
		return ssi_bad_image(r, "record %u: %llu bytes, want %u to %u", hdr->type, hdr->length, d->min_len,
				     d->max_len);
	r->state_bytes += sizeof(*rec) + hdr->length;
	if (r->state_bytes > SSI_IMAGE_MAX)
		return ssi_bad_image(r, "more than %u bytes of state", SSI_IMAGE_MAX);

	rec = kvmalloc(sizeof(*rec) + hdr->length, GFP_KERNEL_ACCOUNT);
	if (!rec)
		return -ENOMEM;
	rec->type = hdr->type;
	rec->len = hdr->length;
	list_add_tail(&rec->list, &whose->recs);
	err = ssi_read(r->src, rec->data, rec->len);
	if (err == -ENODATA)
		return ssi_bad_image(r, "it ends within record %u", hdr->type);
	return err || rec->type != SSI_REC_THREAD ? err : ssi_new_thread(r, rec);
}

static int check_counts(struct ssi_restore *r, const struct ssi_rec_def *d)
{
	struct ssi_rec *rec;
	u32 n = 0;

	ssi_for_each_rec(r, rec, d->type)
		n++;
	if (n < d->min_count || n > d->max_count)
		return ssi_bad_image(r, "%u records %u, want %u to %u", n, d->type, d->min_count, d->max_count);
	return 0;
}

static int check_all_counts(struct ssi_restore *r, bool thread)
{
	int err = 0;

	for (int i = 0; !err && i < ARRAY_SIZE(resources); i++)
		for (const struct ssi_rec_def *d = resources[i]->recs; !err && d->type; d++)
			if (!thread || resources[i]->thread)
				err = check_counts(r, d);
	return err;
}

int ssi_thread_counts(struct ssi_restore *r)
{
	return check_all_counts(r, true);
}

int ssi_restore_read(struct ssi_restore *r)
{
	struct ssi_rec_hdr hdr;
	int err;

	INIT_LIST_HEAD(&r->recs);
	INIT_LIST_HEAD(&r->opened);
	INIT_LIST_HEAD(&r->threads);
	for (;;) {
		err = ssi_read_hdr(r->src, &hdr);
		if (err == -ENODATA)
			return ssi_bad_image(r, "it ends after %u records", r->src->records);
		if (err)
			return err;
		if (!r->hdr && hdr.type != SSI_REC_HEADER)
			return ssi_bad_image(r, "not an image of a process");
		if (hdr.type == SSI_REC_PAGES || hdr.type == SSI_REC_END)
			break;
		err = read_rec(r, &hdr);
		if (!err && !r->hdr) {
			r->hdr = ssi_rec_only(r, SSI_REC_HEADER);
			err = check_header(r);
		}
		if (err)
			return err;
		cond_resched();
	}
	r->next = hdr;
	return check_counts(r, &header_def) ?: check_all_counts(r, false) ?: ssi_threads_counts(r);
}

static int prepare_one(struct ssi_restore *r, int i)
{
	int err;

	r->prepared = i + 1;
	err = resources[i]->prepare ? resources[i]->prepare(r) : 0;
	if (err)
		pr_notice_ratelimited("process %d cannot be built here: %s: error %d\n", r->hdr->pid, resources[i]->name,
				      err);
	return err;
}

/*
 * What a process opened before it gave up privileges is open all the same. So in a move files are opened as the kernel; that
 * they are the same files ssi_reopen() looks after. From credentials on, the caller is judged as what it is.
 */
int ssi_restore_prepare(struct ssi_restore *r)
{
	struct cred *kernel = NULL;
	const struct cred *caller = NULL;
	int i = 0, err = 0;

	if (r->live) {
		kernel = prepare_kernel_cred(&init_task);
		if (!kernel)
			return -ENOMEM;
		caller = override_creds(kernel);
	}
	for (; !err && resources[i] != &ssi_res_creds; i++)
		err = prepare_one(r, i);
	if (caller) {
		revert_creds(caller);
		put_cred(kernel);
	}
	for (; !err && i < ARRAY_SIZE(resources); i++)
		err = prepare_one(r, i);
	return err;
}

void ssi_restore_commit(struct ssi_restore *r)
{
	for (int i = 0; i < ARRAY_SIZE(resources); i++)
		if (resources[i]->commit)
			resources[i]->commit(r);
	r->prepared = 0;
}

void ssi_put_recs(struct ssi_restore *r)
{
	struct ssi_rec *rec, *next;

	list_for_each_entry_safe(rec, next, &r->recs, list)
		kvfree(rec);
	INIT_LIST_HEAD(&r->recs);
}

void ssi_restore_abort(struct ssi_restore *r)
{
	while (r->prepared) {
		const struct ssi_resource *res = resources[--r->prepared];

		if (res->abort)
			res->abort(r);
	}
	ssi_threads_free(r);
	ssi_put_recs(r);
	r->hdr = NULL;
}

/*
 * A path in an image leads through no symbolic link. In a move it must not do so now either, and must end at a file of the
 * same owner and mode: otherwise somebody could put another file there meanwhile, and have the kernel open it.
 */
static struct file *open_live(const char *path, int flags, u32 mode, u32 uid, u32 gid)
{
	struct inode *inode;
	struct path p;
	struct file *f;
	int err = kern_path(path, LOOKUP_NO_SYMLINKS, &p);

	if (err)
		return ERR_PTR(err);
	inode = d_backing_inode(p.dentry);
	if (inode->i_mode != mode || from_kuid(&init_user_ns, inode->i_uid) != uid ||
	    from_kgid(&init_user_ns, inode->i_gid) != gid)
		f = ERR_PTR(-ESTALE);
	else
		f = dentry_open(&p, flags, current_cred());
	path_put(&p);
	return f;
}

struct file *ssi_reopen(struct ssi_restore *r, const char *path, int flags, u32 mode, u32 uid, u32 gid)
{
	struct file *f;

	if (r->live) {
		f = open_live(path, flags, mode, uid, gid);
	} else {
		f = filp_open(path, flags, 0);
		if (!IS_ERR(f) && (file_inode(f)->i_mode ^ mode) & S_IFMT) {
			fput(f);
			f = ERR_PTR(-ESTALE);
		}
	}
	if (IS_ERR(f))
		pr_notice_ratelimited("image of %d: opening %s: error %ld\n", r->hdr->pid, path, PTR_ERR(f));
	return f;
}

char *ssi_path_of(const struct path *path, char *buf, int len)
{
	if (d_unlinked(path->dentry))
		return ERR_PTR(-ENOENT);
	return d_absolute_path(path, buf, len);
}

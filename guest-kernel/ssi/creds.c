// SPDX-License-Identifier: GPL-2.0
/*
 * Credentials and resource limits.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/kernel.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/user_namespace.h>

#include "move.h"

#define ID(kid)	from_kuid(&init_user_ns, kid)
#define GID(kid) from_kgid(&init_user_ns, kid)

static int creds_check(struct ssi_save *s)
{
	if (current_user_ns() != &init_user_ns)
		return ssi_why(s, "it is in a user namespace");
	return 0;
}

static int creds_save(struct ssi_save *s)
{
	const struct cred *c = current_cred();
	u32 n = c->group_info->ngroups;
	struct ssi_rec_creds *rec = kvzalloc(struct_size(rec, groups, n), GFP_KERNEL);
	int err;

	if (!rec)
		return -ENOMEM;
	rec->uid = ID(c->uid);
	rec->euid = ID(c->euid);
	rec->suid = ID(c->suid);
	rec->fsuid = ID(c->fsuid);
	rec->gid = GID(c->gid);
	rec->egid = GID(c->egid);
	rec->sgid = GID(c->sgid);
	rec->fsgid = GID(c->fsgid);
	rec->cap_inheritable = c->cap_inheritable.val;
	rec->cap_permitted = c->cap_permitted.val;
	rec->cap_effective = c->cap_effective.val;
	rec->cap_bset = c->cap_bset.val;
	rec->cap_ambient = c->cap_ambient.val;
	rec->securebits = c->securebits;
	rec->no_new_privs = task_no_new_privs(current);
	rec->ngroups = n;
	for (u32 i = 0; i < n; i++)
		rec->groups[i] = GID(c->group_info->gid[i]);
	err = ssi_write_rec(s->sink, SSI_REC_CREDS, rec, struct_size(rec, groups, n));
	kvfree(rec);
	return err;
}

/* May the caller of restart() become this? Its own again, or anything with the capability to restore checkpoints. */
static int may_become(struct ssi_restore *r, const struct ssi_rec_creds *rec)
{
	const struct cred *c = current_cred();
	bool same = rec->uid == ID(c->uid) && rec->euid == ID(c->uid) && rec->suid == ID(c->uid) &&
		    rec->fsuid == ID(c->uid) && rec->gid == GID(c->gid) && rec->egid == GID(c->gid) &&
		    rec->sgid == GID(c->gid) && rec->fsgid == GID(c->gid) && rec->ngroups == c->group_info->ngroups &&
		    !(rec->cap_permitted & ~c->cap_permitted.val) && !(rec->cap_effective & ~c->cap_permitted.val) &&
		    !(rec->cap_inheritable & ~c->cap_inheritable.val) && !(rec->cap_bset & ~c->cap_bset.val) &&
		    !(rec->cap_ambient & ~c->cap_ambient.val) && rec->securebits == c->securebits &&
		    rec->no_new_privs >= task_no_new_privs(current);

	for (u32 i = 0; same && i < rec->ngroups; i++)
		same = rec->groups[i] == GID(c->group_info->gid[i]);
	/* A deputy only takes back what it was, from the cells that it trusted with it. */
	if (same || r->deputy || capable(CAP_SYS_ADMIN) || (capable(CAP_CHECKPOINT_RESTORE) && r->live))
		return 0;
	pr_notice_ratelimited("image of %d: restoring the credentials of user %u needs CAP_SYS_ADMIN\n", r->hdr->pid,
			      rec->uid);
	return -EPERM;
}

static int fill_cred(struct cred *c, const struct ssi_rec_creds *rec)
{
	struct user_namespace *ns = &init_user_ns;
	struct group_info *g;
	struct user_struct *user;

	c->uid = make_kuid(ns, rec->uid);
	c->euid = make_kuid(ns, rec->euid);
	c->suid = make_kuid(ns, rec->suid);
	c->fsuid = make_kuid(ns, rec->fsuid);
	c->gid = make_kgid(ns, rec->gid);
	c->egid = make_kgid(ns, rec->egid);
	c->sgid = make_kgid(ns, rec->sgid);
	c->fsgid = make_kgid(ns, rec->fsgid);
	if (!uid_valid(c->uid) || !uid_valid(c->euid) || !uid_valid(c->suid) || !uid_valid(c->fsuid) ||
	    !gid_valid(c->gid) || !gid_valid(c->egid) || !gid_valid(c->sgid) || !gid_valid(c->fsgid))
		return -EINVAL;
	c->cap_inheritable.val = rec->cap_inheritable & CAP_VALID_MASK;
	c->cap_permitted.val = rec->cap_permitted & CAP_VALID_MASK;
	c->cap_effective.val = rec->cap_effective & CAP_VALID_MASK;
	c->cap_bset.val = rec->cap_bset & CAP_VALID_MASK;
	c->cap_ambient.val = rec->cap_ambient & CAP_VALID_MASK;
	c->securebits = rec->securebits;
	if (rec->cap_effective & ~rec->cap_permitted)
		return -EINVAL;

	g = groups_alloc(rec->ngroups);
	if (!g)
		return -ENOMEM;
	for (u32 i = 0; i < rec->ngroups; i++) {
		g->gid[i] = make_kgid(ns, rec->groups[i]);
		if (!gid_valid(g->gid[i])) {
			put_group_info(g);
			return -EINVAL;
		}
	}
	groups_sort(g);
	set_groups(c, g);
	put_group_info(g);

	user = alloc_uid(c->uid);
	if (!user)
		return -ENOMEM;
	free_uid(c->user);
	c->user = user;
	return set_cred_ucounts(c);
}

static int creds_prepare(struct ssi_restore *r)
{
	const struct ssi_rec *raw = ssi_rec_next(r, NULL, SSI_REC_CREDS);
	const struct ssi_rec_creds *rec = (const void *)raw->data;
	int err;

	if (rec->ngroups > NGROUPS_MAX || raw->len != struct_size(rec, groups, rec->ngroups))
		return ssi_bad_image(r, "%u groups", rec->ngroups);
	err = may_become(r, rec);
	if (err)
		return err;
	r->cred = prepare_creds();
	if (!r->cred)
		return -ENOMEM;
	err = fill_cred(r->cred, rec);
	return err == -EINVAL ? ssi_bad_image(r, "bad credentials") : err;
}

static void creds_abort(struct ssi_restore *r)
{
	if (r->cred)
		abort_creds(r->cred);
	r->cred = NULL;
}

static void creds_commit(struct ssi_restore *r)
{
	const struct ssi_rec_creds *rec = ssi_rec_only(r, SSI_REC_CREDS);

	commit_creds(r->cred);
	r->cred = NULL;
	if (rec->no_new_privs)
		task_set_no_new_privs(current);
}

static const struct ssi_rec_def creds_recs[] = {
	{ SSI_REC_CREDS, 1, sizeof(struct ssi_rec_creds), sizeof(struct ssi_rec_creds) + NGROUPS_MAX * sizeof(u32), 1, 1 },
	{}
};

const struct ssi_resource ssi_res_creds = {
	.name = "credentials",
	.recs = creds_recs,
	.thread = true,
	.check = creds_check,
	.save = creds_save,
	.prepare = creds_prepare,
	.commit = creds_commit,
	.abort = creds_abort,
};

static int limits_save(struct ssi_save *s)
{
	struct ssi_rec_limits lim;

	task_lock(current->group_leader);
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		lim.lim[i][0] = current->signal->rlim[i].rlim_cur;
		lim.lim[i][1] = current->signal->rlim[i].rlim_max;
	}
	task_unlock(current->group_leader);
	return ssi_write_rec(s->sink, SSI_REC_LIMITS, &lim, sizeof(lim));
}

static int limits_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_limits *lim = ssi_rec_only(r, SSI_REC_LIMITS);

	for (int i = 0; i < RLIM_NLIMITS; i++) {
		if (lim->lim[i][0] > lim->lim[i][1])
			return ssi_bad_image(r, "limit %d: soft above hard", i);
		if (lim->lim[i][1] > current->signal->rlim[i].rlim_max && !r->deputy && !capable(CAP_SYS_RESOURCE))
			return -EPERM;
	}
	return 0;
}

static void limits_commit(struct ssi_restore *r)
{
	const struct ssi_rec_limits *lim = ssi_rec_only(r, SSI_REC_LIMITS);

	task_lock(current->group_leader);
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		current->signal->rlim[i].rlim_cur = lim->lim[i][0];
		current->signal->rlim[i].rlim_max = lim->lim[i][1];
	}
	task_unlock(current->group_leader);
}

static const struct ssi_rec_def limits_recs[] = {
	{ SSI_REC_LIMITS, 1, sizeof(struct ssi_rec_limits), sizeof(struct ssi_rec_limits), 1, 1 },
	{}
};

const struct ssi_resource ssi_res_limits = {
	.name = "limits",
	.recs = limits_recs,
	.save = limits_save,
	.prepare = limits_prepare,
	.commit = limits_commit,
};

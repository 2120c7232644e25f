// SPDX-License-Identifier: GPL-2.0
/*
 * System V shared memory between cells. A segment lives in the cell whose number its identifier holds; what other cells do with
 * an identifier is done there, with the rights of the caller. Each mapping in another cell counts in the segment's nattch, so
 * that a segment that was removed lives until its last detach anywhere.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ipc_namespace.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/shm.h>
#include <linux/slab.h>
#include <linux/ssi_shared.h>
#include <uapi/linux/shm.h>

#include "shared_wire.h"

#define CELL_BITS	6		/* SSI_CELLS_MAX */
#define CTL_ATTACH	0x10000		/* beside the commands of shmctl(2) */
static_assert(SSI_CELLS_MAX == 1 << CELL_BITS);

int ssi_ipc_seq(int seq, int max)
{
	return ssi_present() ? (seq << CELL_BITS | ssi_this_cell()) & max : seq;
}

static bool foreign(int shmid, u32 *cell)
{
	if (shmid < 0 || !ssi_present())
		return false;
	*cell = (shmid >> 15) & (SSI_CELLS_MAX - 1);	/* IPCMNI_SHIFT: ipcmni_extend is of no use with cells */
	return *cell != ssi_this_cell() && *cell < ssi_cells();
}

/* ---- attaches ---- */

bool __ssi_shm_vma(struct vm_area_struct *vma)
{
	struct ssi_object *object = vma->vm_file ? ssi_object_of(file_inode(vma->vm_file)) : NULL;

	return object && object->kind == SSI_SHM_KIND_SYSV;
}

int ssi_object_attach(struct ssi_object *object, s32 count)
{
	struct ssi_shm_attach op = {
		.id = cpu_to_le64(object->id),
		.count = cpu_to_le32(count),
		.pid = cpu_to_le32(task_tgid_nr(current)),
	};
	ssize_t n;

	/* Before the source of a move detaches, it has to be known here; the end can be late. */
	if (count < 0)
		return ssi_post(object->home, OP_SHM_ATTACH, &op, sizeof(op));
	n = ssi_call(object->home, OP_SHM_ATTACH, &op, sizeof(op), NULL, 0, MAX_SCHEDULE_TIMEOUT);
	return n == -EHOSTUNREACH ? -EIO : n;
}

static ssize_t handle_attach(struct ssi_request *req)
{
	const struct ssi_shm_attach *op = req->body;
	struct ssi_region *region;
	s32 count;
	int err = 0;

	if (req->len != sizeof(*op))
		return -EINVAL;
	region = ssi_region_get(le64_to_cpu(op->id));
	if (!region)
		return -ESTALE;
	count = (s32)le32_to_cpu(op->count);
	if (region->kind != SSI_SHM_KIND_SYSV || !ssi_region_claimed(region, req->cell) || (count != 1 && count != -1)) {
		err = -EINVAL;
	} else {
		spin_lock(&region->lock);
		if (count < 0 && region->attaches[req->cell] <= 0)
			err = -EINVAL;
		else
			region->attaches[req->cell] += count;
		spin_unlock(&region->lock);
	}
	if (!err)
		err = ssi_shm_attach(region->shmid, count, le32_to_cpu(op->pid));
	ssi_region_put(region);
	return err;
}

/* ---- what is done by identifier ---- */

struct ssi_shm_ctl {
	__le32 shmid, cmd;
	__le32 uid, euid, suid, fsuid, gid, egid, sgid, fsgid;	/* of the caller */
	__le64 capabilities;
	__le32 acc_mode, f_flags;
	__le32 ngroups;
	__le32 groups[64];			/* the first ones */
	struct shmid64_ds ds;
};

struct ssi_shm_ctl_reply {
	__le32 result;
	__le32 pad;
	__le64 region;						/* claimed for the caller once */
	struct shmid64_ds ds;
};

static void fill_caller(struct ssi_shm_ctl *op)
{
	const struct cred *cred = current_cred();
	struct user_namespace *ns = &init_user_ns;
	unsigned int n = min_t(unsigned int, cred->group_info->ngroups, ARRAY_SIZE(op->groups));

	op->uid = cpu_to_le32(from_kuid(ns, cred->uid));
	op->euid = cpu_to_le32(from_kuid(ns, cred->euid));
	op->suid = cpu_to_le32(from_kuid(ns, cred->suid));
	op->fsuid = cpu_to_le32(from_kuid(ns, cred->fsuid));
	op->gid = cpu_to_le32(from_kgid(ns, cred->gid));
	op->egid = cpu_to_le32(from_kgid(ns, cred->egid));
	op->sgid = cpu_to_le32(from_kgid(ns, cred->sgid));
	op->fsgid = cpu_to_le32(from_kgid(ns, cred->fsgid));
	op->capabilities = cpu_to_le64(cred->cap_effective.val);
	op->ngroups = cpu_to_le32(n);
	for (unsigned int i = 0; i < n; i++)
		op->groups[i] = cpu_to_le32(from_kgid(ns, cred->group_info->gid[i]));
}

static struct cred *caller(const struct ssi_shm_ctl *op)
{
	u32 n = min_t(u32, le32_to_cpu(op->ngroups), ARRAY_SIZE(op->groups));
	struct cred *cred = prepare_kernel_cred(&init_task);
	struct user_namespace *ns = &init_user_ns;
	struct group_info *groups = groups_alloc(n);

	if (!cred || !groups) {
		if (cred)
			abort_creds(cred);
		kvfree(groups);
		return NULL;
	}
	cred->uid = make_kuid(ns, le32_to_cpu(op->uid));
	cred->euid = make_kuid(ns, le32_to_cpu(op->euid));
	cred->suid = make_kuid(ns, le32_to_cpu(op->suid));
	cred->fsuid = make_kuid(ns, le32_to_cpu(op->fsuid));
	cred->gid = make_kgid(ns, le32_to_cpu(op->gid));
	cred->egid = make_kgid(ns, le32_to_cpu(op->egid));
	cred->sgid = make_kgid(ns, le32_to_cpu(op->sgid));
	cred->fsgid = make_kgid(ns, le32_to_cpu(op->fsgid));
	cred->cap_effective.val = le64_to_cpu(op->capabilities) & CAP_VALID_MASK;
	for (u32 i = 0; i < n; i++)
		groups->gid[i] = make_kgid(ns, le32_to_cpu(op->groups[i]));
	groups_sort(groups);
	set_groups(cred, groups);
	put_group_info(groups);
	return cred;
}

/* The region of a segment, claimed for @cell: so that it is there still when the answer has come. */
static int attach(const struct ssi_shm_ctl *op, u32 cell, struct ssi_shm_ctl_reply *reply)
{
	struct file *file = ssi_shm_file(le32_to_cpu(op->shmid), le32_to_cpu(op->acc_mode) & S_IRWXUGO,
					 le32_to_cpu(op->f_flags) & O_ACCMODE);
	struct ssi_region *region;

	if (IS_ERR(file))
		return PTR_ERR(file);
	region = ssi_region_make(file);
	fput(file);
	if (IS_ERR(region))
		return PTR_ERR(region);
	reply->region = cpu_to_le64(region->id);
	ssi_region_claim(region, cell);
	ssi_region_put(region);
	return 0;
}

static ssize_t handle_ctl(struct ssi_request *req)
{
	const struct ssi_shm_ctl *op = req->body;
	struct ssi_shm_ctl_reply *reply = req->reply;
	const struct cred *old;
	struct cred *cred;
	int shmid, result;
	u32 cell;

	if (req->len != sizeof(*op))
		return -EINVAL;
	shmid = le32_to_cpu(op->shmid);
	if (shmid < 0 || foreign(shmid, &cell))
		return -EINVAL;
	cred = caller(op);
	if (!cred)
		return -ENOMEM;
	memset(reply, 0, sizeof(*reply));
	reply->ds = op->ds;
	old = override_creds(cred);
	switch (le32_to_cpu(op->cmd)) {
	case CTL_ATTACH:
		result = attach(op, req->cell, reply);
		break;
	case IPC_STAT:
		result = shmctl_stat(&init_ipc_ns, shmid, IPC_STAT, &reply->ds);
		break;
	case IPC_SET:
	case IPC_RMID:
		result = shmctl_down(&init_ipc_ns, shmid, le32_to_cpu(op->cmd), &reply->ds);
		break;
	case SHM_LOCK:
	case SHM_UNLOCK:
		result = shmctl_do_lock(&init_ipc_ns, shmid, le32_to_cpu(op->cmd));
		break;
	default:
		result = -EINVAL;
	}
	revert_creds(old);
	put_cred(cred);
	if (result < 0)
		return result;
	reply->result = cpu_to_le32(result);
	return sizeof(*reply);
}

static int ctl(u32 cell, int shmid, int cmd, struct ssi_shm_ctl *op, struct ssi_shm_ctl_reply *reply)
{
	ssize_t n;

	op->shmid = cpu_to_le32(shmid);
	op->cmd = cpu_to_le32(cmd);
	fill_caller(op);
	n = ssi_call(cell, OP_SHM_CTL, op, sizeof(*op), reply, sizeof(*reply), MAX_SCHEDULE_TIMEOUT);
	if (n == -EHOSTUNREACH)
		return -EIDRM;		/* it ended with its cell */
	return n < 0 ? n : n == sizeof(*reply) ? (int)le32_to_cpu(reply->result) : -EIO;
}

struct both {
	struct ssi_shm_ctl op;
	struct ssi_shm_ctl_reply reply;
};

bool __ssi_shmctl(int shmid, int cmd, struct shmid64_ds *arg, int *result)
{
	struct both *b;
	u32 cell;

	if (cmd == SHM_STAT || cmd == SHM_STAT_ANY || !foreign(shmid, &cell))
		return false;
	b = kzalloc(sizeof(*b), GFP_KERNEL);
	if (!b) {
		*result = -ENOMEM;
		return true;
	}
	if (arg)
		b->op.ds = *arg;
	*result = ctl(cell, shmid, cmd, &b->op, &b->reply);
	if (arg && *result >= 0)
		*arg = b->reply.ds;
	kfree(b);
	return true;
}

struct file *__ssi_shmat(int shmid, int acc_mode, int f_flags, unsigned long *size)
{
	struct ssi_shm_id release = { .count = cpu_to_le32(1) };
	struct file *file;
	struct both *b;
	u32 cell;
	int err;

	if (!foreign(shmid, &cell))
		return NULL;
	b = kzalloc(sizeof(*b), GFP_KERNEL);
	if (!b)
		return ERR_PTR(-ENOMEM);
	b->op.acc_mode = cpu_to_le32(acc_mode);
	b->op.f_flags = cpu_to_le32(f_flags);
	err = ctl(cell, shmid, CTL_ATTACH, &b->op, &b->reply);
	release.id = b->reply.region;
	kfree(b);
	if (err < 0)
		return ERR_PTR(err);
	if (SSI_REGION_HOME(le64_to_cpu(release.id)) != cell)
		return ERR_PTR(-EIO);
	file = ssi_shared_open(le64_to_cpu(release.id), (f_flags & O_ACCMODE) == O_RDWR);
	ssi_post(cell, OP_SHM_RELEASE, &release, sizeof(release));
	if (!IS_ERR(file))
		*size = i_size_read(file_inode(file));
	return file;
}

static int __init sysv_init(void)
{
	ssi_rpc_register(OP_SHM_ATTACH, handle_attach);
	ssi_rpc_register(OP_SHM_CTL, handle_ctl);
	return 0;
}
fs_initcall(sysv_init);

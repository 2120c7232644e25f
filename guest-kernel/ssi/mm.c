// SPDX-License-Identifier: GPL-2.0
/*
 * The address space: mappings with their ranges and attributes (MIG-6). What is in the pages: pages.c, lazy.c.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/binfmts.h>
#include <linux/security.h>
#include <linux/userfaultfd_k.h>
#include <linux/mmu_context.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/personality.h>
#include <linux/sched/coredump.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <asm/vdso.h>

#include "lazy.h"
#include "move.h"
#include "rpc.h"
#include "shared.h"

/* Attributes of a mapping that are made anew from the image; protection and MAP_SHARED have their own ways. */
#define CARRIED	(VM_GROWSDOWN | VM_LOCKED | VM_LOCKONFAULT | VM_DONTCOPY | VM_DONTDUMP | VM_WIPEONFORK | VM_HUGEPAGE | \
		 VM_NOHUGEPAGE | VM_NORESERVE | VM_SEQ_READ | VM_RAND_READ | VM_DROPPABLE | VM_SEALED)
/* What an image says of a mapping. */
#define SAVED	(VM_READ | VM_WRITE | VM_EXEC | VM_ACCOUNT | CARRIED)
/* Flags of the address space that an image may set. */
#define MM_FLAGS	(MMF_INIT_MASK | (1UL << MMF_HAS_MDWE_NO_INHERIT))

static bool is_special(struct vm_area_struct *vma, const char *name)
{
	const char *n = vma->vm_ops && vma->vm_ops->name ? vma->vm_ops->name(vma) : NULL;

	return n && !strcmp(n, name);
}

static bool is_vdso(struct vm_area_struct *vma)
{
	return is_special(vma, "[vdso]") || is_special(vma, "[vvar]");
}

static int check_vma(struct ssi_save *s, struct vm_area_struct *vma)
{
	if (is_vdso(vma))
		return 0;
	if (is_vm_hugetlb_page(vma))
		return ssi_why(s, "it maps huge pages (hugetlb) at %lx", vma->vm_start);
	if (userfaultfd_armed(vma))
		return ssi_why(s, "it handles page faults at %lx itself (userfaultfd)", vma->vm_start);
	if (vma->vm_flags & (VM_IO | VM_PFNMAP | VM_MIXEDMAP))
		return ssi_why(s, "it maps a device at %lx", vma->vm_start);
	if (s->live && ssi_shared_vma(vma))
		return ssi_shared_vma_capable(vma) ? 0 :
		       ssi_why(s, "it maps %pD4, whose pages cannot be lent, at %lx", vma->vm_file, vma->vm_start);
	if (vma->vm_flags & VM_SHARED)
		return ssi_why(s, "it maps shared writable memory at %lx", vma->vm_start);
	if (vma_is_anonymous(vma))
		return 0;
	if (!vma->vm_file)
		return ssi_why(s, "it has a special mapping at %lx", vma->vm_start);
	if (vma->vm_flags & VM_MAYSHARE && !S_ISREG(file_inode(vma->vm_file)->i_mode))
		return ssi_why(s, "it maps a shared object at %lx", vma->vm_start);
	if (!S_ISREG(file_inode(vma->vm_file)->i_mode))
		return ssi_why(s, "it maps %pD4 at %lx, not a regular file", vma->vm_file, vma->vm_start);
	if (d_unlinked(vma->vm_file->f_path.dentry))
		return ssi_why(s, "it maps a deleted file (%pD4) at %lx", vma->vm_file, vma->vm_start);
	return 0;
}

static int mm_check(struct ssi_save *s)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	int err = 0;

	if (test_bit(MMF_SSI, &mm->flags))
		return -EAGAIN;		/* it has moved since the caller looked */
	if (rcu_access_pointer(mm->ioctx_table))
		return ssi_why(s, "it uses asynchronous I/O (io_setup)");
	if (test_bit(MMF_HAS_UPROBES, &mm->flags))
		return ssi_why(s, "it is probed (uprobes)");
	if (mm->context.vdso && mm->context.vdso_image != &vdso_image_64)
		return ssi_why(s, "it is not a 64-bit process");
	if (mm->locked_vm && mm->def_flags & VM_LOCKED)
		return ssi_why(s, "it locks all future memory (mlockall)");

	mmap_read_lock(mm);
	{
		VMA_ITERATOR(vmi, mm, 0);

		for_each_vma(vmi, vma) {
			err = check_vma(s, vma);
			if (err)
				break;
		}
	}
	mmap_read_unlock(mm);
	return err;
}

/* The region of @vma, with a reference until the move is over. */
static int hold_region(struct ssi_save *s, struct vm_area_struct *vma, u64 *id)
{
	int err;

	if (s->nregions == s->regions_room) {
		u32 room = s->regions_room * 2 ?: 16;
		u64 *regions = kvrealloc(s->regions, room * sizeof(*regions), GFP_KERNEL);

		if (!regions)
			return -ENOMEM;
		s->regions = regions;
		s->regions_room = room;
	}
	err = ssi_shared_get(vma->vm_file, id);
	if (err)
		return ssi_why(s, "the shared memory at %lx cannot be lent (error %d)", vma->vm_start, err);
	s->regions[s->nregions++] = *id;
	return 0;
}

static void mm_release(struct ssi_save *s, bool moved)
{
	while (s->nregions)
		ssi_shared_put(s->regions[--s->nregions]);
	kvfree(s->regions);
	s->regions = NULL;
	s->regions_room = 0;
}

static int save_vma(struct ssi_save *s, struct vm_area_struct *vma, char *buf)
{
	struct ssi_rec_vma rec = {
		.start = vma->vm_start,
		.end = vma->vm_end,
		.vm_flags = vma->vm_flags & SAVED,
		.pgoff = vma->vm_pgoff,
		.flags = (vma->vm_flags & VM_MAYSHARE ? SSI_VMA_SHARED : 0) | (vma->anon_vma ? SSI_VMA_ANON : 0),
	};
	char *path = NULL;

	if (s->live && ssi_shared_vma(vma)) {
		u64 id;
		int err = hold_region(s, vma, &id);

		if (err)
			return err;
		rec.region = id;
		rec.flags |= vma->vm_flags & VM_MAYWRITE ? SSI_VMA_MAYWRITE : 0;
	} else if (!vma_is_anonymous(vma)) {
		path = ssi_path_of(&vma->vm_file->f_path, buf, PATH_MAX);
		if (IS_ERR(path))
			return ssi_why(s, "the file %pD4, mapped at %lx, has no path that leads to it", vma->vm_file,
				       vma->vm_start);
		rec.path_len = strlen(path) + 1;
		rec.mode = file_inode(vma->vm_file)->i_mode;
		rec.uid = from_kuid(&init_user_ns, file_inode(vma->vm_file)->i_uid);
		rec.gid = from_kgid(&init_user_ns, file_inode(vma->vm_file)->i_gid);
	}
	return ssi_write_rec2(s->sink, SSI_REC_VMA, &rec, sizeof(rec), path, rec.path_len);
}

static int save_vmas(struct ssi_save *s, char *buf)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, mm, 0);
	int err = 0;

	/* Only this thread changes the mappings, and it is here: the lock is for readers of /proc that look on. */
	mmap_read_lock(mm);
	for_each_vma(vmi, vma) {
		if (is_vdso(vma))
			continue;
		err = save_vma(s, vma, buf);
		if (err)
			break;
	}
	mmap_read_unlock(mm);
	return err;
}

static int save_mm(struct ssi_save *s, char *buf)
{
	struct mm_struct *mm = current->mm;
	struct file *exe = get_mm_exe_file(mm);
	struct ssi_rec_mm rec = {
		.start_code = mm->start_code, .end_code = mm->end_code, .start_data = mm->start_data,
		.end_data = mm->end_data, .start_brk = mm->start_brk, .brk = mm->brk, .start_stack = mm->start_stack,
		.arg_start = mm->arg_start, .arg_end = mm->arg_end, .env_start = mm->env_start, .env_end = mm->env_end,
		.mmap_base = mm->mmap_base, .mmap_legacy_base = mm->mmap_legacy_base, .flags = mm->flags & MM_FLAGS,
		.context_flags = mm->context.flags,
		.membarrier = atomic_read(&mm->membarrier_state),
	};
	char *path = "";
	int err;

	if (mm->context.vdso) {
		rec.vdso = (unsigned long)mm->context.vdso;
		rec.vvar = rec.vdso + vdso_image_64.sym_vvar_start;
	}
	memcpy(rec.auxv, mm->saved_auxv, sizeof(rec.auxv));
	if (exe)
		path = ssi_path_of(&exe->f_path, buf, PATH_MAX);
	if (IS_ERR(path)) {
		err = ssi_why(s, "its executable has been deleted");
	} else {
		rec.exe_len = strlen(path) + 1;
		err = ssi_write_rec2(s->sink, SSI_REC_MM, &rec, sizeof(rec), path, rec.exe_len);
	}
	if (exe)
		fput(exe);
	return err;
}

static int mm_save(struct ssi_save *s)
{
	char *buf = kmalloc(PATH_MAX, GFP_KERNEL);
	int err;

	if (!buf)
		return -ENOMEM;
	err = save_mm(s, buf);
	if (!err)
		err = save_vmas(s, buf);
	kfree(buf);
	if (!err && s->live) {
		struct ssi_rec_lazy rec = { .cell = ssi_this_cell(), .id = s->lazy_id };

		err = ssi_write_rec(s->sink, SSI_REC_LAZY, &rec, sizeof(rec));
	}
	return err;
}

struct mm_struct *ssi_switch_mm(struct mm_struct *mm)
{
	struct task_struct *tsk = current;
	struct mm_struct *old = tsk->mm;

	down_write(&tsk->signal->exec_update_lock);
	sched_mm_cid_before_execve(tsk);
	task_lock(tsk);
	local_irq_disable();
	membarrier_update_current_mm(mm);
	tsk->active_mm = mm;
	tsk->mm = mm;
	if (!IS_ENABLED(CONFIG_ARCH_WANT_IRQS_OFF_ACTIVATE_MM))
		local_irq_enable();
	activate_mm(old, mm);
	if (IS_ENABLED(CONFIG_ARCH_WANT_IRQS_OFF_ACTIVATE_MM))
		local_irq_enable();
	/* An address space whose owner it was and that it takes up again. */
#ifdef CONFIG_MEMCG
	if (!rcu_access_pointer(mm->owner))
		rcu_assign_pointer(mm->owner, tsk);
#endif
	task_unlock(tsk);
	sched_mm_cid_after_execve(tsk);
	up_write(&tsk->signal->exec_update_lock);
	return old;
}

void ssi_drop_mm(struct mm_struct *mm)
{
	setmax_mm_hiwater_rss(&current->signal->maxrss, mm);
	mm_update_next_owner(mm);
	mmput(mm);
}

static bool bad_path(const char *path, u32 len)
{
	return !len || len > PATH_MAX || path[len - 1] || strlen(path) != len - 1 || path[0] != '/';
}

static int check_vma_rec(struct ssi_restore *r, struct ssi_rec *raw, u64 *end)
{
	const struct ssi_rec_vma *v = (const void *)raw->data;

	if (raw->len != sizeof(*v) + v->path_len || (v->path_len && bad_path(v->path, v->path_len)))
		return ssi_bad_image(r, "mapping with a bad path");
	if (v->start < *end || v->end <= v->start || v->end > TASK_SIZE_MAX || (v->start | v->end) & ~PAGE_MASK)
		return ssi_bad_image(r, "mapping %llx-%llx: bad or not in order", v->start, v->end);
	if (v->vm_flags & ~(u64)SAVED || v->flags & ~(SSI_VMA_SHARED | SSI_VMA_ANON | SSI_VMA_MAYWRITE) ||
	    (v->flags & SSI_VMA_SHARED && !v->path_len && !v->region) || (v->region && (v->path_len || !r->live)) ||
	    v->pgoff > ULONG_MAX >> PAGE_SHIFT)
		return ssi_bad_image(r, "mapping %llx: bad flags %llx, %x", v->start, v->vm_flags, v->flags);
	*end = v->end;
	return 0;
}

/*
 * A mapping that was writable once is charged for, even when it is not writable now. To be charged alike is what lets it be
 * one again with its neighbour, from which mprotect(2) has parted it. do_mmap() sees to those that are writable now.
 */
static int charge_vma(const struct ssi_rec_vma *v, unsigned long *pages)
{
	*pages = 0;
	if (!(v->vm_flags & VM_ACCOUNT) || v->flags & SSI_VMA_SHARED ||
	    (v->vm_flags & (VM_WRITE | VM_NORESERVE)) == VM_WRITE)
		return 0;
	*pages = (v->end - v->start) >> PAGE_SHIFT;
	return security_vm_enough_memory_mm(current->mm, *pages);
}

/*
 * Parts of what was one mapping share their reverse map, those without pages too: only then can mprotect(2) make one of them
 * again. In the order of addresses each finds that of its neighbour.
 */
static int share_anon_vma(struct mm_struct *mm, const struct ssi_rec_vma *v)
{
	struct vm_area_struct *vma = vma_lookup(mm, v->start);

	return v->flags & SSI_VMA_ANON && vma ? anon_vma_prepare(vma) : 0;
}

static bool writes_region(const struct ssi_rec_vma *v)
{
	return v->flags & SSI_VMA_MAYWRITE && v->flags & SSI_VMA_SHARED;
}

static bool same_file(const struct ssi_rec_vma *a, const struct ssi_rec_vma *b)
{
	if (a->region || b->region)
		return a->region == b->region && writes_region(a) == writes_region(b);
	return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->path_len == b->path_len &&
	       !memcmp(a->path, b->path, a->path_len);
}

static struct file *open_vma(struct ssi_restore *r, const struct ssi_rec_vma *v)
{
	struct file *file;

	if (!v->region)
		return S_ISREG(v->mode) ? ssi_reopen(r, v->path, O_RDONLY | O_LARGEFILE, v->mode, v->uid, v->gid) :
					  ERR_PTR(ssi_bad_image(r, "mapping %s: not a regular file", v->path));
	file = ssi_shared_open(v->region, writes_region(v));
	if (IS_ERR(file))
		pr_notice_ratelimited("image of %d: shared memory at %llx: error %ld\n", r->hdr->pid, v->start, PTR_ERR(file));
	return file;
}

/*
 * The file to map @v through. Mappings that had one open file have one again: it is opened once, mprotect(2) can join them, and
 * shmdt(2) finds all parts of an attach.
 */
static struct file *file_of(struct ssi_restore *r, const struct ssi_rec_vma *v)
{
	struct ssi_opened *o;
	struct file *file;

	list_for_each_entry(o, &r->opened, list)
		if (same_file(o->first, v))
			return get_file(o->file);
	file = open_vma(r, v);
	if (IS_ERR(file))
		return file;
	o = kmalloc(sizeof(*o), GFP_KERNEL);
	if (!o) {
		fput(file);
		return ERR_PTR(-ENOMEM);
	}
	*o = (struct ssi_opened){ .first = v, .file = file };
	list_add(&o->list, &r->opened);
	return get_file(file);
}

static void close_opened(struct ssi_restore *r)
{
	struct ssi_opened *o, *next;

	list_for_each_entry_safe(o, next, &r->opened, list) {
		fput(o->file);
		kfree(o);
	}
	INIT_LIST_HEAD(&r->opened);
}

static int map_vma(struct ssi_restore *r, const struct ssi_rec_vma *v)
{
	unsigned long prot = (v->vm_flags & VM_READ ? PROT_READ : 0) | (v->vm_flags & VM_WRITE ? PROT_WRITE : 0) |
			     (v->vm_flags & VM_EXEC ? PROT_EXEC : 0);
	unsigned long flags = MAP_FIXED_NOREPLACE | (v->flags & SSI_VMA_SHARED ? MAP_SHARED : MAP_PRIVATE);
	struct mm_struct *mm = current->mm;
	unsigned long addr, populate, charged;
	struct file *file = NULL;
	LIST_HEAD(uf);
	int err;

	if (v->region || v->path_len) {
		file = file_of(r, v);
		if (IS_ERR(file))
			return PTR_ERR(file);
	}
	err = charge_vma(v, &charged);
	if (err) {
		addr = err;
	} else {
		mmap_write_lock(mm);
		addr = do_mmap(file, v->start, v->end - v->start, prot, flags,
			       (v->vm_flags & CARRIED) | (charged ? VM_ACCOUNT : 0), v->pgoff, &populate, &uf);
		if (!IS_ERR_VALUE(addr))
			err = share_anon_vma(mm, v);
		mmap_write_unlock(mm);
		if (IS_ERR_VALUE(addr) && charged)
			vm_unacct_memory(charged);
	}
	if (file)
		fput(file);
	if (IS_ERR_VALUE(addr))
		return addr;
	return addr == v->start ? err : -ENOMEM;
}

static int prepare_vmas(struct ssi_restore *r)
{
	struct ssi_rec *raw;
	u64 end = mmap_min_addr;
	int err = 0;

	ssi_for_each_rec(r, raw, SSI_REC_VMA) {
		err = check_vma_rec(r, raw, &end);
		if (err)
			return err;
	}
	ssi_for_each_rec(r, raw, SSI_REC_VMA) {
		err = map_vma(r, (const void *)raw->data);
		if (err)
			break;
	}
	return err;
}

/* It is mapped, as a rule. */
static struct file *open_exe(struct ssi_restore *r, const char *path)
{
	struct ssi_opened *o;

	list_for_each_entry(o, &r->opened, list)
		if (o->first->path_len && !strcmp(o->first->path, path))
			return get_file(o->file);
	return filp_open(path, O_RDONLY | O_LARGEFILE, 0);
}

static int prepare_exe(struct ssi_restore *r, const struct ssi_rec_mm *m)
{
	struct file *exe;
	int err;

	if (m->exe_len <= 1)
		return 0;
	exe = open_exe(r, m->exe);
	if (IS_ERR(exe)) {
		pr_notice_ratelimited("image of %d: executable %s: error %ld\n", r->hdr->pid, m->exe, PTR_ERR(exe));
		return PTR_ERR(exe);
	}
	err = S_ISREG(file_inode(exe)->i_mode) ? set_mm_exe_file(current->mm, exe) : -EACCES;
	fput(exe);
	return err;
}

static int prepare_fields(struct ssi_restore *r, const struct ssi_rec_mm *m)
{
	struct mm_struct *mm = current->mm;
	const u64 addrs[] = { m->start_code, m->end_code, m->start_data, m->end_data, m->start_brk, m->brk, m->start_stack,
			      m->arg_start, m->arg_end, m->env_start, m->env_end, m->mmap_base, m->mmap_legacy_base };

	for (int i = 0; i < ARRAY_SIZE(addrs); i++)
		if (addrs[i] > TASK_SIZE_MAX)
			return ssi_bad_image(r, "address %llx of its layout is not of user space", addrs[i]);
	if (m->start_brk > m->brk || m->arg_start > m->arg_end || m->env_start > m->env_end)
		return ssi_bad_image(r, "bad layout");

	spin_lock(&mm->arg_lock);
	mm->start_code = m->start_code;
	mm->end_code = m->end_code;
	mm->start_data = m->start_data;
	mm->end_data = m->end_data;
	mm->start_brk = m->start_brk;
	mm->brk = m->brk;
	mm->start_stack = m->start_stack;
	mm->arg_start = m->arg_start;
	mm->arg_end = m->arg_end;
	mm->env_start = m->env_start;
	mm->env_end = m->env_end;
	spin_unlock(&mm->arg_lock);
	mm->mmap_base = m->mmap_base;
	mm->mmap_legacy_base = m->mmap_legacy_base;
	mm->task_size = TASK_SIZE;
	mm->context.flags = m->context_flags & MM_CONTEXT_HAS_VSYSCALL;
	atomic_set(&mm->membarrier_state, m->membarrier);
	memcpy(mm->saved_auxv, m->auxv, sizeof(mm->saved_auxv));
	mm->saved_auxv[AT_VECTOR_SIZE - 2] = AT_NULL;
	return 0;
}

static int prepare_vdso(struct ssi_restore *r, const struct ssi_rec_mm *m)
{
	int err;

	if (!m->vdso)
		return 0;
	if (m->vvar != m->vdso + vdso_image_64.sym_vvar_start || m->vvar & ~PAGE_MASK || m->vdso >= TASK_SIZE_MAX)
		return ssi_bad_image(r, "bad address of the vdso (%llx)", m->vdso);
	err = map_vdso_once(&vdso_image_64, m->vvar);
	if (!err && current->mm->context.vdso != (void __user *)(unsigned long)m->vdso)
		err = -ENOMEM;
	return err;
}

static int mm_prepare(struct ssi_restore *r)
{
	const struct ssi_rec *raw = ssi_rec_next(r, NULL, SSI_REC_MM);
	const struct ssi_rec_task *t = ssi_rec_only(r, SSI_REC_TASK);
	const struct ssi_rec_mm *m = (const void *)raw->data;
	int err;

	if (raw->len != sizeof(*m) + m->exe_len || (m->exe_len != 1 && bad_path(m->exe, m->exe_len)))
		return ssi_bad_image(r, "bad path of the executable");
	r->new_mm = mm_alloc();
	if (!r->new_mm)
		return -ENOMEM;
	r->new_mm->flags = (r->new_mm->flags & ~MM_FLAGS) | (m->flags & MM_FLAGS);
	r->new_mm->def_flags = 0;

	r->old_personality = current->personality;
	current->personality = t->personality & ~READ_IMPLIES_EXEC;	/* protections are given in full */
	r->old_mm = ssi_switch_mm(r->new_mm);
	set_binfmt(r->old_mm->binfmt);

	err = prepare_fields(r, m);
	if (!err)
		err = prepare_vdso(r, m);
	if (!err)
		err = prepare_vmas(r);
	if (!err)
		err = prepare_exe(r, m);
	close_opened(r);
	if (!err)
		err = r->live ? ssi_lazy_prepare(r) : ssi_read_pages(r);
	return err;
}

static void mm_abort(struct ssi_restore *r)
{
	if (r->old_mm) {
		ssi_lazy_abort(r);
		ssi_switch_mm(r->old_mm);
		current->personality = r->old_personality;
		mm_update_next_owner(r->new_mm);
		r->old_mm = NULL;
	}
	if (r->new_mm)
		mmput(r->new_mm);
	r->new_mm = NULL;
}

static void mm_commit(struct ssi_restore *r)
{
	ssi_drop_mm(r->old_mm);
	r->old_mm = NULL;
	r->new_mm = NULL;
	ssi_lazy_commit(r);
}

static const struct ssi_rec_def mm_recs[] = {
	{ SSI_REC_MM, 1, sizeof(struct ssi_rec_mm) + 1, sizeof(struct ssi_rec_mm) + PATH_MAX, 1, 1 },
	{ SSI_REC_VMA, 1, sizeof(struct ssi_rec_vma), sizeof(struct ssi_rec_vma) + PATH_MAX, 1, 1 << 17 },
	{ SSI_REC_LAZY, 1, sizeof(struct ssi_rec_lazy), sizeof(struct ssi_rec_lazy), 0, 1 },
	{}
};

const struct ssi_resource ssi_res_mm = {
	.name = "memory",
	.recs = mm_recs,
	.check = mm_check,
	.save = mm_save,
	.release = mm_release,
	.prepare = mm_prepare,
	.commit = mm_commit,
	.abort = mm_abort,
};

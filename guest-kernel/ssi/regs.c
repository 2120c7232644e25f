// SPDX-License-Identifier: GPL-2.0
/*
 * Registers, floating-point state, thread-local storage, and the system call in progress (MIG-5, MIG-6).
 *
 * The registers travel as the interrupted system call left them: the result still says -ERESTART.., and the way back to
 * user mode at the destination restarts the call or lets a signal handler see EINTR, exactly as a signal would here.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/regset.h>
#include <linux/rseq.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/ssi_move.h>
#include <asm/fpu/api.h>
#include <asm/fpu/regset.h>
#include <asm/prctl.h>
#include <asm/proto.h>
#include <asm/segment.h>

#include "../kernel/futex/futex.h"
#include "move.h"

#define FPU_MAX		(16U << 10)	/* bytes of xsave state */

static int regs_check(struct ssi_save *s)
{
	const struct pt_regs *regs = task_pt_regs(current);

	if (regs->cs != __USER_CS)
		return ssi_why(s, "it runs 32-bit code");
	if (test_thread_flag(TIF_IO_BITMAP) || current->thread.iopl_emul)
		return ssi_why(s, "it has access to I/O ports");
	if (test_thread_flag(TIF_NOTSC) || test_thread_flag(TIF_NOCPUID))
		return ssi_why(s, "reading the TSC or CPUID is forbidden to it");
	for (int i = 0; i < HBP_NUM; i++)
		if (current->thread.ptrace_bps[i])
			return ssi_why(s, "it has hardware breakpoints");
	current_save_fsgs();
	if (current->thread.fsindex || current->thread.gsindex || current->thread.ds || current->thread.es)
		return ssi_why(s, "it uses segment selectors");
	return 0;
}

static int save_restart_block(struct ssi_save *s, struct ssi_rec_regs *rec)
{
	const struct restart_block *rb = &current->restart_block;

	if (rb->fn == hrtimer_nanosleep_restart || rb->fn == alarm_timer_nsleep_restart) {
		rec->restart_kind = rb->fn == hrtimer_nanosleep_restart ? SSI_RESTART_NANOSLEEP :
									  SSI_RESTART_ALARM_NANOSLEEP;
		rec->restart_i[0] = rb->nanosleep.clockid;
		rec->restart_i[1] = rb->nanosleep.type;
		rec->restart_u[0] = (unsigned long)rb->nanosleep.rmtp;
		rec->restart_u[1] = rb->nanosleep.expires;
	} else if (rb->fn == do_restart_poll) {
		rec->restart_kind = SSI_RESTART_POLL;
		rec->restart_i[0] = rb->poll.nfds;
		rec->restart_i[1] = rb->poll.has_timeout;
		rec->restart_u[0] = (unsigned long)rb->poll.ufds;
		rec->restart_u[1] = rb->poll.tv_sec;
		rec->restart_u[2] = rb->poll.tv_nsec;
	} else if (rb->fn == futex_wait_restart) {
		rec->restart_kind = SSI_RESTART_FUTEX;
		rec->restart_i[0] = rb->futex.val;
		rec->restart_i[1] = rb->futex.flags;
		rec->restart_i[2] = rb->futex.bitset;
		rec->restart_u[0] = (unsigned long)rb->futex.uaddr;
		rec->restart_u[1] = rb->futex.time;
	} else if ((long)task_pt_regs(current)->ax == -ERESTART_RESTARTBLOCK && rb->fn != do_no_restart_syscall) {
		return ssi_why(s, "the system call in progress cannot be resumed elsewhere");
	}
	return 0;
}

static int save_fpu(struct ssi_save *s)
{
	bool xsave = cpu_feature_enabled(X86_FEATURE_XSAVE);
	size_t len = xsave ? fpu_user_cfg.max_size : sizeof(struct fxregs_state);
	struct ssi_rec_fpu *rec;
	struct membuf to;
	int err;

	if (len > FPU_MAX)
		return ssi_why(s, "its floating-point state has %zu bytes", len);
	rec = kvzalloc(sizeof(*rec) + len, GFP_KERNEL);
	if (!rec)
		return -ENOMEM;
	rec->kind = xsave ? SSI_FPU_XSAVE : SSI_FPU_FXSAVE;
	to.p = rec->data;
	to.left = len;
	err = xsave ? xstateregs_get(current, NULL, to) : xfpregs_get(current, NULL, to);
	if (err > 0)	/* what is left of the buffer */
		err = 0;
	if (!err)
		err = ssi_write_rec(s->sink, SSI_REC_FPU, rec, sizeof(*rec) + len);
	kvfree(rec);
	return err;
}

static int regs_save(struct ssi_save *s)
{
	const struct pt_regs *p = task_pt_regs(current);
	struct ssi_rec_regs rec = {
		.r15 = p->r15, .r14 = p->r14, .r13 = p->r13, .r12 = p->r12, .bp = p->bp, .bx = p->bx,
		.r11 = p->r11, .r10 = p->r10, .r9 = p->r9, .r8 = p->r8, .ax = p->ax, .cx = p->cx, .dx = p->dx,
		.si = p->si, .di = p->di, .orig_ax = p->orig_ax, .ip = p->ip, .cs = p->cs, .flags = p->flags,
		.sp = p->sp, .ss = p->ss,
	};
	int err;

	current_save_fsgs();
	rec.fsbase = current->thread.fsbase;
	rec.gsbase = current->thread.gsbase;
	if (s->self) {	/* migrate(2) itself returns 0 at the destination */
		rec.ax = 0;
		rec.orig_ax = -1;
	}
	err = save_restart_block(s, &rec);
	if (!err)
		err = ssi_write_rec(s->sink, SSI_REC_REGS, &rec, sizeof(rec));
	return err ?: save_fpu(s);
}

static int regs_prepare(struct ssi_restore *r)
{
	const struct ssi_rec_regs *rec = ssi_rec_only(r, SSI_REC_REGS);
	const struct ssi_rec *fpu = ssi_rec_next(r, NULL, SSI_REC_FPU);
	const struct ssi_rec_fpu *f = (const void *)fpu->data;
	bool xsave = cpu_feature_enabled(X86_FEATURE_XSAVE);
	size_t len = xsave ? fpu_user_cfg.max_size : sizeof(struct fxregs_state);

	if (rec->cs != __USER_CS || rec->ss != __USER_DS)
		return ssi_bad_image(r, "not of a 64-bit process (cs %llx)", rec->cs);
	if (rec->ip >= TASK_SIZE_MAX || rec->fsbase >= TASK_SIZE_MAX || rec->gsbase >= TASK_SIZE_MAX)
		return ssi_bad_image(r, "an address in its registers is not of user space");
	if (rec->restart_kind >= SSI_RESTART_MAX)
		return ssi_bad_image(r, "unknown system call in progress %u", rec->restart_kind);
	if (f->kind != (xsave ? SSI_FPU_XSAVE : SSI_FPU_FXSAVE) || fpu->len != sizeof(*f) + len)
		return ssi_bad_image(r, "floating-point state of another kind of CPU (%u, %u bytes)", f->kind, fpu->len);
	if (((const struct fxregs_state *)f->data)->mxcsr & ~mxcsr_feature_mask)
		return ssi_bad_image(r, "bad MXCSR");
	return 0;
}

static void commit_restart_block(struct ssi_restore *r, const struct ssi_rec_regs *rec)
{
	struct restart_block *rb = &current->restart_block;

	memset(rb, 0, sizeof(*rb));
	rb->fn = do_no_restart_syscall;
	switch (rec->restart_kind) {
	case SSI_RESTART_NANOSLEEP:
	case SSI_RESTART_ALARM_NANOSLEEP:
		rb->fn = rec->restart_kind == SSI_RESTART_NANOSLEEP ? hrtimer_nanosleep_restart :
								      alarm_timer_nsleep_restart;
		rb->nanosleep.clockid = rec->restart_i[0];
		/* Only these two: a value from an image chooses how user memory is written. */
		rb->nanosleep.type = rec->restart_i[1] == TT_NATIVE ? TT_NATIVE : TT_NONE;
		rb->nanosleep.rmtp = (void __user *)(unsigned long)rec->restart_u[0];
		rb->nanosleep.expires = rec->restart_u[1];
		if (rb->nanosleep.clockid == CLOCK_MONOTONIC || rb->nanosleep.clockid == CLOCK_BOOTTIME)
			rb->nanosleep.expires += r->shift_ns;
		else if (rb->nanosleep.clockid != CLOCK_REALTIME && rb->nanosleep.clockid != CLOCK_TAI)
			rb->fn = do_no_restart_syscall;
		break;
	case SSI_RESTART_POLL: {
		struct timespec64 end = { rec->restart_u[1], rec->restart_u[2] };

		rb->fn = do_restart_poll;
		rb->poll.nfds = rec->restart_i[0];
		rb->poll.has_timeout = rec->restart_i[1];
		rb->poll.ufds = (void __user *)(unsigned long)rec->restart_u[0];
		if (r->shift_ns)
			end = timespec64_add(end, ns_to_timespec64(r->shift_ns));
		rb->poll.tv_sec = end.tv_sec;
		rb->poll.tv_nsec = end.tv_nsec;
		break;
	}
	case SSI_RESTART_FUTEX:
		rb->fn = futex_wait_restart;
		rb->futex.val = rec->restart_i[0];
		rb->futex.flags = rec->restart_i[1];
		rb->futex.bitset = rec->restart_i[2];
		rb->futex.uaddr = (void __user *)(unsigned long)rec->restart_u[0];
		rb->futex.time = rec->restart_u[1] + (rb->futex.flags & FLAGS_CLOCKRT ? 0 : r->shift_ns);
		break;
	}
}

static void commit_fpu(struct ssi_restore *r)
{
	const struct ssi_rec *rec = ssi_rec_next(r, NULL, SSI_REC_FPU);
	const struct ssi_rec_fpu *f = (const void *)rec->data;
	size_t len = rec->len - sizeof(*f);
	int err;

	/* From here the state in memory counts, and is loaded on the way to user mode. */
	fpregs_lock();
	set_thread_flag(TIF_NEED_FPU_LOAD);
	fpregs_unlock();
	if (f->kind == SSI_FPU_XSAVE)
		err = xstateregs_set(current, NULL, 0, len, f->data, NULL);
	else
		err = xfpregs_set(current, NULL, 0, len, f->data, NULL);
	if (err) {	/* prepare has checked what these check: the header of the xsave area is left */
		pr_notice("image of %d: bad floating-point state\n", r->hdr->pid);
		force_fatal_sig(SIGSEGV);
	}
}

static void regs_commit(struct ssi_restore *r)
{
	const struct ssi_rec_regs *rec = ssi_rec_only(r, SSI_REC_REGS);
	struct pt_regs *p = task_pt_regs(current);
	const u64 user_flags = X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | X86_EFLAGS_SF |
			       X86_EFLAGS_TF | X86_EFLAGS_DF | X86_EFLAGS_OF | X86_EFLAGS_NT | X86_EFLAGS_RF |
			       X86_EFLAGS_AC | X86_EFLAGS_ID;

	p->r15 = rec->r15; p->r14 = rec->r14; p->r13 = rec->r13; p->r12 = rec->r12; p->bp = rec->bp; p->bx = rec->bx;
	p->r11 = rec->r11; p->r10 = rec->r10; p->r9 = rec->r9; p->r8 = rec->r8; p->ax = rec->ax; p->cx = rec->cx;
	p->dx = rec->dx; p->si = rec->si; p->di = rec->di; p->ip = rec->ip; p->sp = rec->sp;
	p->orig_ax = rec->orig_ax;
	p->cs = __USER_CS;
	p->ss = __USER_DS;
	p->flags = (rec->flags & user_flags) | X86_EFLAGS_IF | X86_EFLAGS_FIXED;

	do_arch_prctl_64(current, ARCH_SET_FS, rec->fsbase);
	do_arch_prctl_64(current, ARCH_SET_GS, rec->gsbase);
	commit_restart_block(r, rec);
	commit_fpu(r);
}

static const struct ssi_rec_def regs_recs[] = {
	{ SSI_REC_REGS, 1, sizeof(struct ssi_rec_regs), sizeof(struct ssi_rec_regs), 1, 1 },
	{ SSI_REC_FPU, 1, sizeof(struct ssi_rec_fpu) + sizeof(struct fxregs_state), sizeof(struct ssi_rec_fpu) + FPU_MAX,
	  1, 1 },
	{}
};

const struct ssi_resource ssi_res_regs = {
	.name = "registers",
	.recs = regs_recs,
	.thread = true,
	.check = regs_check,
	.save = regs_save,
	.prepare = regs_prepare,
	.commit = regs_commit,
};

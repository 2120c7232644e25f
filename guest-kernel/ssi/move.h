/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Moving a process: what its parts share.
 *
 *	source					destination
 *	check: may it move?
 *	save: each resource writes its records	read: every record is checked before any is used
 *						prepare: each resource builds all that can fail
 *			  <- ready
 *	commit ->				commit: each resource installs what it built; cannot fail
 *	settle: drop what has moved		the process runs
 *
 * A failure before commit calls release (source) and abort (destination) of each resource that began.
 *
 * What each thread has of its own are resources too, marked as such: the main thread's are among those of the process, and the
 * other threads check, save, release and commit theirs themselves, when the main thread tells them to (threads.c).
 */
#ifndef _SSI_MOVE_H
#define _SSI_MOVE_H

#include <linux/path.h>
#include <linux/sched.h>
#include <linux/signal_types.h>

#include "image.h"

struct cred;
struct mm_struct;
struct ssi_lazy;
struct ssi_threads;

#define SSI_WHY_MAX	160

/*
 * What the last move of a process took; /proc/ssi/<pid>/stat. Times in microseconds, as in Table 3 of the paper; but the offer
 * is made while the process still runs, so that t0 is no part of the stop.
 */
struct ssi_move_stat {
	u64 t0_us;		/* the offer and its answer */
	u64 t1_us;		/* writing the state */
	u64 t2_us;		/* until the destination says that it is ready */
	u64 t3_us;		/* pages before the commit (eager) */
	u64 stop_us;		/* during which the process did not run */
	u64 total_us;		/* until the last page had come */
	u64 image_bytes;
	u64 pages_sent;
	u64 pages_absent;	/* MIG-7: never existed */
	u64 pages_unmodified;	/* MIG-7: as in their file, or zero */
};

struct ssi_save {
	struct ssi_sink *sink;
	bool live;			/* to another cell; else to a file */
	bool self;			/* it asked itself, in migrate(2) */
	u32 dest;
	u64 flags;			/* SSI_MOVE_* */
	u64 lazy_id;			/* of the address space that stays for fetching; live only */
	char *why;			/* SSI_WHY_MAX bytes: what cannot move */
	struct ssi_move_stat stat;

	struct ssi_threads *threads;	/* the others; of the main thread's only */
	struct sigpending pending[2];	/* taken out of the process: of the thread, of the process */
	bool pending_taken[2];
	struct ssi_rfile_ref *refs;	/* names given to descriptors that stay */
	u32 nrefs;
	u64 *regions;			/* of shared memory, with a reference each */
	u32 nregions, regions_room;
};

struct ssi_rec_vma;

/* A region or file, while mappings of it are made. */
struct ssi_opened {
	struct list_head list;
	const struct ssi_rec_vma *first;	/* the first mapping of it */
	struct file *file;
};

struct ssi_restore {
	struct ssi_source *src;
	struct list_head recs;		/* of struct ssi_rec; those of other threads are with them */
	struct list_head threads;	/* the others: of struct ssi_new_thread (threads_in.c) */
	struct ssi_restore *last;	/* that of the last thread so far: the next record is for it; NULL: for the process */
	struct ssi_rec_hdr next;	/* the header after the state: PAGES or END */
	u64 state_bytes;
	const struct ssi_rec_header *hdr;
	bool live;
	bool deputy;			/* current is the deputy, and becomes the process again */
	s64 shift_ns;			/* added to times of CLOCK_MONOTONIC in the image */
	u32 prepared;			/* resources whose prepare ran */

	struct mm_struct *old_mm, *new_mm;
	u32 old_personality;
	struct list_head opened;	/* of struct ssi_opened */
	struct ssi_lazy *lazy;
	struct file **files;
	u32 nfiles;
	struct path cwd, root;
	struct cred *cred;
	sigset_t blocked;		/* the caller's, while threads are made */
	bool blocks;
	struct ssi_move_stat stat;
};

struct ssi_resource {
	const char *name;
	const struct ssi_rec_def *recs;			/* ends with type 0 */
	bool thread;					/* each thread has its own */
	int (*check)(struct ssi_save *s);		/* -ENOTSUP with s->why, or another -errno */
	int (*save)(struct ssi_save *s);
	void (*release)(struct ssi_save *s, bool moved);
	int (*prepare)(struct ssi_restore *r);
	void (*commit)(struct ssi_restore *r);
	void (*abort)(struct ssi_restore *r);		/* also after a prepare that failed half-way */
};

extern const struct ssi_resource ssi_res_task, ssi_res_mm, ssi_res_files, ssi_res_fs, ssi_res_regs, ssi_res_signals,
	ssi_res_handlers, ssi_res_timers, ssi_res_creds, ssi_res_limits, ssi_res_process, ssi_res_threads;

/* resource.c: the table of resources, and what goes over all of it. All act on current. */
int ssi_check(struct ssi_save *s);
int ssi_save(struct ssi_save *s);
void ssi_save_release(struct ssi_save *s, bool moved);	/* after a check that failed, too */
/* Of these, another thread than the main one calls ssi_check(), ssi_save_mine() and ssi_save_release(), for what is its own. */
int ssi_save_mine(struct ssi_save *s);
/* What is to be done of a thread's own at the destination. */
int ssi_thread_counts(struct ssi_restore *r);		/* has it each record as often as it may? By the main thread */
int ssi_thread_prepare(struct ssi_restore *r);		/* by the main thread */
void ssi_thread_commit(struct ssi_restore *r);
void ssi_thread_abort(struct ssi_restore *r);		/* by the main thread, whatever was prepared */
void ssi_put_recs(struct ssi_restore *r);
int ssi_restore_read(struct ssi_restore *r);		/* everything before the pages */
int ssi_restore_prepare(struct ssi_restore *r);
void ssi_restore_commit(struct ssi_restore *r);
void ssi_restore_abort(struct ssi_restore *r);		/* and frees the records: always the last call */

struct ssi_rec *ssi_rec_next(struct ssi_restore *r, struct ssi_rec *after, u32 type);
#define ssi_for_each_rec(r, rec, t)	for ((rec) = ssi_rec_next(r, NULL, t); (rec); (rec) = ssi_rec_next(r, rec, t))
const void *ssi_rec_only(struct ssi_restore *r, u32 type);	/* the data of the only one; reading made sure of it */

#define ssi_bad_image(r, fmt, ...) ({					\
	pr_notice_ratelimited("image of %d refused: " fmt "\n",		\
			      (r)->hdr ? (r)->hdr->pid : 0, ##__VA_ARGS__); \
	-EINVAL; })

/* Says why a process cannot move. */
#define ssi_why(s, fmt, ...) ({						\
	snprintf((s)->why, SSI_WHY_MAX, fmt, ##__VA_ARGS__);		\
	-ENOTSUPP; })

/* threads.c: the other threads, at the source */
struct ssi_threads *ssi_threads_new(void);
struct ssi_threads *ssi_threads_get(struct ssi_threads *g);
void ssi_threads_put(struct ssi_threads *g);
/*
 * A thread that asks for a move of its own process: it joins those that will wait, has the main thread begin, awaits that, and
 * follows. -ETIMEDOUT: the main thread has not begun. -EINTR: killed.
 */
int ssi_threads_join(struct ssi_threads *g);
int ssi_threads_await(struct ssi_threads *g, long timeout);
int ssi_threads_follow(struct ssi_threads *g);	/* returns if the process has not left: what the move ended with, or -EINTR */
void ssi_threads_done(struct ssi_threads *g, int result);	/* the move has ended, if it has ever begun */
void ssi_wait_others_gone(void);		/* all threads but current have ended */
/* False: it runs now. True: it will, as the last of those that wait for current to run them. @again: false at first. */
bool ssi_work_again(struct callback_head *work, bool *again);
/* threads_in.c: and at the destination */
int ssi_new_thread(struct ssi_restore *r, const struct ssi_rec *rec);	/* the records that follow are its own */
int ssi_threads_counts(struct ssi_restore *r);	/* has each its records? */
int ssi_threads_prepare(struct ssi_restore *r);
void ssi_threads_abort(struct ssi_restore *r);
void ssi_threads_run(struct ssi_restore *r);	/* after commit; returns when each is what it was */
void ssi_threads_free(struct ssi_restore *r);	/* the records of those that run, or have ended */

/* process.c */
void ssi_usage_of(struct task_struct *t, struct ssi_usage *u);
void ssi_usage_take(const struct ssi_usage *u);	/* current's, and what it has used itself is part of it */
/* taskrec.c: may the caller of restart() become more than it is now? 0 or -EPERM. */
int ssi_may_raise(struct ssi_restore *r);

/* mm.c */
struct mm_struct *ssi_switch_mm(struct mm_struct *mm);	/* makes it current's; returns the former one, with its reference */
void ssi_drop_mm(struct mm_struct *mm);			/* of the process that was */
/* pages.c */
int ssi_save_pages(struct ssi_save *s);
int ssi_read_pages(struct ssi_restore *r);
int ssi_insert_page(struct mm_struct *mm, struct vm_area_struct *vma, unsigned long addr, struct page *page);
/*
 * Collects the anonymous pages of [addr, addr + n pages) of @mm, at most @n, each with a reference; pages[i] is NULL where
 * there is none. Counts into @stat. 0 or -errno. Under mmap_read_lock.
 */
int ssi_collect_pages(struct mm_struct *mm, unsigned long addr, unsigned int n, struct page **pages,
		      struct ssi_move_stat *stat);

char *ssi_path_of(const struct path *path, char *buf, int len);	/* from the root of the system; ERR_PTR */
/* Opens again what was open under @path, if it is still the same kind of file, and in a move: of the same owner and mode. */
struct file *ssi_reopen(struct ssi_restore *r, const char *path, int flags, u32 mode, u32 uid, u32 gid);

#endif

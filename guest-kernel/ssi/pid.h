/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which cell a PID was born in.
 */
#ifndef _SSI_PID_H
#define _SSI_PID_H

#include <linux/types.h>

#define SSI_PID_SHIFT	16	/* cell n gives out n * 65536 + 300 to n * 65536 + 65535 */

/* The cell that gave out @pid. Numbers below 300 are every cell's own (init, early kernel threads): not for them. */
static inline u32 ssi_pid_home(int pid)
{
	return (u32)pid >> SSI_PID_SHIFT;
}

/*
 * Threads take their numbers along. A number of this cell whose thread is elsewhere is kept: it is not given out, but to the
 * process that it belongs to when that comes back.
 */
void ssi_pid_keep(pid_t tid, pid_t tgid);	/* before the thread may be elsewhere; nothing for a number of another cell */
void ssi_pid_unkeep(pid_t tid);			/* it is as any other again: free if it is not in use */
void ssi_pid_unkeep_all(pid_t tgid);
pid_t ssi_pid_owner(pid_t tid);			/* whose it is, if it is kept; else 0 */

void ssi_pid_init(void);	/* params.c: once the cell's number is known */

#endif

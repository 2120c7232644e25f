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

void ssi_pid_init(void);	/* params.c: once the cell's number is known */

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Places where this cell can be told to die, so that a test kills it at a step of a move and not at some time.
 */
#ifndef _SSI_FAULT_H
#define _SSI_FAULT_H

#include <linux/compiler.h>

/* In the order in which a move passes them. */
enum ssi_fault {
	SSI_FAULT_NONE,
	SSI_FAULT_OFFER,	/* destination: a move is offered */
	SSI_FAULT_SAVE,		/* source: the process has stopped, its image is being sent */
	SSI_FAULT_IMAGE,	/* destination: a piece of the image has come */
	SSI_FAULT_BUILD,	/* destination: the whole image has been read */
	SSI_FAULT_READY,	/* destination: the process is built, and the source does not know yet */
	SSI_FAULT_COMMIT,	/* destination: the source has let go of the process */
	SSI_FAULT_LEFT,		/* source: the process runs elsewhere, its pages are still here */
	SSI_FAULT_RUN,		/* destination: the process is about to run */
	SSI_FAULTS,
};

extern enum ssi_fault ssi_fault_armed;

void ssi_fault_die(enum ssi_fault at);

static inline void ssi_fault_point(enum ssi_fault at)
{
	if (unlikely(READ_ONCE(ssi_fault_armed) == at))
		ssi_fault_die(at);
}

#endif

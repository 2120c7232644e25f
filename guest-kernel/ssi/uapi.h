/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What user space needs to move processes: two system calls, /dev/ssi, /proc/ssi/<pid>/.
 *
 *   long migrate(int pid, unsigned long addr)	600; pid 0 is the caller itself
 *   long restart(int fd)			601
 *
 * The life of /dev/ssi in migrationd:
 *
 *   fd = open("/dev/ssi", O_RDWR | O_CLOEXEC)	mode 0600; while one is open, the cell takes moves
 *   poll(fd, POLLIN)				a move has been offered
 *   ioctl(fd, SSI_IOC_ACCEPT, &in)		in.fd: the connection, close-on-exec
 *   pid = clone3({ .flags = 0, .exit_signal = SIGCHLD, .set_tid = &in.pid, .set_tid_size = 1 })
 *						without set_tid if in.flags has SSI_INCOMING_HOME
 *   child: restart(in.fd)			returns only on failure (or 0 with SSI_INCOMING_HOME): then _exit()
 *   parent: close(in.fd); waitpid(-1, .., WNOHANG) at SIGCHLD; a child that became the process is reaped by the kernel
 *
 * A connection closed without restart(), or whose restart() failed, tells the source, where the process goes on.
 */
#ifndef _UAPI_SSI_H
#define _UAPI_SSI_H

#include <linux/types.h>
#include <linux/ioctl.h>

#define SSI_NR_MIGRATE	600
#define SSI_NR_RESTART	601

/*
 * addr of migrate(2): bits 0-31 name the node: its number, if below 0x01000000, else its IPv4 address in host byte order
 * (10.64.1.2 is 0x0a400102; its last byte less 2 is the node's number). The bits above are flags.
 */
#define SSI_ADDR_NODE	0x00000000ffffffffUL
#define SSI_MOVE_EAGER	(1UL << 32)	/* every page is at the destination before the process runs there */
#define SSI_MOVE_FLAGS	(SSI_MOVE_EAGER)

/* A move that waits to be restarted. */
struct ssi_incoming {
	__u32 size;		/* in: sizeof(struct ssi_incoming) */
	__s32 fd;		/* out: for restart() */
	__s32 pid;		/* out: the PID it has had and keeps */
	__u32 flags;		/* out: SSI_INCOMING_* */
	__u32 source;		/* out: the cell it comes from */
	__u32 home;		/* out: the cell it was born in */
	__u32 uid;		/* out: its real user */
	__u32 pad;
	char comm[16];		/* out */
};

#define SSI_INCOMING_HOME	1	/* it comes home to its deputy: fork without set_tid; restart() returns 0 */
#define SSI_INCOMING_EAGER	2

/* Writes the image of a process to a file or pipe: what restart() reads. */
struct ssi_checkpoint {
	__u32 size;		/* in: sizeof(struct ssi_checkpoint) */
	__s32 pid;
	__s32 fd;		/* open for writing */
	__u32 flags;		/* SSI_CHECKPOINT_* */
};

#define SSI_CHECKPOINT_KILL	1	/* the process ends, as if killed by SIGKILL, when its image is whole */

#define SSI_IOC_ACCEPT		_IOWR('S', 1, struct ssi_incoming)	/* waits; EAGAIN with O_NONBLOCK */
#define SSI_IOC_CHECKPOINT	_IOW('S', 2, struct ssi_checkpoint)	/* errors as migrate(2) */

#endif

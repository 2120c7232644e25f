// SPDX-License-Identifier: GPL-2.0
/*
 * ssi.idle_port= on the command line: how a CPU of a cell sleeps. HLT does not leave a cell, because only then does KVM
 * ask for a page as the CPU does that lacks it, to read or to write. A write to the port leaves it, and the hypervisor
 * lets the CPU sleep until its next interrupt.
 */
#define pr_fmt(fmt) "ssi: " fmt

#include <linux/cpu.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/ssi.h>

static u16 idle_port __ro_after_init;

bool ssi_idles_by_port(void)
{
	return idle_port;
}

/* Comes with interrupts off, and returns so. */
void __cpuidle ssi_idle(void)
{
	/* As with HLT: STI holds interrupts off for one more instruction, so that none comes before the sleep and is slept over. */
	asm volatile("sti; outb %%al, %%dx" : : "a" (0), "d" (idle_port) : "memory");
	raw_local_irq_disable();
}

static int __init parse_idle_port(char *arg)
{
	if (!arg || kstrtou16(arg, 0, &idle_port) || !idle_port) {
		pr_err("ssi.idle_port=%s: want an I/O port, 1 to 0xffff; CPUs sleep by HLT\n", arg ?: "");
		idle_port = 0;
	}
	return 0;
}
early_param("ssi.idle_port", parse_idle_port);

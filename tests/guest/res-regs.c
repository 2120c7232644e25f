// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* MIG-6: user registers. General registers, flags, SSE registers, x87 state and MXCSR hold over a spin and over system calls. */
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "resource.h"

/* Fills registers, spins, and compares: returns the number of the first register that changed, 0 if none did. */
static unsigned long general(unsigned long seed, unsigned long spins)
{
	unsigned long wrong;

	asm volatile("mov %[seed], %%r8\n\t"
		     "lea 1(%%r8), %%r9\n\t"
		     "lea 2(%%r8), %%r10\n\t"
		     "lea 3(%%r8), %%r12\n\t"
		     "lea 4(%%r8), %%r13\n\t"
		     "lea 5(%%r8), %%r14\n\t"
		     "lea 6(%%r8), %%r15\n\t"
		     "lea 7(%%r8), %%rdx\n\t"
		     "stc\n\t"
		     "1: dec %[spins]\n\t" /* leaves the carry alone */
		     "jnz 1b\n\t"
		     "mov $1, %[wrong]\n\t"
		     "jnc 2f\n\t"
		     "mov $8, %[wrong]\n\t"
		     "cmp %[seed], %%r8\n\t"
		     "jne 2f\n\t"
		     "lea 1(%%r8), %%rax\n\tmov $9, %[wrong]\n\tcmp %%rax, %%r9\n\tjne 2f\n\t"
		     "lea 2(%%r8), %%rax\n\tmov $10, %[wrong]\n\tcmp %%rax, %%r10\n\tjne 2f\n\t"
		     "lea 3(%%r8), %%rax\n\tmov $12, %[wrong]\n\tcmp %%rax, %%r12\n\tjne 2f\n\t"
		     "lea 4(%%r8), %%rax\n\tmov $13, %[wrong]\n\tcmp %%rax, %%r13\n\tjne 2f\n\t"
		     "lea 5(%%r8), %%rax\n\tmov $14, %[wrong]\n\tcmp %%rax, %%r14\n\tjne 2f\n\t"
		     "lea 6(%%r8), %%rax\n\tmov $15, %[wrong]\n\tcmp %%rax, %%r15\n\tjne 2f\n\t"
		     "lea 7(%%r8), %%rax\n\tmov $16, %[wrong]\n\tcmp %%rax, %%rdx\n\tjne 2f\n\t"
		     "xor %[wrong], %[wrong]\n\t"
		     "2:"
		     : [wrong] "=&c"(wrong), [spins] "+D"(spins)
		     : [seed] "S"(seed)
		     : "rax", "rdx", "r8", "r9", "r10", "r12", "r13", "r14", "r15", "cc");
	return wrong;
}

typedef uint64_t vector __attribute__((vector_size(16)));

static int sse(uint64_t seed, unsigned long spins)
{
	vector in = { seed, ~seed }, out[8];

	asm volatile("movdqu %[in], %%xmm0\n\t"
		     "movdqa %%xmm0, %%xmm3\n\tpaddq %%xmm0, %%xmm3\n\t"
		     "movdqa %%xmm0, %%xmm7\n\t"
		     "movdqa %%xmm3, %%xmm15\n\t"
		     "1: dec %[spins]\n\tjnz 1b\n\t"
		     "movdqu %%xmm0, 0(%[out])\n\tmovdqu %%xmm3, 16(%[out])\n\t"
		     "movdqu %%xmm7, 32(%[out])\n\tmovdqu %%xmm15, 48(%[out])"
		     : [spins] "+r"(spins)
		     : [in] "m"(in), [out] "r"(out)
		     : "xmm0", "xmm3", "xmm7", "xmm15", "memory");
	return out[0][0] == seed && out[0][1] == ~seed && out[1][0] == seed + seed && out[2][1] == ~seed &&
	       out[3][1] == ~seed + ~seed;
}

/* Control words keep a value that is not the default, and the x87 stack its content, in double-extended precision. */
static int x87(unsigned long spins)
{
	uint32_t mxcsr = 0x7f80, mxcsr_after;	/* round towards zero */
	uint16_t control = 0x0f7f, control_after;
	long double pi;

	asm volatile("ldmxcsr %[mx]\n\tfldcw %[cw]\n\tfldpi\n\t"
		     "1: dec %[spins]\n\tjnz 1b\n\t"
		     "fstpt %[pi]\n\tfnstcw %[cwa]\n\tstmxcsr %[mxa]"
		     : [spins] "+r"(spins), [pi] "=m"(pi), [cwa] "=m"(control_after), [mxa] "=m"(mxcsr_after)
		     : [mx] "m"(mxcsr), [cw] "m"(control)
		     : "st", "cc");
	asm volatile("fninit");
	mxcsr = 0x1f80;
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
	return (mxcsr_after & 0xffc0) == 0x7f80 && (control_after & 0x0f3f) == (control & 0x0f3f) &&
	       pi > 3.14159265358979323L && pi < 3.14159265358979324L;
}

int main(int argc, char **argv)
{
	long rounds = rounds_of(argc, argv);
	pid_t pid = getpid();
	static __thread unsigned long in_tls = 0x5151;	/* fs base */

	for (long round = 0; round < rounds; round++) {
		unsigned long seed = 0x123456789abcdefUL * (round + 1);

		CHECK(general(seed, 200000) == 0, "register code %lu, round %ld", general(seed, 1), round);
		CHECK(sse(seed, 200000), "SSE, round %ld", round);
		CHECK(x87(200000), "x87 or control words, round %ld", round);
		CHECK(in_tls == 0x5151, "thread-local storage, round %ld", round);
		CHECK(syscall(SYS_getpid) == pid, "PID %ld, was %d", syscall(SYS_getpid), pid);
	}
	return pass();
}

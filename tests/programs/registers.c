/* Registers in use while threads spin: general ones and flags, x87 and MXCSR with their control bits, SSE, AVX,
   AVX-512 with its masks, AMX tiles, the bases of FS and GS. Each thread fills its registers, spins without a
   system call, and compares what it has afterwards. */
#include "program.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>
#include <sys/syscall.h>

#define SPIN "1:\tpause; cmpl $0, stop(%%rip); je 1b\n\t"

int stop;
static int spinning;

static void prepare(void *memory, size_t size, unsigned seed)
{
	fill(memory, size, seed);
	__atomic_add_fetch(&spinning, 1, __ATOMIC_SEQ_CST);
}

static void *general(void *unused)
{
	uint64_t in[12], out[13];
	prepare(in, sizeof in, 1);
	__asm__ volatile(
		"mov 0(%%rsi), %%rax; mov 8(%%rsi), %%rbx; mov 16(%%rsi), %%rcx; mov 24(%%rsi), %%rdx\n\t"
		"mov 32(%%rsi), %%r8; mov 40(%%rsi), %%r9; mov 48(%%rsi), %%r10; mov 56(%%rsi), %%r11\n\t"
		"mov 64(%%rsi), %%r12; mov 72(%%rsi), %%r13; mov 80(%%rsi), %%r14; mov 88(%%rsi), %%r15\n\t"
		"std\n\t" SPIN
		"mov %%rax, 0(%%rdi); mov %%rbx, 8(%%rdi); mov %%rcx, 16(%%rdi); mov %%rdx, 24(%%rdi)\n\t"
		"mov %%r8, 32(%%rdi); mov %%r9, 40(%%rdi); mov %%r10, 48(%%rdi); mov %%r11, 56(%%rdi)\n\t"
		"mov %%r12, 64(%%rdi); mov %%r13, 72(%%rdi); mov %%r14, 80(%%rdi); mov %%r15, 88(%%rdi)\n\t"
		"sub $128, %%rsp; pushfq; pop %%rax; add $128, %%rsp; cld; mov %%rax, 96(%%rdi)"
		: : "S"(in), "D"(out)
		: "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
	check_filled(out, sizeof in, 1, "a general register");
	CHECK(out[12] & 0x400);
	return unused;
}

/* x87 with a value on its stack and 24-bit precision; MXCSR rounding up, with a sticky flag set. */
static void *scalar(void *unused)
{
	unsigned short control = 0x007F, control_after;
	unsigned mxcsr = 0x5F81, mxcsr_after;
	double in = 1.0 / 3, out;
	__atomic_add_fetch(&spinning, 1, __ATOMIC_SEQ_CST);
	__asm__ volatile("fldcw %4; fldl %3; ldmxcsr %5\n\t" SPIN "stmxcsr %1; fnstcw %0; fstpl %2; fninit"
			: "=m"(control_after), "=m"(mxcsr_after), "=m"(out) : "m"(in), "m"(control), "m"(mxcsr) : "memory", "cc");
	mxcsr = 0x1F80;
	__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
	CHECK(control_after == 0x007F && mxcsr_after == 0x5F81);
	CHECK(out == in);
	return unused;
}

#define REPEAT16(move) move(0) move(1) move(2) move(3) move(4) move(5) move(6) move(7) \
	move(8) move(9) move(10) move(11) move(12) move(13) move(14) move(15)
#define REPEAT32(move) REPEAT16(move) move(16) move(17) move(18) move(19) move(20) move(21) move(22) move(23) \
	move(24) move(25) move(26) move(27) move(28) move(29) move(30) move(31)
#define LOAD_X(n) "movups " #n "*16(%0), %%xmm" #n "\n\t"
#define STORE_X(n) "movups %%xmm" #n ", " #n "*16(%1)\n\t"
#define LOAD_Y(n) "vmovups " #n "*32(%0), %%ymm" #n "\n\t"
#define STORE_Y(n) "vmovups %%ymm" #n ", " #n "*32(%1)\n\t"
#define LOAD_Z(n) "vmovups " #n "*64(%0), %%zmm" #n "\n\t"
#define STORE_Z(n) "vmovups %%zmm" #n ", " #n "*64(%1)\n\t"

static void *sse(void *unused)
{
	char in[16 * 16], out[16 * 16];
	prepare(in, sizeof in, 2);
	__asm__ volatile(REPEAT16(LOAD_X) SPIN REPEAT16(STORE_X) : : "r"(in), "r"(out) : "memory", "cc");
	check_filled(out, sizeof out, 2, "an SSE register");
	return unused;
}

static void *avx(void *unused)
{
	char in[16 * 32], out[16 * 32];
	prepare(in, sizeof in, 3);
	__asm__ volatile(REPEAT16(LOAD_Y) SPIN REPEAT16(STORE_Y) "vzeroupper" : : "r"(in), "r"(out) : "memory", "cc");
	check_filled(out, sizeof out, 3, "an AVX register");
	return unused;
}

static void *avx512(void *unused)
{
	char in[32 * 64], out[32 * 64];
	uint32_t masks[8] = {0}, masks_in[8];
	prepare(in, sizeof in, 4);
	fill(masks_in, sizeof masks_in, 5);
	__asm__ volatile(REPEAT32(LOAD_Z)
			"kmovd 0(%2), %%k0; kmovd 4(%2), %%k1; kmovd 8(%2), %%k2; kmovd 12(%2), %%k3\n\t"
			"kmovd 16(%2), %%k4; kmovd 20(%2), %%k5; kmovd 24(%2), %%k6; kmovd 28(%2), %%k7\n\t" SPIN
			"kmovd %%k0, 0(%3); kmovd %%k1, 4(%3); kmovd %%k2, 8(%3); kmovd %%k3, 12(%3)\n\t"
			"kmovd %%k4, 16(%3); kmovd %%k5, 20(%3); kmovd %%k6, 24(%3); kmovd %%k7, 28(%3)\n\t"
			REPEAT32(STORE_Z) "vzeroupper" : : "r"(in), "r"(out), "r"(masks_in), "r"(masks) : "memory", "cc");
	check_filled(out, sizeof out, 4, "an AVX-512 register");
	check_filled(masks, sizeof masks, 5, "an AVX-512 mask");
	return unused;
}

static void *amx(void *unused)
{
	static struct { unsigned char palette, start, zero[14]; uint16_t width[16]; unsigned char rows[16]; } shape;
	static char in[2][1024], out[2][1024];
	shape.palette = 1;
	for (int i = 0; i < 2; i++) shape.width[i] = 64, shape.rows[i] = 16;
	fill(in[0], 1024, 6);
	prepare(in[1], 1024, 7);
	__asm__ volatile("ldtilecfg (%0); tileloadd (%1,%5,1), %%tmm0; tileloadd (%2,%5,1), %%tmm1\n\t" SPIN
			"tilestored %%tmm0, (%3,%5,1); tilestored %%tmm1, (%4,%5,1); tilerelease"
			: : "r"(&shape), "r"(in[0]), "r"(in[1]), "r"(out[0]), "r"(out[1]), "r"(64L) : "memory", "cc");
	check_filled(out[0], 1024, 6, "an AMX tile");
	check_filled(out[1], 1024, 7, "an AMX tile");
	return unused;
}

static void *bases(void *unused)
{
	static __thread uint64_t own = 0x1234;
	uint64_t value, here[2] = {0x5678, 0};
	CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, here) == 0);
	__atomic_add_fetch(&spinning, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) continue;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(value));
	CHECK(value == 0x5678 && own == 0x1234);
	return unused;
}

static int has_amx(void)
{
	unsigned a, b, c, d;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1
		&& syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
}

int main(void)
{
	void *(*spinners[])(void *) = {general, scalar, sse, bases, avx, avx512, amx};
	pthread_t threads[7];
	int count = 4;
	start();
	if (__builtin_cpu_supports("avx2")) {
		count = 5;
		if (__builtin_cpu_supports("avx512bw")) count = has_amx() ? 7 : 6;
	}
	for (int i = 0; i < count; i++) CHECK(pthread_create(&threads[i], NULL, spinners[i], NULL) == 0);
	while (__atomic_load_n(&spinning, __ATOMIC_SEQ_CST) < count) usleep(1000);
	usleep(10000);
	ready();
	await_check();
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < count; i++) CHECK(pthread_join(threads[i], NULL) == 0);
	pass();
}

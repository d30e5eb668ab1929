/* Chooses the kernels for this CPU, once. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* The instruction sets that the CPU has and whose registers the operating system saves. */
static int widest_isa(void) {
    unsigned a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned fma_f16c_osxsave_avx = 1u << 12 | 1u << 29 | 1u << 27 | 1u << 28;
    if ((c & fma_f16c_osxsave_avx) != fma_f16c_osxsave_avx) return 0;
    unsigned saved, upper;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
    const unsigned avx2_bmi = 1u << 5 | 1u << 3 | 1u << 8;
    if ((b7 & avx2_bmi) != avx2_bmi) return 0;
    const unsigned avx512_f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    return (b7 & avx512_f_dq_cd_bw_vl) == avx512_f_dq_cd_bw_vl && (saved & 0xe6) == 0xe6 ? 2 : 1;
}

static bool is_amd(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
}

static const fl_kernels *const all_kernels[] = {&fl_kernels_x86_64, &fl_kernels_x86_64_v3, &fl_kernels_x86_64_v4};
static const char *const lists[] = {"x86-64", "x86-64 x86-64-v3", "x86-64 x86-64-v3 x86-64-v4"};
#elif defined(__aarch64__)
static int widest_isa(void) { return 0; }
static bool is_amd(void) { return false; }
static const fl_kernels *const all_kernels[] = {&fl_kernels_aarch64};
static const char *const lists[] = {"aarch64"};
#else
static int widest_isa(void) { return 0; }
static bool is_amd(void) { return false; }
static const fl_kernels *const all_kernels[] = {&fl_kernels_generic};
static const char *const lists[] = {"generic"};
#endif

_Atomic bool fl_fetches_pages = true;

static const fl_kernels refused;
static _Atomic(const fl_kernels *) chosen;

/* Threads that come here at once all find the same. */
const fl_kernels *fl_kernels_in_use(void) {
    const fl_kernels *kernels = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!kernels) {
        const int widest = widest_isa();
        const char *name = getenv("FASTLOSS_ISA");
        kernels = all_kernels[widest];
        if (name && *name) {
            kernels = &refused;
            for (int i = 0; i <= widest; i++)
                if (strcmp(all_kernels[i]->name, name) == 0) kernels = all_kernels[i];
        }
        atomic_store_explicit(&fl_fetches_pages, !is_amd(), memory_order_relaxed);
        atomic_store_explicit(&chosen, kernels, memory_order_release);
    }
    return kernels == &refused ? NULL : kernels;
}

const char *fl_isa_list(void) { return lists[widest_isa()]; }

const char *fl_isa(void) {
    const fl_kernels *kernels = fl_kernels_in_use();
    return kernels ? kernels->name : NULL;
}

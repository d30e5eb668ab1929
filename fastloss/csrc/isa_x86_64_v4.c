/* All kernels for x86-64-v4: AVX-512 F, BW, CD, DQ, VL. */
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
#endif

#include "vec_avx512.h"
#include "isa_unit.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const fl_kernels fl_kernels_x86_64_v4 = FILL_KERNELS("x86-64-v4");
#else
typedef int fl_empty_unit;
#endif

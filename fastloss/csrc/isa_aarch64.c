/* All kernels for aarch64 with NEON, which every one has. */
#include "kernels.h"

#if defined(__aarch64__)
#include "vec_plain.h"
#include "isa_unit.h"

const fl_kernels fl_kernels_aarch64 = FILL_KERNELS("aarch64");
#else
typedef int fl_empty_unit;
#endif

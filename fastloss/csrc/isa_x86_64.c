/* All kernels for x86-64 with SSE2, which every one has. */
#include "kernels.h"

#if defined(__x86_64__)
#include "vec_plain.h"
#include "isa_unit.h"

const fl_kernels fl_kernels_x86_64 = FILL_KERNELS("x86-64");
#else
typedef int fl_empty_unit;
#endif

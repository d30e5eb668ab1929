/* All kernels for any other CPU. */
#include "kernels.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#include "vec_plain.h"
#include "isa_unit.h"

const fl_kernels fl_kernels_generic = FILL_KERNELS("generic");
#else
typedef int fl_empty_unit;
#endif

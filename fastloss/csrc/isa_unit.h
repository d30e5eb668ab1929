/* The body of every isa_*.c: all kernels, on the vector header that was included before. */
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "targets.h"

#define WORKING_TYPE 32
#include "working_type.h"
#include "vector_math.h"
#include "blocks.h"
#include "cross_entropy.h"
#include "softmax.h"
#include "tiles.h"
#include "binary.h"
#include "map.h"
#undef WORKING_TYPE

#define WORKING_TYPE 64
#include "working_type.h"
#include "vector_math.h"
#include "blocks.h"
#include "cross_entropy.h"
#include "softmax.h"
#include "tiles.h"
#include "binary.h"
#include "map.h"

#define FILL_KERNELS(isa)                     \
    {                                         \
        .name = isa,                          \
        .softmax_tile = {f_tile, d_tile},     \
        .softmax_check = {f_check, d_check},  \
        .bce_tile = {f_bce_tile, d_bce_tile}, \
        .bce_check = bce_check,               \
        .map = {f_map, d_map},                \
    }

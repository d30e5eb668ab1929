/* The body of every isa_*.c: all kernels, on the vector header that was included before. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "targets.h"

#define WORKING_TYPE 32
#include "working_type.h"
#include "vector_math.h"
#include "blocks.h"
#include "cross_entropy.h"
#include "block_rows.h"
#include "softmax.h"
#include "tiles.h"
#include "elements.h"
#include "map.h"
#include "overlap.h"
#undef WORKING_TYPE

#define WORKING_TYPE 64
#include "working_type.h"
#include "vector_math.h"
#include "blocks.h"
#include "cross_entropy.h"
#include "block_rows.h"
#include "softmax.h"
#include "tiles.h"
#include "elements.h"
#include "map.h"
#include "overlap.h"

#define FILL_KERNELS(isa)                                    \
    {                                                        \
        .name = isa,                                         \
        .class_tile = {f_tile, d_tile},                      \
        .class_check = {f_check, d_check},                   \
        .element_tile = {f_element_tile, d_element_tile},    \
        .element_check = {f_element_check, d_element_check}, \
        .overlap_tile = {f_overlap_tile, d_overlap_tile},    \
        .overlap_check = overlap_check,                      \
        .map = {f_map, d_map},                               \
    }

/* What the library's units share: a validated call, and the table of kernels that each instruction set fills in. */
#ifndef FASTLOSS_KERNELS_H
#define FASTLOSS_KERNELS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "fastloss.h"

#define INLINE inline __attribute__((always_inline, unused))

/* For a loop whose constants need all registers: inlined into a large function they would be read from the stack. It
 * begins a cache line, so that its speed does not depend on what stands before it. */
#define LOOP __attribute__((noinline, aligned(64), unused))

/* A cross-entropy or a softmax call, checked, with what every tile needs derived from it. */
typedef struct {
    fl_class_call call;
    int kind;             /* 0: cross-entropy; else enum fl_softmax_kind, with logits, grad and losses as its arrays */
    ptrdiff_t rows;       /* targets in all */
    ptrdiff_t tile_rows;  /* inner = 1: rows a tile. inner > 1: positions a tile, all in one (i, j) ... */
    ptrdiff_t tile_outer; /* ... or, where inner is small, the number of (i, j) a tile */
    ptrdiff_t tiles;
    double scale;       /* of every gradient: grad_scale, over the normalizer for a mean */
    int nothing_counts; /* a mean with the denominator 0: its gradient is exactly 0 */
} class_task;

typedef struct {
    fl_element_call call;
    ptrdiff_t elements;
    ptrdiff_t tiles;
    double scale;
    double label_scale, label_shift; /* what the loss sees of a target: target * label_scale + label_shift */
} element_task;

/* An overlap call: its targets are divided into groups, and each group into tiles. */
typedef struct {
    fl_overlap_call call;
    ptrdiff_t rows, group_rows, group_tiles, tile_rows, tiles;
    double entropy_scale; /* of the cross-entropy's gradient */
    class_task focal;     /* its focal options, for the functions that cross-entropy shares */
} overlap_task;

/* Tiles of an overlap call at most, or one a group: each has sums of its own, for every class. */
#define OVERLAP_TILES 64

/* Elements a tile: small enough to share out evenly, large enough to make handing out cheap. */
#define TILE_ELEMENTS 32768

/* Gradients of this size and more are written past the caches where their kernel can: with the logits they would fill
 * one and a half times the 32 MiB that last-level caches have at best. */
#define STREAM_BYTES (24 << 20)

/* Rows a tile that the kernels for long rows would like, since nothing is computed while the last one is written, and
 * how many tiles there have to be for that. */
#define STREAMED_ROWS 16
#define SHARED_TILES 64

/* How many times as long the tiles of large images are: at their ends tiles share lines of the caches. */
#define LONGER_TILES 4

/* Of a line of the caches. */
#define LINE_BYTES 64

/* Numbers past the end of a scratch row that kernels may write: a vector. */
#define SCRATCH_PADDING 16

/* Working types index the pairs: 0 float, 1 double. */
typedef struct {
    const char *name;
    int (*class_tile[2])(const class_task *task, ptrdiff_t tile, void *scratch, double *loss);
    void (*class_check[2])(const class_task *task, ptrdiff_t tile, fl_target_check *check);
    void (*element_tile[2])(const element_task *task, ptrdiff_t tile, double *loss);
    void (*element_check[2])(const element_task *task, ptrdiff_t tile, fl_target_check *check);
    int (*overlap_tile[2])(const overlap_task *task, ptrdiff_t tile, const double *slopes, double *sums);
    void (*overlap_check)(const overlap_task *task, ptrdiff_t tile, fl_target_check *check);
    void (*map[2])(int kind, int dtype, const void *input, ptrdiff_t n, void *output);
} fl_kernels;

extern const fl_kernels fl_kernels_generic, fl_kernels_x86_64, fl_kernels_x86_64_v3, fl_kernels_x86_64_v4,
    fl_kernels_aarch64;

/* The kernels in use, or NULL where FASTLOSS_ISA names an instruction set that is not to be had. */
const fl_kernels *fl_kernels_in_use(void);

/* Whether memory gives this CPU more of several pages at once than of one. Measured: it does on Intel's; on AMD's (Zen
 * 4 and 5), long rows take 1.1 to 1.3 times as long that way. */
extern _Atomic bool fl_fetches_pages;

static inline ptrdiff_t dtype_size(int dtype) {
    switch (dtype) {
        case FL_F64:
        case FL_I64:
        case FL_U64:
            return 8;
        case FL_F32:
        case FL_I32:
        case FL_U32:
            return 4;
        case FL_F16:
        case FL_BF16:
        case FL_I16:
        case FL_U16:
            return 2;
        default:
            return 1;
    }
}

/* Whether a gradient is written past the caches: not where it replaces logits that are in them. */
static inline int streams(const void *logits, const void *grad, int dtype, ptrdiff_t elements) {
    const ptrdiff_t size = dtype_size(dtype);
    return grad && grad != logits && (uintptr_t)grad % (size_t)size == 0 && elements * size >= STREAM_BYTES;
}

static inline int streams_softmax(const class_task *task) {
    const fl_array *grad = &task->call.grad;
    return streams(task->call.logits.data, grad->data, grad->dtype, task->rows * task->call.classes);
}

/* Numbers of the working type in a row of scratch. */
static inline ptrdiff_t scratch_row(ptrdiff_t classes) { return classes + SCRATCH_PADDING; }

#endif

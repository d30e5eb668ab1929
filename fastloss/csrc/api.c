/* The exported functions: a call is checked and completed here, and handed to the kernels tile by tile. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels.h"

const char *fl_version(void) { return FL_VERSION; }

const char *fl_status_name(int status) {
    switch (status) {
        case FL_OK:
            return "FL_OK";
        case FL_ERROR_NULL:
            return "FL_ERROR_NULL: a pointer that is needed is NULL";
        case FL_ERROR_SIZE:
            return "FL_ERROR_SIZE: a negative size, no classes, more than 2^31 - 1 classes, or an unknown struct_size";
        case FL_ERROR_DTYPE:
            return "FL_ERROR_DTYPE: an unknown data type, or one that does not fit here";
        case FL_ERROR_OPTION:
            return "FL_ERROR_OPTION: an option outside its range";
        case FL_ERROR_INDEX:
            return "FL_ERROR_INDEX: a target that is neither a class nor ignore_index";
        case FL_ERROR_EMPTY:
            return "FL_ERROR_EMPTY: the mean over no targets";
        case FL_ERROR_ISA:
            return "FL_ERROR_ISA: FASTLOSS_ISA names an instruction set that is unknown or not to be had here";
        default:
            return "unknown fastloss status";
    }
}

#define TRY(expression)                       \
    do {                                      \
        const int status_ = (expression);     \
        if (status_ != FL_OK) return status_; \
    } while (0)

/* Copies the fields that the caller's struct has over the defaults in `full`. */
static int complete(void *full, size_t full_size, const void *given) {
    size_t size;
    if (!given) return FL_ERROR_NULL;
    memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > full_size) return FL_ERROR_SIZE;
    memcpy(full, given, size);
    return FL_OK;
}

static bool is_float(int dtype) { return dtype >= FL_F32 && dtype <= FL_BF16; }
static bool is_index(int dtype) { return dtype >= FL_I8 && dtype <= FL_U64; }
static bool is_double(int dtype) { return dtype == FL_F64; }

/* a * b, or -1 where a size is negative or the product does not fit. */
static ptrdiff_t product(ptrdiff_t a, ptrdiff_t b) {
    if (a < 0 || b < 0) return -1;
    return b > 0 && a > PTRDIFF_MAX / b ? -1 : a * b;
}

/* ---- Softmax tasks
 * --------------------------------------------------------------------------------------------------*/

/* The tiles of a batch; its size and its logits are checked. */
static int lay_out(softmax_task *task) {
    const fl_cross_entropy_call *call = &task->call;
    task->rows = product(product(call->n[0], call->n[1]), call->inner);
    if (task->rows < 0 || call->inner < 1 || call->classes < 1 || call->classes > INT32_MAX ||
        product(task->rows, call->classes) < 0)
        return FL_ERROR_SIZE;
    if (!is_float(call->logits.dtype)) return FL_ERROR_DTYPE;
    if (call->grad.data &&
        (!is_float(call->grad.dtype) || is_double(call->grad.dtype) != is_double(call->logits.dtype)))
        return FL_ERROR_DTYPE;
    if (call->inner == 1 && (call->logits.class_stride != 1 || (call->grad.data && call->grad.class_stride != 1)))
        return FL_ERROR_OPTION;
    if (task->rows > 0 && !call->logits.data) return FL_ERROR_NULL;
    /* Whole vectors of targets, so that only a tile at an end has a part of one. */
    ptrdiff_t tile_rows = TILE_ELEMENTS / call->classes;
    if (call->inner == 1 && tile_rows < STREAMED_ROWS) {
        const ptrdiff_t shared = task->rows / SHARED_TILES < STREAMED_ROWS ? task->rows / SHARED_TILES : STREAMED_ROWS;
        if (tile_rows < shared) tile_rows = shared;
    }
    tile_rows = tile_rows >= 64 ? tile_rows / 64 * 64 : call->inner > 1 ? 64 : tile_rows > 1 ? tile_rows : 1;
    task->tile_rows = tile_rows;
    task->tile_outer = 1;
    if (task->rows == 0) {
        task->tiles = 0;
    } else if (call->inner == 1) {
        task->tiles = (task->rows - 1) / tile_rows + 1;
    } else {
        const ptrdiff_t outers = call->n[0] * call->n[1];
        if (call->inner <= tile_rows / 2) task->tile_outer = tile_rows / call->inner;
        task->tiles = ((outers - 1) / task->tile_outer + 1) * ((call->inner - 1) / tile_rows + 1);
    }
    return FL_OK;
}

static void set_scale(softmax_task *task) {
    const bool mean = task->call.reduction == FL_MEAN;
    task->nothing_counts = mean && task->call.normalizer == 0;
    task->scale = task->nothing_counts ? 0 : task->call.grad_scale / (mean ? task->call.normalizer : 1);
}

static int cross_entropy_task(const fl_cross_entropy_call *given, softmax_task *task) {
    memset(task, 0, sizeof *task);
    task->call = fl_cross_entropy_call_init();
    TRY(complete(&task->call, sizeof task->call, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    TRY(lay_out(task));
    const fl_cross_entropy_call *call = &task->call;
    if (!call->target == !call->target_probs.data && task->rows > 0) return FL_ERROR_NULL;
    if (call->target && !is_index(call->target_dtype)) return FL_ERROR_DTYPE;
    if (call->target_probs.data) {
        if (call->target_probs.dtype != (is_double(call->logits.dtype) ? FL_F64 : FL_F32)) return FL_ERROR_DTYPE;
        if (call->inner == 1 && call->target_probs.class_stride != 1) return FL_ERROR_OPTION;
    }
    if (!(call->label_smoothing >= 0 && call->label_smoothing <= 1) || !(call->z_loss >= 0) || isinf(call->z_loss) ||
        !(call->softcap >= 0) || isinf(call->softcap) || isnan(call->normalizer) || isinf(call->normalizer) ||
        call->reduction < FL_MEAN || call->reduction > FL_NONE || call->empty < FL_EMPTY_NAN ||
        call->empty > FL_EMPTY_ERROR)
        return FL_ERROR_OPTION;
    set_scale(task);
    return FL_OK;
}

fl_cross_entropy_call fl_cross_entropy_call_init(void) {
    fl_cross_entropy_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.inner = 1;
    call.grad_scale = 1;
    call.ignore_index = -100;
    call.normalizer = -1;
    call.logits.class_stride = call.grad.class_stride = call.target_probs.class_stride = 1;
    return call;
}

int fl_cross_entropy_tiles(const fl_cross_entropy_call *call, ptrdiff_t *tiles) {
    softmax_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(cross_entropy_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_cross_entropy_check(const fl_cross_entropy_call *call, ptrdiff_t tile, fl_target_check *check) {
    softmax_task task;
    if (!check) return FL_ERROR_NULL;
    TRY(cross_entropy_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    fl_kernels_in_use()->softmax_check[is_double(task.call.logits.dtype)](&task, tile, check);
    return FL_OK;
}

size_t fl_cross_entropy_scratch(const fl_cross_entropy_call *call) {
    softmax_task task;
    if (cross_entropy_task(call, &task) != FL_OK) return 0;
    const bool half = task.call.logits.dtype == FL_F16 || task.call.logits.dtype == FL_BF16;
    const size_t row = (size_t)scratch_row(task.call.classes) * (is_double(task.call.logits.dtype) ? 8 : 4);
    return streams_softmax(&task) && task.call.inner == 1 ? 2 * row : half ? row : 0;
}

int fl_cross_entropy_tile(const fl_cross_entropy_call *call, ptrdiff_t tile, void *scratch, double *loss) {
    softmax_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(cross_entropy_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    if (task.call.reduction == FL_MEAN && task.call.normalizer < 0) return FL_ERROR_OPTION;
    return fl_kernels_in_use()->softmax_tile[is_double(task.call.logits.dtype)](&task, tile, scratch, loss);
}

/* The sum, the mean, or what the mean over nothing is. */
static double reduced(double sum, int reduction, int empty, double normalizer) {
    if (reduction != FL_MEAN) return sum;
    if (normalizer == 0) return empty == FL_EMPTY_ZERO ? 0 : NAN;
    return sum / normalizer;
}

int fl_cross_entropy(const fl_cross_entropy_call *given, double *loss) {
    softmax_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(cross_entropy_task(given, &task));
    fl_cross_entropy_call *call = &task.call;
    const fl_kernels *kernels = fl_kernels_in_use();
    const bool working = is_double(call->logits.dtype);
    double weight = 0, sum = 0;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        fl_target_check check;
        kernels->softmax_check[working](&task, tile, &check);
        if (check.bad_position >= 0) return FL_ERROR_INDEX;
        weight += check.weight;
    }
    if (call->normalizer < 0) call->normalizer = weight;
    set_scale(&task);
    if (task.nothing_counts && call->empty == FL_EMPTY_ERROR) return FL_ERROR_EMPTY;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        double part;
        TRY(kernels->softmax_tile[working](&task, tile, NULL, &part));
        sum += part;
    }
    *loss = reduced(sum, call->reduction, call->empty, call->normalizer);
    return FL_OK;
}

#define SIMPLE_CROSS_ENTROPY(name, type, code)                                                                      \
    int name(const type *logits, const int64_t *target, ptrdiff_t n, ptrdiff_t classes, double *loss, type *grad) { \
        fl_cross_entropy_call call = fl_cross_entropy_call_init();                                                  \
        call.n[0] = 1;                                                                                              \
        call.n[1] = n;                                                                                              \
        call.classes = classes;                                                                                     \
        call.logits.data = (void *)logits;                                                                          \
        call.grad.data = grad;                                                                                      \
        call.logits.dtype = call.grad.dtype = code;                                                                 \
        call.logits.stride[1] = call.grad.stride[1] = classes;                                                      \
        call.target = target;                                                                                       \
        call.target_dtype = FL_I64;                                                                                 \
        return fl_cross_entropy(&call, loss);                                                                       \
    }
SIMPLE_CROSS_ENTROPY(fl_cross_entropy_f32, float, FL_F32)
SIMPLE_CROSS_ENTROPY(fl_cross_entropy_f64, double, FL_F64)

/* ---- Softmax and its relatives
 * ---------------------------------------------------------------------------------------*/

fl_softmax_call fl_softmax_call_init(void) {
    fl_softmax_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.inner = 1;
    call.logits.class_stride = call.output.class_stride = 1;
    return call;
}

static int softmax_only_task(const fl_softmax_call *given, softmax_task *task) {
    fl_softmax_call full = fl_softmax_call_init();
    TRY(complete(&full, sizeof full, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    if (full.kind < FL_SOFTMAX || full.kind > FL_ENTROPY) return FL_ERROR_OPTION;
    const bool per_row = full.kind == FL_LOGSUMEXP || full.kind == FL_ENTROPY;
    memset(task, 0, sizeof *task);
    task->kind = full.kind;
    task->scale = 1;
    task->call = fl_cross_entropy_call_init();
    task->call.n[0] = full.n[0];
    task->call.n[1] = full.n[1];
    task->call.classes = full.classes;
    task->call.inner = full.inner;
    task->call.logits = full.logits;
    if (per_row)
        task->call.losses = full.values;
    else
        task->call.grad = full.output;
    TRY(lay_out(task));
    return task->rows > 0 && !(per_row ? full.values : full.output.data) ? FL_ERROR_NULL : FL_OK;
}

int fl_softmax_tiles(const fl_softmax_call *call, ptrdiff_t *tiles) {
    softmax_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(softmax_only_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_softmax_tile(const fl_softmax_call *call, ptrdiff_t tile) {
    softmax_task task;
    double unused;
    TRY(softmax_only_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    return fl_kernels_in_use()->softmax_tile[is_double(task.call.logits.dtype)](&task, tile, NULL, &unused);
}

int fl_softmax(const fl_softmax_call *call) {
    softmax_task task;
    double unused;
    TRY(softmax_only_task(call, &task));
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++)
        TRY(fl_kernels_in_use()->softmax_tile[is_double(task.call.logits.dtype)](&task, tile, NULL, &unused));
    return FL_OK;
}

/* ---- Binary cross-entropy
 * --------------------------------------------------------------------------------------------*/

fl_bce_call fl_bce_call_init(void) {
    fl_bce_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.n[0] = call.n[1] = 1;
    call.grad_scale = 1;
    call.normalizer = -1;
    return call;
}

static int binary_task(const fl_bce_call *given, bce_task *task) {
    task->call = fl_bce_call_init();
    TRY(complete(&task->call, sizeof task->call, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    const fl_bce_call *call = &task->call;
    task->elements = product(product(call->n[0], call->n[1]), call->n[2]);
    if (task->elements < 0) return FL_ERROR_SIZE;
    task->tiles = task->elements / TILE_ELEMENTS + (task->elements % TILE_ELEMENTS != 0);
    if (!is_float(call->logits_dtype) || !(is_float(call->target_dtype) || is_index(call->target_dtype)))
        return FL_ERROR_DTYPE;
    if (call->grad && (!is_float(call->grad_dtype) || is_double(call->grad_dtype) != is_double(call->logits_dtype)))
        return FL_ERROR_DTYPE;
    if (task->elements > 0 && (!call->logits || !call->target)) return FL_ERROR_NULL;
    if (!(call->label_smoothing >= 0 && call->label_smoothing <= 1) || isnan(call->normalizer) ||
        isinf(call->normalizer) || call->reduction < FL_MEAN || call->reduction > FL_NONE)
        return FL_ERROR_OPTION;
    task->scale = call->grad_scale;
    if (call->reduction == FL_MEAN) task->scale /= call->normalizer;
    return FL_OK;
}

int fl_bce_tiles(const fl_bce_call *call, ptrdiff_t *tiles) {
    bce_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(binary_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_bce_check(const fl_bce_call *call, ptrdiff_t tile, fl_target_check *check) {
    bce_task task;
    if (!check) return FL_ERROR_NULL;
    TRY(binary_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    fl_kernels_in_use()->bce_check(&task, tile, check);
    return FL_OK;
}

int fl_bce_tile(const fl_bce_call *call, ptrdiff_t tile, double *loss) {
    bce_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(binary_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    if (task.call.reduction == FL_MEAN && task.call.normalizer < 0) return FL_ERROR_OPTION;
    fl_kernels_in_use()->bce_tile[is_double(task.call.logits_dtype)](&task, tile, loss);
    return FL_OK;
}

int fl_bce(const fl_bce_call *given, double *loss) {
    bce_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(binary_task(given, &task));
    const fl_kernels *kernels = fl_kernels_in_use();
    double weight = 0, sum = 0;
    if (task.call.normalizer < 0) {
        for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
            fl_target_check check;
            kernels->bce_check(&task, tile, &check);
            weight += check.weight;
        }
        task.call.normalizer = weight;
    }
    if (task.call.reduction == FL_MEAN) task.scale = task.call.grad_scale / task.call.normalizer;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        double part;
        kernels->bce_tile[is_double(task.call.logits_dtype)](&task, tile, &part);
        sum += part;
    }
    *loss = reduced(sum, task.call.reduction, FL_EMPTY_NAN, task.call.normalizer);
    return FL_OK;
}

#define SIMPLE_BCE(name, type, code)                                                          \
    int name(const type *logits, const type *target, ptrdiff_t n, double *loss, type *grad) { \
        fl_bce_call call = fl_bce_call_init();                                                \
        call.n[2] = n;                                                                        \
        call.logits = logits;                                                                 \
        call.target = target;                                                                 \
        call.grad = grad;                                                                     \
        call.logits_dtype = call.target_dtype = call.grad_dtype = code;                       \
        return fl_bce(&call, loss);                                                           \
    }
SIMPLE_BCE(fl_bce_with_logits_f32, float, FL_F32)
SIMPLE_BCE(fl_bce_with_logits_f64, double, FL_F64)

/* ---- Functions of one element
 * ----------------------------------------------------------------------------------------*/

int fl_map(int kind, int dtype, const void *input, ptrdiff_t n, void *output) {
    const fl_kernels *kernels = fl_kernels_in_use();
    if (!kernels) return FL_ERROR_ISA;
    if (kind < FL_SIGMOID || kind > FL_SOFTPLUS) return FL_ERROR_OPTION;
    if (!is_float(dtype)) return FL_ERROR_DTYPE;
    if (n < 0) return FL_ERROR_SIZE;
    if (n > 0 && (!input || !output)) return FL_ERROR_NULL;
    kernels->map[is_double(dtype)](kind, dtype, input, n, output);
    return FL_OK;
}

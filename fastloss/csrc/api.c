/* The exported functions: a call is checked and completed here, and handed to the kernels tile by tile. */
#include <math.h>
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
        case FL_ERROR_PROBABILITY:
            return "FL_ERROR_PROBABILITY: a probability outside [0, 1]";
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
static bool is_half(int dtype) { return dtype == FL_F16 || dtype == FL_BF16; }
static bool is_double(int dtype) { return dtype == FL_F64; }

/* a * b, or -1 where a size is negative or the product does not fit. */
static ptrdiff_t product(ptrdiff_t a, ptrdiff_t b) {
    if (a < 0 || b < 0) return -1;
    return b > 0 && a > PTRDIFF_MAX / b ? -1 : a * b;
}

/* ---- Softmax tasks --------------------------------------------------------------------------------------------- */

/* The tiles of a batch; its size and its logits are checked. */
static int lay_out(class_task *task) {
    const fl_class_call *call = &task->call;
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
    if (call->inner > 1 && task->rows / LONGER_TILES / SHARED_TILES >= tile_rows) tile_rows *= LONGER_TILES;
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

static void set_scale(class_task *task) {
    const bool mean = task->call.reduction == FL_MEAN;
    task->nothing_counts = mean && task->call.normalizer == 0;
    task->scale = task->nothing_counts ? 0 : task->call.grad_scale / (mean ? task->call.normalizer : 1);
}

static int make_class_task(const fl_class_call *given, class_task *task) {
    memset(task, 0, sizeof *task);
    task->call = fl_class_call_init();
    TRY(complete(&task->call, sizeof task->call, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    TRY(lay_out(task));
    const fl_class_call *call = &task->call;
    if (!call->target == !call->target_probs.data && task->rows > 0) return FL_ERROR_NULL;
    if (call->target && !is_index(call->target_dtype)) return FL_ERROR_DTYPE;
    if (call->target_probs.data) {
        if (call->target_probs.dtype != (is_double(call->logits.dtype) ? FL_F64 : FL_F32)) return FL_ERROR_DTYPE;
        if (call->inner == 1 && call->target_probs.class_stride != 1) return FL_ERROR_OPTION;
    }
    if (!(call->label_smoothing >= 0 && call->label_smoothing <= 1) || !(call->z_loss >= 0) || isinf(call->z_loss) ||
        !(call->softcap >= 0) || isinf(call->softcap) || call->normalizer == INFINITY || call->reduction < FL_MEAN ||
        call->reduction > FL_NONE || call->empty < FL_EMPTY_NAN || call->empty > FL_EMPTY_ERROR ||
        call->loss < FL_CROSS_ENTROPY || call->loss > FL_MULTILABEL_MARGIN || !(call->focal >= 0 && call->focal <= 1) ||
        !(call->gamma >= 0) || isinf(call->gamma) || isnan(call->margin) || isinf(call->margin) ||
        (call->power != 1 && call->power != 2))
        return FL_ERROR_OPTION;
    if (call->gamma == 0) task->call.focal = 0; /* the bits of cross-entropy */
    if (call->loss != FL_CROSS_ENTROPY) {
        if (call->target_probs.data || call->label_smoothing > 0 || call->z_loss > 0 || call->softcap > 0 ||
            call->focal > 0 || (call->loss != FL_NLL && call->inner != 1))
            return FL_ERROR_OPTION;
        if (call->loss == FL_MULTILABEL_MARGIN &&
            (call->weight || call->target_dtype >= FL_U8 || (call->grad.data && call->grad.data == call->logits.data)))
            return FL_ERROR_OPTION;
    }
    if (call->metrics) {
        if (call->loss != FL_CROSS_ENTROPY || !call->target || call->grad.data || call->focal > 0 ||
            call->softcap > 0 || (call->weight && call->label_smoothing > 0) || call->topk_count < 0 ||
            call->topk_count > FL_MAX_TOPK || (call->inner > 1 && is_half(call->logits.dtype)))
            return FL_ERROR_OPTION;
        if (call->topk_count > 0 && !call->topk) return FL_ERROR_NULL;
        for (int k = 0; k < call->topk_count; k++)
            if (call->topk[k] < 1) return FL_ERROR_OPTION;
    } else if (call->lse) {
        return FL_ERROR_NULL;
    }
    set_scale(task);
    return FL_OK;
}

fl_class_call fl_class_call_init(void) {
    fl_class_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.inner = 1;
    call.grad_scale = 1;
    call.ignore_index = -100;
    call.normalizer = -INFINITY;
    call.gamma = 2;
    call.power = 1;
    call.margin = 1;
    call.logits.class_stride = call.grad.class_stride = call.target_probs.class_stride = 1;
    return call;
}

int fl_class_tiles(const fl_class_call *call, ptrdiff_t *tiles) {
    class_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(make_class_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_class_check(const fl_class_call *call, ptrdiff_t tile, fl_target_check *check) {
    class_task task;
    if (!check) return FL_ERROR_NULL;
    TRY(make_class_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    task.nothing_counts = 0; /* the targets have to be right all the same */
    fl_kernels_in_use()->class_check[is_double(task.call.logits.dtype)](&task, tile, check);
    return FL_OK;
}

size_t fl_class_scratch(const fl_class_call *call) {
    class_task task;
    if (make_class_task(call, &task) != FL_OK) return 0;
    const bool converts = is_half(task.call.logits.dtype) || (task.call.grad.data && is_half(task.call.grad.dtype));
    const size_t row = (size_t)scratch_row(task.call.classes) * (is_double(task.call.logits.dtype) ? 8 : 4);
    return converts || (streams_softmax(&task) && task.call.inner == 1) ? row + LINE_BYTES : 0;
}

int fl_class_tile(const fl_class_call *call, ptrdiff_t tile, void *scratch, double *loss) {
    class_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(make_class_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    if (task.call.reduction == FL_MEAN && task.call.normalizer == -INFINITY) return FL_ERROR_OPTION;
    return fl_kernels_in_use()->class_tile[is_double(task.call.logits.dtype)](&task, tile, scratch, loss);
}

/* The sum, the mean, or what the mean over nothing is. */
static double reduced(double sum, int reduction, int empty, double normalizer) {
    if (reduction != FL_MEAN) return sum;
    if (normalizer == 0) return empty == FL_EMPTY_ZERO ? 0 : NAN;
    return sum / normalizer;
}

int fl_class_loss(const fl_class_call *given, double *loss) {
    class_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(make_class_task(given, &task));
    fl_class_call *call = &task.call;
    const fl_kernels *kernels = fl_kernels_in_use();
    const bool working = is_double(call->logits.dtype);
    double weight = 0, sum = 0;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        fl_target_check check;
        kernels->class_check[working](&task, tile, &check);
        if (check.bad_position >= 0) return FL_ERROR_INDEX;
        weight += check.weight;
    }
    if (call->normalizer == -INFINITY) call->normalizer = weight;
    set_scale(&task);
    if (task.nothing_counts && call->empty == FL_EMPTY_ERROR) return FL_ERROR_EMPTY;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        double part;
        TRY(kernels->class_tile[working](&task, tile, NULL, &part));
        sum += part;
    }
    *loss = reduced(sum, call->reduction, call->empty, call->normalizer);
    return FL_OK;
}

#define SIMPLE_CROSS_ENTROPY(name, type, code)                                                                      \
    int name(const type *logits, const int64_t *target, ptrdiff_t n, ptrdiff_t classes, double *loss, type *grad) { \
        fl_class_call call = fl_class_call_init();                                                                  \
        call.n[0] = 1;                                                                                              \
        call.n[1] = n;                                                                                              \
        call.classes = classes;                                                                                     \
        call.logits.data = (void *)logits;                                                                          \
        call.grad.data = grad;                                                                                      \
        call.logits.dtype = call.grad.dtype = code;                                                                 \
        call.logits.stride[1] = call.grad.stride[1] = classes;                                                      \
        call.target = target;                                                                                       \
        call.target_dtype = FL_I64;                                                                                 \
        return fl_class_loss(&call, loss);                                                                          \
    }
SIMPLE_CROSS_ENTROPY(fl_cross_entropy_f32, float, FL_F32)
SIMPLE_CROSS_ENTROPY(fl_cross_entropy_f64, double, FL_F64)

/* ---- Softmax and its relatives --------------------------------------------------------------------------------- */

fl_softmax_call fl_softmax_call_init(void) {
    fl_softmax_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.inner = 1;
    call.logits.class_stride = call.output.class_stride = 1;
    return call;
}

static int make_softmax_task(const fl_softmax_call *given, class_task *task) {
    fl_softmax_call full = fl_softmax_call_init();
    TRY(complete(&full, sizeof full, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    if (full.kind < FL_SOFTMAX || full.kind > FL_ENTROPY) return FL_ERROR_OPTION;
    const bool per_row = full.kind == FL_LOGSUMEXP || full.kind == FL_ENTROPY;
    memset(task, 0, sizeof *task);
    task->kind = full.kind;
    task->scale = 1;
    task->call = fl_class_call_init();
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
    class_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(make_softmax_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_softmax_tile(const fl_softmax_call *call, ptrdiff_t tile) {
    class_task task;
    double unused;
    TRY(make_softmax_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    return fl_kernels_in_use()->class_tile[is_double(task.call.logits.dtype)](&task, tile, NULL, &unused);
}

int fl_softmax(const fl_softmax_call *call) {
    class_task task;
    double unused;
    TRY(make_softmax_task(call, &task));
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++)
        TRY(fl_kernels_in_use()->class_tile[is_double(task.call.logits.dtype)](&task, tile, NULL, &unused));
    return FL_OK;
}

/* ---- Binary cross-entropy -------------------------------------------------------------------------------------- */

fl_element_call fl_element_call_init(void) {
    fl_element_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.n[0] = call.n[1] = 1;
    call.grad_scale = 1;
    call.normalizer = -INFINITY;
    call.alpha = -1;
    call.gamma = 2;
    call.margin = 1;
    return call;
}

static int make_element_task(const fl_element_call *given, element_task *task) {
    task->call = fl_element_call_init();
    TRY(complete(&task->call, sizeof task->call, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    const fl_element_call *call = &task->call;
    task->elements = product(product(call->n[0], call->n[1]), call->n[2]);
    if (task->elements < 0) return FL_ERROR_SIZE;
    task->tiles = task->elements / TILE_ELEMENTS + (task->elements % TILE_ELEMENTS != 0);
    if (!is_float(call->logits_dtype) || !(is_float(call->target_dtype) || is_index(call->target_dtype)))
        return FL_ERROR_DTYPE;
    if (call->grad && (!is_float(call->grad_dtype) || is_double(call->grad_dtype) != is_double(call->logits_dtype)))
        return FL_ERROR_DTYPE;
    if (task->elements > 0 && (!call->logits || !call->target)) return FL_ERROR_NULL;
    if (!(call->label_smoothing >= 0 && call->label_smoothing <= 1) || call->normalizer == INFINITY ||
        call->reduction < FL_MEAN || call->reduction > FL_NONE || call->loss < FL_BCE_WITH_LOGITS ||
        call->loss > FL_KL_DIV_LOG || !(call->gamma >= 0) || isinf(call->gamma) || isnan(call->alpha) ||
        call->alpha > 1 || isnan(call->margin) || isinf(call->margin))
        return FL_ERROR_OPTION;
    if (call->loss != FL_BCE_WITH_LOGITS && (call->label_smoothing > 0 || call->pos_weight.data))
        return FL_ERROR_OPTION;
    if (call->zero_one && call->loss != FL_SOFT_MARGIN && call->loss != FL_HINGE) return FL_ERROR_OPTION;
    task->label_scale = call->zero_one ? 2 : 1 - call->label_smoothing;
    task->label_shift = call->zero_one ? -1 : call->label_smoothing / 2;
    task->scale = call->grad_scale;
    if (call->reduction == FL_MEAN) task->scale /= call->normalizer;
    return FL_OK;
}

int fl_element_tiles(const fl_element_call *call, ptrdiff_t *tiles) {
    element_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(make_element_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_element_check(const fl_element_call *call, ptrdiff_t tile, fl_target_check *check) {
    element_task task;
    if (!check) return FL_ERROR_NULL;
    TRY(make_element_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    fl_kernels_in_use()->element_check[is_double(task.call.logits_dtype)](&task, tile, check);
    return FL_OK;
}

int fl_element_tile(const fl_element_call *call, ptrdiff_t tile, double *loss) {
    element_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(make_element_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    if (task.call.reduction == FL_MEAN && task.call.normalizer == -INFINITY) return FL_ERROR_OPTION;
    fl_kernels_in_use()->element_tile[is_double(task.call.logits_dtype)](&task, tile, loss);
    return FL_OK;
}

int fl_element_loss(const fl_element_call *given, double *loss) {
    element_task task;
    if (!loss) return FL_ERROR_NULL;
    TRY(make_element_task(given, &task));
    const fl_kernels *kernels = fl_kernels_in_use();
    const bool working = is_double(task.call.logits_dtype);
    double weight = 0, sum = 0;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        fl_target_check check;
        kernels->element_check[working](&task, tile, &check);
        if (check.bad_position >= 0) return FL_ERROR_PROBABILITY;
        weight += check.weight;
    }
    if (task.call.normalizer == -INFINITY) task.call.normalizer = weight;
    if (task.call.reduction == FL_MEAN) task.scale = task.call.grad_scale / task.call.normalizer;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        double part;
        kernels->element_tile[working](&task, tile, &part);
        sum += part;
    }
    *loss = reduced(sum, task.call.reduction, FL_EMPTY_NAN, task.call.normalizer);
    return FL_OK;
}

#define SIMPLE_BCE(name, type, code)                                                          \
    int name(const type *logits, const type *target, ptrdiff_t n, double *loss, type *grad) { \
        fl_element_call call = fl_element_call_init();                                        \
        call.n[2] = n;                                                                        \
        call.logits = logits;                                                                 \
        call.target = target;                                                                 \
        call.grad = grad;                                                                     \
        call.logits_dtype = call.target_dtype = call.grad_dtype = code;                       \
        return fl_element_loss(&call, loss);                                                  \
    }
SIMPLE_BCE(fl_bce_with_logits_f32, float, FL_F32)
SIMPLE_BCE(fl_bce_with_logits_f64, double, FL_F64)

/* ---- Overlap --------------------------------------------------------------------------------------------------- */

fl_overlap_call fl_overlap_call_init(void) {
    fl_overlap_call call;
    memset(&call, 0, sizeof call);
    call.struct_size = sizeof call;
    call.inner = call.groups = 1;
    call.logits.class_stride = call.grad.class_stride = call.mask.class_stride = 1;
    call.activation = FL_ACTIVATION_SOFTMAX;
    call.alpha = call.beta = 0.5;
    call.power = call.grad_scale = 1;
    call.eps = 1e-7;
    call.gamma = 2;
    return call;
}

static bool is_negative_or_infinite(double x) { return !(x >= 0) || isinf(x); }

static int make_overlap_task(const fl_overlap_call *given, overlap_task *task) {
    memset(task, 0, sizeof *task);
    task->call = fl_overlap_call_init();
    TRY(complete(&task->call, sizeof task->call, given));
    if (!fl_kernels_in_use()) return FL_ERROR_ISA;
    fl_overlap_call *call = &task->call;
    task->rows = product(product(call->n[0], call->n[1]), call->inner);
    if (task->rows < 0 || call->inner < 1 || call->classes < 1 || call->classes > INT32_MAX ||
        product(task->rows, call->classes) < 0 || call->groups < 1 || task->rows % call->groups != 0)
        return FL_ERROR_SIZE;
    if (!is_float(call->logits.dtype)) return FL_ERROR_DTYPE;
    if (call->grad.data &&
        (!is_float(call->grad.dtype) || is_double(call->grad.dtype) != is_double(call->logits.dtype)))
        return FL_ERROR_DTYPE;
    if (!call->target == !call->mask.data && task->rows > 0) return FL_ERROR_NULL;
    if (task->rows > 0 && !call->logits.data) return FL_ERROR_NULL;
    if (call->target && !is_index(call->target_dtype)) return FL_ERROR_DTYPE;
    if (call->mask.data && !is_float(call->mask.dtype) && !is_index(call->mask.dtype)) return FL_ERROR_DTYPE;
    if (call->inner == 1 && (call->logits.class_stride != 1 || (call->grad.data && call->grad.class_stride != 1) ||
                             (call->mask.data && call->mask.class_stride != 1)))
        return FL_ERROR_OPTION;
    const bool softmax = call->activation == FL_ACTIVATION_SOFTMAX;
    if (call->activation < FL_ACTIVATION_NONE || call->activation > FL_ACTIVATION_SIGMOID ||
        (softmax && call->mask.data) || (call->activation == FL_ACTIVATION_SIGMOID && call->target) ||
        (call->entropy > 0 && !softmax) || is_negative_or_infinite(call->entropy) ||
        is_negative_or_infinite(call->alpha) || is_negative_or_infinite(call->beta) ||
        is_negative_or_infinite(call->smooth) || is_negative_or_infinite(call->eps) ||
        is_negative_or_infinite(call->power) || call->power == 0 || !(call->focal >= 0 && call->focal <= 1) ||
        is_negative_or_infinite(call->gamma) || call->reduction < FL_MEAN || call->reduction > FL_SUM)
        return FL_ERROR_OPTION;
    if (call->gamma == 0) call->focal = 0;
    task->focal.call.focal = call->focal;
    task->focal.call.gamma = call->gamma;
    task->group_rows = task->rows / call->groups;
    /* Whole vectors of positions, and so few tiles that their sums are small beside the logits. */
    ptrdiff_t most = OVERLAP_TILES / call->groups, wanted = task->group_rows / (TILE_ELEMENTS / call->classes + 1) + 1;
    if (most < 1) most = 1;
    if (wanted > most) wanted = most;
    task->tile_rows = ((task->group_rows + wanted - 1) / wanted + 63) / 64 * 64;
    if (task->tile_rows == 0) task->tile_rows = 64;
    task->group_tiles = (task->group_rows + task->tile_rows - 1) / task->tile_rows;
    task->tiles = task->group_tiles * call->groups;
    return FL_OK;
}

int fl_overlap_tiles(const fl_overlap_call *call, ptrdiff_t *tiles) {
    overlap_task task;
    if (!tiles) return FL_ERROR_NULL;
    TRY(make_overlap_task(call, &task));
    *tiles = task.tiles;
    return FL_OK;
}

int fl_overlap_check(const fl_overlap_call *call, ptrdiff_t tile, fl_target_check *check) {
    overlap_task task;
    if (!check) return FL_ERROR_NULL;
    TRY(make_overlap_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    fl_kernels_in_use()->overlap_check(&task, tile, check);
    return FL_OK;
}

int fl_overlap_sums(const fl_overlap_call *call, ptrdiff_t tile, double *sums) {
    overlap_task task;
    if (!sums) return FL_ERROR_NULL;
    TRY(make_overlap_task(call, &task));
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    return fl_kernels_in_use()->overlap_tile[is_double(task.call.logits.dtype)](&task, tile, NULL, sums);
}

int fl_overlap_gradient(const fl_overlap_call *call, ptrdiff_t tile, const double *slopes, double entropy_scale) {
    overlap_task task;
    if (!slopes) return FL_ERROR_NULL;
    TRY(make_overlap_task(call, &task));
    if (!task.call.grad.data) return FL_ERROR_NULL;
    if (tile < 0 || tile >= task.tiles) return FL_ERROR_SIZE;
    task.entropy_scale = entropy_scale;
    slopes += tile / task.group_tiles * 2 * task.call.classes;
    return fl_kernels_in_use()->overlap_tile[is_double(task.call.logits.dtype)](&task, tile, slopes, NULL);
}

size_t fl_overlap_workspace(const fl_overlap_call *call) {
    overlap_task task;
    if (make_overlap_task(call, &task) != FL_OK) return 0;
    const size_t groups = (size_t)task.call.groups, classes = (size_t)task.call.classes;
    return 3 * groups * classes + 2 * (3 * classes + 2);
}

/* The derivative of x^power. */
static double power_slope(double x, double power) { return power == 1 ? 1 : x == 0 ? 0 : power * pow(x, power - 1); }

/* From a group's sums: the loss of each class, and its derivatives by the sums of p y and of p. Returns their mean. */
static double score_group(const fl_overlap_call *call, const double *sums, double *losses, double *slopes) {
    double total = 0, share = 0;
    for (ptrdiff_t c = 0; c < call->classes; c++) {
        const double hits = sums[3 * c], negatives = sums[3 * c + 2];
        const double miss = call->alpha * sums[3 * c + 1] + call->beta * negatives, full = hits + miss + call->smooth;
        const bool bounded = full < call->eps, counts = call->count_absent || hits + negatives > 0;
        const double below = bounded ? call->eps : full, score = (hits + call->smooth) / below;
        const double weight = call->class_weight ? call->class_weight[c] : 1;
        double loss = bounded ? 1 - score : miss / full, slope = -1;
        if (call->log_loss) {
            loss = score < call->eps ? -log(call->eps) : -log1p(-loss);
            slope = score < call->eps ? 0 : -1 / score;
        }
        if (!counts && !isnan(loss)) loss = slope = 0;
        losses[c] = loss;
        slopes[2 * c] = slope * weight * (1 - (bounded ? 0 : score * (1 - call->alpha - call->beta))) / below;
        slopes[2 * c + 1] = slope * weight * -(bounded ? 0 : score * call->alpha) / below;
        if (slope == 0) slopes[2 * c] = slopes[2 * c + 1] = 0;
        total += weight * loss;
        share += weight;
    }
    for (ptrdiff_t c = 0; c < 2 * call->classes; c++) slopes[c] /= share;
    return total / share;
}

int fl_overlap_loss(const fl_overlap_call *given, double *workspace, double *loss) {
    overlap_task task;
    if (!workspace || !loss) return FL_ERROR_NULL;
    TRY(make_overlap_task(given, &task));
    const fl_overlap_call *call = &task.call;
    const fl_kernels *kernels = fl_kernels_in_use();
    const bool working = is_double(call->logits.dtype), mean = call->reduction == FL_MEAN;
    const size_t classes = (size_t)call->classes, groups = (size_t)call->groups, stride = 3 * classes + 2;
    double *losses = workspace, *slopes = losses + groups * classes, *sums = slopes + 2 * groups * classes;
    for (ptrdiff_t tile = 0; tile < task.tiles; tile++) {
        fl_target_check check;
        kernels->overlap_check(&task, tile, &check);
        if (check.bad_position >= 0) return FL_ERROR_INDEX;
    }
    double total = 0, entropy = 0, denominator = 0;
    for (size_t group = 0; group < groups; group++) {
        double *tile_sums = sums + stride;
        memset(sums, 0, stride * sizeof *sums);
        for (ptrdiff_t k = 0; k < task.group_tiles; k++) {
            memset(tile_sums, 0, stride * sizeof *sums);
            TRY(kernels->overlap_tile[working](&task, (ptrdiff_t)group * task.group_tiles + k, NULL, tile_sums));
            for (size_t i = 0; i < stride; i++) sums[i] += tile_sums[i];
        }
        double *group_slopes = slopes + 2 * group * classes;
        const double value = score_group(call, sums, losses + group * classes, group_slopes);
        const double scale = call->grad_scale * power_slope(value, call->power) / (mean ? (double)groups : 1);
        for (size_t c = 0; c < 2 * classes; c++) group_slopes[c] = scale == 0 ? 0 : group_slopes[c] * scale;
        total += pow(value, call->power) / (mean ? (double)groups : 1);
        entropy += sums[3 * classes];
        denominator += sums[3 * classes + 1];
    }
    if (!mean) denominator = 1;
    if (call->entropy > 0) total += denominator == 0 ? NAN : call->entropy * entropy / denominator;
    task.entropy_scale = denominator == 0 ? 0 : call->entropy * call->grad_scale / denominator;
    for (ptrdiff_t tile = 0; call->grad.data && tile < task.tiles; tile++)
        TRY(kernels->overlap_tile[working](&task, tile, slopes + tile / task.group_tiles * 2 * call->classes, NULL));
    *loss = total;
    return FL_OK;
}

/* ---- Functions of one element ---------------------------------------------------------------------------------- */

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

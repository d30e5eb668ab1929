/* One tile of a softmax task: which rows it holds, what their targets say, and which kernel does them. Included once
 * per working type. */

/* Targets of probability and softmax rows: none is ignored, none is an index. */
#undef NO_INDEX
#define NO_INDEX (-2)

/* Whether logits and gradients are of the working type. */
static bool V(is_native)(const class_task *task) {
    const fl_class_call *call = &task->call;
    return call->logits.dtype == NATIVE && (!call->grad.data || call->grad.dtype == NATIVE);
}

/* The fast kernels know index targets, and either class weights or smoothing. */
static bool V(is_plain)(const class_task *task) {
    const fl_class_call *call = &task->call;
    return task->kind == 0 && call->target && !(call->softcap > 0) &&
           !(call->label_smoothing > 0 && (call->weight || call->focal > 0));
}

/* The factors of target number `row`, of class y. */
static INLINE void V(target_factors)(const class_task *task, ptrdiff_t row, ptrdiff_t y, REAL *a, REAL *s, REAL *g) {
    const fl_class_call *call = &task->call;
    const REAL *weight = call->weight, *sample_weight = call->sample_weight, *grad_output = call->grad_output;
    const REAL share = (REAL)(1 - call->label_smoothing);
    *a = y < 0 ? 0 : weight ? weight[y] * share : share;
    *s = sample_weight ? sample_weight[row] : 1;
    *g = (REAL)(task->scale * *s * (grad_output ? grad_output[row] : 1));
}

/* Whether all targets have the same factors, whichever class they are of. */
static INLINE bool V(same_factors)(const class_task *task) {
    const fl_class_call *call = &task->call;
    return !call->weight && !call->sample_weight && !call->grad_output;
}

/* The classes of n targets from number `first` on, or -1 where ignored. False where one is out of range. */
static INLINE bool V(target_classes)(const class_task *task, ptrdiff_t first, ptrdiff_t n, int64_t *y) {
    const fl_class_call *call = &task->call;
    if (!call->target || task->nothing_counts) {
        for (ptrdiff_t i = 0; i < n; i++) y[i] = task->nothing_counts ? -1 : NO_INDEX;
        return true;
    }
    return read_classes(call, first, n, y);
}

#undef STAGE
/* Numbers of the working type that a tile keeps on the stack. */
#define STAGE (65536 / (ptrdiff_t)sizeof(REAL))

#undef FEW_CLASSES
/* Up to here, rows for which there is no fast kernel are done in lanes. */
#define FEW_CLASSES 16

/* Rows whose classes are contiguous, in lanes: copied into a tile, which any_lanes works on in place. */
static void V(any_short_rows)(const class_task *task, V(batch) * batch) {
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    for (ptrdiff_t first = 0; first < batch->count; first += LANES) {
        REAL tile[FEW_CLASSES * LANES], probs[FEW_CLASSES * LANES], row[FEW_CLASSES + LANES];
        const ptrdiff_t n = batch->count - first < LANES ? batch->count - first : LANES;
        V(lane_batch) lanes;
        lanes.of = batch;
        lanes.first = first;
        for (ptrdiff_t r = 0; r < LANES; r++) {
            const ptrdiff_t i = first + (r < n ? r : 0);
            V(load_block)(batch->z[i], call->logits.dtype, classes, 0, row);
            for (ptrdiff_t c = 0; c < classes; c++) tile[c * LANES + r] = row[c];
            const REAL *probs_row = (const REAL *)batch->probs[i];
            for (ptrdiff_t c = 0; probs_row && c < classes; c++) probs[c * LANES + r] = probs_row[c];
            lanes.y[r] = (V(index))batch->y[i];
        }
        const ptrdiff_t stride = LANES * (ptrdiff_t)sizeof(REAL);
        V(any_lanes)(task, (const char *)tile, stride, NATIVE, batch->grad[first] ? (char *)tile : NULL, stride, NATIVE,
                     batch->probs[first] ? probs : NULL, LANES, &lanes, 0, LANES);
        for (ptrdiff_t r = 0; r < n; r++) {
            if (!batch->grad[first + r]) continue;
            for (ptrdiff_t c = 0; c < classes; c++) row[c] = tile[c * LANES + r];
            V(store_block)(batch->grad[first + r], call->grad.dtype, classes, row);
        }
    }
}

/* In double, as eight sums that do not wait for each other. */
static INLINE double V(sum_losses)(const REAL *loss, ptrdiff_t n) {
    double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (ptrdiff_t k = 0; k < 8; k++) sum[k] += (double)loss[i + k];
    for (; i < n; i++) sum[0] += (double)loss[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

#undef LOSS_SUMS
/* Enough that none waits for the one before. */
#define LOSS_SUMS 16

/* Adds n losses, of which the first is number `at` of its tile, to LOSS_SUMS sums that take turns: the same bits
 * however a tile is cut into steps. */
static INLINE void V(add_losses)(const REAL *loss, ptrdiff_t n, ptrdiff_t at, double *sums) {
    double turned[LOSS_SUMS];
    ptrdiff_t i = 0;
    for (ptrdiff_t k = 0; k < LOSS_SUMS; k++) turned[k] = sums[(at + k) % LOSS_SUMS];
    for (; i + LOSS_SUMS <= n; i += LOSS_SUMS)
        for (ptrdiff_t k = 0; k < LOSS_SUMS; k++) turned[k] += (double)loss[i + k];
    for (ptrdiff_t k = 0; k < n - i; k++) turned[k] += (double)loss[i + k];
    for (ptrdiff_t k = 0; k < LOSS_SUMS; k++) sums[(at + k) % LOSS_SUMS] = turned[k];
}

/* Adds n targets that count to the tile's by-products. */
static void V(add_metrics)(const class_task *task, const REAL *entropy, const REAL *ahead, ptrdiff_t n,
                           fl_metrics *metrics) {
    metrics->counted += n;
    metrics->entropy += V(sum_losses)(entropy, n);
    for (int k = 0; k < task->call.topk_count; k++) {
        const REAL limit = (REAL)task->call.topk[k];
        V(index) hits = 0;
        for (ptrdiff_t i = 0; i < n; i++) hits += ahead[i] < limit;
        metrics->correct[k] += (ptrdiff_t)hits;
    }
}

/* Classes contiguous: rows [first, end). */
static int V(row_tile)(const class_task *task, ptrdiff_t first, ptrdiff_t end, REAL *scratch, fl_metrics *metrics,
                       double *loss) {
    const fl_class_call *call = &task->call;
    REAL stage[STAGE];
    const bool native = V(is_native)(task), same_factors = V(same_factors)(task);
    const bool adjacent = are_adjacent(&call->logits, call) && (!call->grad.data || are_adjacent(&call->grad, call));
    bool streamed = streams_softmax(task);
    if (!scratch && scratch_row(call->classes) > STAGE) streamed = false;
    if (scratch) /* no vector of it is to be in two lines */
        scratch = (REAL *)(((uintptr_t)scratch + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES);
    else if (scratch_row(call->classes) <= STAGE)
        scratch = stage;
    const bool plain = V(is_plain)(task) && (native || scratch || metrics);
    const ptrdiff_t out_size = dtype_size(call->grad.dtype);
    REAL *losses = call->losses, *lse = call->lse;
    double sum = 0;
    V(batch) batch;
    batch.native = native;
    batch.streams = streamed;
    batch.referenced = V(is_never_direct)(task);
    batch.scratch = scratch;
    batch.stream = (line_stream){NULL, 0, {0}};
    for (ptrdiff_t i = 0; i < (end - first < ROW_BATCH ? end - first : ROW_BATCH); i++)
        V(target_factors)(task, 0, call->target && same_factors ? 0 : NO_INDEX, &batch.a[i], &batch.s[i], &batch.g[i]);
    for (ptrdiff_t from = first; from < end; from += ROW_BATCH) {
        const ptrdiff_t n = end - from < ROW_BATCH ? end - from : ROW_BATCH;
        if (!V(target_classes)(task, from, n, batch.y)) return FL_ERROR_INDEX;
        locate(&call->logits, call->n[1], from, n, batch.z);
        locate(&call->grad, call->n[1], from, n, batch.grad);
        if (!plain) locate(&call->target_probs, call->n[1], from, n, batch.probs);
        ptrdiff_t row[ROW_BATCH], ignored = 0;
        for (ptrdiff_t i = 0; i < n; i++) ignored += batch.y[i] == -1;
        batch.count = n - ignored;
        batch.adjacent = ignored == 0 && adjacent;
        for (ptrdiff_t i = 0, k = 0; ignored > 0 && i < n; i++) {
            if (batch.y[i] == -1) {
                if (batch.grad[i]) memset(batch.grad[i], 0, (size_t)(call->classes * out_size));
                if (losses) losses[from + i] = 0;
                if (lse) lse[from + i] = 0;
                continue;
            }
            batch.z[k] = batch.z[i];
            batch.grad[k] = batch.grad[i];
            if (!plain) batch.probs[k] = batch.probs[i];
            batch.y[k] = batch.y[i];
            row[k++] = i;
        }
        for (ptrdiff_t k = 0; !same_factors && k < batch.count; k++)
            V(target_factors)(task, from + (ignored ? row[k] : k), (ptrdiff_t)batch.y[k], &batch.a[k], &batch.s[k],
                              &batch.g[k]);
        if (plain)
            V(index_rows)(task, &batch);
        else if (call->classes <= FEW_CLASSES)
            V(any_short_rows)(task, &batch);
        else
            for (ptrdiff_t k = 0; k < batch.count; k++) V(any_row)(task, &batch, k);
        sum += V(sum_losses)(batch.loss, batch.count);
        for (ptrdiff_t k = 0; losses && k < batch.count; k++) losses[from + (ignored ? row[k] : k)] = batch.loss[k];
        for (ptrdiff_t k = 0; lse && k < batch.count; k++) lse[from + (ignored ? row[k] : k)] = batch.lse[k];
        if (metrics) V(add_metrics)(task, batch.entropy, batch.ahead, batch.count, metrics);
    }
    stream_end(&batch.stream);
    if (streamed) vec_fence();
    *loss = sum;
    return FL_OK;
}

/* `count` positions of class c, from the first of them on. */
static INLINE void V(fetch_class)(const char *z, ptrdiff_t c, ptrdiff_t stride, ptrdiff_t bytes) {
    for (ptrdiff_t line = 0; line < bytes; line += LINE_BYTES) __builtin_prefetch(z + c * stride + line);
}

/* Classes a stride apart: targets [first, end) of position `outer`. Where the stride is a power of two, as in images,
 * the lines of all classes compete for a few places in the caches; so logits are read once into a stage of their own,
 * and gradients leave it once; unless there are too many classes for it. */
static int V(lane_tile)(const class_task *task, ptrdiff_t outer, ptrdiff_t first, ptrdiff_t end, fl_metrics *metrics,
                        double *loss) {
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes, real = (ptrdiff_t)sizeof(REAL);
    const ptrdiff_t in_size = dtype_size(call->logits.dtype), out_size = dtype_size(call->grad.dtype);
    const ptrdiff_t in_stride = call->logits.class_stride * in_size, out_stride = call->grad.class_stride * out_size;
    const ptrdiff_t i0 = outer / call->n[1], i1 = outer % call->n[1];
    const char *logits = (const char *)call->logits.data + position(&call->logits, i0, i1) * in_size;
    char *grads = call->grad.data;
    if (grads) grads += position(&call->grad, i0, i1) * out_size;
    const REAL *probs = call->target_probs.data;
    if (probs) probs += position(&call->target_probs, i0, i1);
    REAL *losses = call->losses;
    REAL stages[STAGE];
    const bool staged = classes * LANE_TARGETS <= STAGE;
    const bool plain = V(is_plain)(task) && (staged || V(is_native)(task));
    const bool same_factors = V(same_factors)(task);
    /* Lines that are streamed in parts cost more than they spare: a step of each class has to begin where a line does.
     */
    const bool streamed = staged && call->grad.dtype == NATIVE && streams_softmax(task) && out_stride % LINE_BYTES == 0;
    const char *written = grads ? grads + first * out_size : logits + first * in_size;
    /* The sum of the entropies depends on how a tile is cut into steps, and must not on where its arrays are. */
    const ptrdiff_t in_line = metrics ? 0 : (ptrdiff_t)((uintptr_t)written % LINE_BYTES) / (grads ? out_size : in_size);
    /* What the kernels see: the stage, or the arrays themselves. */
    const int z_dtype = staged ? NATIVE : call->logits.dtype, grad_dtype = staged ? NATIVE : call->grad.dtype;
    const ptrdiff_t z_stride = staged ? LANE_TARGETS * real : in_stride;
    const ptrdiff_t grad_stride = staged ? LANE_TARGETS * real : out_stride;
    /* Whether there is room to copy the logits of one step while those of another are computed with, and whether the
     * loops can: those for by-products of smoothed labels do not take pairs of vectors. */
    const bool has_pairs = !metrics || !(call->label_smoothing > 0);
    const bool copies_ahead = plain && 2 * classes * LANE_TARGETS <= STAGE && has_pairs;
    const ptrdiff_t classes_ahead = LINES_AHEAD * LINE_BYTES / (LANE_TARGETS * in_size);
    bool copied = false;
    REAL *stage = stages;
    double sums[LOSS_SUMS] = {0};
    V(batch) batch;
    V(lane_batch) lanes;
    lanes.of = &batch;
    lanes.first = 0;
    for (ptrdiff_t i = 0; i < LANE_TARGETS; i++)
        V(target_factors)(task, 0, call->target && same_factors ? 0 : NO_INDEX, &batch.a[i], &batch.s[i], &batch.g[i]);
    for (ptrdiff_t from = first, n; from < end; from += n) {
        const ptrdiff_t step = from == first ? LANE_TARGETS - in_line : LANE_TARGETS;
        n = end - from < step ? end - from : step;
        const ptrdiff_t row = outer * call->inner + from;
        const ptrdiff_t bytes = n * in_size;
        const char *z = logits + from * in_size;
        char *grad = grads ? grads + from * out_size : NULL;
        for (ptrdiff_t c = 0; staged && !copied && c < classes; c++) {
            if (c + classes_ahead < classes) V(fetch_class)(z, c + classes_ahead, in_stride, bytes);
            V(load_block)(z + c * in_stride, call->logits.dtype, n, 0, stage + c * LANE_TARGETS);
        }
        for (ptrdiff_t c = 0; staged && !copied && from + n < end && c < classes && c < classes_ahead; c++)
            V(fetch_class)(z + n * in_size, c, in_stride, bytes);
        copied = copies_ahead && n == LANE_TARGETS && end - from >= 2 * LANE_TARGETS;
        REAL *next = copied && stage == stages ? stages + classes * LANE_TARGETS : stages;
        V(lane_copy) ahead = {0};
        if (copied)
            ahead =
                V(copy_of)(z + LANE_TARGETS * in_size, call->logits.dtype, in_stride, classes, LANE_VECTORS / 2, next);
        int64_t y[LANE_TARGETS];
        if (!V(target_classes)(task, row, n, y)) return FL_ERROR_INDEX;
        ptrdiff_t ignored = 0;
        for (ptrdiff_t i = 0; i < n; i++) ignored += y[i] == -1;
        lanes.any_ignored = ignored > 0;
        for (ptrdiff_t i = 0; i < n; i++) lanes.y[i] = (V(index))y[i];
        for (ptrdiff_t i = 0; i < n && !same_factors; i++)
            V(target_factors)(task, row + i, (ptrdiff_t)y[i], &batch.a[i], &batch.s[i], &batch.g[i]);
        for (ptrdiff_t i = n; i < LANE_TARGETS; i++) {
            lanes.y[i] = -1;
            if (!same_factors) batch.a[i] = batch.s[i] = batch.g[i] = 0; /* those of all stay for the next step */
        }
        const char *z_at = staged ? (const char *)stage : z;
        char *grad_at = !grad ? NULL : staged ? (char *)stage : grad;
        /* A whole step's gradient need not pass through the stage. */
        const bool direct = grad && plain && staged && grad_dtype == call->grad.dtype && n == LANE_TARGETS;
        if (plain) {
            const V(lane_block) block = {.z = (const REAL *)z_at,
                                         .e = (REAL *)grad_at,
                                         .grad = (REAL *)(direct ? grad : grad_at),
                                         .z_stride = z_stride / real,
                                         .e_stride = grad_stride / real,
                                         .grad_stride = (direct ? out_stride : grad_stride) / real,
                                         .classes = classes,
                                         .streams = direct && streamed,
                                         .ahead = copied ? &ahead : NULL};
            V(index_lanes)(task, &block, &lanes, staged ? n + (-n & (LANES - 1)) : n);
        }
        for (ptrdiff_t i = 0; !plain && i < n; i += LANES)
            V(any_lanes)(task, z_at + i * (staged ? real : in_size), z_stride, z_dtype,
                         grad ? grad_at + i * (staged ? real : out_size) : NULL, grad_stride, grad_dtype,
                         probs ? probs + from + i : NULL, call->target_probs.class_stride, &lanes, i,
                         n - i < LANES ? n - i : LANES);
        V(add_losses)(batch.loss, n, from - first, sums);
        if (losses) memcpy(losses + row, batch.loss, (size_t)n * sizeof *losses);
        ptrdiff_t counted = metrics && !lanes.any_ignored ? n : 0;
        if (counted && call->lse) memcpy((REAL *)call->lse + row, batch.lse, (size_t)n * sizeof(REAL));
        for (ptrdiff_t i = 0; metrics && lanes.any_ignored && i < n; i++) {
            if (call->lse) ((REAL *)call->lse)[row + i] = lanes.y[i] < 0 ? 0 : batch.lse[i];
            if (lanes.y[i] < 0) continue;
            batch.entropy[counted] = batch.entropy[i];
            batch.ahead[counted++] = batch.ahead[i];
        }
        if (metrics) V(add_metrics)(task, batch.entropy, batch.ahead, counted, metrics);
        for (ptrdiff_t c = 0; staged && grad && !direct && c < classes; c++) {
            if (streamed)
                stream_block(grad + c * out_stride, stage + c * LANE_TARGETS, n * out_size);
            else
                V(store_block)(grad + c * out_stride, call->grad.dtype, n, stage + c * LANE_TARGETS);
        }
        if (copied) stage = next;
    }
    if (streamed) vec_fence();
    for (ptrdiff_t half = LOSS_SUMS / 2; half > 0; half /= 2)
        for (ptrdiff_t k = 0; k < half; k++) sums[k] += sums[k + half];
    *loss = sums[0];
    return FL_OK;
}

#include "rows.h"

/* The targets of a tile: [first, end) of every outer position in [outer, outer_end). */
#ifndef TILE_RANGE
#define TILE_RANGE
typedef struct {
    ptrdiff_t outer, outer_end, first, end;
} tile_range;

static inline tile_range range_of_tile(const class_task *task, ptrdiff_t tile) {
    const fl_class_call *call = &task->call;
    const bool rows = call->inner == 1;
    const ptrdiff_t length = rows ? task->rows : call->inner, outers = rows ? 1 : call->n[0] * call->n[1];
    const ptrdiff_t pieces = (length + task->tile_rows - 1) / task->tile_rows;
    tile_range r;
    r.outer = tile / pieces * task->tile_outer;
    r.outer_end = r.outer + task->tile_outer < outers ? r.outer + task->tile_outer : outers;
    r.first = tile % pieces * task->tile_rows;
    r.end = r.first + task->tile_rows < length ? r.first + task->tile_rows : length;
    return r;
}
#endif

static int V(tile)(const class_task *task, ptrdiff_t tile, void *scratch, double *loss) {
    const tile_range r = range_of_tile(task, tile);
    fl_metrics *metrics = task->call.metrics ? task->call.metrics + tile : NULL;
    if (metrics) memset(metrics, 0, sizeof *metrics);
    *loss = 0;
    for (ptrdiff_t outer = r.outer; outer < r.outer_end; outer++) {
        double part = 0;
        const int loss_kind = task->call.loss;
        const int status = loss_kind == FL_NLL             ? V(nll_tile)(task, outer, r.first, r.end, &part)
                           : loss_kind != FL_CROSS_ENTROPY ? V(margin_tile)(task, r.first, r.end, &part)
                           : task->call.inner == 1         ? V(row_tile)(task, r.first, r.end, scratch, metrics, &part)
                                                           : V(lane_tile)(task, outer, r.first, r.end, metrics, &part);
        if (status != FL_OK) return status;
        *loss += part;
    }
    return FL_OK;
}

/* The share of the mean's denominator of n targets from number `first` on, and the first that is out of range. */
static void V(check_targets)(const class_task *task, ptrdiff_t first, ptrdiff_t n, fl_target_check *check) {
    const fl_class_call *call = &task->call;
    const bool counts_rows = call->loss == FL_MULTI_MARGIN;
    const REAL *weight = counts_rows ? NULL : call->weight, *sample_weight = counts_rows ? NULL : call->sample_weight;
    double sum = 0;
    for (ptrdiff_t row = first; call->loss == FL_MULTILABEL_MARGIN && row < first + n; row++) {
        ptrdiff_t labels;
        if (!V(labels_of)(task, row, &labels)) check->bad_position = row * call->classes;
        check->weight += 1;
        if (check->bad_position >= 0 || row == first + n - 1) return;
    }
    for (ptrdiff_t from = first; from < first + n; from += ROW_BATCH) {
        const ptrdiff_t count = first + n - from < ROW_BATCH ? first + n - from : ROW_BATCH;
        int64_t y[ROW_BATCH];
        if (!V(target_classes)(task, from, count, y)) {
            load_targets(call->target, call->target_dtype, from, count, y);
            ptrdiff_t i = 0;
            while ((uint64_t)y[i] < (uint64_t)call->classes || is_ignored(call, y[i])) i++;
            check->bad_position = from + i;
            check->bad_value = y[i];
            return;
        }
        if (!weight && !sample_weight) {
            ptrdiff_t counted = 0;
            for (ptrdiff_t i = 0; i < count; i++) counted += y[i] != -1;
            sum += (double)counted;
            continue;
        }
        for (ptrdiff_t i = 0; i < count; i++)
            if (y[i] != -1)
                sum += (weight && y[i] >= 0 ? (double)weight[y[i]] : 1) *
                       (sample_weight ? (double)sample_weight[from + i] : 1);
    }
    check->weight += sum;
}

static void V(check)(const class_task *task, ptrdiff_t tile, fl_target_check *check) {
    const tile_range r = range_of_tile(task, tile);
    check->weight = 0;
    check->bad_position = -1;
    check->bad_value = 0;
    for (ptrdiff_t outer = r.outer; outer < r.outer_end && check->bad_position < 0; outer++)
        V(check_targets)(task, outer * task->call.inner + r.first, r.end - r.first, check);
}

/* Sums of hits, false positives and false negatives over a batch, class by class, and the gradient of a function of
 * those sums: Dice, Jaccard, Tversky. A softmax cross-entropy may ride along. Included once per working type.
 *
 * With A_c and B_c the derivatives of the loss by I_c = sum of p_c y_c and P_c = sum of p_c, the softmax gradient of
 * one target y is
 *
 *     grad_c = p_c (B_c - D - p_y (A_y + B_y)),     D = sum of p_c B_c over c != y,
 *     grad_y = p_y ((1 - p_y) (A_y + B_y) - D),
 *
 * where 1 - p_y comes from the sum over the other classes, so that a confident target keeps its digits. A cross-entropy
 * adds k p_c and -k (1 - p_y). Positions are worked on in lanes, a stage of all their classes at a time. */

#undef SPAN_POSITIONS
/* Positions a stage at most. */
#define SPAN_POSITIONS (WORKING_TYPE == 32 ? 1024 : 512)

typedef struct {
    ptrdiff_t n, width;   /* positions, and the distance between classes in the stage */
    REAL *z, *mask;       /* logits, which become scaled exponentials or probabilities; the mask, or NULL */
    V(lane_copy) * ahead; /* the next stage's logits, to be copied meanwhile, or NULL */
    REAL *out;            /* where the gradient belongs, or NULL: in the stage */
    ptrdiff_t out_stride;
    bool streams; /* past the caches; its lines are those of the vectors */
    bool any_ignored;
    V(index) y[SPAN_POSITIONS]; /* -1: ignored */
    REAL inverse[SPAN_POSITIONS], rest[SPAN_POSITIONS], target[SPAN_POSITIONS], d[SPAN_POSITIONS], z_y[SPAN_POSITIONS],
        max[SPAN_POSITIONS];
} V(overlap_stage);

/* Where the classes of position t begin, and its class stride in elements. */
static INLINE char *V(overlap_at)(const overlap_task *task, const fl_array *array, ptrdiff_t t, ptrdiff_t *stride) {
    const fl_overlap_call *call = &task->call;
    const ptrdiff_t outer = t / call->inner, k = t % call->inner;
    *stride = call->inner == 1 ? 1 : array->class_stride;
    return (char *)array->data +
           (position(array, outer / call->n[1], outer % call->n[1]) + k) * dtype_size(array->dtype);
}

/* Positions from t on that a stage can take: in one run of neighbours, or any number of rows. */
static INLINE ptrdiff_t V(overlap_run)(const overlap_task *task, ptrdiff_t t, ptrdiff_t end, ptrdiff_t width) {
    const ptrdiff_t inner = task->call.inner;
    ptrdiff_t n = end - t < width ? end - t : width;
    if (inner > 1 && inner - t % inner < n) n = inner - t % inner;
    return n;
}

/* Brings n positions of an array into a stage, class by class, padded to whole vectors. */
static void V(overlap_load)(const overlap_task *task, const fl_array *array, ptrdiff_t t, ptrdiff_t n, ptrdiff_t width,
                            bool is_mask, REAL *stage) {
    const ptrdiff_t classes = task->call.classes, size = dtype_size(array->dtype);
    ptrdiff_t stride;
    if (task->call.inner > 1) {
        const char *p = V(overlap_at)(task, array, t, &stride);
        for (ptrdiff_t c = 0; c < classes; c++) {
            for (ptrdiff_t line = 0; c + 1 < classes && line < n * size; line += LINE_BYTES)
                __builtin_prefetch(p + (c + 1) * stride * size + line);
            if (is_mask)
                V(numbers_block)(p + c * stride * size, array->dtype, 0, n, stage + c * width);
            else
                V(load_block)(p + c * stride * size, array->dtype, n, 0, stage + c * width);
        }
        return;
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        const char *p = V(overlap_at)(task, array, t + i, &stride);
        REAL block[BLOCK];
        for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
            const ptrdiff_t count = classes - c < BLOCK ? classes - c : BLOCK;
            if (is_mask)
                V(numbers_block)(p + c * size, array->dtype, 0, count, block);
            else
                V(load_block)(p + c * size, array->dtype, count, 0, block);
            for (ptrdiff_t k = 0; k < count; k++) stage[(c + k) * width + i] = block[k];
        }
    }
    for (ptrdiff_t i = n; i % LANES; i++)
        for (ptrdiff_t c = 0; c < classes; c++) stage[c * width + i] = 0;
}

static void V(overlap_store)(const overlap_task *task, ptrdiff_t t, ptrdiff_t n, ptrdiff_t width, const REAL *stage,
                             bool streamed) {
    const fl_array *grad = &task->call.grad;
    const ptrdiff_t classes = task->call.classes, size = dtype_size(grad->dtype);
    ptrdiff_t stride;
    if (task->call.inner > 1) {
        char *p = V(overlap_at)(task, grad, t, &stride);
        for (ptrdiff_t c = 0; c < classes; c++) {
            char *to = p + c * stride * size;
            if (streamed)
                stream_block(to, stage + c * width, n * size);
            else
                V(store_block)(to, grad->dtype, n, stage + c * width);
        }
        return;
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        char *p = V(overlap_at)(task, grad, t + i, &stride);
        REAL block[BLOCK];
        for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
            const ptrdiff_t count = classes - c < BLOCK ? classes - c : BLOCK;
            for (ptrdiff_t k = 0; k < count; k++) block[k] = stage[(c + k) * width + i];
            V(store_block)(p + c * size, grad->dtype, count, block);
        }
    }
}

/* How many positions of the gradient lie between t and the line before it: a step that ends where a line does leaves
 * none that two of them write. */
static ptrdiff_t V(overlap_misaligned)(const overlap_task *task, ptrdiff_t t) {
    const fl_array *grad = &task->call.grad;
    ptrdiff_t stride;
    return (ptrdiff_t)((uintptr_t)V(overlap_at)(task, grad, t, &stride) % LINE_BYTES) / dtype_size(grad->dtype);
}

/* The classes of n positions, -1 where ignored or past the end. False where one is out of range. */
static bool V(overlap_targets)(const overlap_task *task, ptrdiff_t t, ptrdiff_t n, V(overlap_stage) * s) {
    const fl_overlap_call *call = &task->call;
    s->any_ignored = n % LANES != 0;
    for (ptrdiff_t from = 0; from < n; from += ROW_BATCH) {
        const ptrdiff_t count = n - from < ROW_BATCH ? n - from : ROW_BATCH;
        int64_t y[ROW_BATCH];
        load_targets(call->target, call->target_dtype, t + from, count, y);
        for (ptrdiff_t i = 0; i < count; i++) {
            const bool ignored = overlap_ignores(call, y[i]);
            if (!ignored && (uint64_t)y[i] >= (uint64_t)call->classes) return false;
            s->y[from + i] = ignored ? -1 : (V(index))y[i];
            s->any_ignored |= ignored;
        }
    }
    for (ptrdiff_t i = n; i % LANES; i++) s->y[i] = -1;
    return true;
}

/* Softmax of the stage: exponentials in the place of the logits, and for each position 1 / sum, and the sum over the
 * other classes and the target's part of it, both times that. With `slopes` also D: see above. */
static INLINE void V(overlap_softmax)(const overlap_task *task, V(overlap_stage) * s, const REAL *slopes,
                                      bool squared) {
    const ptrdiff_t classes = task->call.classes;
    const V(vec) zero = V(set)(0), unit = V(set)(SCALE_DOWN);
    const bool copies = s->ahead != NULL;
    V(lane_copy) copy = {0};
    if (copies) copy = *s->ahead;
    for (ptrdiff_t i = 0; i < s->n; i += LANES) {
        V(vec) m0 = V(set)(-INFINITY), m1 = m0;
        const REAL *z = s->z + i;
        ptrdiff_t c = 0;
        for (; c + 2 <= classes; c += 2) {
            m0 = V(max)(V(load)(z + c * s->width), m0);
            m1 = V(max)(V(load)(z + (c + 1) * s->width), m1);
        }
        if (c < classes) m0 = V(max)(V(load)(z + c * s->width), m0);
        V(store)(s->max + i, V(max)(m0, m1));
    }
    for (ptrdiff_t i = 0; i < s->n; i += 2 * LANES) {
        const ptrdiff_t second = i + LANES < s->n ? LANES : 0;
        V(vec) m[2], sum[2], e_y[2], z_y[2], d[2];
        V(int) y[2];
        V(acc) sums[2], ds[2];
        for (ptrdiff_t k = 0; k < 2; k++) {
            m[k] = V(load)(s->max + i + k * second);
            y[k] = V(int_load)(s->y + i + k * second);
            e_y[k] = z_y[k] = zero;
            sums[k] = ds[k] = V(acc_zero)();
        }
        for (ptrdiff_t first = 0; first < classes; first += CLASS_BLOCK) {
            const ptrdiff_t end = classes - first < CLASS_BLOCK ? classes : first + CLASS_BLOCK;
            for (ptrdiff_t k = 0; k < 2; k++) sum[k] = d[k] = zero;
            for (ptrdiff_t c = first; c < end; c++) {
                const V(int) number = V(int_set)((V(index))c);
                V(vec) e[2];
                for (ptrdiff_t k = 0; k < 2; k++) {
                    const V(vec) z = V(load)(s->z + c * s->width + i + k * second);
                    const V(mask) is_target = V(int_eq)(y[k], number);
                    e[k] = V(exp_scaled)(V(sub)(z, m[k]));
                    const V(vec) other = V(zero_where)(is_target, e[k]);
                    z_y[k] = V(select)(is_target, z, z_y[k]);
                    e_y[k] = V(select)(is_target, e[k], e_y[k]);
                    sum[k] = V(add)(sum[k], other);
                    if (slopes)
                        d[k] = V(fma)(squared ? V(mul)(V(mul)(other, unit), V(mul)(other, unit)) : other,
                                      V(set)(slopes[2 * c + 1]), d[k]);
                }
                V(store)(s->z + c * s->width + i, e[0]);
                if (second) V(store)(s->z + c * s->width + i + LANES, e[1]);
                if (copies) V(copy_pair)(&copy);
            }
            for (ptrdiff_t k = 0; k < 2; k++) {
                V(acc_add)(&sums[k], sum[k]);
                V(acc_add)(&ds[k], d[k]);
            }
        }
        for (ptrdiff_t k = 0; k < 2; k++) {
            const ptrdiff_t at = i + k * second;
            const V(vec) rest = V(mul)(V(acc_lanes)(sums[k]), unit), at_target = V(mul)(e_y[k], unit);
            const V(vec) inverse = V(div)(V(set)(1), V(add)(rest, at_target));
            V(store)(s->inverse + at, inverse);
            V(store)(s->rest + at, V(mul)(rest, inverse));
            V(store)(s->target + at, V(mul)(at_target, inverse));
            V(store)(s->z_y + at, z_y[k]);
            if (slopes) {
                const V(vec) scale = squared ? V(mul)(V(set)(2), V(mul)(inverse, inverse)) : V(mul)(inverse, unit);
                V(store)(s->d + at, V(mul)(V(acc_lanes)(ds[k]), scale));
            }
        }
    }
}

/* The cross-entropy of one vector of positions, with what its gradient is multiplied by: f and h of a focal loss. */
static INLINE V(vec) V(overlap_entropy)(const overlap_task *task, const V(overlap_stage) * s, ptrdiff_t i, V(vec) * h) {
    const V(vec) inverse = V(load)(s->inverse + i), p = V(load)(s->target + i), not_p = V(load)(s->rest + i);
    const V(vec) sum = V(div)(V(set)(1), inverse), rest = V(mul)(not_p, sum), e_y = V(mul)(p, sum);
    const V(vec) log_sum = V(log_sum)(e_y, rest, inverse);
    const V(vec) nll = V(add)(V(sub)(V(load)(s->max + i), V(load)(s->z_y + i)), log_sum);
    *h = V(set)(1);
    if (!(task->focal.call.focal > 0)) return nll;
    const V(vec) f = V(focal_factors)(&task->focal, p, not_p, nll, h);
    return V(mul)(f, V(zero_times)(f, nll));
}

/* The cross-entropy's class weight of each position. */
static INLINE void V(overlap_weights)(const overlap_task *task, const V(overlap_stage) * s, REAL *a) {
    const REAL *weight = task->call.entropy_weight;
    for (ptrdiff_t i = 0; i < s->n + (-s->n & (LANES - 1)); i++) a[i] = s->y[i] < 0 ? 0 : weight ? weight[s->y[i]] : 1;
}

static INLINE void V(add_to)(double *sum, V(vec) v) {
    V(acc) acc = V(acc_zero)();
    V(acc_add)(&acc, v);
    *sum += V(acc_sum)(acc);
}

/* Adds a stage of index targets to the sums: of p y, of p (1 - y) and of (1 - p) y of each class; squared: of p y,
 * p (p - y) and y (y - p). */
static INLINE void V(gather_indices)(const overlap_task *task, V(overlap_stage) * s, double *sums, bool squared) {
    const ptrdiff_t classes = task->call.classes;
    const bool softmax = task->call.activation == FL_ACTIVATION_SOFTMAX;
    const V(vec) zero = V(set)(0), unit = V(set)(SCALE_DOWN);
    if (softmax) V(overlap_softmax)(task, s, NULL, squared);
    if (task->call.entropy > 0) {
        REAL a[SPAN_POSITIONS];
        V(overlap_weights)(task, s, a);
        V(vec) loss = zero, weight = zero;
        for (ptrdiff_t i = 0; i < s->n; i += LANES) {
            V(vec) h;
            const V(vec) factor = V(load)(a + i);
            const V(mask) ignored = V(int_eq)(V(int_load)(s->y + i), V(int_set)(-1));
            const V(vec) each = V(overlap_entropy)(task, s, i, &h);
            loss = V(add)(loss, V(zero_where)(ignored, V(mul)(factor, V(zero_times)(factor, each))));
            weight = V(add)(weight, factor);
        }
        V(add_to)(sums + 3 * classes, loss);
        V(add_to)(sums + 3 * classes + 1, weight);
    }
    for (ptrdiff_t c = 0; c < classes; c++) {
        const V(int) number = V(int_set)((V(index))c);
        V(vec) hits = zero, positives = zero, negatives = zero;
        for (ptrdiff_t i = 0; i < s->n; i += LANES) {
            const V(int) y = V(int_load)(s->y + i);
            const V(mask) is_target = V(int_eq)(y, number);
            V(vec) p = V(load)(s->z + c * s->width + i);
            if (softmax) p = V(mul)(V(mul)(p, unit), V(load)(s->inverse + i));
            if (s->any_ignored) p = V(zero_where)(V(int_eq)(y, V(int_set)(-1)), p);
            const V(vec) not_p = softmax ? V(load)(s->rest + i) : V(sub)(V(set)(1), p);
            const V(vec) wrong = squared ? V(mul)(p, p) : p;
            hits = V(add)(hits, V(select)(is_target, p, zero));
            negatives = V(add)(negatives, V(select)(is_target, not_p, zero));
            if (squared)
                positives = V(add)(positives, V(select)(is_target, V(mul)(V(sub)(zero, p), not_p), wrong));
            else
                positives = V(add)(positives, V(zero_where)(is_target, wrong));
        }
        V(add_to)(sums + 3 * c, hits);
        V(add_to)(sums + 3 * c + 1, positives);
        V(add_to)(sums + 3 * c + 2, negatives);
    }
}

/* The same for a mask. */
static INLINE void V(gather_mask)(const overlap_task *task, V(overlap_stage) * s, double *sums, bool squared) {
    const fl_overlap_call *call = &task->call;
    const bool sigmoid = call->activation == FL_ACTIVATION_SIGMOID;
    const V(vec) zero = V(set)(0), one = V(set)(1), ignore = V(set)((REAL)call->ignore_index);
    for (ptrdiff_t c = 0; c < call->classes; c++) {
        V(vec) hits = zero, positives = zero, negatives = zero;
        for (ptrdiff_t i = 0; i < s->n; i += LANES) {
            const ptrdiff_t at = c * s->width + i, left = s->n - i;
            const V(vec) z = V(load)(s->z + at);
            V(vec) p = z, not_p = V(sub)(one, z), y = V(load)(s->mask + at);
            if (sigmoid) {
                const V(vec) u = V(exp)(V(minus_abs)(z));
                const V(vec) inverse = V(div)(one, V(add)(one, u)), small = V(mul)(u, inverse);
                p = V(select_sign)(z, small, inverse);
                not_p = V(select_sign)(z, inverse, small);
            }
            const V(vec) other = V(sub)(one, y);
            V(vec) hit = V(zero_where)(V(eq)(y, zero), V(mul)(p, y)), positive = V(mul)(p, other);
            V(vec) negative = V(mul)(not_p, y);
            if (squared) { /* y (y - p) = y ((1 - p) - (1 - y)), p (p - y) = p ((1 - y) - (1 - p)) */
                positive = V(mul)(p, V(sub)(other, not_p));
                negative = V(mul)(y, V(sub)(not_p, other));
            }
            if (left < LANES || call->has_ignore) {
                REAL inside[LANES];
                for (ptrdiff_t k = 0; k < LANES; k++) inside[k] = k < left;
                V(mask) out = V(eq)(V(load)(inside), zero);
                hit = V(zero_where)(out, hit);
                positive = V(zero_where)(out, positive);
                negative = V(zero_where)(out, negative);
                if (call->has_ignore) {
                    out = V(eq)(y, ignore);
                    hit = V(zero_where)(out, hit);
                    positive = V(zero_where)(out, positive);
                    negative = V(zero_where)(out, negative);
                }
            }
            hits = V(add)(hits, hit);
            positives = V(add)(positives, positive);
            negatives = V(add)(negatives, negative);
        }
        V(add_to)(sums + 3 * c, hits);
        V(add_to)(sums + 3 * c + 1, positives);
        V(add_to)(sums + 3 * c + 2, negatives);
    }
}

/* The stage's gradient in its place. slopes: A_c and B_c of each class. */
static INLINE void V(indices_gradient)(const overlap_task *task, V(overlap_stage) * s, const REAL *slopes,
                                       bool squared) {
    const fl_overlap_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    const bool softmax = call->activation == FL_ACTIVATION_SOFTMAX;
    const V(vec) zero = V(set)(0), unit = V(set)(SCALE_DOWN);
    REAL a[SPAN_POSITIONS], a_y[SPAN_POSITIONS], b_y[SPAN_POSITIONS];
    if (softmax) V(overlap_softmax)(task, s, slopes, squared);
    for (ptrdiff_t i = 0; i < s->n + (-s->n & (LANES - 1)); i++) {
        a_y[i] = s->y[i] < 0 ? 0 : slopes[2 * s->y[i]];
        b_y[i] = s->y[i] < 0 ? 0 : slopes[2 * s->y[i] + 1];
    }
    if (call->entropy > 0) V(overlap_weights)(task, s, a);
    /* From here on `rest` holds the target's gradient, and `d` what is taken from the slope of each other class. */
    for (ptrdiff_t i = 0; softmax && i < s->n; i += LANES) {
        const V(vec) p = V(load)(s->target + i), not_p = V(load)(s->rest + i), d = V(load)(s->d + i);
        V(vec) own = V(load)(b_y + i);
        if (squared) own = V(mul)(V(set)(2), V(mul)(own, p));
        own = V(add)(own, V(load)(a_y + i));
        V(vec) at_target = V(mul)(p, V(sub)(V(mul)(not_p, own), d)), taken = V(fma)(p, own, d);
        if (call->entropy > 0) {
            V(vec) h;
            V(overlap_entropy)(task, s, i, &h);
            const V(vec) pull = V(mul)(V(set)((REAL)task->entropy_scale), V(mul)(V(load)(a + i), h));
            at_target = V(fnma)(pull, not_p, at_target);
            taken = V(sub)(taken, pull);
        }
        V(store)(s->rest + i, at_target);
        V(store)(s->d + i, taken);
        V(store)(s->inverse + i, V(mul)(V(load)(s->inverse + i), unit));
    }
    for (ptrdiff_t c = 0; c < classes; c++) {
        const V(int) number = V(int_set)((V(index))c);
        const V(vec) by_p = V(set)(slopes[2 * c + 1]), twice = V(set)(2 * slopes[2 * c + 1]);
        const V(vec) by_both = V(set)(slopes[2 * c]);
        for (ptrdiff_t i = 0; i < s->n; i += LANES) {
            REAL *at = s->z + c * s->width + i;
            const V(int) y = V(int_load)(s->y + i);
            const V(mask) is_target = V(int_eq)(y, number);
            V(vec) p = V(load)(at), grad;
            if (softmax) {
                p = V(mul)(p, V(load)(s->inverse + i));
                const V(vec) slope = V(sub)(squared ? V(mul)(twice, p) : by_p, V(load)(s->d + i));
                grad = V(select)(is_target, V(load)(s->rest + i), V(mul)(p, slope));
            } else {
                grad = V(add)(squared ? V(mul)(twice, p) : by_p, V(select)(is_target, by_both, zero));
            }
            if (s->any_ignored) grad = V(zero_where)(V(int_eq)(y, V(int_set)(-1)), grad);
            REAL *to = s->out ? s->out + c * s->out_stride + i : at;
            s->streams ? V(stream)(to, grad) : V(store)(to, grad);
        }
    }
}

static INLINE void V(mask_gradient)(const overlap_task *task, V(overlap_stage) * s, const REAL *slopes, bool squared) {
    const fl_overlap_call *call = &task->call;
    const V(vec) one = V(set)(1), ignore = V(set)((REAL)call->ignore_index);
    for (ptrdiff_t c = 0; c < call->classes; c++) {
        const V(vec) by_p = V(set)(slopes[2 * c + 1]), by_both = V(set)(slopes[2 * c]);
        for (ptrdiff_t i = 0; i < s->n; i += LANES) {
            const ptrdiff_t at = c * s->width + i;
            const V(vec) z = V(load)(s->z + at), y = V(load)(s->mask + at);
            V(vec) p = z, change = one;
            if (call->activation == FL_ACTIVATION_SIGMOID) {
                /* With u = exp(-|z|): p (1 - p) = u / (1 + u)^2. */
                const V(vec) u = V(exp)(V(minus_abs)(z));
                const V(vec) inverse = V(div)(one, V(add)(one, u));
                p = V(mul)(V(select_sign)(z, u, one), inverse);
                change = V(mul)(u, V(mul)(inverse, inverse));
            }
            V(vec) slope = squared ? V(mul)(V(set)(2), V(mul)(by_p, p)) : by_p;
            slope = V(mul)(change, V(fma)(by_both, y, slope));
            if (call->has_ignore) slope = V(zero_where)(V(eq)(y, ignore), slope);
            V(store)(s->z + at, slope);
        }
    }
}

/* ---- More classes than a stage holds: one position at a time, in double ---------------------------------------- */

static double V(number_at)(const char *p, int dtype, ptrdiff_t i) {
    REAL block[LINE_BYTES / sizeof(REAL)];
    V(numbers_block)(p, dtype, i, 1, block);
    return (double)block[0];
}

/* Adds position t to the sums, or with slopes writes its gradient. */
static void V(overlap_position)(const overlap_task *task, ptrdiff_t t, int64_t y, const double *slopes, double *sums) {
    const fl_overlap_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    const bool softmax = call->activation == FL_ACTIVATION_SOFTMAX, squared = call->squared;
    ptrdiff_t stride, mask_stride = 0, grad_stride = 0;
    const char *z = V(overlap_at)(task, &call->logits, t, &stride);
    const char *mask = call->target ? NULL : V(overlap_at)(task, &call->mask, t, &mask_stride);
    char *grad = slopes ? V(overlap_at)(task, &call->grad, t, &grad_stride) : NULL;
    const ptrdiff_t grad_size = dtype_size(call->grad.dtype);
    const bool ignored = call->target && y < 0;
    double m = -INFINITY, rest = 0, d = 0, e_y = 0, z_y = 0, pull = 0, own = 0, p_y = 0;
    for (ptrdiff_t c = 0; softmax && c < classes; c++) {
        const double value = V(number_at)(z, call->logits.dtype, c * stride);
        m = value > m || isnan(value) ? value : m;
    }
    for (ptrdiff_t c = 0; softmax && c < classes; c++) {
        const double value = V(number_at)(z, call->logits.dtype, c * stride), e = exp(value - m);
        if (c == y) {
            z_y = value;
            e_y = e;
        } else {
            rest += e;
            if (slopes) d += squared ? 2 * e * e * slopes[2 * c + 1] : e * slopes[2 * c + 1];
        }
    }
    const double sum = rest + e_y;
    p_y = e_y / sum;
    d /= squared ? sum * sum : sum;
    if (slopes && softmax && !ignored) own = slopes[2 * y] + slopes[2 * y + 1] * (squared ? 2 * p_y : 1);
    if (softmax && !ignored && call->entropy > 0) {
        const REAL *weight = call->entropy_weight;
        const double a = weight ? (double)weight[y] : 1, nll = (m - z_y) + log1p(rest + (e_y - 1)), not_p = rest / sum;
        const double power = call->focal > 0 ? call->focal * pow(not_p, call->gamma) : 0;
        const double f = 1 - call->focal + power, ratio = not_p > 0 ? nll / not_p : 1;
        pull = task->entropy_scale * a * (f + call->gamma * power * (p_y > 0 ? p_y * ratio : 0));
        if (!slopes) {
            sums[3 * classes] += a == 0 || f == 0 ? 0 : a * f * nll;
            sums[3 * classes + 1] += a;
        }
    }
    for (ptrdiff_t c = 0; c < classes; c++) {
        const double value = V(number_at)(z, call->logits.dtype, c * stride);
        const double decay = exp(-fabs(value));
        double p = softmax ? exp(value - m) / sum : value, not_p = softmax && c == y ? rest / sum : 1 - p, change = 1;
        if (call->activation == FL_ACTIVATION_SIGMOID) {
            p = (value < 0 ? decay : 1) / (1 + decay);
            not_p = (value < 0 ? 1 : decay) / (1 + decay);
            change = p * not_p;
        }
        const double target = mask ? V(number_at)(mask, call->mask.dtype, c * mask_stride) : c == y;
        const bool counts = mask ? !(call->has_ignore && target == (double)call->ignore_index) : !ignored;
        if (!slopes) {
            if (!counts) continue;
            sums[3 * c] += target == 0 ? 0 : p * target;
            sums[3 * c + 1] += p * (squared ? (1 - target) - not_p : 1 - target);
            sums[3 * c + 2] += target * (squared ? not_p - (1 - target) : not_p);
            continue;
        }
        const double by_p = slopes[2 * c + 1] * (squared ? 2 * p : 1);
        double slope = change * (by_p + slopes[2 * c] * target);
        if (softmax)
            slope = c == y ? p * (rest / sum * own - d) - pull * rest / sum : p * (by_p - d - p_y * own + pull);
        V(write_one)(grad + c * grad_stride * grad_size, call->grad.dtype, counts ? (REAL)slope : 0);
    }
}

/* ---- A tile of positions, all of one group --------------------------------------------------------------------- */

/* Adds the tile to its sums, or with slopes (A_c and B_c of each class) writes its gradient. */
static int V(overlap_tile)(const overlap_task *task, ptrdiff_t tile, const double *slopes, double *sums) {
    const fl_overlap_call *call = &task->call;
    const ptrdiff_t classes = call->classes, group = tile / task->group_tiles;
    const ptrdiff_t first = group * task->group_rows + tile % task->group_tiles * task->tile_rows;
    const ptrdiff_t group_end = (group + 1) * task->group_rows;
    const ptrdiff_t end = first + task->tile_rows < group_end ? first + task->tile_rows : group_end;
    const bool is_mask = !call->target;
    REAL stages[STAGE], narrow[2 * STAGE / LANES];
    const bool copies = !is_mask && call->activation == FL_ACTIVATION_SOFTMAX && call->inner > 1;
    ptrdiff_t width = STAGE / (is_mask || copies ? 2 : 1) / classes / (2 * LANES) * (2 * LANES);
    if (width == 0) width = STAGE / (is_mask ? 2 : 1) / classes / LANES * LANES; /* for one stage without a copy */
    if (width > SPAN_POSITIONS) width = SPAN_POSITIONS;
    const bool copies_ahead = copies && 2 * classes * width <= STAGE && width % (2 * LANES) == 0;
    const bool native = slopes && width > 0 && call->inner > 1 && call->grad.dtype == NATIVE;
    const bool streamed = native && streams(call->logits.data, call->grad.data, call->grad.dtype, task->rows * classes);
    const ptrdiff_t in_size = dtype_size(call->logits.dtype), out_size = dtype_size(call->grad.dtype);
    bool copied = false;
    V(overlap_stage) s;
    s.z = stages;
    s.mask = is_mask ? stages + STAGE / 2 : NULL;
    s.width = width;
    s.any_ignored = false;
    for (ptrdiff_t k = 0; slopes && width > 0 && k < 2 * classes; k++) narrow[k] = (REAL)slopes[k];
    for (ptrdiff_t t = first; t < end; t += s.n) {
        const ptrdiff_t before = native ? V(overlap_misaligned)(task, t) : 0;
        s.n = V(overlap_run)(task, t, end, width == 0 ? LANES : before < width ? width - before : width);
        if (!is_mask && !V(overlap_targets)(task, t, s.n, &s)) return FL_ERROR_INDEX;
        if (width == 0) {
            for (ptrdiff_t i = 0; i < s.n; i++)
                V(overlap_position)(task, t + i, is_mask ? -1 : (int64_t)s.y[i], slopes, sums);
            continue;
        }
        if (!copied) V(overlap_load)(task, &call->logits, t, s.n, width, false, s.z);
        if (is_mask) V(overlap_load)(task, &call->mask, t, s.n, width, true, s.mask);
        copied = copies_ahead && s.n == width && V(overlap_run)(task, t + width, end, width) == width &&
                 (t + width) % call->inner != 0;
        REAL *next = copied && s.z == stages ? stages + classes * width : stages;
        ptrdiff_t in_stride, out_stride = 0;
        const char *z = V(overlap_at)(task, &call->logits, t, &in_stride);
        char *grad = native ? V(overlap_at)(task, &call->grad, t, &out_stride) : NULL;
        V(lane_copy) ahead = {0};
        if (copied)
            ahead = V(copy_of)(z + width * in_size, call->logits.dtype, in_stride * in_size, classes,
                               width / (2 * LANES), next);
        s.ahead = copied ? &ahead : NULL;
        /* A whole step's gradient need not pass through the stage. */
        s.out = !is_mask && s.n == width ? (REAL *)grad : NULL;
        s.out_stride = out_stride;
        s.streams = s.out && streamed && (uintptr_t)grad % LINE_BYTES == 0 && out_stride * out_size % LINE_BYTES == 0;
        if (!slopes && is_mask)
            V(gather_mask)(task, &s, sums, call->squared);
        else if (!slopes && call->squared)
            V(gather_indices)(task, &s, sums, true);
        else if (!slopes)
            V(gather_indices)(task, &s, sums, false);
        else if (is_mask)
            V(mask_gradient)(task, &s, narrow, call->squared);
        else if (call->squared)
            V(indices_gradient)(task, &s, narrow, true);
        else
            V(indices_gradient)(task, &s, narrow, false);
        if (slopes && !s.out) V(overlap_store)(task, t, s.n, width, s.z, streamed);
        if (copied) s.z = next;
    }
    if (streamed) vec_fence();
    return FL_OK;
}

#if WORKING_TYPE == 64
/* The first target of a tile that is neither a class nor ignored. */
static void overlap_check(const overlap_task *task, ptrdiff_t tile, fl_target_check *check) {
    const fl_overlap_call *call = &task->call;
    const ptrdiff_t group = tile / task->group_tiles;
    const ptrdiff_t first = group * task->group_rows + tile % task->group_tiles * task->tile_rows;
    const ptrdiff_t group_end = (group + 1) * task->group_rows;
    const ptrdiff_t end = first + task->tile_rows < group_end ? first + task->tile_rows : group_end;
    check->weight = (double)(end - first);
    check->bad_position = -1;
    check->bad_value = 0;
    for (ptrdiff_t from = first; call->target && from < end; from += ROW_BATCH) {
        const ptrdiff_t n = end - from < ROW_BATCH ? end - from : ROW_BATCH;
        int64_t y[ROW_BATCH], bad = 0;
        load_targets(call->target, call->target_dtype, from, n, y);
        for (ptrdiff_t i = 0; i < n; i++)
            bad |= ((uint64_t)y[i] >= (uint64_t)call->classes) & !overlap_ignores(call, y[i]);
        if (!bad) continue;
        ptrdiff_t i = 0;
        while ((uint64_t)y[i] < (uint64_t)call->classes || overlap_ignores(call, y[i])) i++;
        check->bad_position = from + i;
        check->bad_value = y[i];
        return;
    }
}
#endif

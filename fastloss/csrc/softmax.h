/* Everything over the class axis, with every option and storage type: probability targets, class weights together with
 * smoothing, softcap, half precision, softmax and its relatives. Included once per working type.
 *
 * With a_c the weight of class c in the loss, A their sum, m the maximum, and "rest" the sum of exp(z_c - m) over the
 * classes below the maximum, plus the number of classes at the maximum, less 1:
 *
 *     lse = m + log1p(rest),     S = 1 + rest
 *     loss = s (sum_c a_c (m - z_c) + A log1p(rest) + z_loss lse^2)
 *     grad_c = g (b p_c - a_c),     b = A + 2 z_loss lse
 *            = g ((b - A - A rest) / S + (A - a_c))     at the maximum
 *
 * No term is negative where the weights are not, so none cancels. The exponentials are made twice instead of kept: the
 * output may be of a type that cannot hold them, or be the input. */

/* softcap * tanh(z / softcap), and its derivative 1 - tanh^2. */
static INLINE V(vec) V(cap)(V(vec) z, REAL softcap, V(vec) * derivative) {
    /* With u = exp(-2 |z| / softcap): tanh = (1 - u) / (1 + u), 1 - tanh^2 = 4 u / (1 + u)^2, and neither cancels. */
    const V(vec) zero = V(set)(0), one = V(set)(1), limit = V(set)(softcap);
    V(vec) rest;
    const V(vec) u = V(exp_and_rest)(V(div)(V(mul)(V(set)(-2), V(abs)(z)), limit), &rest);
    const V(vec) inverse = V(div)(one, V(add)(one, u));
    const V(vec) magnitude = V(mul)(limit, V(mul)(rest, inverse));
    *derivative = V(mul)(V(set)(4), V(mul)(u, V(mul)(inverse, inverse)));
    return V(select)(V(lt)(z, zero), V(sub)(zero, magnitude), magnitude);
}

static INLINE V(vec) V(capped)(const class_task *task, V(vec) z, V(vec) * derivative) {
    return task->call.softcap > 0 ? V(cap)(z, (REAL)task->call.softcap, derivative) : z;
}

/* The weight of a class in the loss, but for the class of an index target: weight_c (q_c (1 - smoothing) + u). */
static INLINE V(vec) V(class_weight)(const class_task *task, V(vec) q, V(vec) weight) {
    const double smoothing = task->call.label_smoothing;
    const V(vec) u = V(set)((REAL)(smoothing / (double)task->call.classes));
    return V(mul)(weight, V(fma)(q, V(set)((REAL)(1 - smoothing)), u));
}

/* What one row, or one lane, becomes after its sums are known. */
typedef struct {
    REAL factor; /* of the scaled exponentials below the maximum */
    REAL at_max; /* the gradient at the maximum is at_max + g (A - a_c) */
    REAL total;  /* A */
    REAL log_sum;
} V(row_result);

/* What a row needs to know of its softmax before the parts of a focal loss can be added up. */
typedef struct {
    V(vec) m, inverse, rest, log_sum;
} V(softmax_sums);

static INLINE V(softmax_sums) V(softmax_sums_of)(REAL m, double rest) {
    return (V(softmax_sums)){V(set)(m), V(set)((REAL)(1 / (1 + rest))), V(set)((REAL)rest), V(set)((REAL)log1p(rest))};
}

/* f(p_c) (lse - z_c), and h(p_c): see V(focal_factors). */
static INLINE V(vec) V(focal_part)(const class_task *task, V(vec) z, const V(softmax_sums) * s, V(vec) * h) {
    const V(vec) x = V(sub)(z, s->m), p = V(mul)(V(exp)(x), s->inverse), gap = V(sub)(s->log_sum, x);
    /* At the maximum 1 - p may be next to nothing; elsewhere it is at least 1/2. */
    const V(vec) not_p = V(select)(V(eq)(z, s->m), V(mul)(s->rest, s->inverse), V(sub)(V(set)(1), p));
    const V(vec) f = V(focal_factors)(task, p, not_p, gap, h);
    return V(mul)(f, V(zero_times)(f, gap));
}

/* Adds a_c f(p_c) (lse - z_c) and a_c h(p_c). */
static INLINE void V(add_focal)(const class_task *task, V(vec) z, V(vec) a, const V(softmax_sums) * s, V(vec) * loss,
                                V(vec) * total) {
    const V(vec) zero = V(set)(0);
    V(vec) h;
    const V(vec) part = V(focal_part)(task, z, s, &h);
    const V(mask) without = V(eq)(a, zero);
    *loss = V(add)(*loss, V(zero_where)(without, V(mul)(a, part)));
    *total = V(add)(*total, V(zero_where)(without, V(mul)(a, h)));
}

/* Writes the row's loss, or its value, and returns what its output needs. */
static INLINE V(row_result) V(finish_row)(const class_task *task, REAL m, double rest, double total, double distance,
                                          double entropy, double s, double g, REAL *value) {
    V(row_result) r;
    const double log_sum = log1p(rest), lse = m + log_sum, sum = 1 + rest;
    double b = 1;
    r.log_sum = (REAL)log_sum;
    r.total = (REAL)total;
    switch (task->kind) {
        case FL_SOFTMAX:
        case FL_LOG_SOFTMAX:
            g = 1;
            break;
        case FL_LOGSUMEXP:
            *value = (REAL)lse;
            break;
        case FL_ENTROPY:
            *value = (REAL)(log_sum + entropy / sum);
            break;
        default: {
            const double z_loss = task->call.z_loss;
            const double parts = task->call.focal > 0 ? distance : distance + total * log_sum;
            const double loss = parts + (z_loss > 0 ? z_loss * lse * lse : 0);
            *value = (REAL)(s == 0 && loss == INFINITY ? 0 : s * loss);
            b = total + 2 * z_loss * lse;
        }
    }
    r.factor = (REAL)(g * b / sum * SCALE_DOWN);
    r.at_max = (REAL)(g * ((b - total) - total * rest) / sum);
    return r;
}

/* The output for logits z whose class weights are a. */
static INLINE V(vec) V(output)(const class_task *task, V(vec) z, V(vec) derivative, V(vec) a, V(vec) g, V(vec) m,
                               V(vec) factor, V(vec) at_max, V(vec) total, V(vec) log_sum) {
    const V(vec) x = V(sub)(z, m);
    if (task->kind == FL_LOG_SOFTMAX) return V(sub)(x, log_sum);
    const V(vec) below = V(fnma)(g, a, V(mul)(V(exp_scaled)(x), factor));
    const V(vec) top = V(fma)(g, V(sub)(total, a), at_max);
    const V(vec) out = V(select)(V(eq)(z, m), top, below);
    return task->call.softcap > 0 ? V(mul)(out, derivative) : out;
}

/* The sums that one vector of logits adds to. */
typedef struct {
    V(vec) rest, at_max, total, distance, entropy;
} V(sums);

static INLINE void V(add_sums)(const class_task *task, V(vec) z, V(vec) m, V(vec) a, bool weighted, V(sums) * sums) {
    const V(vec) zero = V(set)(0);
    const V(vec) x = V(sub)(z, m);
    const V(mask) is_max = V(eq)(z, m);
    const V(vec) e = V(zero_where)(is_max, V(exp_scaled)(x));
    sums->rest = V(add)(sums->rest, e);
    sums->at_max = V(add)(sums->at_max, V(select)(is_max, V(set)(1), zero));
    if (weighted) {
        sums->total = V(add)(sums->total, a);
        sums->distance = V(add)(sums->distance, V(zero_where)(V(eq)(a, zero), V(mul)(a, V(sub)(zero, x))));
    }
    if (task->kind == FL_ENTROPY)
        sums->entropy = V(add)(sums->entropy, V(zero_where)(V(eq)(e, zero), V(mul)(e, V(sub)(zero, x))));
}

/* The weight that the target's own class has besides its share of the smoothing, and the smoothing's share. */
static INLINE REAL V(smoothing_share)(const class_task *task, ptrdiff_t c) {
    if (!(task->call.label_smoothing > 0)) return 0;
    const REAL *weight = task->call.weight;
    return (weight ? weight[c] : 1) * (REAL)(task->call.label_smoothing / (double)task->call.classes);
}

static INLINE void V(weights_block)(const class_task *task, const REAL *probs, ptrdiff_t c, ptrdiff_t n, REAL *block) {
    const REAL *weight = task->call.weight;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t left = n - i;
        const V(vec) zero = V(set)(0);
        V(vec) q = zero, w = V(set)(1);
        if (probs) q = left < LANES ? V(load_part)(probs + c + i, left, 0) : V(load)(probs + c + i);
        if (weight) w = left < LANES ? V(load_part)(weight + c + i, left, 0) : V(load)(weight + c + i);
        V(store)(block + i, V(class_weight)(task, q, w));
    }
    for (ptrdiff_t k = n; k % LANES; k++) block[k] = 0;
}

/* One row whose classes are contiguous. */
static void V(any_row)(const class_task *task, V(batch) * batch, ptrdiff_t i) {
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes, y = (ptrdiff_t)batch->y[i];
    const ptrdiff_t in_size = dtype_size(call->logits.dtype), out_size = dtype_size(call->grad.dtype);
    const char *z = batch->z[i];
    char *out = batch->grad[i];
    const REAL *probs = (const REAL *)batch->probs[i];
    const bool weighted = probs || call->label_smoothing > 0, focal = task->kind == 0 && call->focal > 0;
    const V(vec) zero = V(set)(0);
    REAL block[BLOCK], weights[BLOCK];
    V(vec) max = V(set)(-INFINITY), unused = zero;
    for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
        const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
        V(load_block)(z + c * in_size, call->logits.dtype, n, -INFINITY, block);
        for (ptrdiff_t k = 0; k < n; k += LANES) max = V(max)(V(load)(block + k), max);
    }
    REAL m = V(first_lane)(V(capped)(task, V(set)(V(hmax)(max)), &unused));
    /* An infinite maximum, or none, makes the row NaN. */
    if (isinf(m)) m = NAN;

    const V(vec) m_lanes = V(set)(m);
    V(acc) rest = V(acc_zero)(), total = rest, distance = rest, entropy = rest, at_max = rest;
    for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
        const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
        V(sums) sums = {zero, zero, zero, zero, zero};
        V(load_block)(z + c * in_size, call->logits.dtype, n, -INFINITY, block);
        if (weighted) V(weights_block)(task, probs, c, n, weights);
        for (ptrdiff_t k = 0; k < n; k += LANES) {
            V(vec) value = V(load)(block + k);
            if (call->softcap > 0) {
                /* A softcap lifts -inf, also that of the padding. */
                V(store)(block + k, V(capped)(task, value, &unused));
                for (ptrdiff_t pad = n; pad < k + LANES; pad++) block[pad] = -INFINITY;
                value = V(load)(block + k);
            }
            V(add_sums)(task, value, m_lanes, weighted ? V(load)(weights + k) : zero, weighted, &sums);
        }
        V(acc_add)(&rest, sums.rest);
        V(acc_add)(&at_max, sums.at_max);
        V(acc_add)(&total, sums.total);
        V(acc_add)(&distance, sums.distance);
        V(acc_add)(&entropy, sums.entropy);
    }
    double a_sum = V(acc_sum)(total), distance_sum = V(acc_sum)(distance);
    REAL z_y = 0;
    V(vec) slope_y = zero;
    if (y >= 0) {
        z_y = V(first_lane)(V(capped)(task, V(load_part_as)(z + y * in_size, call->logits.dtype, 1), &slope_y));
        a_sum += batch->a[i];
        if (batch->a[i] != 0) distance_sum += (double)batch->a[i] * ((double)m - z_y);
    }
    const double g = batch->g[i], rest_sum = V(acc_sum)(rest) * SCALE_DOWN + (V(acc_sum)(at_max) - 1);
    const V(softmax_sums) known = V(softmax_sums_of)(m, rest_sum);
    V(vec) h_y = V(set)(1);
    if (focal) {
        V(acc) focal_loss = V(acc_zero)(), focal_total = focal_loss;
        for (ptrdiff_t c = 0; weighted && c < classes; c += BLOCK) {
            const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
            V(vec) loss = zero, sum = zero;
            V(load_block)(z + c * in_size, call->logits.dtype, n, -INFINITY, block);
            V(weights_block)(task, probs, c, n, weights);
            for (ptrdiff_t k = 0; k < n; k += LANES)
                V(add_focal)(task, V(capped)(task, V(load)(block + k), &unused), V(load)(weights + k), &known, &loss,
                             &sum);
            V(acc_add)(&focal_loss, loss);
            V(acc_add)(&focal_total, sum);
        }
        distance_sum = V(acc_sum)(focal_loss);
        a_sum = V(acc_sum)(focal_total);
        if (y >= 0 && batch->a[i] != 0) {
            const V(vec) part = V(focal_part)(task, V(set)(z_y), &known, &h_y);
            distance_sum += (double)batch->a[i] * V(first_lane)(part);
            a_sum += (double)batch->a[i] * V(first_lane)(h_y);
        }
    }
    const V(row_result) r = V(finish_row)(task, m, rest_sum, a_sum, distance_sum, V(acc_sum)(entropy) * SCALE_DOWN,
                                          batch->s[i], g, &batch->loss[i]);
    if (!out) return;

    const V(vec) g_lanes = V(set)((REAL)g), factor = V(set)(r.factor), top = V(set)(r.at_max);
    const V(vec) a_total = V(set)(r.total), log_sum = V(set)(r.log_sum);
    for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
        const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
        V(load_block)(z + c * in_size, call->logits.dtype, n, -INFINITY, block);
        if (weighted) V(weights_block)(task, probs, c, n, weights);
        for (ptrdiff_t k = 0; k < n; k += LANES) {
            V(vec) slope = zero;
            const V(vec) value = V(capped)(task, V(load)(block + k), &slope);
            V(vec) a = weighted ? V(load)(weights + k) : zero;
            if (focal && weighted) {
                V(vec) h;
                V(focal_part)(task, value, &known, &h);
                a = V(zero_where)(V(eq)(a, zero), V(mul)(a, h));
            }
            V(store)(block + k, V(output)(task, value, slope, a, g_lanes, m_lanes, factor, top, a_total, log_sum));
        }
        if (y >= c && y < c + n) {
            const V(vec) a = V(mul)(h_y, V(set)(batch->a[i] + V(smoothing_share)(task, y)));
            block[y - c] = V(first_lane)(
                V(output)(task, V(set)(z_y), slope_y, a, g_lanes, m_lanes, factor, top, a_total, log_sum));
        }
        V(store_block)(out + c * out_size, call->grad.dtype, n, block);
    }
}

/* Up to one vector of neighbouring targets, whose classes lie a stride apart; `n` of them. */
static void V(any_lanes)(const class_task *task, const char *z, ptrdiff_t z_stride, int z_dtype, char *out,
                         ptrdiff_t out_stride, int out_dtype, const REAL *probs, ptrdiff_t probs_stride,
                         V(lane_batch) * targets, ptrdiff_t first, ptrdiff_t n) {
    V(batch) *batch = targets->of;
    const ptrdiff_t at = targets->first + first;
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    const REAL *weight = call->weight;
    const bool weighted = probs || call->label_smoothing > 0, focal = task->kind == 0 && call->focal > 0;
    const V(vec) zero = V(set)(0);
    const V(int) y = V(int_load)(targets->y + first);
    const V(vec) a_y = V(load)(batch->a + at);
#define LOGITS(c)                                                                                           \
    (n < LANES ? V(load_part_as)(z + (c) * z_stride, z_dtype, n) : V(load_as)(z + (c) * z_stride, z_dtype))
#define CLASS_WEIGHTS(c)                                                                     \
    (weighted ? V(class_weight)(task,                                                        \
                                !probs      ? zero                                           \
                                : n < LANES ? V(load_part)(probs + (c) * probs_stride, n, 0) \
                                            : V(load)(probs + (c) * probs_stride),           \
                                V(set)(weight ? weight[c] : 1))                              \
              : zero)
    V(vec) max = V(set)(-INFINITY), slope = zero;
    for (ptrdiff_t c = 0; c < classes; c++) max = V(max)(LOGITS(c), max);
    max = V(capped)(task, max, &slope);
    max = V(select)(V(eq)(V(abs)(max), V(set)(INFINITY)), V(set)(NAN), max);

    V(acc) rest = V(acc_zero)(), total = rest, distance = rest, entropy = rest, at_max = rest;
    for (ptrdiff_t from = 0; from < classes; from += CLASS_BLOCK) {
        const ptrdiff_t end = classes - from < CLASS_BLOCK ? classes : from + CLASS_BLOCK;
        V(sums) sums = {zero, zero, zero, zero, zero};
        for (ptrdiff_t c = from; c < end; c++) {
            const V(vec) value = V(capped)(task, LOGITS(c), &slope);
            const V(mask) is_target = V(int_eq)(y, V(int_set)((V(index))c));
            const V(vec) a = V(add)(CLASS_WEIGHTS(c), V(select)(is_target, a_y, zero));
            V(add_sums)(task, value, max, a, true, &sums);
        }
        V(acc_add)(&rest, sums.rest);
        V(acc_add)(&at_max, sums.at_max);
        V(acc_add)(&total, sums.total);
        V(acc_add)(&distance, sums.distance);
        V(acc_add)(&entropy, sums.entropy);
    }
    REAL m[LANES], lanes[5][LANES], factor[LANES], top[LANES], a_total[LANES], log_sum[LANES];
    V(store)(m, max);
    V(store)(lanes[0], V(mul)(V(acc_lanes)(rest), V(set)(SCALE_DOWN)));
    V(store)(lanes[1], V(acc_lanes)(at_max));
    V(softmax_sums) known = {zero, zero, zero, zero};
    if (focal) {
        const V(vec) below = V(load)(lanes[0]), ties = V(sub)(V(load)(lanes[1]), V(set)(1));
        known.m = max;
        known.rest = V(add)(below, ties);
        known.inverse = V(div)(V(set)(1), V(add)(V(set)(1), known.rest));
        known.log_sum = V(log1p)(known.rest);
        total = distance = V(acc_zero)();
        for (ptrdiff_t from = 0; from < classes; from += CLASS_BLOCK) {
            const ptrdiff_t end = classes - from < CLASS_BLOCK ? classes : from + CLASS_BLOCK;
            V(vec) loss = zero, sum = zero;
            for (ptrdiff_t c = from; c < end; c++) {
                const V(vec) value = V(capped)(task, LOGITS(c), &slope);
                const V(mask) is_target = V(int_eq)(y, V(int_set)((V(index))c));
                const V(vec) a = V(add)(CLASS_WEIGHTS(c), V(select)(is_target, a_y, zero));
                V(add_focal)(task, value, a, &known, &loss, &sum);
            }
            V(acc_add)(&distance, loss);
            V(acc_add)(&total, sum);
        }
    }
    V(store)(lanes[2], V(acc_lanes)(total));
    V(store)(lanes[3], V(acc_lanes)(distance));
    V(store)(lanes[4], V(mul)(V(acc_lanes)(entropy), V(set)(SCALE_DOWN)));
    for (ptrdiff_t k = 0; k < LANES; k++) {
        const bool counts = targets->y[first + k] != -1;
        const V(row_result) r =
            V(finish_row)(task, m[k], (double)lanes[0][k] + ((double)lanes[1][k] - 1), lanes[2][k], lanes[3][k],
                          lanes[4][k], batch->s[at + k], batch->g[at + k], &batch->loss[at + k]);
        if (!counts) batch->loss[at + k] = 0;
        factor[k] = r.factor;
        top[k] = r.at_max;
        a_total[k] = r.total;
        log_sum[k] = r.log_sum;
    }
    if (!out) return;
    const V(vec) g = V(load)(batch->g + at);
    const V(mask) ignored = V(int_eq)(y, V(int_set)(-1));
    for (ptrdiff_t c = 0; c < classes; c++) {
        const V(vec) value = V(capped)(task, LOGITS(c), &slope);
        const V(mask) is_target = V(int_eq)(y, V(int_set)((V(index))c));
        V(vec) a = V(add)(CLASS_WEIGHTS(c), V(select)(is_target, a_y, zero));
        if (focal) {
            V(vec) h;
            V(focal_part)(task, value, &known, &h);
            a = V(zero_where)(V(eq)(a, zero), V(mul)(a, h));
        }
        V(vec)
        result =
            V(output)(task, value, slope, a, g, max, V(load)(factor), V(load)(top), V(load)(a_total), V(load)(log_sum));
        result = V(zero_where)(ignored, result);
        if (n < LANES)
            V(store_part_as)(out + c * out_stride, out_dtype, result, n);
        else
            V(store_as)(out + c * out_stride, out_dtype, result);
    }
#undef LOGITS
#undef CLASS_WEIGHTS
}

/* Binary cross-entropy with logits, element by element. Included once per working type.
 *
 *     loss = w (p y softplus(-z) + (1 - y) softplus(z)),     grad = w g ((1 - y) sigmoid(z) - p y sigmoid(-z))
 *
 * with y the target after smoothing, p the weight of the positive part. With u = exp(-|z|), "far" the weight of the
 * part that grows with |z| (p y below 0, 1 - y above) and "near" that of the other:
 *
 *     loss = w (far |z| + (far + near) log1p(u)),     grad = +-w g (far - near u) / (1 + u) */

typedef struct {
    V(vec) w, p, smoothing_rest, smoothing_half;
} V(bce_options);

static INLINE V(vec) V(bce)(V(vec) z, V(vec) u, V(vec) y, V(vec) w, V(vec) p, V(vec) g, V(vec) * grad) {
    const V(vec) zero = V(set)(0), one = V(set)(1);
    const V(vec) positive = V(mul)(p, y), negative = V(sub)(one, y);
    const V(mask) below = V(lt)(z, zero);
    const V(vec) far = V(select)(below, positive, negative), near = V(select)(below, negative, positive);
    const V(vec) distance = V(abs)(z);
    const V(vec) linear = V(zero_where)(V(eq)(far, zero), V(mul)(far, distance));
    const V(vec) loss = V(fma)(V(add)(far, near), V(log1p_unit)(u), linear);
    if (grad) {
        const V(vec) magnitude = V(div)(V(fnma)(near, u, far), V(add)(one, u));
        const V(vec) scale = V(mul)(w, g);
        *grad = V(mul)(magnitude, V(select)(below, V(sub)(zero, scale), scale));
    }
    return V(mul)(w, V(zero_times)(w, loss));
}

/* n consecutive elements from number `first` on of an array that broadcasts. */
static void V(broadcast_block)(const fl_broadcast *array, const ptrdiff_t size[3], ptrdiff_t first, ptrdiff_t n,
                               REAL *block) {
    const REAL *data = array->data;
    ptrdiff_t k = first % size[2], j = first / size[2] % size[1], i = first / size[2] / size[1];
    for (ptrdiff_t done = 0; done < n;) {
        const REAL *p = data + i * array->stride[0] + j * array->stride[1];
        for (; k < size[2] && done < n; k++) block[done++] = p[k * array->stride[2]];
        k = 0;
        if (++j == size[1]) {
            j = 0;
            i++;
        }
    }
}

#undef CONVERT
#define CONVERT(type)                                                        \
    for (ptrdiff_t i = 0; i < n; i++) block[i] = (REAL)((const type *)p)[i]; \
    break

/* n numbers of any type in the working type, padded with 0 to a whole number of vectors. */
static void V(numbers_block)(const void *data, int dtype, ptrdiff_t first, ptrdiff_t n, REAL *block) {
    const void *p = (const char *)data + first * dtype_size(dtype);
    for (ptrdiff_t i = n; i % LANES; i++) block[i] = 0;
    switch (dtype) {
        case FL_F64:
            CONVERT(double);
        case FL_I8:
            CONVERT(int8_t);
        case FL_I16:
            CONVERT(int16_t);
        case FL_I32:
            CONVERT(int32_t);
        case FL_I64:
            CONVERT(int64_t);
        case FL_U8:
            CONVERT(uint8_t);
        case FL_U16:
            CONVERT(uint16_t);
        case FL_U32:
            CONVERT(uint32_t);
        case FL_U64:
            CONVERT(uint64_t);
#if WORKING_TYPE == 32
        default:
            f_load_block(p, dtype, n, 0, block);
#else
        case FL_F32:
            CONVERT(float);
        default:
            for (ptrdiff_t i = 0; i < n; i += 4) {
                uint16_t half[16] = {0};
                memcpy(half, (const uint16_t *)p + i, (size_t)(n - i < 4 ? n - i : 4) * 2);
                float wide[16];
                f_store(wide, f_load_as(half, dtype));
                for (ptrdiff_t k = 0; k < 4 && i + k < n; k++) block[i + k] = wide[k];
            }
#endif
    }
}

/* The whole vectors of one block. NULL for what is not there: weights, grad_output, losses, ignored targets. */
static INLINE double V(bce_block)(const bce_task *task, const REAL *z, const REAL *y, const REAL *w, const REAL *p,
                                  const REAL *grad_output, REAL *grad, REAL *losses, ptrdiff_t n, bool smooth,
                                  bool ignores) {
    const V(vec) zero = V(set)(0), one = V(set)(1), scale = V(set)((REAL)task->scale);
    const V(vec) rest = V(set)((REAL)(1 - task->call.label_smoothing));
    const V(vec) half = V(set)((REAL)(task->call.label_smoothing / 2));
    const V(vec) ignore_value = V(set)((REAL)task->call.ignore_value);
    V(vec) sum = zero;
    V(acc) acc = V(acc_zero)();
    /* A loop of its own: each step of an exponential waits for the one before, so what counts is how many of them the
     * CPU sees at once, and it looks a fixed number of instructions ahead. */
    REAL u[BLOCK];
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        V(prefetch)(z + i + ROW_AHEAD, false);
        V(prefetch)(y + i + ROW_AHEAD, false);
        V(store)(u + i, V(exp)(V(sub)(zero, V(abs)(V(load)(z + i)))));
    }
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const V(vec) target = V(load)(y + i);
        const V(vec) label = smooth ? V(fma)(target, rest, half) : target;
        const V(vec) g = grad_output ? V(mul)(scale, V(load)(grad_output + i)) : scale;
        V(vec) slope;
        V(vec)
        loss = V(bce)(V(load)(z + i), V(load)(u + i), label, w ? V(load)(w + i) : one, p ? V(load)(p + i) : one, g,
                      grad ? &slope : NULL);
        if (ignores) {
            const V(mask) ignored = V(eq)(target, ignore_value);
            loss = V(zero_where)(ignored, loss);
            if (grad) slope = V(zero_where)(ignored, slope);
        }
        if (grad) V(store)(grad + i, slope);
        if (losses) V(store)(losses + i, loss);
        /* Longer float sums of equal losses, as of logits that are all 0, would all err to one side. */
        sum = V(add)(sum, loss);
        if (i / LANES % 4 == 3) {
            V(acc_add)(&acc, sum);
            sum = zero;
        }
    }
    V(acc_add)(&acc, sum);
    return V(acc_sum)(acc);
}

static void V(bce_tile)(const bce_task *task, ptrdiff_t tile, double *loss) {
    const fl_bce_call *call = &task->call;
    const ptrdiff_t first = tile * TILE_ELEMENTS;
    const ptrdiff_t end = first + TILE_ELEMENTS < task->elements ? first + TILE_ELEMENTS : task->elements;
    const bool smooth = call->label_smoothing > 0, ignores = call->has_ignore != 0;
    const REAL *grad_output = call->grad_output;
    REAL *losses = call->losses;
    char *grad = call->grad;
    const ptrdiff_t out_size = dtype_size(call->grad_dtype);
    REAL z_block[BLOCK], y_block[BLOCK], w_block[BLOCK], p_block[BLOCK], g_block[BLOCK], grad_block[BLOCK],
        loss_block[BLOCK];
    const bool streamed = streams(call->logits, grad, call->grad_dtype, task->elements);
    double sum = 0;
    for (ptrdiff_t from = first; from < end; from += BLOCK) {
        const ptrdiff_t n = end - from < BLOCK ? end - from : BLOCK;
        const bool whole = n % LANES == 0;
        const REAL *z = z_block, *y = y_block, *go = NULL;
        if (whole && call->logits_dtype == NATIVE)
            z = (const REAL *)call->logits + from;
        else
            V(load_block)((const char *)call->logits + from * dtype_size(call->logits_dtype), call->logits_dtype, n, 0,
                          z_block);
        if (whole && call->target_dtype == NATIVE)
            y = (const REAL *)call->target + from;
        else
            V(numbers_block)(call->target, call->target_dtype, from, n, y_block);
        if (grad_output) {
            V(load_block)(grad_output + from, NATIVE, n, 0, g_block);
            go = g_block;
        }
        REAL *slope = !grad                                              ? NULL
                      : whole && call->grad_dtype == NATIVE && !streamed ? (REAL *)grad + from
                                                                         : grad_block;
        REAL *each = !losses ? NULL : whole ? losses + from : loss_block;
        const bool plain = !call->weight.data && !call->pos_weight.data && !go && !each && !smooth && !ignores && whole;
        if (plain) {
            sum += slope ? V(bce_block)(task, z, y, NULL, NULL, NULL, slope, NULL, n, false, false)
                         : V(bce_block)(task, z, y, NULL, NULL, NULL, NULL, NULL, n, false, false);
        } else {
            const REAL *p = NULL;
            if (call->pos_weight.data) {
                V(broadcast_block)(&call->pos_weight, call->n, from, n, p_block);
                p = p_block;
            }
            if (call->weight.data)
                V(broadcast_block)(&call->weight, call->n, from, n, w_block);
            else
                for (ptrdiff_t i = 0; i < n; i++) w_block[i] = 1;
            for (ptrdiff_t i = n; i % LANES; i++) w_block[i] = p_block[i] = 0; /* the padding adds nothing */
            sum += V(bce_block)(task, z, y, w_block, p, go, slope, each, n + (-n & (LANES - 1)), smooth, ignores);
        }
        if (streamed) {
            const bool native = call->grad_dtype == NATIVE;
            REAL converted[BLOCK];
            if (!native) V(store_block)(converted, call->grad_dtype, n, grad_block);
            V(stream_block)(grad + from * out_size, native ? grad_block : converted, n, out_size);
        } else if (slope == grad_block) {
            V(store_block)(grad + from * out_size, call->grad_dtype, n, grad_block);
        }
        if (each == loss_block) memcpy(losses + from, loss_block, (size_t)n * sizeof *losses);
    }
    if (streamed) vec_fence();
    *loss = sum;
}

#if WORKING_TYPE == 64
/* Elements that are not ignored. */
static void bce_check(const bce_task *task, ptrdiff_t tile, fl_target_check *check) {
    const ptrdiff_t first = tile * TILE_ELEMENTS;
    const ptrdiff_t end = first + TILE_ELEMENTS < task->elements ? first + TILE_ELEMENTS : task->elements;
    check->bad_position = -1;
    check->bad_value = 0;
    check->weight = (double)(end - first);
    if (!task->call.has_ignore) return;
    double block[BLOCK];
    for (ptrdiff_t from = first; from < end; from += BLOCK) {
        const ptrdiff_t n = end - from < BLOCK ? end - from : BLOCK;
        d_numbers_block(task->call.target, task->call.target_dtype, from, n, block);
        ptrdiff_t ignored = 0;
        for (ptrdiff_t i = 0; i < n; i++) ignored += block[i] == task->call.ignore_value;
        check->weight -= (double)ignored;
    }
}
#endif

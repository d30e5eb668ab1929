/* The losses of single elements: each is a function of z and y below, which gives the loss and, where asked for, its
 * derivative; and a case in FOR_ELEMENT_LOSS. Included once per working type.
 *
 * With u = exp(-|z|), "far" the part that grows with |z| (y below 0, 1 - y above) and "near" the other one, binary
 * cross-entropy has no term that cancels:
 *
 *     softplus(z) - y z = far |z| + (far + near) log1p(u),     sigmoid(z) - y = +-(far - near u) / (1 + u) */

typedef struct {
    V(vec) z, u, y, p;            /* u = exp(-|z|), or exp of what the loss needs; p: pos_weight, */
    bool has_p;                   /* where there is one */
    REAL class_slope, class_rest; /* alpha_t = class_slope y + class_rest */
    REAL gamma, margin;
} V(element);

/* p y softplus(-z) + (1 - y) softplus(z); far and near have the sign of z here. */
static INLINE V(vec) V(bce_with_logits)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0), one = V(set)(1);
    const V(vec) positive = e->has_p ? V(mul)(e->p, e->y) : e->y, negative = V(sub)(one, e->y);
    const V(vec) far = V(select_sign)(e->z, V(flip)(positive, V(set)(-1)), negative);
    const V(vec) near = V(select_sign)(e->z, V(sub)(e->y, one), positive);
    const V(vec) linear = V(zero_where)(V(eq)(far, zero), V(mul)(far, e->z));
    if (slope) *slope = V(div)(V(fnma)(near, e->u, far), V(add)(one, e->u));
    const V(vec) curved = V(log1p_unit)(e->u);
    return e->has_p ? V(fma)(V(add)(positive, negative), curved, linear) : V(add)(curved, linear);
}

/* -(y log(p) + (1 - y) log(1 - p)), the logs at least -100, and p (1 - p) in the derivative at least 1e-12: torch's
 * bounds. */
static INLINE V(vec) V(bce)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0), one = V(set)(1), lowest = V(set)(-100);
    const V(vec) rest = V(sub)(one, e->z), half = V(set)((REAL)0.5);
    /* Above 1/2, 1 - p is exact. */
    const V(vec) small = V(min)(e->z, half);
    const V(vec) log_rest = V(select)(V(lt)(half, e->z), V(log)(rest), V(log1p)(V(sub)(zero, small)));
    const V(vec) yes = V(mul)(e->y, V(max)(lowest, V(log)(e->z)));
    const V(vec) no = V(mul)(V(sub)(one, e->y), V(max)(lowest, log_rest));
    if (slope) *slope = V(div)(V(sub)(e->z, e->y), V(max)(V(set)((REAL)1e-12), V(mul)(e->z, rest)));
    return V(sub)(zero, V(add)(yes, no));
}

/* alpha_t q^gamma H, with H the cross-entropy and q = y sigmoid(-z) + (1 - y) sigmoid(z) = (near u + far) / (1 + u). */
static INLINE V(vec) V(sigmoid_focal)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0), one = V(set)(1);
    const V(vec) negative = V(sub)(one, e->y);
    const V(vec) far = V(select_sign)(e->z, e->y, negative), near = V(select_sign)(e->z, negative, e->y);
    const V(vec) linear = V(zero_where)(V(eq)(far, zero), V(mul)(far, V(abs)(e->z)));
    const V(vec) entropy = V(add)(linear, V(log1p_unit)(e->u));
    const V(vec) inverse = V(div)(one, V(add)(one, e->u));
    const V(vec) mixed = V(fma)(near, e->u, far);
    const V(vec) weight = V(fma)(V(set)(e->class_slope), e->y, V(set)(e->class_rest));
    const V(vec) q = V(mul)(mixed, inverse), weighted_q = V(mul)(weight, q);
    const bool is_square = e->gamma == 2;
    const V(vec) factor = is_square ? V(mul)(weighted_q, q) : V(mul)(V(focus)(q, e->gamma), weight);
    if (slope) {
        /* q^gamma (H' + gamma p (1 - p) / q H). Where u is 0 the second term is 0, and only there can H be infinite. */
        const V(vec) finite = V(min)(V(set)(-REAL_LOWEST), entropy), own = V(fnma)(near, e->u, far);
        const V(vec) pull = V(mul)(V(mul)(V(set)(e->gamma), V(sub)(far, near)), V(mul)(e->u, inverse));
        if (is_square) {
            *slope = V(mul)(V(mul)(weighted_q, inverse), V(fma)(pull, finite, V(mul)(q, own)));
        } else {
            const V(vec) ratio = V(zero_where)(V(eq)(e->u, zero), V(div)(pull, mixed));
            *slope = V(mul)(factor, V(fma)(own, inverse, V(mul)(ratio, finite)));
        }
        *slope = V(flip)(*slope, e->z);
    }
    return V(mul)(factor, V(zero_times)(factor, entropy));
}

/* log(1 + exp(-y z)); u = exp(-|y z|). */
static INLINE V(vec) V(soft_margin)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0), one = V(set)(1);
    const V(vec) x = V(sub)(zero, V(mul)(e->y, e->z));
    if (slope) *slope = V(sub)(zero, V(mul)(e->y, V(div)(V(select)(V(lt)(x, zero), e->u, one), V(add)(one, e->u))));
    return V(add)(V(max)(zero, x), V(log1p_unit)(e->u));
}

/* max(0, margin - y z). */
static INLINE V(vec) V(hinge)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0);
    const V(vec) lack = V(fnma)(e->y, e->z, V(set)(e->margin)), loss = V(max)(zero, lack); /* NaN stays */
    if (slope) *slope = V(select)(V(lt)(zero, lack), V(sub)(zero, e->y), V(sub)(loss, loss));
    return loss;
}

/* 0, or NaN where z is. */
static INLINE V(vec) V(nothing)(V(vec) z) {
    const V(vec) finite = V(min)(V(set)(-REAL_LOWEST), V(abs)(z));
    return V(sub)(finite, finite);
}

/* y (log(y) - z). */
static INLINE V(vec) V(kl_div)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0);
    if (slope) *slope = V(sub)(zero, e->y);
    const V(vec) gap = V(sub)(V(log)(e->y), e->z);
    return V(select)(V(eq)(e->y, zero), V(nothing)(e->z), V(mul)(e->y, gap));
}

/* u (y - z), u = exp(y). */
static INLINE V(vec) V(kl_div_log)(const V(element) * e, V(vec) * slope) {
    const V(vec) zero = V(set)(0);
    if (slope) *slope = V(sub)(zero, e->u);
    return V(select)(V(eq)(e->u, zero), V(nothing)(e->z), V(mul)(e->u, V(sub)(e->y, e->z)));
}

/* Runs the statement with the loss known, so that it holds no branch. */
#undef FOR_ELEMENT_LOSS
#define ELEMENT_LOSS(kind, statement) \
    case kind: {                      \
        enum { LOSS = kind };         \
        statement;                    \
        break;                        \
    }
#define FOR_ELEMENT_LOSS(loss, statement)         \
    switch (loss) {                               \
        ELEMENT_LOSS(FL_BCE, statement)           \
        ELEMENT_LOSS(FL_SIGMOID_FOCAL, statement) \
        ELEMENT_LOSS(FL_SOFT_MARGIN, statement)   \
        ELEMENT_LOSS(FL_HINGE, statement)         \
        ELEMENT_LOSS(FL_KL_DIV, statement)        \
        ELEMENT_LOSS(FL_KL_DIV_LOG, statement)    \
        default: {                                \
            enum { LOSS = FL_BCE_WITH_LOGITS };   \
            statement;                            \
        }                                         \
    }

static INLINE V(vec) V(element_loss)(int loss, const V(element) * e, V(vec) * slope) {
    switch (loss) {
        case FL_BCE:
            return V(bce)(e, slope);
        case FL_SIGMOID_FOCAL:
            return V(sigmoid_focal)(e, slope);
        case FL_SOFT_MARGIN:
            return V(soft_margin)(e, slope);
        case FL_HINGE:
            return V(hinge)(e, slope);
        case FL_KL_DIV:
            return V(kl_div)(e, slope);
        case FL_KL_DIV_LOG:
            return V(kl_div_log)(e, slope);
        default:
            return V(bce_with_logits)(e, slope);
    }
}

/* The exponential that the loss is made of. */
static INLINE V(vec) V(element_exp)(int loss, V(vec) z, V(vec) y) {
    const V(vec) zero = V(set)(0);
    switch (loss) {
        case FL_SOFT_MARGIN:
            return V(exp)(V(minus_abs)(V(mul)(y, z)));
        case FL_KL_DIV_LOG:
            return V(exp_any)(y);
        case FL_BCE_WITH_LOGITS:
        case FL_SIGMOID_FOCAL:
            return V(exp)(V(minus_abs)(z));
        default:
            return zero;
    }
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
static INLINE double V(element_block)(const element_task *task, int loss, REAL gamma, const REAL *z, const REAL *y,
                                      const REAL *w, const REAL *p, const REAL *grad_output, REAL *grad, REAL *losses,
                                      ptrdiff_t n, bool relabels, bool ignores) {
    const V(vec) zero = V(set)(0), scale = V(set)((REAL)task->scale);
    const V(vec) rest = V(set)((REAL)task->label_scale), shift = V(set)((REAL)task->label_shift);
    const V(vec) ignore_value = V(set)((REAL)task->call.ignore_value);
    const REAL alpha = (REAL)task->call.alpha, margin = (REAL)task->call.margin;
    const REAL class_slope = alpha < 0 ? 0 : 2 * alpha - 1, class_rest = alpha < 0 ? 1 : 1 - alpha;
    V(element) e = {zero, zero, zero, zero, p != NULL, class_slope, class_rest, gamma, margin};
    V(vec) sum = zero;
    V(acc) acc = V(acc_zero)();
    /* A loop of its own: each step of an exponential waits for the one before, so what counts is how many of them the
     * CPU sees at once, and it looks a fixed number of instructions ahead. */
    REAL u[BLOCK];
    const bool pages = fetches_pages();
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        if (i * (ptrdiff_t)sizeof(REAL) % GROUP_BYTES == 0) {
            fetch_ahead(z + i, GROUP_BYTES, pages);
            fetch_ahead(y + i, GROUP_BYTES, pages);
        }
        const V(vec) target = V(load)(y + i);
        V(store)(u + i, V(element_exp)(loss, V(load)(z + i), relabels ? V(fma)(target, rest, shift) : target));
    }
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const V(vec) target = V(load)(y + i), weight = w ? V(load)(w + i) : zero;
        V(vec) slope;
        e.z = V(load)(z + i);
        e.u = V(load)(u + i);
        e.y = relabels ? V(fma)(target, rest, shift) : target;
        if (p) e.p = V(load)(p + i);
        V(vec) value = V(element_loss)(loss, &e, grad ? &slope : NULL);
        if (w) value = V(mul)(weight, V(zero_times)(weight, value));
        if (grad) {
            V(vec) factor = grad_output ? V(mul)(scale, V(load)(grad_output + i)) : scale;
            if (w) factor = V(mul)(weight, factor);
            slope = V(mul)(slope, factor);
        }
        if (ignores) {
            const V(mask) ignored = V(eq)(target, ignore_value);
            value = V(zero_where)(ignored, value);
            if (grad) slope = V(zero_where)(ignored, slope);
        }
        if (grad) V(store)(grad + i, slope);
        if (losses) V(store)(losses + i, value);
        /* Longer float sums of equal losses, as of logits that are all 0, would all err to one side. */
        sum = V(add)(sum, value);
        if (i / LANES % 4 == 3) {
            V(acc_add)(&acc, sum);
            sum = zero;
        }
    }
    V(acc_add)(&acc, sum);
    return V(acc_sum)(acc);
}

/* The forms that most calls take: gamma 2, no weights, upstream gradients, losses of each, other labels or ignored
 * targets. */
#undef PLAIN_BLOCK
#define PLAIN_BLOCK(name, loss, gamma, grad)                                                                       \
    static LOOP double V(name)(const element_task *task, const REAL *z, const REAL *y, REAL *slope, ptrdiff_t n) { \
        (void)slope;                                                                                               \
        return V(element_block)(task, loss, gamma, z, y, NULL, NULL, NULL, grad, NULL, n, false, false);           \
    }
PLAIN_BLOCK(bce_loss_block, FL_BCE_WITH_LOGITS, 0, NULL)
PLAIN_BLOCK(bce_block, FL_BCE_WITH_LOGITS, 0, slope)
PLAIN_BLOCK(focal_block, FL_SIGMOID_FOCAL, 2, slope)

static double V(any_element_block)(const element_task *task, const REAL *z, const REAL *y, const REAL *w, const REAL *p,
                                   const REAL *grad_output, REAL *grad, REAL *losses, ptrdiff_t n, bool relabels,
                                   bool ignores) {
    double sum = 0;
    FOR_ELEMENT_LOSS(task->call.loss, sum = V(element_block)(task, LOSS, (REAL)task->call.gamma, z, y, w, p,
                                                             grad_output, grad, losses, n, relabels, ignores))
    return sum;
}

static void V(element_tile)(const element_task *task, ptrdiff_t tile, double *loss) {
    const fl_element_call *call = &task->call;
    const ptrdiff_t first = tile * TILE_ELEMENTS;
    const ptrdiff_t end = first + TILE_ELEMENTS < task->elements ? first + TILE_ELEMENTS : task->elements;
    const bool relabels = task->label_scale != 1 || task->label_shift != 0, ignores = call->has_ignore != 0;
    const REAL *grad_output = call->grad_output;
    REAL *losses = call->losses;
    char *grad = call->grad;
    const ptrdiff_t out_size = dtype_size(call->grad_dtype);
    REAL z_block[BLOCK], y_block[BLOCK], w_block[BLOCK], p_block[BLOCK], g_block[BLOCK], grad_block[BLOCK],
        loss_block[BLOCK];
    const bool streamed = streams(call->logits, grad, call->grad_dtype, task->elements);
    line_stream stream = {streamed ? grad + first * out_size : NULL, 0, {0}};
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
        const bool plain =
            !call->weight.data && !call->pos_weight.data && !go && !each && !relabels && !ignores && whole;
        if (plain && call->loss == FL_BCE_WITH_LOGITS) {
            sum += slope ? V(bce_block)(task, z, y, slope, n) : V(bce_loss_block)(task, z, y, NULL, n);
        } else if (plain && call->loss == FL_SIGMOID_FOCAL && call->gamma == 2 && slope) {
            sum += V(focal_block)(task, z, y, slope, n);
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
            sum += V(any_element_block)(task, z, y, w_block, p, go, slope, each, n + (-n & (LANES - 1)), relabels,
                                        ignores);
        }
        if (streamed) {
            const bool native = call->grad_dtype == NATIVE;
            REAL converted[BLOCK];
            if (!native) V(store_block)(converted, call->grad_dtype, n, grad_block);
            stream_next(&stream, native ? grad_block : converted, n * out_size);
        } else if (slope == grad_block) {
            V(store_block)(grad + from * out_size, call->grad_dtype, n, grad_block);
        }
        if (each == loss_block) memcpy(losses + from, loss_block, (size_t)n * sizeof *losses);
    }
    stream_end(&stream);
    if (streamed) vec_fence();
    *loss = sum;
}

/* Elements that are not ignored, and the first of FL_BCE's probabilities that is none. */
static void V(element_check)(const element_task *task, ptrdiff_t tile, fl_target_check *check) {
    const fl_element_call *call = &task->call;
    const ptrdiff_t first = tile * TILE_ELEMENTS;
    const ptrdiff_t end = first + TILE_ELEMENTS < task->elements ? first + TILE_ELEMENTS : task->elements;
    check->bad_position = -1;
    check->bad_value = 0;
    check->weight = (double)(end - first);
    REAL block[BLOCK];
    for (ptrdiff_t from = first; from < end && (call->has_ignore || call->loss == FL_BCE); from += BLOCK) {
        const ptrdiff_t n = end - from < BLOCK ? end - from : BLOCK;
        ptrdiff_t count = 0;
        if (call->has_ignore) {
            V(numbers_block)(call->target, call->target_dtype, from, n, block);
            for (ptrdiff_t i = 0; i < n; i++) count += block[i] == (REAL)call->ignore_value;
            check->weight -= (double)count;
        }
        if (call->loss != FL_BCE) continue;
        V(load_block)((const char *)call->logits + from * dtype_size(call->logits_dtype), call->logits_dtype, n, 0,
                      block);
        for (ptrdiff_t i = count = 0; i < n; i++) count += (block[i] < 0) | (block[i] > 1);
        for (ptrdiff_t i = 0; count && check->bad_position < 0; i++)
            if (block[i] < 0 || block[i] > 1) check->bad_position = from + i;
        if (count) return;
    }
}

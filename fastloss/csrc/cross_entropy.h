/* Softmax cross-entropy from class indices: the fast kernels; rows of up to a few hundred classes are in
 * block_rows.h. Included once per working type.
 *
 *     loss = s (a nll + u sum_c (lse - z_c) + z_loss lse^2),     nll = lse - z_y,     lse = log sum_c exp(z_c)
 *     grad_c = g (b p_c - u - [c = y] a),     p = softmax(z),     b = a + classes * u + 2 z_loss lse
 *
 * with a = (1 - label_smoothing) weight_y, u = label_smoothing / classes, s the sample weight, and g = s * scale. With
 * m the maximum, or in long rows a reference that z_y does not exceed, "rest" the sum of exp(z_c - m) over all classes
 * but y, and e_y = exp(z_y - m), S = rest + e_y:
 *
 *     nll = (m - z_y) + log1p(rest + (e_y - 1)),     p_y - 1 = -rest / S
 *
 * so a row whose target leads by far keeps all digits of a loss and a gradient close to 0, because neither is the
 * difference of two large numbers. Each kernel makes the exponentials, has the target's set aside, sums the others, and
 * scales them into the gradient. */

/* What a kernel needs of up to ROW_BATCH targets that count. */
typedef struct {
    ptrdiff_t count;
    bool native;        /* logits and gradients are of the working type; else they are converted on the way */
    bool streams;       /* gradients are written past the caches */
    bool adjacent;      /* rows lie behind each other, in the logits as in the gradients, and none is ignored */
    bool referenced;    /* of the rows before, not all were direct: see block_rows.h */
    REAL *scratch;      /* for a long row where not native or where it streams */
    line_stream stream; /* of rows that lie behind each other */
    REAL *waiting;      /* those of them that are streamed while the next ones are computed, so that memory takes the
                           ones while it gives the others; of long rows, a block that is converted */
    ptrdiff_t scaled, streamed; /* how many rows there are, or elements of that block, and how many elements of those
                                   rows wait no more */
    char *z[ROW_BATCH];
    char *grad[ROW_BATCH];  /* NULL: loss only */
    char *probs[ROW_BATCH]; /* not for the fast kernels */
    int64_t y[ROW_BATCH];
    REAL a[ROW_BATCH], s[ROW_BATCH], g[ROW_BATCH], loss[ROW_BATCH];
    REAL lse[ROW_BATCH], entropy[ROW_BATCH]; /* by-products, where they are asked for, */
    REAL ahead[ROW_BATCH];                   /* and the number of classes that rank in front of the target */
} V(batch);

/* What the rows of a vector need after their sums are known. */
typedef struct {
    V(vec) loss, factor, target_grad, shift, log_sum, inverse;
} V(finished);

/* x, but for factor * x = 0 even where x is infinite. NaN stays. */
static INLINE V(vec) V(zero_times)(V(vec) factor, V(vec) x) {
    return V(select)(V(eq)(factor, V(set)(0)), V(min)(V(set)(-REAL_LOWEST), x), x);
}

/* The part of class c in a focal loss is f(p_c) (lse - z_c) with f(p) = (1 - focal) + focal (1 - p)^gamma, and its
 * derivative by z_k is h(p_c) (p_k - [c = k]) with h = f - p f' log(p); gap is lse - z_c. */
static INLINE V(vec) V(focal_factors)(const class_task *task, V(vec) p, V(vec) not_p, V(vec) gap, V(vec) * h) {
    const REAL focal = (REAL)task->call.focal, gamma = (REAL)task->call.gamma;
    const V(vec) zero = V(set)(0), one = V(set)(1);
    const V(vec) power = V(mul)(V(set)(focal), V(focus)(not_p, gamma));
    const V(vec) f = V(add)(V(set)(1 - focal), power);
    /* gap / not_p tends to 1 where both vanish. */
    const V(vec) ratio = V(select)(V(eq)(not_p, zero), one, V(div)(gap, not_p));
    *h = V(fma)(V(mul)(power, V(set)(gamma)), V(mul)(p, V(zero_times)(p, ratio)), f);
    return f;
}

/* Whether V(finish) has more to do than without any option. */
static INLINE bool V(has_options)(const class_task *task) {
    return task->call.label_smoothing > 0 || task->call.z_loss > 0 || task->call.focal > 0;
}

/* What scales the gradients where no option has a part in it; rest and e_y are in units of e^m. */
static INLINE void V(finish_scale)(V(vec) e_y, V(vec) rest, V(vec) a, V(vec) g, V(finished) * f) {
    f->inverse = V(reciprocal)(V(add)(rest, e_y));
    f->factor = V(mul)(V(mul)(g, a), f->inverse);
    f->target_grad = V(mul)(g, V(mul)(V(sub)(V(set)(0), V(mul)(a, rest)), f->inverse));
    f->shift = V(set)(0);
}

/* The loss, and what options change in f, which V(finish_scale) has filled. distance_sum is the sum of m - z_c, where
 * labels are smoothed. */
static INLINE void V(finish)(const class_task *task, bool options, V(vec) m, V(vec) z_y, V(vec) e_y, V(vec) rest,
                             V(vec) distance_sum, V(vec) a, V(vec) s, V(vec) g, V(finished) * f) {
    const REAL smoothing = options ? (REAL)task->call.label_smoothing : 0;
    const REAL u = options ? (REAL)(task->call.label_smoothing / (double)task->call.classes) : 0;
    const REAL z_loss = options ? (REAL)task->call.z_loss : 0;
    const V(vec) inverse = f->inverse;
    const V(vec) log_sum = V(log_sum)(e_y, rest, inverse);
    const V(vec) nll = V(add)(V(sub)(m, z_y), log_sum);
    V(vec) part = a, total = a, extra = V(set)(0);
    if (options && task->call.focal > 0) {
        V(vec) h;
        part = V(mul)(a, V(focal_factors)(task, V(mul)(e_y, inverse), V(mul)(rest, inverse), nll, &h));
        total = V(mul)(a, h);
    }
    V(vec) loss = V(mul)(part, V(zero_times)(part, nll));
    if (smoothing > 0) {
        loss = V(add)(loss, V(fma)(V(set)(u), distance_sum, V(mul)(V(set)(smoothing), log_sum)));
        total = V(add)(total, V(set)(smoothing));
    }
    if (z_loss > 0) {
        const V(vec) lse = V(add)(m, log_sum);
        loss = V(fma)(V(mul)(V(set)(z_loss), lse), lse, loss);
        extra = V(mul)(V(set)(2 * z_loss), lse);
    }
    f->loss = V(mul)(s, V(zero_times)(s, loss));
    f->log_sum = log_sum;
    if (!options) return;
    const V(vec) pull = V(mul)(V(sub)(V(mul)(extra, e_y), V(mul)(total, rest)), inverse);
    f->factor = V(mul)(V(mul)(g, V(add)(total, extra)), inverse);
    f->target_grad = V(mul)(g, V(add)(pull, V(set)(smoothing - u)));
    f->shift = V(mul)(g, V(set)(u));
}

#undef SCALE_DOWN
#define SCALE_DOWN ((REAL)1 / (REAL)((uint64_t)1 << EXP_SCALE_BITS))

/* ---- By-products: how many classes rank in front of the target, and the entropy -------------------------------- */

/* How many of a vector's lanes are above the limit. */
static INLINE ptrdiff_t V(count_above)(V(vec) z, V(vec) limit) { return count_lanes(V(set_lanes)(V(lt)(limit, z))); }

/* How many of n logits rank in front of number y, whose logit is z_y: those above it, and equal ones of earlier
 * classes. y may be outside. Counts no further than to `enough`, or little more. */
static LOOP REAL V(count_ahead)(const REAL *z, ptrdiff_t n, ptrdiff_t y, REAL z_y, REAL enough) {
    const V(vec) own = V(set)(z_y), below = V(below)(own);
    const ptrdiff_t step = 4 * LANES, most = (ptrdiff_t)enough;
    const ptrdiff_t its = y & ~(ptrdiff_t)(LANES - 1); /* where the vector begins that holds the target */
    ptrdiff_t c = 0, ahead = 0;
    while (c + step <= n && ahead < most)
        for (const ptrdiff_t end = c + step; c < end; c += LANES)
            ahead += V(count_above)(V(load)(z + c), c < its ? below : own);
    for (; c < n && ahead < most; c += LANES)
        ahead += V(count_above)(n - c < LANES ? V(load_part)(z + c, n - c, -INFINITY) : V(load)(z + c),
                                c < its ? below : own);
    if (ahead < most && y >= 0 && y < n) {
        const V(vec) around = n - its < LANES ? V(load_part)(z + its, n - its, -INFINITY) : V(load)(z + its);
        ahead += count_lanes(V(set_lanes)(V(eq)(around, own)) & ((1u << (y - its)) - 1));
    }
    return (REAL)ahead;
}

/* From so many on, it does not matter how many rank in front. */
static INLINE REAL V(most_ahead)(const class_task *task) {
    int most = 0;
    for (int k = 0; k < task->call.topk_count; k++)
        if (task->call.topk[k] > most) most = task->call.topk[k];
    return (REAL)most;
}

/* The by-products of a vector of rows: moment is the sum of x e^x of the other classes, in units of e^m. A target of
 * probability 0 ranks behind all classes, and one without a softmax nowhere: its place is NaN. */
static INLINE void V(finish_metrics)(const V(finished) * f, V(vec) m, V(vec) z_y, V(vec) e_y, V(vec) moment,
                                     V(vec) ahead, REAL *lse, REAL *entropy, REAL *place) {
    const V(vec) gap = V(exp_floor)(V(sub)(z_y, m), EXP_SCALE_BITS), all = V(add)(m, f->log_sum);
    V(store)(lse, all);
    V(store)(entropy, V(fnma)(V(fma)(gap, e_y, moment), f->inverse, f->log_sum));
    const V(vec) last = V(select)(V(lt)(z_y, V(set)(REAL_LOWEST)), V(set)(INFINITY), ahead);
    V(store)(place, V(add)(last, V(sub)(all, all)));
}

/* ---- Long rows: block by block against a reference, which need not be the maximum ---------------------------------
 *
 * The reference is the largest of the first logits and the target's. A block that exceeds it by more than JUMP makes
 * the maximum of all that is left the reference, and what was done is scaled to it: at most once a row, and rarely. A
 * block is tried without asking for its maximum and without clamping, and done again where that was too bold. */

#undef JUMP
/* e^JUMP is above the bound of V(in_range). */
#define JUMP 16
#undef FIRST_LOGITS
/* Enough to come close to the maximum of most rows, and few enough to cost nothing. */
#define FIRST_LOGITS (4 * LANES)

/* The maximum of any number of logits. */
static INLINE REAL V(max_of)(const class_task *task, const char *z, ptrdiff_t n, bool native) {
    if (native) return V(hmax)(V(max_block)((const REAL *)z, n));
    V(vec) max = V(set)(-INFINITY);
    for (ptrdiff_t c = 0; c < n; c += BLOCK) {
        REAL block[BLOCK];
        const ptrdiff_t count = n - c < BLOCK ? n - c : BLOCK;
        const char *p = z + c * dtype_size(task->call.logits.dtype);
        max = V(max)(V(load_block)(p, task->call.logits.dtype, count, -INFINITY, block), max);
    }
    return V(hmax)(max);
}

/* What is known of a row so far, in units of e^ref. */
typedef struct {
    REAL ref, z_y, e_y, ahead;  /* e_y = e^(z_y - ref), where there is a gradient */
    bool careful;               /* blocks are no more tried without clamping */
    double rest, moment, sum_x; /* of what came before the reference jumped */
    V(acc) rests, moments, x_sums;
} V(row_sums);

/* Numbers from class c on exceed the reference by far. */
static void V(jump)(const class_task *task, const char *z, ptrdiff_t c, bool native, REAL *kept, V(row_sums) * row) {
    const ptrdiff_t size = dtype_size(task->call.logits.dtype);
    const REAL next = V(max_of)(task, z + c * size, task->call.classes - c, native);
    const double step = (double)row->ref - next, shrink = exp(step);
    row->rest += V(acc_sum)(row->rests);
    row->moment += V(acc_sum)(row->moments);
    row->moment = shrink == 0 ? 0 : shrink * (row->moment + step * row->rest);
    row->rest *= shrink;
    row->sum_x += V(acc_sum)(row->x_sums) + (double)c * step;
    row->rests = row->moments = row->x_sums = V(acc_zero)();
    if (kept) V(scale_block)(kept, c, (REAL)shrink, 0);
    row->ref = next;
    if (kept) row->e_y = V(first_lane)(V(exp)(V(set)(row->z_y - next)));
}

/* Adds the classes [c, c + n) of the row z, and keeps their exponentials. */
static INLINE void V(add_block)(const class_task *task, const char *z, ptrdiff_t c, ptrdiff_t n, ptrdiff_t y,
                                bool native, REAL *kept, bool fetches_kept, bool smooth, bool with_moments,
                                V(row_sums) * row) {
    const bool here = y >= c && y < c + n;
    const int dtype = native ? NATIVE : task->call.logits.dtype;
    const char *p = z + c * dtype_size(dtype);
    REAL *e = kept ? kept + c : NULL;
    const bool pages = fetches_pages();
    V(block_sums) sums;
    bool done = false;
    if (!row->careful) {
        if (!kept)
            done = (smooth                 ? V(exp_others_summed)
                    : here && with_moments ? V(exp_others_moments)
                    : here                 ? V(exp_others)
                    : with_moments         ? V(exp_moments)
                                           : V(exp_added))(dtype, p, e, n, row->ref, pages, y - c, &sums);
        else if (fetches_kept)
            done = (smooth && here ? V(exp_others_summed_kept_and_fetched)
                    : smooth       ? V(exp_summed_kept_and_fetched)
                    : here         ? V(exp_others_kept_and_fetched)
                                   : V(exp_kept_and_fetched))(dtype, p, e, n, row->ref, pages, y - c, &sums);
        else
            done = (smooth && here ? V(exp_others_summed_kept)
                    : smooth       ? V(exp_summed_kept)
                    : here         ? V(exp_others_kept)
                                   : V(exp_kept))(dtype, p, e, n, row->ref, pages, y - c, &sums);
    }
    if (!done) {
        if (V(max_of)(task, p, n, native) > row->ref + JUMP)
            V(jump)(task, z, c, native, kept, row);
        else
            row->careful = true;
        (!kept            ? V(exp_clamped)
         : smooth || here ? V(exp_others_clamped_kept)
                          : V(exp_clamped_kept))(dtype, p, e, n, row->ref, pages, y - c, &sums);
    }
    V(acc_add)(&row->rests, sums.sum);
    if (with_moments) V(acc_add)(&row->moments, sums.moment);
    if (smooth) V(acc_add)(&row->x_sums, sums.distance);
}

/* A row whose exponentials are made and whose gradient is still to be scaled. That happens while the next row's
 * exponentials are made: its steps do not wait for this row's sums, and where the gradient is streamed, memory takes
 * the one while it gives the other. A streamed one is scaled block by block before the next row takes its place. */
typedef struct {
    char *grad;    /* NULL: there is none */
    const REAL *e; /* in scratch, or the gradient itself */
    REAL factor, shift, target_grad;
    ptrdiff_t y, done;
} V(pending);

/* Scales up to class `end`, or where the gradient is streamed to the end of its line. */
static INLINE void V(scale_pending)(const class_task *task, V(batch) * batch, V(pending) * row, ptrdiff_t end,
                                    bool native, bool streams) {
    if (!row->grad) return;
    const int dtype = task->call.grad.dtype;
    const ptrdiff_t size = dtype_size(dtype), classes = task->call.classes, from = row->done, y = row->y - from;
    const ptrdiff_t left = (ptrdiff_t)(-(uintptr_t)(row->grad + end * size) % LINE_BYTES) / size;
    row->done = !native || !streams ? end : end + left < classes ? end + left : classes;
    const ptrdiff_t n = row->done - from;
    if (native && !streams) {
        V(scale_block)((REAL *)row->grad + from, n, row->factor, row->shift);
        if (y >= 0 && y < n) ((REAL *)row->grad)[row->y] = row->target_grad;
        return;
    }
    /* What was converted with the block before is streamed now: lines that begin elsewhere in vectors than these would
     * have to wait until they are written. */
    if (!native) stream_next(&batch->stream, batch->waiting, batch->scaled * size);
    if (from == 0) stream_from(&batch->stream, row->grad);
    if (native) {
        V(stream_scaled)(&batch->stream, row->e + from, n, row->factor, row->shift, y, row->target_grad);
        return;
    }
    const ptrdiff_t pairs = V(bf16_pairs)(task->call.logits.dtype, n);
    V(store_scaled)(batch->waiting, dtype, n, row->e + from, pairs, row->factor, row->shift);
    if (y >= 0 && y < n) V(store_one)((char *)batch->waiting + y * size, dtype, row->target_grad);
    batch->scaled = n;
}

/* How many of the classes [c, c + n) of the row z rank in front of its target, up to `enough`. */
static INLINE REAL V(ahead_in)(const class_task *task, const char *z, ptrdiff_t c, ptrdiff_t n, ptrdiff_t y, REAL z_y,
                               bool native, REAL enough) {
    REAL block[BLOCK];
    const REAL *p = block;
    if (native)
        p = (const REAL *)z + c;
    else
        V(load_block)(z + c * dtype_size(task->call.logits.dtype), task->call.logits.dtype, n, -INFINITY, block);
    /* Of rows that are not learned yet, most have enough in front among the first logits. Of the blocks after the first
     * one, most have none. */
    if (c == 0 && n >= FIRST_LOGITS) {
        ptrdiff_t ahead = 0;
        for (ptrdiff_t k = 0; k < FIRST_LOGITS; k += LANES) ahead += V(count_above)(V(load)(p + k), V(set)(z_y));
        if ((REAL)ahead >= enough) return enough;
    } else if (c > 0 && !V(any)(V(lt)(V(below)(V(set)(z_y)), V(max_block)(p, n)))) {
        return 0;
    }
    return V(count_ahead)(p, n, y - c, z_y, enough);
}

static INLINE V(row_sums)
    V(new_row)(const class_task *task, const char *z, REAL z_y, bool native, bool careful, bool with_grad) {
    const ptrdiff_t classes = task->call.classes;
    const REAL first = V(max_of)(task, z, classes < FIRST_LOGITS ? classes : FIRST_LOGITS, native);
    const REAL largest = first > z_y ? first : z_y, ref = largest > REAL_LOWEST ? largest : REAL_LOWEST;
    const REAL e_y = with_grad ? V(first_lane)(V(exp)(V(set)(z_y - ref))) : 0;
    const V(acc) none = V(acc_zero)();
    return (V(row_sums)){ref, z_y, e_y, 0, careful, 0, 0, 0, none, none, none};
}

/* The sums of row i. pending: the row before, to be scaled meanwhile, or NULL. most: V(most_ahead). */
static INLINE V(row_sums) V(sum_row)(const class_task *task, V(batch) * batch, ptrdiff_t i, REAL *kept,
                                     V(pending) * pending, REAL most, bool native, bool smooth, bool with_metrics) {
    const ptrdiff_t classes = task->call.classes, y = (ptrdiff_t)batch->y[i];
    const ptrdiff_t size = native ? (ptrdiff_t)sizeof(REAL) : dtype_size(task->call.logits.dtype);
    const bool streams = batch->streams;
    const char *z = batch->z[i];
    const REAL z_y = native ? ((const REAL *)z)[y] : V(load_one)(z + y * size, task->call.logits.dtype);
    const bool careful = (const char *)kept == z; /* in place there is no second try */
    V(row_sums) row = V(new_row)(task, z, z_y, native, careful, kept);
    for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
        const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
        if (pending && streams) V(scale_pending)(task, batch, pending, c + n, native, true);
        V(add_block)(task, z, c, n, y, native, kept, kept && native && !streams, smooth, with_metrics, &row);
        if (with_metrics && row.ahead < most) row.ahead += V(ahead_in)(task, z, c, n, y, z_y, native, most - row.ahead);
        if (pending && !streams) V(scale_pending)(task, batch, pending, c + n, native, false);
    }
    row.rest += V(acc_sum)(row.rests);
    if (with_metrics) row.moment += V(acc_sum)(row.moments);
    if (smooth) row.sum_x += V(acc_sum)(row.x_sums);
    return row;
}

/* The gradient of a row whose sums are known: scaled at once, or with `pending` later. */
static INLINE void V(row_grad)(const class_task *task, V(batch) * batch, ptrdiff_t i, const V(row_sums) * row,
                               REAL *kept, V(pending) * pending, bool smooth) {
    const ptrdiff_t classes = task->call.classes, y = (ptrdiff_t)batch->y[i];
    const int dtype = task->call.grad.dtype;
    char *grad = batch->grad[i];
    const V(vec) rest = V(set)((REAL)(row->rest * SCALE_DOWN)), a = V(set)(batch->a[i]), g = V(set)(batch->g[i]);
    const V(vec) ref = V(set)(row->ref), z_y = V(set)(row->z_y), e_y = V(set)(row->e_y);
    V(finished) f;
    V(finish_scale)(e_y, rest, a, g, &f);
    if (V(has_options)(task))
        V(finish)(task, true, ref, z_y, e_y, rest, V(set)((REAL)-row->sum_x), a, V(set)(batch->s[i]), g, &f);
    const REAL factor = V(first_lane)(f.factor) * SCALE_DOWN, shift = smooth ? V(first_lane)(f.shift) : 0;
    const REAL target_grad = V(first_lane)(f.target_grad);
    if (pending) {
        *pending = (V(pending)){grad, kept, factor, shift, target_grad, y, 0};
        return;
    }
    V(store_scaled)(grad, dtype, classes, kept, V(bf16_pairs)(task->call.logits.dtype, classes), factor, shift);
    V(store_one)(grad + y * dtype_size(dtype), dtype, target_grad);
}

/* ---- Vectors of targets, for whom sums are known --------------------------------------------------------------- */

#undef LANE_VECTORS
#undef LANE_TARGETS
/* Targets are taken several vectors at a time, each step for all of them before the next: the steps of one vector wait
 * for each other, and those of the others fill the time. */
#define LANE_VECTORS 8
#define LANE_TARGETS (LANE_VECTORS * LANES)

/* What the passes over the classes find out for each vector. */
typedef struct {
    V(vec) m[LANE_VECTORS], z_y[LANE_VECTORS], rest[LANE_VECTORS], distance[LANE_VECTORS];
    V(vec) moment[LANE_VECTORS], ahead[LANE_VECTORS];
} V(lane_sums);

/* Losses, by-products, and what the gradients need, of targets from number `first` of the batch on. */
static INLINE void V(finish_vectors)(const class_task *task, const V(lane_sums) * sums, ptrdiff_t vectors,
                                     V(batch) * batch, ptrdiff_t first, bool options, bool with_metrics,
                                     V(finished) * f) {
    /* In loops of their own: the operations of one vector wait for each other, and a CPU sees only so many that follow.
     */
    V(vec) e_y[LANE_VECTORS];
    const REAL *a = batch->a + first, *s = batch->s + first, *g = batch->g + first;
    for (ptrdiff_t v = 0; v < vectors; v++) e_y[v] = V(exp)(V(sub)(sums->z_y[v], sums->m[v]));
    for (ptrdiff_t v = 0; v < vectors; v++)
        V(finish_scale)(e_y[v], sums->rest[v], V(load)(a + v * LANES), V(load)(g + v * LANES), &f[v]);
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = v * LANES;
        V(finish)(task, options, sums->m[v], sums->z_y[v], e_y[v], sums->rest[v], sums->distance[v], V(load)(a + at),
                  V(load)(s + at), V(load)(g + at), &f[v]);
        V(store)(batch->loss + first + at, f[v].loss);
        f[v].factor = V(mul)(f[v].factor, V(set)(SCALE_DOWN));
    }
    for (ptrdiff_t v = 0; with_metrics && v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        V(finish_metrics)(&f[v], sums->m[v], sums->z_y[v], e_y[v], sums->moment[v], sums->ahead[v], batch->lse + at,
                          batch->entropy + at, batch->ahead + at);
    }
}
/* Without options, with them, with by-products, and with both. */
static LOOP void V(finish_plain)(const class_task *task, const V(lane_sums) * sums, ptrdiff_t vectors, V(batch) * batch,
                                 ptrdiff_t first, V(finished) * f) {
    V(finish_vectors)(task, sums, vectors, batch, first, false, false, f);
}
static LOOP void V(finish_optional)(const class_task *task, const V(lane_sums) * sums, ptrdiff_t vectors,
                                    V(batch) * batch, ptrdiff_t first, V(finished) * f) {
    V(finish_vectors)(task, sums, vectors, batch, first, true, false, f);
}
static LOOP void V(finish_measured)(const class_task *task, const V(lane_sums) * sums, ptrdiff_t vectors,
                                    V(batch) * batch, ptrdiff_t first, V(finished) * f) {
    V(finish_vectors)(task, sums, vectors, batch, first, false, true, f);
}
static LOOP void V(finish_both)(const class_task *task, const V(lane_sums) * sums, ptrdiff_t vectors, V(batch) * batch,
                                ptrdiff_t first, V(finished) * f) {
    V(finish_vectors)(task, sums, vectors, batch, first, true, true, f);
}
static INLINE void V(finish_all)(const class_task *task, const V(lane_sums) * sums, ptrdiff_t vectors, V(batch) * batch,
                                 ptrdiff_t first, bool with_metrics, V(finished) * f) {
    if (with_metrics)
        (V(has_options)(task) ? V(finish_both) : V(finish_measured))(task, sums, vectors, batch, first, f);
    else
        (V(has_options)(task) ? V(finish_optional) : V(finish_plain))(task, sums, vectors, batch, first, f);
}

/* ---- Long rows: the losses of LANE_TARGETS of them are finished at a time --------------------------------------- */

static INLINE void V(long_rows)(const class_task *task, V(batch) * batch, bool native, bool smooth, bool with_grad,
                                bool with_metrics) {
    const ptrdiff_t classes = task->call.classes;
    V(pending) last = {0}, *pending = with_grad && (native || batch->streams) ? &last : NULL;
    const REAL most = with_metrics ? V(most_ahead)(task) : 0;
    _Alignas(LINE_BYTES) REAL waiting[BLOCK];
    batch->waiting = waiting;
    batch->scaled = 0;
    for (ptrdiff_t first = 0; first < batch->count; first += LANE_TARGETS) {
        const ptrdiff_t n = batch->count - first < LANE_TARGETS ? batch->count - first : LANE_TARGETS;
        const ptrdiff_t vectors = (n + LANES - 1) / LANES;
        V(lane_sums) sums;
        for (ptrdiff_t v = 0; v < vectors; v++) {
            REAL ref[LANES], z_y[LANES], rest[LANES], distance[LANES], moment[LANES], ahead[LANES];
            for (ptrdiff_t k = 0; k < LANES; k++) {
                /* The lanes past the last row hold zeros. */
                V(row_sums) row = {0};
                if (v * LANES + k < n) {
                    const ptrdiff_t i = first + v * LANES + k;
                    REAL *kept = !with_grad                  ? NULL
                                 : native && !batch->streams ? (REAL *)batch->grad[i]
                                                             : batch->scratch; /* the exponentials */
                    row = V(sum_row)(task, batch, i, kept, pending, most, native, smooth, with_metrics);
                    if (with_grad) V(row_grad)(task, batch, i, &row, kept, pending, smooth);
                }
                ref[k] = row.ref;
                z_y[k] = row.z_y;
                rest[k] = (REAL)(row.rest * SCALE_DOWN);
                distance[k] = (REAL)-row.sum_x;
                moment[k] = (REAL)(row.moment * SCALE_DOWN);
                ahead[k] = row.ahead;
            }
            sums.m[v] = V(load)(ref);
            sums.z_y[v] = V(load)(z_y);
            sums.rest[v] = V(load)(rest);
            sums.distance[v] = V(load)(distance);
            sums.moment[v] = V(load)(moment);
            sums.ahead[v] = V(load)(ahead);
        }
        V(finished) f[LANE_VECTORS];
        V(finish_all)(task, &sums, vectors, batch, first, with_metrics, f);
    }
    for (ptrdiff_t c = 0; pending && c < classes; c += BLOCK)
        V(scale_pending)(task, batch, pending, c + BLOCK < classes ? c + BLOCK : classes, native, batch->streams);
    if (pending && !native) stream_next(&batch->stream, waiting, batch->scaled * dtype_size(task->call.grad.dtype));
}

/* ---- Targets in lanes: classes lie `stride` apart, neighbouring targets next to each other --------------------- */

#undef CLASS_BLOCK
/* Classes a lane adds up before the sum is flushed into double. */
#define CLASS_BLOCK 256

/* Targets of a batch from number `first` on. */
typedef struct {
    V(batch) * of;
    ptrdiff_t first;
    V(index) y[LANE_TARGETS]; /* -1: ignored */
    bool any_ignored;
} V(lane_batch);

#undef LINES_AHEAD
/* How many lines ahead of a copy to fetch: as many as can be under way. More of them drive each other out where the
 * stride is a power of two. */
#define LINES_AHEAD 48

/* A copy of the logits of some vectors of targets, class by class, which is made pair after pair of vectors while
 * others are computed with: memory gives the ones meanwhile. */
typedef struct {
    const char *from;
    REAL *to;
    int dtype;
    ptrdiff_t pairs, pair, classes, skip; /* of a class; the one in turn; classes left; bytes between them */
    ptrdiff_t fetched, ahead, behind; /* where to fetch, relative to `from`: so many classes ahead, and for the last of
                                         them where the first ones of the next vectors are */
} V(lane_copy);

/* A copy from where the classes are so many bytes apart. */
static INLINE V(lane_copy)
    V(copy_of)(const char *from, int dtype, ptrdiff_t stride, ptrdiff_t classes, ptrdiff_t pairs, REAL *to) {
    const ptrdiff_t bytes = pairs * 2 * LANES * dtype_size(dtype), lines = LINES_AHEAD * LINE_BYTES / bytes;
    const ptrdiff_t ahead = lines < 1 ? 1 : lines < classes ? lines : classes;
    return (V(lane_copy)){
        from, to, dtype, pairs, 0, classes, stride - bytes, ahead * stride, ahead, (ahead - classes) * stride + bytes};
}

static INLINE void V(copy_pair)(V(lane_copy) * copy) {
    FOR_DTYPE(copy->dtype, {
        const ptrdiff_t bytes = LANES * dtype_size(D);
        for (ptrdiff_t k = 0; k < 2; k++) V(store)(copy->to + k * LANES, V(load_as)(copy->from + k * bytes, D));
        for (ptrdiff_t line = 0; line < 2 * bytes; line += LINE_BYTES)
            __builtin_prefetch(copy->from + copy->fetched + line);
        copy->from += 2 * bytes;
    })
    copy->to += 2 * LANES;
    if (++copy->pair < copy->pairs) return;
    copy->pair = 0;
    copy->from += copy->skip;
    if (--copy->classes == copy->ahead) copy->fetched = copy->behind;
}

/* Where the classes of `vectors` vectors of targets lie: from number `at` of the batch on; z points to the first of
 * them, e to room for the exponentials, and grad is NULL without a gradient. With `part`, there is one vector of that
 * many targets. ahead: a copy to make meanwhile, of LANE_VECTORS as well, or NULL. */
typedef struct {
    const REAL *z;
    REAL *e, *grad;
    ptrdiff_t z_stride, e_stride, grad_stride, classes;
    bool streams; /* the gradient is written past the caches; its lines are those of the vectors */
    V(lane_copy) * ahead;
    ptrdiff_t at, vectors, part;
} V(lane_block);

static INLINE V(vec) V(load_lanes)(const REAL *p, ptrdiff_t part) {
    return part ? V(load_part)(p, part, 0) : V(load)(p);
}
static INLINE void V(store_lanes)(REAL *p, V(vec) v, ptrdiff_t part) {
    part ? V(store_part)(p, v, part) : V(store)(p, v);
}

/* The maximum, and for those who need it before the exponentials the target's logit, `width` vectors at a time. */
static INLINE void V(lanes_max)(const V(lane_block) * block, const V(lane_batch) * batch, V(lane_sums) * out,
                                ptrdiff_t width, bool with_target) {
    const ptrdiff_t part = block->part, stride = block->z_stride, classes = block->classes;
    for (ptrdiff_t v = 0; v < block->vectors; v += width) {
        V(vec) m[2], z_y[2];
        V(int) y[2];
        for (ptrdiff_t k = 0; k < width; k++) {
            m[k] = V(set)(-INFINITY);
            z_y[k] = V(set)(0);
            y[k] = V(int_load)(batch->y + block->at + (v + k) * LANES);
        }
        const REAL *p = block->z + v * LANES;
        for (ptrdiff_t c = 0; c < classes; c++, p += stride)
            for (ptrdiff_t k = 0; k < width; k++) {
                const V(vec) value = V(load_lanes)(p + k * LANES, part);
                m[k] = V(max)(m[k], value);
                if (with_target) z_y[k] = V(select)(V(int_eq)(y[k], V(int_set)((V(index))c)), value, z_y[k]);
            }
        for (ptrdiff_t k = 0; k < width; k++) out->m[v + k] = m[k];
        for (ptrdiff_t k = 0; with_target && k < width; k++) out->z_y[v + k] = z_y[k];
    }
}

/* The exponentials, kept where there is a gradient, and their sums. */
static INLINE void V(lanes_exp)(const V(lane_block) * block, const V(lane_batch) * batch, V(lane_sums) * out,
                                ptrdiff_t width, bool smooth, bool with_grad, bool with_metrics) {
    const V(vec) zero = V(set)(0);
    const ptrdiff_t part = block->part, z_stride = block->z_stride, e_stride = block->e_stride;
    const bool flushes = block->classes > CLASS_BLOCK, copies = width == 2 && block->ahead;
    V(lane_copy) copy = {0};
    if (copies) copy = *block->ahead;
    for (ptrdiff_t v = 0; v < block->vectors; v += width) {
        V(vec) m[2], z_y[2], at[2], limit[2], sum[2], x_sum[2], moment_sum[2];
        V(int) y[2], ahead[2];
        V(acc) sums[2], x_sums[2], moments[2];
        const REAL *z = block->z + v * LANES;
        REAL *kept = with_grad ? block->e + v * LANES : NULL;
        for (ptrdiff_t k = 0; k < width; k++) {
            y[k] = V(int_load)(batch->y + block->at + (v + k) * LANES);
            m[k] = out->m[v + k];
            z_y[k] = zero;
            sum[k] = x_sum[k] = moment_sum[k] = zero;
            sums[k] = x_sums[k] = moments[k] = V(acc_zero)();
            ahead[k] = V(int_set)(0);
            if (with_metrics) {
                at[k] = out->z_y[v + k];
                limit[k] = V(below)(at[k]);
            }
        }
        for (ptrdiff_t first = 0; first < block->classes; first += CLASS_BLOCK) {
            const ptrdiff_t left = block->classes - first, end = first + (left < CLASS_BLOCK ? left : CLASS_BLOCK);
            V(int) class = V(int_set)((V(index))first);
            for (ptrdiff_t c = first; c < end; c++, class = V(int_add)(class, V(int_set)(1))) {
                for (ptrdiff_t k = 0; k < width; k++) {
                    const V(vec) value = V(load_lanes)(z + k * LANES, part);
                    const V(vec) x = V(sub)(value, m[k]);
                    const V(vec) floored = V(exp_floor)(x, EXP_SCALE_BITS), e = V(exp_floored)(floored);
                    const V(mask) is_target = V(int_eq)(y[k], class);
                    if (with_grad) V(store_lanes)(kept + k * LANES, e, part);
                    const V(vec) other = V(zero_where)(is_target, e);
                    sum[k] = V(add)(sum[k], other);
                    if (!with_metrics) z_y[k] = V(select)(is_target, value, z_y[k]);
                    if (smooth) x_sum[k] = V(add)(x_sum[k], x);
                    if (with_metrics) {
                        /* Of equal logits those before the target's class rank in front. */
                        limit[k] = V(select)(is_target, at[k], limit[k]);
                        ahead[k] = V(int_count)(V(lt)(limit[k], value), ahead[k]);
                        moment_sum[k] = V(fma)(other, floored, moment_sum[k]);
                    }
                }
                if (copies) V(copy_pair)(&copy);
                z += z_stride;
                if (with_grad) kept += e_stride;
            }
            for (ptrdiff_t k = 0; flushes && k < width; k++) {
                V(acc_add)(&sums[k], sum[k]);
                if (smooth) V(acc_add)(&x_sums[k], x_sum[k]);
                if (with_metrics) V(acc_add)(&moments[k], moment_sum[k]);
                sum[k] = x_sum[k] = moment_sum[k] = zero;
            }
        }
        for (ptrdiff_t k = 0; flushes && k < width; k++) {
            sum[k] = V(acc_lanes)(sums[k]);
            if (smooth) x_sum[k] = V(acc_lanes)(x_sums[k]);
            if (with_metrics) moment_sum[k] = V(acc_lanes)(moments[k]);
        }
        for (ptrdiff_t k = 0; k < width; k++) {
            out->rest[v + k] = V(mul)(sum[k], V(set)(SCALE_DOWN));
            out->distance[v + k] = smooth ? V(sub)(zero, x_sum[k]) : zero;
            if (!with_metrics) out->z_y[v + k] = z_y[k];
            if (with_metrics) {
                out->moment[v + k] = V(mul)(moment_sum[k], V(set)(SCALE_DOWN));
                out->ahead[v + k] = V(number)(ahead[k]);
            }
        }
    }
}

/* The gradient of class c from its exponentials. */
static INLINE V(vec) V(lane_grad)(V(vec) e, const V(finished) * f, V(int) y, ptrdiff_t c, bool smooth) {
    V(vec) value = V(mul)(e, f->factor);
    if (smooth) value = V(sub)(value, f->shift);
    return V(select)(V(int_eq)(y, V(int_set)((V(index))c)), f->target_grad, value);
}

/* The exponentials into the gradient, class after class: memory takes many lines of one page faster. */
static INLINE void V(lanes_scale)(const V(lane_block) * block, const V(lane_batch) * batch, const V(finished) * f,
                                  bool smooth, bool any_ignored, bool streams) {
    const ptrdiff_t part = block->part, classes = block->classes;
    for (ptrdiff_t c = 0; c < classes; c++) {
        const REAL *e = block->e + c * block->e_stride;
        REAL *grad = block->grad + c * block->grad_stride;
        for (ptrdiff_t v = 0; v < block->vectors; v++, e += LANES, grad += LANES) {
            const V(int) y = V(int_load)(batch->y + block->at + v * LANES);
            V(vec) value = V(lane_grad)(V(load_lanes)(e, part), &f[v], y, c, smooth);
            if (any_ignored) value = V(zero_where)(V(int_eq)(y, V(int_set)(-1)), value);
            streams ? V(stream)(grad, value) : V(store_lanes)(grad, value, part);
        }
    }
}

/* The forms that most calls take, each a loop of its own. */
static LOOP void V(lanes_max_plain)(const V(lane_block) * block, const V(lane_batch) * batch, V(lane_sums) * out) {
    V(lane_block) whole = *block;
    whole.part = 0;
    V(lanes_max)(&whole, batch, out, 2, false);
}
static LOOP void V(lanes_max_and_target)(const V(lane_block) * block, const V(lane_batch) * batch, V(lane_sums) * out) {
    V(lane_block) whole = *block;
    whole.part = 0;
    V(lanes_max)(&whole, batch, out, 2, true);
}
#undef LANES_EXP_FORM
#define LANES_EXP_FORM(name, smooth, with_grad, with_metrics)                                                \
    static LOOP void V(name)(const V(lane_block) * block, const V(lane_batch) * batch, V(lane_sums) * out) { \
        V(lane_block) whole = *block;                                                                        \
        whole.part = 0;                                                                                      \
        V(lanes_exp)(&whole, batch, out, 2, smooth, with_grad, with_metrics);                                \
    }
LANES_EXP_FORM(lanes_exp_kept, false, true, false)
LANES_EXP_FORM(lanes_exp_sums, false, false, false)
LANES_EXP_FORM(lanes_exp_smooth_kept, true, true, false)
LANES_EXP_FORM(lanes_exp_smooth_sums, true, false, false)
LANES_EXP_FORM(lanes_metrics, false, false, true)

#undef LANES_SCALE_FORM
#define LANES_SCALE_FORM(name, smooth, streams)                                                                 \
    static LOOP void V(name)(const V(lane_block) * block, const V(lane_batch) * batch, const V(finished) * f) { \
        V(lane_block) whole = *block;                                                                           \
        whole.part = 0;                                                                                         \
        V(lanes_scale)(&whole, batch, f, smooth, false, streams);                                               \
    }
LANES_SCALE_FORM(lanes_scale_plain, false, false)
LANES_SCALE_FORM(lanes_scale_streamed, false, true)
LANES_SCALE_FORM(lanes_scale_smooth, true, false)
LANES_SCALE_FORM(lanes_scale_smooth_streamed, true, true)

/* Losses, by-products, and the gradient. */
static LOOP void V(lanes)(const class_task *task, const V(lane_block) * block, V(lane_batch) * batch, bool smooth,
                          bool with_metrics) {
    const bool pairs = block->vectors % 2 == 0 && !block->part, with_grad = block->grad != NULL;
    V(lane_sums) sums;
    V(finished) f[LANE_VECTORS];
    if (!pairs)
        V(lanes_max)(block, batch, &sums, 1, with_metrics);
    else if (with_metrics)
        V(lanes_max_and_target)(block, batch, &sums);
    else
        V(lanes_max_plain)(block, batch, &sums);
    if (with_metrics && pairs && !smooth)
        V(lanes_metrics)(block, batch, &sums);
    else if (with_metrics)
        V(lanes_exp)(block, batch, &sums, 1, smooth, false, true);
    else if (!pairs)
        V(lanes_exp)(block, batch, &sums, 1, smooth, with_grad, false);
    else if (smooth)
        (with_grad ? V(lanes_exp_smooth_kept) : V(lanes_exp_smooth_sums))(block, batch, &sums);
    else
        (with_grad ? V(lanes_exp_kept) : V(lanes_exp_sums))(block, batch, &sums);
    const ptrdiff_t first = batch->first + block->at;
    V(finish_all)(task, &sums, block->vectors, batch->of, first, with_metrics, f);
    for (ptrdiff_t v = 0; batch->any_ignored && v < block->vectors; v++) {
        const V(mask) ignored = V(int_eq)(V(int_load)(batch->y + block->at + v * LANES), V(int_set)(-1));
        V(store)(batch->of->loss + first + v * LANES, V(zero_where)(ignored, f[v].loss));
    }
    if (!with_grad) return;
    if (block->part || batch->any_ignored)
        V(lanes_scale)(block, batch, f, smooth, batch->any_ignored, block->streams);
    else if (smooth)
        (block->streams ? V(lanes_scale_smooth_streamed) : V(lanes_scale_smooth))(block, batch, f);
    else
        (block->streams ? V(lanes_scale_streamed) : V(lanes_scale_plain))(block, batch, f);
}

/* n targets: pairs of vectors, then single ones, the last perhaps a part of one. all: where the first of them are, and
 * with a copy or a streamed gradient no others than LANE_TARGETS. */
static void V(index_lanes)(const class_task *task, const V(lane_block) * all, V(lane_batch) * batch, ptrdiff_t n) {
    const bool smooth = task->call.label_smoothing > 0, with_metrics = task->call.metrics != NULL;
    const ptrdiff_t pairs = n / (2 * LANES) * (2 * LANES);
    V(lane_block) block = *all;
    block.vectors = pairs / LANES;
    if (pairs > 0) V(lanes)(task, &block, batch, smooth, with_metrics);
    block.vectors = 1;
    for (ptrdiff_t i = pairs; i < n; i += LANES) {
        block.z = all->z + i;
        block.e = all->e ? all->e + i : NULL;
        block.grad = all->grad ? all->grad + i : NULL;
        block.at = i;
        block.part = n - i < LANES ? n - i : 0;
        V(lanes)(task, &block, batch, smooth, with_metrics);
    }
}

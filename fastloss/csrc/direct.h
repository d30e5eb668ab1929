/* Rows whose logits are neither large nor small: no reference, and the classes of several rows in one loop. Included
 * once per working type.
 *
 * The exponentials are those of the logits themselves: none waits for a maximum, and rows need not begin where vectors
 * do. With e_y = e^z_y and "rest" the sum of the other classes' exponentials,
 *
 *     nll = log1p(rest / e_y),     grad_c = e^z_c g a / (rest + e_y),     grad_y = -g a rest / (rest + e_y)
 *
 * Where the logits of a row are too large or too small for that, cross_entropy.h does it with a reference. Which of the
 * two does a row depends on no other row. */

#undef DIRECT_LOWEST
/* e_y has to be so large that the rest is not: then no factor of a gradient is a subnormal number on its way. */
#define DIRECT_LOWEST ((REAL)1 / ((uint64_t)1 << 32))

/* Whether the logits of a row are in the range of V(exp_direct). */
static INLINE bool V(row_is_direct)(const REAL *z, ptrdiff_t classes) {
    V(int) positions = V(no_positions)();
    for (ptrdiff_t c = 0; c + LANES <= classes; c += LANES) V(exp_direct)(V(load)(z + c), &positions);
    if (classes < LANES)
        V(exp_direct)(V(load_part)(z, classes, 0), &positions);
    else
        V(exp_direct)(V(load)(z + classes - LANES), &positions);
    return V(are_direct)(positions);
}

static INLINE REAL V(target_logit)(const class_task *task, const V(batch) * batch, ptrdiff_t i) {
    const int dtype = task->call.logits.dtype;
    const ptrdiff_t y = (ptrdiff_t)batch->y[i];
    return batch->native ? ((const REAL *)batch->z[i])[y] : V(load_one)(batch->z[i] + y * dtype_size(dtype), dtype);
}

/* Which of n rows from number `first` on are direct, and how many. */
static LOOP ptrdiff_t V(find_direct)(const class_task *task, const V(batch) * batch, ptrdiff_t first, ptrdiff_t n,
                                     bool *direct) {
    const ptrdiff_t classes = task->call.classes;
    ptrdiff_t count = 0;
    for (ptrdiff_t from = 0; from < n; from += LANES) {
        REAL z_y[LANES] = {0};
        const ptrdiff_t rows = n - from < LANES ? n - from : LANES;
        for (ptrdiff_t r = 0; r < rows; r++) z_y[r] = V(target_logit)(task, batch, first + from + r);
        V(int) unused = V(no_positions)();
        const V(vec) e_y = V(exp_direct)(V(load)(z_y), &unused);
        const unsigned low = V(set_lanes)(V(lt)(e_y, V(set)(DIRECT_LOWEST)));
        for (ptrdiff_t r = 0; r < rows; r++) {
            const char *z = batch->z[first + from + r];
            REAL row[ONE_BLOCK_ROW + LANES];
            if (!batch->native) V(load_block)(z, task->call.logits.dtype, classes, 0, row);
            const bool is = !(low >> r & 1) && V(row_is_direct)(batch->native ? (const REAL *)z : row, classes);
            direct[from + r] = is;
            count += is;
        }
    }
    return count;
}

/* Does those that are not. */
static LOOP void V(careful_rows)(const class_task *task, V(batch) * batch, ptrdiff_t first, ptrdiff_t n,
                                 const bool *direct) {
    V(batch) few;
    ptrdiff_t row[LANE_TARGETS], count = 0;
    few.native = batch->native;
    few.streams = false;
    few.scratch = batch->scratch;
    for (ptrdiff_t i = first; i < first + n; i++) {
        few.z[count] = batch->z[i];
        few.grad[count] = batch->grad[i];
        few.y[count] = batch->y[i];
        few.a[count] = batch->a[i];
        few.s[count] = batch->s[i];
        few.g[count] = batch->g[i];
        row[count] = i;
        count += !direct[i - first];
    }
    few.count = count;
    for (ptrdiff_t k = count; k < LANE_TARGETS; k++) few.a[k] = few.s[k] = few.g[k] = 0;
    const bool with_metrics = task->call.metrics != NULL;
    (with_metrics ? V(referenced_metrics) : V(referenced_rows))(task, &few);
    for (ptrdiff_t k = 0; k < count; k++) {
        batch->loss[row[k]] = few.loss[k];
        if (!with_metrics) continue;
        batch->lse[row[k]] = few.lse[k];
        batch->entropy[row[k]] = few.entropy[k];
        batch->ahead[row[k]] = few.ahead[k];
    }
}

/* The exponentials of n numbers, a multiple of LANES. fetched: what to fetch meanwhile, as much; fetched_grad: likewise
 * for writing, or NULL. */
static INLINE V(int) V(direct_exps)(const REAL *z, ptrdiff_t n, REAL *e, const REAL *fetched, const REAL *fetched_grad,
                                    V(int) positions) {
    const ptrdiff_t group = GROUP_BYTES / VEC_BYTES * LANES;
    ptrdiff_t i = 0;
    for (; i + group <= n; i += group) {
        V(prefetch)(fetched + i, group, false);
        if (fetched_grad) V(prefetch)(fetched_grad + i, group, true);
#pragma GCC unroll 16
        for (ptrdiff_t k = i; k < i + group; k += LANES) {
            V(store)(e + k, V(exp_direct)(V(load)(z + k), &positions));
            VEC_SETTLE(positions);
        }
    }
    for (; i < n; i += LANES) V(store)(e + i, V(exp_direct)(V(load)(z + i), &positions));
    return positions;
}

/* How rows are cut into vectors: whole ones from their first class on, and one that ends with their last class, or if
 * there is but one begins with the first. */
typedef struct {
    ptrdiff_t vectors, last; /* last: where the last one begins */
    V(mask) spare;           /* which of its lanes are in the one before as well, or not of the row */
} V(row_shape);

static INLINE V(row_shape) V(shape_of)(ptrdiff_t classes, ptrdiff_t vectors) {
    const V(int) numbers = V(int_load)(V(numbers));
    const V(index) twice = (V(index))(vectors * LANES - classes), count = (V(index))classes;
    if (vectors == 1) return (V(row_shape)){1, 0, V(int_lt)(V(int_set)(count - 1), numbers)};
    return (V(row_shape)){vectors, classes - LANES, V(int_lt)(numbers, V(int_set)(twice))};
}

/* The sum of a row in lanes, in four sums that do not wait for each other. */
static INLINE V(vec) V(direct_sum)(const REAL *e, V(row_shape) shape) {
    V(vec) sum[4] = {V(zero_where)(shape.spare, V(load)(e + shape.last))};
    const ptrdiff_t end = (shape.vectors - 1) * LANES;
    ptrdiff_t i = 0;
    if (end < 3 * LANES) {
        for (; i < end; i += LANES) sum[0] = V(add)(sum[0], V(load)(e + i));
        return sum[0];
    }
    for (ptrdiff_t k = 1; k < 4; k++, i += LANES) sum[k] = V(load)(e + i);
#pragma GCC unroll 4
    for (; i + 4 * LANES <= end; i += 4 * LANES)
        for (ptrdiff_t k = 0; k < 4; k++) sum[k] = V(add)(sum[k], V(load)(e + i + k * LANES));
#pragma GCC unroll 3
    for (ptrdiff_t k = 0; i < end; i += LANES, k++) sum[k] = V(add)(sum[k], V(load)(e + i));
    return V(add)(V(add)(sum[0], sum[1]), V(add)(sum[2], sum[3]));
}

/* By-products of a row, in lanes: the sum of (z - z_y) e, and how many classes rank in front of target y. */
typedef struct {
    V(vec) own, below, moment; /* z_y, and the next number below it */
    V(int) y, ahead;
} V(row_metrics);

/* Adds a vector from class c on. spare: which lanes to leave out, or NULL. e is 0 where the target is. */
static INLINE void V(add_metrics_of)(const REAL *z, const REAL *e, ptrdiff_t c, const V(mask) * spare,
                                     V(row_metrics) * row) {
    const V(vec) value = V(load)(z + c), gap = V(sub)(value, row->own), exps = V(load)(e + c);
    const V(mask) is_earlier = V(int_lt)(V(int_load)(V(numbers) + c), row->y);
    const V(vec) limit = V(select)(is_earlier, row->below, row->own);
    const V(mask) above = V(lt)(limit, spare ? V(select)(*spare, V(set)(-INFINITY), value) : value);
    row->ahead = V(int_count)(above, row->ahead);
    row->moment = V(fma)(gap, spare ? V(zero_where)(*spare, exps) : exps, row->moment);
}

static INLINE V(vec) V(direct_moment)(const REAL *z, const REAL *e, V(row_shape) shape, V(index) y, REAL z_y,
                                      REAL below, V(vec) * ahead) {
    V(row_metrics) row = {V(set)(z_y), V(set)(below), V(set)(0), V(int_set)(y), V(int_set)(0)};
#pragma GCC unroll 16
    for (ptrdiff_t v = 0; v + 1 < shape.vectors; v++) V(add_metrics_of)(z, e, v * LANES, NULL, &row);
    V(add_metrics_of)(z, e, shape.last, &shape.spare, &row);
    *ahead = V(number)(row.ahead);
    return row.moment;
}

/* What is known of several vectors of targets: e^z_y and the sums of the others, for options and by-products z_y, and
 * by-products; and what their gradients need. */
typedef struct {
    V(vec) e_y[LANE_VECTORS], rest[LANE_VECTORS], z_y[LANE_VECTORS], moment[LANE_VECTORS], ahead[LANE_VECTORS];
    REAL factor[LANE_TARGETS], target_grad[LANE_TARGETS];
} V(direct_lanes);

/* Losses and gradients without options and by-products, which need no logit of the target. */
static LOOP void V(finish_direct)(V(batch) * batch, ptrdiff_t first, ptrdiff_t vectors, V(direct_lanes) * lanes) {
    const V(vec) one = V(set)(1);
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        V(finished) f;
        V(finish_scale)(lanes->e_y[v], lanes->rest[v], V(load)(batch->a + at), V(load)(batch->g + at), &f);
        V(store)(lanes->factor + v * LANES, f.factor);
        V(store)(lanes->target_grad + v * LANES, f.target_grad);
    }
    /* In a loop of its own: the operations of one vector wait for each other. */
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        const V(vec) rest = V(div)(lanes->rest[v], lanes->e_y[v]);
        const V(vec) nll = V(log_sum)(one, rest, V(reciprocal)(V(add)(rest, one)));
        V(store)(batch->loss + at, V(mul)(V(load)(batch->s + at), V(mul)(V(load)(batch->a + at), nll)));
    }
}

/* The same with options or by-products: in units of e^z_y, where the target's exponential is 1. */
static LOOP void V(finish_more)(const class_task *task, V(batch) * batch, ptrdiff_t first, ptrdiff_t vectors,
                                bool with_metrics, V(direct_lanes) * lanes) {
    const bool options = V(has_options)(task);
    const V(vec) one = V(set)(1), no_distance = V(set)(0);
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        const V(vec) e_y = lanes->e_y[v], inverse = V(reciprocal)(e_y), z_y = lanes->z_y[v],
                     rest = V(div)(lanes->rest[v], e_y);
        const V(vec) a = V(load)(batch->a + at), s = V(load)(batch->s + at), g = V(load)(batch->g + at);
        V(finished) f;
        V(finish_scale)(one, rest, a, g, &f);
        V(finish)(task, options, z_y, z_y, one, rest, no_distance, a, s, g, &f);
        V(store)(batch->loss + at, f.loss);
        V(store)(lanes->factor + v * LANES, V(mul)(f.factor, inverse));
        V(store)(lanes->target_grad + v * LANES, f.target_grad);
        if (with_metrics)
            V(finish_metrics)(&f, z_y, z_y, one, V(mul)(lanes->moment[v], inverse), lanes->ahead[v], batch->lse + at,
                              batch->entropy + at, batch->ahead + at);
    }
}

/* All rows of a batch. vectors: in a row, where the compiler is to know it; else 0. */
static INLINE void V(direct_rows)(const class_task *task, V(batch) * batch, ptrdiff_t vectors, bool with_grad,
                                  bool with_metrics) {
    const ptrdiff_t classes = task->call.classes, bytes = classes * (ptrdiff_t)sizeof(REAL);
    const V(row_shape) shape = V(shape_of)(classes, vectors ? vectors : (classes + LANES - 1) / LANES);
    const ptrdiff_t whole = shape.vectors * LANES;
    const bool native = batch->native;
    const bool streams = with_grad && native && batch->streams && batch->adjacent && classes >= STREAMED_CLASSES;
    /* Of many rows at a time, each step's operations wait less for those of the step before; streamed gradients are
     * written in short bursts. */
    const ptrdiff_t wanted = LANES * (streams ? 2 : shape.vectors <= 2 ? LANE_VECTORS : 4);
    const ptrdiff_t most = ROW_STAGE / whole / LANES * LANES, at_once = wanted < most ? wanted : most;
    const ptrdiff_t fetched = PAGE_BYTES / (ptrdiff_t)sizeof(REAL);
    _Alignas(LINE_BYTES) REAL stage[ROW_STAGE];
    const bool options = V(has_options)(task);
    REAL e_y[LANE_TARGETS], z_y[LANE_TARGETS], below[LANES];
    V(index) y[LANE_TARGETS];
    ptrdiff_t at[LANE_TARGETS]; /* where the target is in the stage */
    V(direct_lanes) lanes;
    for (ptrdiff_t first = 0, n; first < batch->count; first += n) {
        n = batch->count - first < at_once ? batch->count - first : at_once;
        const ptrdiff_t groups = (n + LANES - 1) / LANES, padded = groups * LANES;
        bool direct[LANE_TARGETS];
        if (batch->is_careful && V(find_direct)(task, batch, first, n, direct) == 0) {
            V(careful_rows)(task, batch, first, n, direct);
            continue;
        }
        /* Rows that lie behind each other are taken where they are; by-products read whole vectors again. */
        const bool unpacked = native && batch->adjacent && n == padded && !(with_metrics && classes < LANES);
        REAL *packed = with_metrics ? batch->waiting : stage;
        if (!unpacked) V(pack_rows)(task, batch->z + first, n, padded, packed);
        const REAL *z = unpacked ? (const REAL *)batch->z[first] : packed;
        V(int) positions = V(no_positions)();
        if (streams) {
            /* A few hundred bytes at a time. */
            const ptrdiff_t step = classes > 64 ? 1 : 4;
            for (ptrdiff_t r = 0, i = 0, end; r < padded; r += step, i = end) {
                end = (r + step < padded ? r + step : padded) * classes / LANES * LANES;
                positions = V(direct_exps)(z + i, end - i, stage + i, z + i + fetched, NULL, positions);
                V(stream_waiting)(task, batch, r + step);
            }
            V(stream_waiting)(task, batch, batch->scaled);
        } else {
            const REAL *grad = with_grad && unpacked ? (const REAL *)batch->grad[first] : NULL;
            positions = V(direct_exps)(z, padded * classes, stage, z + fetched, grad, positions);
        }
        for (ptrdiff_t r = 0; r < n; r++) at[r] = r * classes + (ptrdiff_t)batch->y[first + r];
        for (ptrdiff_t r = n; r < padded; r++) at[r] = r * classes;
        for (ptrdiff_t r = 0; with_metrics && r < padded; r++) y[r] = (V(index))(at[r] - r * classes);
#pragma GCC unroll 8
        for (ptrdiff_t r = 0; r < padded; r++) {
            e_y[r] = stage[at[r]];
            stage[at[r]] = 0; /* set aside */
            if (with_metrics) z_y[r] = z[at[r]];
        }
        for (ptrdiff_t r = 0; options && !with_metrics && r < padded; r++)
            z_y[r] = V(target_logit)(task, batch, first + (r < n ? r : 0));
        V(vec) lowest = V(set)(INFINITY);
        for (ptrdiff_t v = 0; v < groups; v++) {
            V(vec) sum[LANES], moment[LANES], ahead[LANES];
            if (options || with_metrics) lanes.z_y[v] = V(load)(z_y + v * LANES);
            if (with_metrics) V(store)(below, V(below)(lanes.z_y[v]));
            for (ptrdiff_t r = 0; !with_metrics && r < LANES; r++)
                sum[r] = V(direct_sum)(stage + (v * LANES + r) * classes, shape);
            for (ptrdiff_t r = 0; with_metrics && r < LANES; r++) {
                const ptrdiff_t row = v * LANES + r, from = row * classes;
                sum[r] = V(direct_sum)(stage + from, shape);
                moment[r] = V(direct_moment)(z + from, stage + from, shape, y[row], z_y[row], below[r], &ahead[r]);
            }
            lanes.e_y[v] = V(load)(e_y + v * LANES);
            lowest = V(min)(lowest, lanes.e_y[v]);
            lanes.rest[v] = V(rows_sum)(sum);
            if (with_metrics) lanes.moment[v] = V(rows_sum)(moment);
            if (with_metrics) lanes.ahead[v] = V(rows_sum)(ahead);
        }
        const bool all = V(are_direct)(positions) && !V(any)(V(lt)(lowest, V(set)(DIRECT_LOWEST)));
        if (options || with_metrics)
            V(finish_more)(task, batch, first, groups, with_metrics, &lanes);
        else
            V(finish_direct)(batch, first, groups, &lanes);
        if (!all) {
            batch->is_careful = V(find_direct)(task, batch, first, n, direct) == 0;
            V(careful_rows)(task, batch, first, n, direct);
        }
        if (!with_grad) continue;
        const bool unstaged = unpacked && !streams && all;
        REAL *to = unstaged ? (REAL *)batch->grad[first] : batch->waiting;
        /* Rows of less than a vector are written past their ends, into the rows behind, if there are any. */
        const ptrdiff_t followed = unstaged && shape.vectors == 1 ? n - (LANES - 1) / classes : n;
#pragma GCC unroll 4
        for (ptrdiff_t r = 0; r < followed; r++) {
            V(scale_row)(to + r * classes, stage + r * classes, shape.last, whole, lanes.factor[r], NULL);
            to[at[r]] = lanes.target_grad[r];
        }
        for (ptrdiff_t r = followed; r < n; r++) {
            REAL row[LANES];
            V(scale_row)(row, stage + r * classes, shape.last, whole, lanes.factor[r], NULL);
            row[batch->y[first + r]] = lanes.target_grad[r];
            memcpy(to + r * classes, row, (size_t)bytes);
        }
        if (unstaged) continue;
        if (streams && all) {
            stream_from(&batch->stream, batch->grad[first]);
            batch->streamed = 0;
            batch->scaled = n;
        } else if (all) {
            V(unpack_rows)(task, batch->waiting, n, batch->grad + first);
        } else {
            for (ptrdiff_t r = 0; r < n; r++)
                if (direct[r]) V(store_block)(batch->grad[first + r], task->call.grad.dtype, classes, to + r * classes);
        }
    }
}

/* The forms, each a function of its own: their loops need all registers for constants. */
#undef DIRECT_VECTORS
#undef DIRECT_FORM
#undef DIRECT_FORMS
#undef DIRECT_FORM_NAMES
#undef DIRECT_FORM_NAMES_4
#define DIRECT_FORM(vectors)                                                                   \
    static LOOP void V(direct_##vectors##_grad)(const class_task *task, V(batch) * batch) {    \
        V(direct_rows)(task, batch, vectors, true, false);                                     \
    }                                                                                          \
    static LOOP void V(direct_##vectors##_loss)(const class_task *task, V(batch) * batch) {    \
        V(direct_rows)(task, batch, vectors, false, false);                                    \
    }                                                                                          \
    static LOOP void V(direct_##vectors##_metrics)(const class_task *task, V(batch) * batch) { \
        V(direct_rows)(task, batch, vectors, false, true);                                     \
    }
#define DIRECT_FORMS(a, b, c, d) DIRECT_FORM(a) DIRECT_FORM(b) DIRECT_FORM(c) DIRECT_FORM(d)
#define DIRECT_FORM_NAMES(n) {V(direct_##n##_loss), V(direct_##n##_grad), V(direct_##n##_metrics)}
#define DIRECT_FORM_NAMES_4(a, b, c, d)                                                    \
    DIRECT_FORM_NAMES(a), DIRECT_FORM_NAMES(b), DIRECT_FORM_NAMES(c), DIRECT_FORM_NAMES(d)
DIRECT_FORM(0)
DIRECT_FORMS(1, 2, 3, 4)
#if WORKING_TYPE == 64 || VEC_BYTES == 16
#define DIRECT_VECTORS 4
#else
/* Rows of up to 128 classes. */
DIRECT_FORMS(5, 6, 7, 8)
#if VEC_BYTES == 64
#define DIRECT_VECTORS 8
#else
DIRECT_FORMS(9, 10, 11, 12)
DIRECT_FORMS(13, 14, 15, 16)
#define DIRECT_VECTORS 16
#endif
#endif

static void V(direct_batch)(const class_task *task, V(batch) * batch) {
    enum { LOSS, GRAD, METRICS };
    typedef void (*direct_form)(const class_task *, V(batch) *);
    /* 0: of any number of vectors. */
    static const direct_form forms[1 + DIRECT_VECTORS][3] = {
        DIRECT_FORM_NAMES(0),
        DIRECT_FORM_NAMES_4(1, 2, 3, 4),
#if DIRECT_VECTORS >= 8
        DIRECT_FORM_NAMES_4(5, 6, 7, 8),
#endif
#if DIRECT_VECTORS >= 16
        DIRECT_FORM_NAMES_4(9, 10, 11, 12),
        DIRECT_FORM_NAMES_4(13, 14, 15, 16),
#endif
    };
    const ptrdiff_t vectors = (task->call.classes + LANES - 1) / LANES;
    const int purpose = task->call.metrics ? METRICS : task->call.grad.data ? GRAD : LOSS;
    REAL waiting[ROW_STAGE];
    batch->waiting = waiting;
    batch->streamed = batch->scaled = 0;
    forms[vectors <= DIRECT_VECTORS ? vectors : 0][purpose](task, batch);
    V(stream_waiting)(task, batch, batch->scaled);
}

/* All rows of a batch from class indices. */
static void V(index_rows)(const class_task *task, V(batch) * batch) {
    if (task->call.label_smoothing == 0 && task->call.classes <= ONE_BLOCK_ROW)
        V(direct_batch)(task, batch);
    else if (task->call.metrics)
        V(referenced_metrics)(task, batch);
    else
        V(referenced_rows)(task, batch);
}

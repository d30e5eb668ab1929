/* Rows of few classes, several of them at a time. Included once per working type.
 *
 * Where logits are neither large nor small, rows are direct: their exponentials are those of the logits themselves, so
 * that none waits for a maximum, and the classes of several rows are one loop, wherever in a vector rows begin. With
 * e_y = e^z_y and "rest" the sum of the other classes' exponentials,
 *
 *     nll = log1p(rest / e_y),     grad_c = e^z_c g a / (rest + e_y),     grad_y = -g a rest / (rest + e_y)
 *
 * Other rows, and all where labels are smoothed by more than half, have their maximum for a reference: see
 * cross_entropy.h. Which of the two a row is depends on no other row: where not all of those that are done together are
 * direct, their exponentials are made row by row, and those that are direct get the same bits. */

#undef ONE_BLOCK_ROW
#undef ROW_STAGE
#undef CACHED_BYTES
#undef STREAMED_CLASSES
#undef DIRECT_LOWEST
#undef QUAD
#undef TRANSPOSED_CLASSES
/* Of longer rows, the exponentials of as many rows as a vector has lanes would not stay in the first-level cache. */
#define ONE_BLOCK_ROW 384
#define ROW_STAGE (LANES * (ONE_BLOCK_ROW + LANES))
/* Of rows that are done together, with their exponentials and gradients: they stay in a first-level cache of 32 KiB. */
#define CACHED_BYTES (27 << 10)
/* From here on, rows are streamed: of fewer classes, putting them together costs more than memory spares. */
#define STREAMED_CLASSES (VEC_BYTES == 64 ? 8 : 16)
/* Up to here, by-products are quicker with a row in each lane than with a class in each. */
#define TRANSPOSED_CLASSES (LANES * 3 / 2)
/* Elements in 16 bytes. */
#define QUAD ((ptrdiff_t)(16 / sizeof(REAL)))
/* The least e_y of a direct row. With it rest / e_y is below 2^75, so that on the way to a gradient no factor of it is
 * a subnormal number, as long as g a is not below 2^-50. */
#define DIRECT_LOWEST ((REAL)1 / ((uint64_t)1 << 32))

/* ---- Rows in memory ---------------------------------------------------------------------------------------------- */

/* Whether n rows of so many bytes lie behind each other. */
static INLINE bool V(adjacent)(char *const row[], ptrdiff_t n, ptrdiff_t bytes) {
    ptrdiff_t gaps = 0;
    for (ptrdiff_t i = 1; i < n; i++) gaps |= row[i] - row[i - 1] - bytes;
    return gaps == 0;
}

/* Rows of any type and distance behind each other, rows of 0 where there are no more; and back. Those that lie behind
 * each other already are one part. `packed` has room for another vector. */
static LOOP void V(pack_rows)(const class_task *task, char *const row[], ptrdiff_t n, ptrdiff_t padded, REAL *packed) {
    const ptrdiff_t classes = task->call.classes;
    const int dtype = task->call.logits.dtype;
    const ptrdiff_t parts = V(adjacent)(row, n, classes * dtype_size(dtype)) ? 1 : n, part = n / parts * classes;
    for (ptrdiff_t i = 0; i < parts; i++) V(load_block)(row[i], dtype, part, 0, packed + i * part);
    memset(packed + n * classes, 0, (size_t)((padded - n) * classes) * sizeof(REAL));
}
static LOOP void V(unpack_rows)(const class_task *task, const REAL *packed, ptrdiff_t n, char *const row[]) {
    const ptrdiff_t classes = task->call.classes;
    const int dtype = task->call.grad.dtype;
    const ptrdiff_t parts = V(adjacent)(row, n, classes * dtype_size(dtype)) ? 1 : n, part = n / parts * classes;
    for (ptrdiff_t i = 0; i < parts; i++) V(store_block)(row[i], dtype, part, packed + i * part);
}

/* Streams waiting rows up to number `end`; where others follow, only up to the end of a line. */
static INLINE void V(stream_waiting)(const class_task *task, V(batch) * batch, ptrdiff_t end) {
    const ptrdiff_t classes = task->call.classes, size = (ptrdiff_t)sizeof(REAL);
    ptrdiff_t n = (end < batch->scaled ? end : batch->scaled) * classes - batch->streamed;
    if (end < batch->scaled) n -= (ptrdiff_t)((uintptr_t)(batch->stream.next + n * size) % LINE_BYTES) / size;
    if (n <= 0) return;
    stream_next(&batch->stream, batch->waiting + batch->streamed, n * size);
    batch->streamed += n;
}

/* How rows are cut into vectors: whole ones from their first class on, and one that ends with their last class, or if
 * there is but one begins with the first. */
typedef struct {
    ptrdiff_t classes, vectors, last; /* last: where the last one begins */
    V(mask) spare;                    /* which of its lanes are in the one before as well, or not of the row */
} V(row_shape);

static INLINE V(row_shape) V(shape_of)(ptrdiff_t classes, ptrdiff_t vectors) {
    const V(int) numbers = V(int_load)(V(numbers));
    const V(index) twice = (V(index))(vectors * LANES - classes), count = (V(index))classes;
    if (vectors == 1) return (V(row_shape)){classes, 1, 0, V(int_lt)(V(int_set)(count - 1), numbers)};
    return (V(row_shape)){classes, vectors, classes - LANES, V(int_lt)(numbers, V(int_set)(twice))};
}

/* The last vector of a row of logits, of which nothing behind the row is read. */
static INLINE V(vec) V(load_last)(const REAL *z, V(row_shape) shape) {
    return shape.vectors == 1 ? V(load_part)(z, shape.classes, 0) : V(load)(z + shape.last);
}

/* Rows of at most one vector, as many as a vector has lanes: they are as many vectors as there are classes. Numbers of
 * lanes are such as V(permute) takes. */
typedef struct {
    ptrdiff_t slots;      /* a power of 2: so many lanes each row of half a vector and less has when it is summed, */
    V(vec) from;          /* filled from these lanes, */
    V(mask) unused;       /* but those that hold no class */
    V(vec) row_of[LANES]; /* of vector i of the rows, which row each lane belongs to */
} V(few_classes);

/* The whole part of n / divisor in the lowest bits, and as a number. */
static INLINE V(vec) V(quotient)(V(vec) n, ptrdiff_t divisor, V(vec) * number) {
    const V(vec) inverse = V(set)((REAL)1 / (REAL)divisor), round = V(set)((REAL)EXP_ROUND);
    const V(vec) bits = V(add)(V(fma)(n, inverse, V(set)((REAL)0.5 / (REAL)divisor - (REAL)0.5)), round);
    *number = V(sub)(bits, round);
    return bits;
}

static LOOP void V(few_classes_of)(ptrdiff_t classes, bool with_grad, V(few_classes) * few) {
    const V(vec) first = V(number)(V(int_load)(V(numbers)));
    V(vec) row;
    few->slots = classes <= 2 ? classes : classes <= 4 ? 4 : 8;
    V(quotient)(first, few->slots, &row);
    const V(vec) class = V(fnma)(row, V(set)((REAL)few->slots), first);
    few->unused = V(lt)(V(set)((REAL)classes - (REAL)0.5), class);
    few->from = V(add)(V(fma)(row, V(set)((REAL)classes), class), V(set)((REAL)EXP_ROUND));
    for (ptrdiff_t i = 0; with_grad && i < classes; i++)
        few->row_of[i] = V(quotient)(V(add)(first, V(set)((REAL)(i * LANES))), classes, &row);
}

/* What is known of several vectors of rows. */
typedef struct {
    V(vec) rest[LANE_VECTORS];
    V(vec) distance[LANE_VECTORS], moment[LANE_VECTORS], ahead[LANE_VECTORS]; /* options' and by-products' */
    V(index) y[LANE_TARGETS];                                                 /* for by-products */
    V(mask) is_direct[LANE_VECTORS];                                          /* of rows that are done row by row */
    REAL m[LANE_TARGETS]; /* in whose units losses are finished: z_y of direct rows, of others the maximum */
    REAL z_y[LANE_TARGETS], e_y[LANE_TARGETS], factor[LANE_TARGETS], target_grad[LANE_TARGETS], shift[LANE_TARGETS];
} V(row_lanes);

/* ---- Exponentials ------------------------------------------------------------------------------------------------ */

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
/* A function of its own, beside by-products, which need the registers. */
static LOOP V(int) V(direct_exps_apart)(const REAL *z, ptrdiff_t n, REAL *e, const REAL *fetched) {
    return V(direct_exps)(z, n, e, fetched, NULL, V(no_positions)());
}

/* Those of LANES rows from number `first` on, row by row: of direct ones as they are, of others less the maximum, and
 * scaled by 2^EXP_SCALE_BITS. z, e: the first of these rows. Returns whether all are direct; `never`: none is. */
static INLINE bool V(referenced_exps)(const REAL *z, REAL *e, V(row_shape) shape, const REAL *fetched,
                                      const REAL *fetched_grad, bool never, ptrdiff_t first, V(row_lanes) * lanes) {
    REAL minus[LANES], origin[LANES];
    V(vec) high[LANES], minus_low[LANES];
    for (ptrdiff_t r = 0; r < LANES; r++) {
        const REAL *row = z + r * shape.classes;
        const V(vec) last = V(load_last)(row, shape);
        V(vec) low = shape.vectors == 1 ? V(select)(shape.spare, V(set)(INFINITY), last) : last;
        high[r] = shape.vectors == 1 ? V(select)(shape.spare, V(set)(-INFINITY), last) : last;
        for (ptrdiff_t k = 0; k + 1 < shape.vectors; k++) {
            high[r] = V(max)(high[r], V(load)(row + k * LANES));
            low = V(min)(low, V(load)(row + k * LANES));
        }
        minus_low[r] = V(sub)(V(set)(0), low);
    }
    const V(vec) zero = V(set)(0), highest = V(rows_max)(high), z_y = V(load)(lanes->z_y + first);
    /* A row is direct where its highest and its lowest logit are in range, and the target is not too low: if it is, an
     * infinity stands in for the lowest. */
    V(int) unused = V(no_positions)(), positions = never ? V(int_set)(-1) : V(no_positions)();
    const V(mask) is_low = V(lt)(V(exp_direct)(z_y, &unused), V(set)(DIRECT_LOWEST));
    V(exp_direct)(highest, &positions);
    V(exp_direct)(V(select)(is_low, V(set)(-INFINITY), V(sub)(zero, V(rows_max)(minus_low))), &positions);
    const V(mask) is_direct = V(direct_lanes)(positions);
    const V(vec) scaled = V(exp_origin)(EXP_STEPS, EXP_SCALE_BITS), unscaled = V(exp_origin)(EXP_STEPS, 0);
    lanes->is_direct[first / LANES] = is_direct;
    V(store)(lanes->m + first, V(select)(is_direct, z_y, highest));
    V(store)(minus, V(zero_where)(is_direct, V(sub)(zero, highest)));
    V(store)(origin, V(select)(is_direct, unscaled, scaled));
    for (ptrdiff_t r = 0; r < LANES; r++) {
        const V(vec) minus_m = V(set)(minus[r]), from = V(set)(origin[r]);
        for (ptrdiff_t k = 0; k < shape.vectors; k++) {
            const bool is_last = k + 1 == shape.vectors;
            const ptrdiff_t row = r * shape.classes, i = row + (is_last ? shape.last : k * LANES);
            const V(vec) x = V(add)(minus_m, is_last ? V(load_last)(z + row, shape) : V(load)(z + i));
            __builtin_prefetch(fetched + i);
            if (fetched_grad) __builtin_prefetch(fetched_grad + i, 1);
            V(store)(e + i, V(exp_from)(V(exp_floor)(x, EXP_SCALE_BITS), from));
        }
    }
    return V(set_lanes)(is_direct) == ALL_LANES;
}
/* Of rows of few vectors the loops gain from a known length. */
#undef REFERENCED_FORM
#define REFERENCED_FORM(n)                                                                                            \
    static LOOP bool V(referenced_##n)(const REAL *z, REAL *e, V(row_shape) shape, const REAL *fetched,               \
                                       const REAL *fetched_grad, bool never, ptrdiff_t first, V(row_lanes) * lanes) { \
        if (n > 0) shape.vectors = n;                                                                                 \
        return V(referenced_exps)(z, e, shape, fetched, fetched_grad, never, first, lanes);                           \
    }
REFERENCED_FORM(0)
REFERENCED_FORM(1)
REFERENCED_FORM(2)
REFERENCED_FORM(3)
REFERENCED_FORM(4)

/* Where labels are smoothed, sum_c (z_y - z_c) may be below 0, and take from the loss of a direct row what others of
 * its parts hold: up to s / (1 - s) times the loss, so that smoothing by no more than half costs no digits. */
static INLINE bool V(is_never_direct)(const class_task *task) { return task->call.label_smoothing > 0.5; }

/* Those of n rows, and as many more of zeros as make whole groups. grad: what will be written, or NULL. */
static LOOP void V(referenced_group)(const class_task *task, V(batch) * batch, ptrdiff_t first, ptrdiff_t n,
                                     const REAL *z, const REAL *grad, V(row_shape) shape, REAL *e,
                                     V(row_lanes) * lanes) {
    static bool (*const forms[])(const REAL *, REAL *, V(row_shape), const REAL *, const REAL *, bool, ptrdiff_t,
                                 V(row_lanes) *) = {V(referenced_0), V(referenced_1), V(referenced_2), V(referenced_3),
                                                    V(referenced_4)};
    const ptrdiff_t form = shape.vectors <= 4 ? shape.vectors : 0, fetched = PAGE_BYTES / (ptrdiff_t)sizeof(REAL);
    const bool never = V(is_never_direct)(task);
    bool all_direct = true;
    for (ptrdiff_t r = 0; r < n; r++) lanes->z_y[r] = z[r * shape.classes + (ptrdiff_t)batch->y[first + r]];
    for (ptrdiff_t r = n; r % LANES > 0; r++) lanes->z_y[r] = z[r * shape.classes];
    for (ptrdiff_t r = 0, i = 0; r < n; r += LANES, i += LANES * shape.classes) {
        all_direct &= forms[form](z + i, e + i, shape, z + i + fetched, grad ? grad + i : NULL, never, r, lanes);
        V(stream_waiting)(task, batch, r + LANES);
    }
    batch->referenced = !all_direct;
}

/* The sum of a row in lanes, in four sums that do not wait for each other. */
static INLINE V(vec) V(row_sum)(const REAL *e, V(row_shape) shape) {
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

/* Whether a vector holds several rows. */
static INLINE bool V(is_few)(V(row_shape) shape) { return shape.vectors == 1 && shape.classes <= LANES / 2; }

/* The sums of LANES rows of so many slots. */
static INLINE V(vec) V(few_sums)(const REAL *e, ptrdiff_t classes, const V(few_classes) * few, ptrdiff_t slots) {
    V(vec) sum[8];
    for (ptrdiff_t k = 0; k < slots; k++) {
        const V(vec) rows = V(load)(e + k * (LANES / slots) * classes);
        sum[k] = V(zero_where)(few->unused, V(permute)(rows, few->from));
    }
#pragma GCC unroll 3
    for (ptrdiff_t n = slots / 2; n > 0; n /= 2)
        for (ptrdiff_t k = 0; k < n; k++) sum[k] = V(fold)(sum[2 * k], sum[2 * k + 1]);
    return sum[0];
}

static INLINE V(vec) V(sums_of_few)(const REAL *e, ptrdiff_t classes, const V(few_classes) * few) {
    if (LANES >= 16 && few->slots == 8) return V(few_sums)(e, classes, few, 8);
    if (LANES >= 8 && few->slots == 4) return V(few_sums)(e, classes, few, 4);
    if (LANES >= 4 && few->slots == 2) return V(few_sums)(e, classes, few, 2);
    return V(load)(e); /* one class */
}

/* Of LANES rows of any number of classes. */
static INLINE V(vec) V(sums_of_rows)(const REAL *e, V(row_shape) shape, const V(few_classes) * few) {
    if (V(is_few)(shape)) return V(sums_of_few)(e, shape.classes, few);
    V(vec) sum[LANES];
    for (ptrdiff_t k = 0; k < LANES; k++) sum[k] = V(row_sum)(e + k * shape.classes, shape);
    return V(rows_sum)(sum);
}

/* The sum of m - z_c of a row, in lanes. */
static INLINE V(vec) V(row_distance)(const REAL *z, V(row_shape) shape, REAL m) {
    const V(vec) from = V(set)(m);
    V(vec) sum = V(zero_where)(shape.spare, V(sub)(from, V(load_last)(z, shape)));
    for (ptrdiff_t k = 0; k + 1 < shape.vectors; k++) sum = V(add)(sum, V(sub)(from, V(load)(z + k * LANES)));
    return sum;
}

/* By-products of a row, in lanes: the sum of (z - m) e, and how many classes rank in front of target y. */
typedef struct {
    V(vec) m, own, below, moment; /* own: z_y; below: the next number below it */
    V(int) y, ahead;
} V(row_metrics);

/* Adds a vector of logits, from class c on, and their exponentials, 0 for the target. Where z - m is clamped, a moment
 * takes the bound for it, so that no 0 meets an infinity. */
static INLINE void V(add_metrics_of)(V(vec) z, V(vec) exps, ptrdiff_t c, bool clamps, V(row_metrics) * row) {
    const V(vec) x = V(sub)(z, row->m), gap = clamps ? V(exp_floor)(x, EXP_SCALE_BITS) : x;
    const V(mask) is_earlier = V(int_lt)(V(int_load)(V(numbers) + c), row->y);
    row->ahead = V(int_count)(V(lt)(V(select)(is_earlier, row->below, row->own), z), row->ahead);
    row->moment = V(fma)(gap, exps, row->moment);
}

/* By-products and sums of LANES rows from number `first` on. z, e: the first of all rows. m: what moments refer to. */
static INLINE void V(group_metrics)(const REAL *z, const REAL *e, V(row_shape) shape, const REAL *m, bool clamps,
                                    ptrdiff_t first, const V(few_classes) * few, V(row_lanes) * lanes) {
    V(vec) moment[LANES], ahead[LANES];
    REAL below[LANES];
    V(store)(below, V(below)(V(load)(lanes->z_y + first)));
    for (ptrdiff_t k = 0; k < LANES; k++) {
        const ptrdiff_t r = first + k, i = r * shape.classes;
        V(row_metrics) row;
        row.m = V(set)(m[r]);
        row.own = V(set)(lanes->z_y[r]);
        row.below = V(set)(below[k]);
        row.moment = V(set)(0);
        row.y = V(int_set)(lanes->y[r]);
        row.ahead = V(int_set)(0);
#pragma GCC unroll 16
        for (ptrdiff_t c = 0; c < (shape.vectors - 1) * LANES; c += LANES)
            V(add_metrics_of)(V(load)(z + i + c), V(load)(e + i + c), c, clamps, &row);
        /* What ranks last; -inf would make NaN of 0, unless it is clamped. */
        const V(vec) none = V(set)(clamps ? -INFINITY : REAL_LOWEST);
        const V(vec) last = V(select)(shape.spare, none, V(load_last)(z + i, shape));
        const V(vec) exps = V(zero_where)(shape.spare, V(load)(e + i + shape.last));
        V(add_metrics_of)(last, exps, shape.last, clamps, &row);
        moment[k] = row.moment;
        ahead[k] = V(number)(row.ahead);
    }
    lanes->rest[first / LANES] = V(sums_of_rows)(e + first * shape.classes, shape, few);
    lanes->moment[first / LANES] = V(rows_sum)(moment);
    lanes->ahead[first / LANES] = V(rows_sum)(ahead);
}
static LOOP void V(referenced_metrics)(const REAL *z, const REAL *e, V(row_shape) shape, ptrdiff_t first,
                                       const V(few_classes) * few, V(row_lanes) * lanes) {
    V(group_metrics)(z, e, shape, lanes->m, true, first, few, lanes);
}

/* ---- By-products of rows of few classes: transposed -------------------------------------------------------------- */

/* The classes of LANES rows that lie behind each other, a vector each. Row QUAD * i + k is in the i-th quad of vector
 * k. `last`: nothing behind the rows may be read. */
static INLINE void V(transpose)(const REAL *rows, ptrdiff_t classes, bool last, V(vec) * z) {
    REAL few[LANES * QUAD];
    if (classes < QUAD && last) { /* the last row has no whole quad */
        memcpy(few, rows, (size_t)(LANES * classes) * sizeof(REAL));
        rows = few;
    }
    for (ptrdiff_t c = 0; c < classes; c += QUAD) {
        /* The last quad of a row overlaps the one before rather than be a part. */
        const ptrdiff_t from = c + QUAD <= classes ? c : classes < QUAD ? 0 : classes - QUAD;
        V(vec) v[QUAD];
        for (ptrdiff_t k = 0; k < QUAD; k++) v[k] = V(load_quads)(rows + k * classes + from, QUAD * classes);
        V(transpose_quads)(v);
        for (ptrdiff_t k = 0; k < QUAD && from + k < classes; k++) z[from + k] = v[k];
    }
}

/* The sums of rows, less than two vectors each, whose classes are in e, which is not kept: V(sums_of_rows) of the same,
 * bit by bit. */
static INLINE V(vec) V(sum_of_classes)(V(vec) * e, ptrdiff_t classes) {
    const ptrdiff_t second = classes - LANES; /* where the second vector begins */
    ptrdiff_t width = 1;
    for (ptrdiff_t c = LANES; c < classes; c++) e[c - second] = V(add)(e[c], e[c - second]);
    while (width < classes && width < LANES) width *= 2;
    for (ptrdiff_t c = classes; c < width; c++) e[c] = V(set)(0);
    for (ptrdiff_t n = width / 2; n > 0; n /= 2)
        for (ptrdiff_t k = 0; k < n; k++) e[k] = V(add)(e[2 * k], e[2 * k + 1]);
    return e[0];
}

/* By-products and sums of n rows, whole groups, that may be direct. Returns the positions. */
static INLINE V(int)
    V(transposed_rows)(const REAL *rows, ptrdiff_t classes, ptrdiff_t n, const REAL *fetched, V(row_lanes) * lanes) {
    V(int) positions = V(no_positions)();
    for (ptrdiff_t first = 0; first < n; first += LANES, rows += LANES * classes, fetched += LANES * classes) {
        const V(int) y = V(int_load)(lanes->y + first);
        V(vec) z[TRANSPOSED_CLASSES], e[TRANSPOSED_CLASSES], z_y = V(set)(0), moment = z_y;
        V(int) ahead = V(int_set)(0);
        V(prefetch)(fetched, LANES * classes, false);
        V(transpose)(rows, classes, first + LANES == n, z);
        /* Numbers of classes are loaded into all lanes, by what compares them. */
        for (ptrdiff_t c = 0; c < classes; c++) z_y = V(select)(V(int_eq)(y, V(int_set)(V(numbers)[c])), z[c], z_y);
        V(vec) limit = V(below)(z_y);
        for (ptrdiff_t c = 0; c < classes; c++) {
            const V(mask) is_target = V(int_eq)(y, V(int_set)(V(numbers)[c]));
            e[c] = V(zero_where)(is_target, V(exp_direct)(z[c], &positions));
            /* Of equal logits those before the target's class rank in front. */
            limit = V(select)(is_target, z_y, limit);
            ahead = V(int_count)(V(lt)(limit, z[c]), ahead);
            moment = V(fma)(V(sub)(z[c], z_y), e[c], moment);
        }
        V(store)(lanes->z_y + first, z_y);
        V(store)(lanes->e_y + first, V(exp_direct)(z_y, &positions));
        lanes->rest[first / LANES] = V(sum_of_classes)(e, classes);
        lanes->moment[first / LANES] = moment;
        lanes->ahead[first / LANES] = V(number)(ahead);
    }
    return positions;
}
/* Of so few classes that they stay in registers, where their number is known. */
#undef TRANSPOSED_FORM
#define TRANSPOSED_FORM(known)                                                                                      \
    static LOOP V(int) V(transposed_##known)(const REAL *rows, ptrdiff_t classes, ptrdiff_t n, const REAL *fetched, \
                                             V(row_lanes) * lanes) {                                                \
        if (known > 0 && known <= TRANSPOSED_CLASSES) classes = known;                                              \
        return V(transposed_rows)(rows, classes, n, fetched, lanes);                                                \
    }
TRANSPOSED_FORM(0)
TRANSPOSED_FORM(2)
TRANSPOSED_FORM(3)
TRANSPOSED_FORM(4)
TRANSPOSED_FORM(5)
TRANSPOSED_FORM(6)
TRANSPOSED_FORM(7)
TRANSPOSED_FORM(8)
TRANSPOSED_FORM(9)
TRANSPOSED_FORM(10)
static V(int)
    V(transposed_metrics)(const REAL *rows, ptrdiff_t classes, ptrdiff_t n, const REAL *fetched, V(row_lanes) * lanes) {
    static V(int) (*const forms[])(const REAL *, ptrdiff_t, ptrdiff_t, const REAL *, V(row_lanes) *) = {
        V(transposed_0), V(transposed_0), V(transposed_2), V(transposed_3), V(transposed_4), V(transposed_5),
        V(transposed_6), V(transposed_7), V(transposed_8), V(transposed_9), V(transposed_10)};
    return forms[classes <= 10 ? classes : 0](rows, classes, n, fetched, lanes);
}

/* ---- Losses and gradients ---------------------------------------------------------------------------------------- */

/* Of direct rows without options and by-products, which need no logit of the target. */
static LOOP void V(finish_direct)(const class_task *task, V(batch) * batch, ptrdiff_t first, ptrdiff_t vectors,
                                  V(row_lanes) * lanes) {
    const bool weighted = task->call.sample_weight;
    const V(vec) one = V(set)(1);
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        V(finished) f;
        const V(vec) e_y = V(load)(lanes->e_y + v * LANES);
        V(finish_scale)(e_y, lanes->rest[v], V(load)(batch->a + at), V(load)(batch->g + at), &f);
        V(store)(lanes->factor + v * LANES, f.factor);
        V(store)(lanes->target_grad + v * LANES, f.target_grad);
    }
    /* In a loop of its own: the operations of one vector wait for each other. */
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        const V(vec) rest = V(div)(lanes->rest[v], V(load)(lanes->e_y + v * LANES));
        const V(vec) nll = V(log_sum)(one, rest, V(reciprocal)(V(add)(rest, one)));
        const V(vec) s = V(load)(batch->s + at), loss = V(mul)(V(load)(batch->a + at), nll);
        V(store)(batch->loss + at, weighted ? V(mul)(s, V(zero_times)(s, loss)) : loss);
    }
}

/* Of any rows. Direct ones are in units of e^z_y, where the target's exponential is 1. */
static LOOP void V(finish_any)(const class_task *task, V(batch) * batch, ptrdiff_t first, ptrdiff_t vectors,
                               bool referenced, bool with_metrics, V(row_lanes) * lanes) {
    const bool options = V(has_options)(task), smooth = task->call.label_smoothing > 0;
    const V(vec) scale = V(set)((REAL)((uint64_t)1 << EXP_SCALE_BITS));
    for (ptrdiff_t v = 0; v < vectors; v++) {
        const ptrdiff_t at = first + v * LANES;
        const V(vec) z_y = V(load)(lanes->z_y + v * LANES),
                     m = V(load)((referenced ? lanes->m : lanes->z_y) + v * LANES);
        const V(vec) exp_y = V(load)(lanes->e_y + v * LANES);
        const V(vec) unit = referenced ? V(select)(lanes->is_direct[v], exp_y, scale) : exp_y;
        const V(vec) inverse = V(reciprocal)(unit), rest = V(div)(lanes->rest[v], unit);
        const V(vec) e_y = referenced ? V(div)(exp_y, unit) : V(set)(1);
        const V(vec) a = V(load)(batch->a + at), s = V(load)(batch->s + at), g = V(load)(batch->g + at);
        const V(vec) distance = smooth ? lanes->distance[v] : V(set)(0);
        V(finished) f;
        V(finish_scale)(e_y, rest, a, g, &f);
        V(finish)(task, options, m, z_y, e_y, rest, distance, a, s, g, &f);
        V(store)(batch->loss + at, f.loss);
        if (with_metrics) {
            V(finish_metrics)(&f, m, z_y, e_y, V(mul)(lanes->moment[v], inverse), lanes->ahead[v], batch->lse + at,
                              batch->entropy + at, batch->ahead + at);
            continue;
        }
        /* The bits of V(finish_direct), which divides by the sum as it is. */
        if (!options) V(finish_scale)(exp_y, lanes->rest[v], a, g, &f);
        V(store)(lanes->factor + v * LANES, options ? V(mul)(f.factor, inverse) : f.factor);
        V(store)(lanes->target_grad + v * LANES, f.target_grad);
        V(store)(lanes->shift + v * LANES, f.shift);
    }
}

/* p = e * factor, less *shift if there is one, for a row whose exponentials are in e. */
static INLINE void V(scale_row)(REAL *p, const REAL *e, V(row_shape) shape, REAL factor, const REAL *shift) {
    const V(vec) f = V(set)(factor), minus = V(set)(shift ? -*shift : 0);
    for (ptrdiff_t i = 0; i + LANES < shape.vectors * LANES; i += LANES)
        V(store)(p + i, V(scaled)(e + i, f, minus, shift));
    V(store)(p + shape.last, V(scaled)(e + shape.last, f, minus, shift));
}

/* Likewise, LANES rows of at most one vector, in whole vectors. */
static INLINE void V(scale_few)(REAL *p, const REAL *e, const V(few_classes) * few, ptrdiff_t classes,
                                const REAL *factor, const REAL *shift) {
    const V(vec) factors = V(load)(factor), shifts = shift ? V(load)(shift) : V(set)(0);
    for (ptrdiff_t i = 0; i < classes; i++) {
        const V(vec) minus = shift ? V(sub)(V(set)(0), V(permute)(shifts, few->row_of[i])) : V(set)(0);
        V(store)(p + i * LANES, V(scaled)(e + i * LANES, V(permute)(factors, few->row_of[i]), minus, shift));
    }
}

/* Likewise, LANES rows of at least one vector, in whole vectors, wherever in one a row begins; p may be e. */
static INLINE void V(scale_group)(REAL *p, const REAL *e, ptrdiff_t classes, const REAL *factor, const REAL *shift) {
    const V(int) numbers = V(int_load)(V(numbers));
    V(vec) f = V(set)(factor[0]), minus = V(set)(shift ? -shift[0] : 0);
    for (ptrdiff_t r = 1, i = 0, end = classes; r <= LANES; r++, end += classes) {
        for (; i + LANES <= end; i += LANES) V(store)(p + i, V(scaled)(e + i, f, minus, shift));
        if (r == LANES) return;
        const V(vec) next = V(set)(factor[r]), next_minus = V(set)(shift ? -shift[r] : 0);
        if (i < end) {
            const V(mask) is_own = V(int_lt)(numbers, V(int_set)((V(index))(end - i)));
            V(store)(p + i, V(scaled)(e + i, V(select)(is_own, f, next), V(select)(is_own, minus, next_minus), shift));
            i += LANES;
        }
        f = next;
        minus = next_minus;
    }
}

/* The gradients of n rows, or of all rows of their groups. at: where the targets are. vectors: in a row, where the
 * compiler knows it; else 0. */
static INLINE void V(scale_rows)(const REAL *e, const ptrdiff_t *at, ptrdiff_t n, V(row_shape) shape, ptrdiff_t vectors,
                                 const V(few_classes) * few, bool smooth, const V(row_lanes) * lanes, REAL *to) {
    const ptrdiff_t step = vectors < 2 ? LANES : 1;
#pragma GCC unroll 4
    for (ptrdiff_t r = 0; r < n; r += step) {
        const ptrdiff_t from = r * shape.classes;
        const REAL *factor = lanes->factor + r, *shift = smooth ? lanes->shift + r : NULL;
        if (vectors == 0)
            V(scale_group)(to + from, e + from, shape.classes, factor, shift);
        else if (vectors == 1)
            V(scale_few)(to + from, e + from, few, shape.classes, factor, shift);
        else
            V(scale_row)(to + from, e + from, shape, factor[0], shift);
#pragma GCC unroll 16
        for (ptrdiff_t k = r; k < r + step; k++) to[at[k]] = lanes->target_grad[k];
    }
}

/* ---- All rows of a batch ----------------------------------------------------------------------------------------- */

/* vectors: in a row, where the compiler is to know it; else 0. */
static INLINE void V(block_rows)(const class_task *task, V(batch) * batch, ptrdiff_t vectors, bool with_grad,
                                 bool with_metrics) {
    const ptrdiff_t classes = task->call.classes;
    const V(row_shape) shape = V(shape_of)(classes, vectors ? vectors : (classes + LANES - 1) / LANES);
    const ptrdiff_t whole = shape.vectors * LANES;
    const bool options = V(has_options)(task), smooth = task->call.label_smoothing > 0;
    const bool adjacent = batch->native && batch->adjacent;
    const bool streams = with_grad && adjacent && batch->streams && classes >= STREAMED_CLASSES;
    /* Of many rows at a time, each step's operations wait less for those of the step before; streamed gradients are
     * written in short bursts. */
    const ptrdiff_t wanted = LANES * (streams ? 2 : shape.vectors <= 2 ? LANE_VECTORS : 4);
    const ptrdiff_t row_bytes = classes * (ptrdiff_t)sizeof(REAL) * (with_grad ? 3 : 2);
    const ptrdiff_t most = ROW_STAGE / whole / LANES * LANES, cached = CACHED_BYTES / row_bytes / LANES * LANES;
    const ptrdiff_t fits = cached < LANES ? LANES : cached < most ? cached : most;
    const ptrdiff_t at_once = wanted < fits ? wanted : fits;
    const ptrdiff_t fetched = PAGE_BYTES / (ptrdiff_t)sizeof(REAL);
    _Alignas(LINE_BYTES) REAL stage[ROW_STAGE];
    ptrdiff_t at[LANE_TARGETS]; /* where the targets are among the exponentials */
    V(row_lanes) lanes;
    V(few_classes) few;
    const bool transposes = with_metrics && classes <= TRANSPOSED_CLASSES;
    if (V(is_few)(shape) || (shape.vectors == 1 && with_grad)) V(few_classes_of)(classes, with_grad, &few);
    for (ptrdiff_t first = 0, n; first < batch->count; first += n) {
        n = batch->count - first < at_once ? batch->count - first : at_once;
        const ptrdiff_t groups = (n + LANES - 1) / LANES, padded = groups * LANES;
        bool referenced = batch->referenced, is_done;
        for (ptrdiff_t r = 0, from = 0; r < n; r++, from += classes) at[r] = from + (ptrdiff_t)batch->y[first + r];
        for (ptrdiff_t r = n, from = n * classes; r < padded; r++, from += classes) at[r] = from;
        for (ptrdiff_t r = 0; with_metrics && r < padded; r++) lanes.y[r] = r < n ? (V(index))batch->y[first + r] : 0;
        const bool unstaged = with_grad && adjacent && n == padded && !streams;
        REAL *const to = unstaged ? (REAL *)batch->grad[first] : batch->waiting;
        /* Rows that lie behind each other are taken where they are. */
        const bool packs = !adjacent || n < padded;
        if (packs) {
            V(stream_waiting)(task, batch, batch->scaled);
            V(pack_rows)(task, batch->z + first, n, padded, batch->waiting);
        }
        const REAL *z = packs ? batch->waiting : (const REAL *)batch->z[first];
        /* Where the exponentials are: of long rows, less memory stays in the caches better. */
        REAL *const e = vectors == 0 && unstaged && to != z ? to : stage;
        do {
            V(int) positions = V(no_positions)();
            if (referenced) {
                V(referenced_group)(task, batch, first, n, z, unstaged ? to : NULL, shape, e, &lanes);
            } else if (streams) {
                /* A few hundred bytes at a time. */
                const ptrdiff_t step = classes > 64 ? 1 : 4;
                for (ptrdiff_t r = 0, i = 0, end; r < padded; r += step, i = end) {
                    end = (r + step < padded ? r + step : padded) * classes / LANES * LANES;
                    positions = V(direct_exps)(z + i, end - i, e + i, z + i + fetched, NULL, positions);
                    V(stream_waiting)(task, batch, r + step);
                }
            } else if (transposes) {
                positions = V(transposed_metrics)(z, classes, padded, z + fetched, &lanes);
            } else if (with_metrics) {
                positions = V(direct_exps_apart)(z, padded * classes, e, z + fetched);
            } else {
                positions = V(direct_exps)(z, padded * classes, e, z + fetched, unstaged ? to : NULL, positions);
            }
            const bool is_transposed = transposes && !referenced;
#pragma GCC unroll 8
            for (ptrdiff_t r = 0; !is_transposed && r < padded; r++) {
                lanes.e_y[r] = e[at[r]];
                e[at[r]] = 0; /* set aside */
            }
            if ((options || with_metrics) && !is_transposed) {
#pragma GCC unroll 8
                for (ptrdiff_t r = 0; r < padded; r++) lanes.z_y[r] = z[at[r]];
            }
            const REAL *m = referenced ? lanes.m : lanes.z_y;
            V(vec) lowest = V(set)(INFINITY);
            for (ptrdiff_t r = 0; r < padded; r += LANES) {
                lowest = V(min)(lowest, V(load)(lanes.e_y + r));
                if (is_transposed) continue;
                if (with_metrics && referenced)
                    V(referenced_metrics)(z, e, shape, r, &few, &lanes);
                else if (with_metrics)
                    V(group_metrics)(z, e, shape, lanes.z_y, false, r, &few, &lanes);
                if (with_metrics) continue;
                lanes.rest[r / LANES] = V(sums_of_rows)(e + r * classes, shape, &few);
            }
            for (ptrdiff_t v = 0; smooth && v < groups; v++) {
                V(vec) distance[LANES];
                for (ptrdiff_t k = 0; k < LANES; k++)
                    distance[k] = V(row_distance)(z + (v * LANES + k) * classes, shape, m[v * LANES + k]);
                lanes.distance[v] = V(rows_sum)(distance);
            }
            is_done = referenced || (V(are_direct)(positions) && !V(any)(V(lt)(lowest, V(set)(DIRECT_LOWEST))));
            if (is_done && (options || with_metrics || referenced))
                V(finish_any)(task, batch, first, groups, referenced, with_metrics, &lanes);
            else if (is_done)
                V(finish_direct)(task, batch, first, groups, &lanes);
            referenced = true;
        } while (!is_done);
        if (!with_grad) continue;
        if (streams) V(stream_waiting)(task, batch, batch->scaled);
        if (smooth)
            V(scale_rows)(e, at, n, shape, vectors, &few, true, &lanes, to);
        else
            V(scale_rows)(e, at, n, shape, vectors, &few, false, &lanes, to);
        if (streams) {
            stream_from(&batch->stream, batch->grad[first]);
            batch->streamed = 0;
            batch->scaled = n;
        } else if (!unstaged) {
            V(unpack_rows)(task, batch->waiting, n, batch->grad + first);
        }
    }
}

/* The forms, each a function of its own: their loops need all registers for constants. */
#undef ROW_VECTORS
#undef ROW_FORM
#undef ROW_FORMS
#undef ROW_FORM_NAMES
#undef ROW_FORM_NAMES_4
#define ROW_FORM(vectors)                                                                     \
    static LOOP void V(block_##vectors##_grad)(const class_task *task, V(batch) * batch) {    \
        V(block_rows)(task, batch, vectors, true, false);                                     \
    }                                                                                         \
    static LOOP void V(block_##vectors##_loss)(const class_task *task, V(batch) * batch) {    \
        V(block_rows)(task, batch, vectors, false, false);                                    \
    }                                                                                         \
    static LOOP void V(block_##vectors##_metrics)(const class_task *task, V(batch) * batch) { \
        V(block_rows)(task, batch, vectors, false, true);                                     \
    }
#define ROW_FORMS(a, b, c, d) ROW_FORM(a) ROW_FORM(b) ROW_FORM(c) ROW_FORM(d)
#define ROW_FORM_NAMES(n) {V(block_##n##_loss), V(block_##n##_grad), V(block_##n##_metrics)}
#define ROW_FORM_NAMES_4(a, b, c, d) ROW_FORM_NAMES(a), ROW_FORM_NAMES(b), ROW_FORM_NAMES(c), ROW_FORM_NAMES(d)
ROW_FORM(0)
ROW_FORMS(1, 2, 3, 4)
#if WORKING_TYPE == 64 || VEC_BYTES == 16
#define ROW_VECTORS 4
#else
/* Rows of up to 128 classes. */
ROW_FORMS(5, 6, 7, 8)
#if VEC_BYTES == 64
#define ROW_VECTORS 8
#else
ROW_FORMS(9, 10, 11, 12)
ROW_FORMS(13, 14, 15, 16)
#define ROW_VECTORS 16
#endif
#endif

static void V(block_batch)(const class_task *task, V(batch) * batch) {
    enum { LOSS, GRAD, METRICS };
    typedef void (*row_form)(const class_task *, V(batch) *);
    /* 0: of any number of vectors. */
    static const row_form forms[1 + ROW_VECTORS][3] = {
        ROW_FORM_NAMES(0),
        ROW_FORM_NAMES_4(1, 2, 3, 4),
#if ROW_VECTORS >= 8
        ROW_FORM_NAMES_4(5, 6, 7, 8),
#endif
#if ROW_VECTORS >= 16
        ROW_FORM_NAMES_4(9, 10, 11, 12),
        ROW_FORM_NAMES_4(13, 14, 15, 16),
#endif
    };
    const ptrdiff_t vectors = (task->call.classes + LANES - 1) / LANES;
    const int purpose = task->call.metrics ? METRICS : task->call.grad.data ? GRAD : LOSS;
    _Alignas(LINE_BYTES) REAL waiting[ROW_STAGE];
    batch->waiting = waiting;
    batch->streamed = batch->scaled = 0;
    forms[vectors <= ROW_VECTORS ? vectors : 0][purpose](task, batch);
    V(stream_waiting)(task, batch, batch->scaled);
}

/* ---- From class indices ------------------------------------------------------------------------------------------ */

/* Functions of their own: together they would take the stack that all of them take. */
#undef LONG_FORM
#define LONG_FORM(name, smooth, with_grad)                               \
    static LOOP void V(name)(const class_task *task, V(batch) * batch) { \
        V(long_rows)(task, batch, true, smooth, with_grad, false);       \
    }
LONG_FORM(long_grad, false, true)
LONG_FORM(long_loss, false, false)
LONG_FORM(long_smooth_grad, true, true)
LONG_FORM(long_smooth_loss, true, false)
static LOOP void V(long_metrics)(const class_task *task, V(batch) * batch) {
    V(long_rows)(task, batch, batch->native, task->call.label_smoothing > 0, false, true);
}
static LOOP void V(long_converted)(const class_task *task, V(batch) * batch) {
    V(long_rows)(task, batch, false, task->call.label_smoothing > 0, task->call.grad.data, false);
}

/* All rows of a batch, of any number of classes. */
static void V(index_rows)(const class_task *task, V(batch) * batch) {
    const bool smooth = task->call.label_smoothing > 0, with_grad = task->call.grad.data;
    if (task->call.classes <= ONE_BLOCK_ROW)
        V(block_batch)(task, batch);
    else if (task->call.metrics)
        V(long_metrics)(task, batch);
    else if (WORKING_TYPE == 32 && !batch->native)
        V(long_converted)(task, batch);
    else if (smooth)
        (with_grad ? V(long_smooth_grad) : V(long_smooth_loss))(task, batch);
    else
        (with_grad ? V(long_grad) : V(long_loss))(task, batch);
}

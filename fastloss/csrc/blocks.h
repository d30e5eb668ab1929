/* Loops over a block of contiguous elements, and the conversion of blocks to and from the working type. Included once
 * per working type. */

#undef BLOCK
/* Elements a block: its exponentials stay in the first-level cache, and so few are added in one lane that float sums
 * keep their digits until they are flushed into double. */
#define BLOCK 512

static INLINE REAL V(first_lane)(V(vec) v) {
    REAL lanes[LANES];
    V(store)(lanes, v);
    return lanes[0];
}

static INLINE V(vec) V(max_block)(const REAL *z, ptrdiff_t n) {
    V(vec) m0 = V(set)(-INFINITY), m1 = m0, m2 = m0, m3 = m0;
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        m0 = V(max)(V(load)(z + i), m0);
        m1 = V(max)(V(load)(z + i + LANES), m1);
        m2 = V(max)(V(load)(z + i + 2 * LANES), m2);
        m3 = V(max)(V(load)(z + i + 3 * LANES), m3);
    }
    for (; i + LANES <= n; i += LANES) m0 = V(max)(V(load)(z + i), m0);
    if (i < n) m1 = V(max)(V(load_part)(z + i, n - i, -INFINITY), m1);
    return V(max)(V(max)(m0, m1), V(max)(m2, m3));
}

/* Asks for the cache lines of one vector. */
static INLINE void V(prefetch)(const REAL *p, bool for_writing) {
    for (ptrdiff_t line = 0; line < VEC_BYTES; line += 64)
        for_writing ? __builtin_prefetch((const char *)p + line, 1) : __builtin_prefetch((const char *)p + line, 0);
}

/* Lane i holds i. */
static INLINE V(int) V(lane_numbers)(void) {
    static const V(index) numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return V(int_load)(numbers);
}

/* One vector of V(exp_part): at most LANES elements, in full vectors all of them. With `moment`, what is returned times
 * x is added to it, or times the bound of x, so that no 0 meets an infinity. */
static INLINE V(vec) V(exp_step)(V(vec) x, REAL *e, ptrdiff_t n, bool has_target, ptrdiff_t y, V(vec) * moment) {
    const V(vec) floored = V(exp_floor)(x, EXP_SCALE_BITS);
    V(vec) value = V(exp_floored)(floored);
    if (e) n == LANES ? V(store)(e, value) : V(store_part)(e, value, n);
    if (has_target) value = V(zero_where)(V(int_eq)(V(lane_numbers)(), V(int_set)((V(index))y)), value);
    if (moment) *moment = V(fma)(value, floored, *moment);
    return value;
}

/* How many classes rank in front of the target, whose logit is z_y in all lanes. */
typedef struct {
    V(vec) z_y;
    ptrdiff_t ahead;
} V(ranking);

/* Adds those of a vector in which the target is lane y, or outside: the logits above its own, and equal ones of earlier
 * classes. */
static INLINE void V(rank_step)(V(ranking) * rank, V(vec) z, ptrdiff_t y) {
    const unsigned earlier = y <= 0 ? 0 : y >= LANES ? ~0u : (1u << y) - 1;
    const unsigned equal = V(set_lanes)(V(eq)(z, rank->z_y)) & earlier;
    rank->ahead += count_lanes(V(set_lanes)(V(lt)(rank->z_y, z)) | equal);
}

/* The next smaller number, but for -inf: what is above it is at or above x. */
static INLINE V(vec) V(below)(V(vec) x) {
    const V(vec) zero = V(set)(0);
    const V(vec) step = V(select)(V(lt)(zero, x), V(from_bits)(V(int_set)(-1)), V(from_bits)(V(int_set)(1)));
    const V(vec) next = V(from_bits)(V(int_add)(V(bits)(x), V(bits)(step)));
    return V(select)(V(eq)(x, zero), V(from_bits)(V(int_add)(V(bits)(V(set)((REAL)-0.0)), V(int_set)(1))),
                     V(select)(V(lt)(x, V(set)(REAL_LOWEST)), x, next));
}

/* Scaled exponentials of z - ref, kept in e unless that is NULL. Returns their sums per lane, with has_target without
 * that of element y; with sum_x, the sum of z - ref is added to it. What lies `fetched` elements further is read ahead
 * meanwhile, of e only where it is memory to come: the processors' own prefetchers keep up with neither. Padded: e has
 * room for whole vectors. With `moment`, what is summed times z - ref is added to it; with `rank`, the classes in front
 * of the target are counted. */
static INLINE V(vec)
    V(exp_part)(const REAL *z, REAL *e, ptrdiff_t n, REAL ref, bool has_target, ptrdiff_t y, ptrdiff_t fetched,
                bool fetch_e, bool padded, V(vec) * sum_x, V(vec) * moment, V(ranking) * rank) {
    const V(vec) r = V(set)(ref);
    V(vec) sum0 = V(set)(0), sum1 = sum0, xs = sum0, moment0 = sum0, moment1 = sum0;
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        if (fetched) V(prefetch)(z + i + fetched, false);
        if (fetch_e) V(prefetch)(e + i + fetched, true);
        const V(vec) z0 = V(load)(z + i), z1 = V(load)(z + i + LANES);
        const V(vec) x0 = V(sub)(z0, r), x1 = V(sub)(z1, r);
        if (VEC_BYTES >= 64) {
            if (fetched) V(prefetch)(z + i + LANES + fetched, false);
            if (fetch_e) V(prefetch)(e + i + LANES + fetched, true);
        }
        V(vec) *m0 = moment ? &moment0 : NULL, *m1 = moment ? &moment1 : NULL;
        sum0 = V(add)(sum0, V(exp_step)(x0, e ? e + i : NULL, LANES, has_target, y - i, m0));
        sum1 = V(add)(sum1, V(exp_step)(x1, e ? e + i + LANES : NULL, LANES, has_target, y - i - LANES, m1));
        if (sum_x) xs = V(add)(xs, V(add)(x0, x1));
        if (rank) V(rank_step)(rank, z0, y - i);
        if (rank) V(rank_step)(rank, z1, y - i - LANES);
    }
    if (i + LANES <= n) {
        const V(vec) z0 = V(load)(z + i), x = V(sub)(z0, r);
        sum0 = V(add)(sum0, V(exp_step)(x, e ? e + i : NULL, LANES, has_target, y - i, moment ? &moment0 : NULL));
        if (sum_x) xs = V(add)(xs, x);
        if (rank) V(rank_step)(rank, z0, y - i);
        i += LANES;
    }
    if (i < n) {
        const V(vec) z1 = V(load_part)(z + i, n - i, -INFINITY), x = V(sub)(z1, r);
        if (sum_x) xs = V(add)(xs, V(sub)(V(load_part)(z + i, n - i, ref), r)); /* before e replaces z */
        V(vec) *m1 = moment ? &moment1 : NULL;
        sum1 = V(add)(sum1, V(exp_step)(x, e ? e + i : NULL, padded ? LANES : n - i, has_target, y - i, m1));
        if (rank) V(rank_step)(rank, z1, y - i);
    }
    if (sum_x) *sum_x = V(add)(*sum_x, xs);
    if (moment) *moment = V(add)(*moment, V(add)(moment0, moment1));
    return V(add)(sum0, sum1);
}

/* How many of n numbers are above the limit. */
static INLINE V(vec) V(count_above)(const REAL *z, ptrdiff_t n, V(vec) limit, V(vec) count) {
    V(vec) other = V(set)(0);
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        count = V(count_where)(V(lt)(limit, V(load)(z + i)), count);
        other = V(count_where)(V(lt)(limit, V(load)(z + i + LANES)), other);
    }
    for (; i < n; i += LANES) {
        const V(vec) value = n - i < LANES ? V(load_part)(z + i, n - i, -INFINITY) : V(load)(z + i);
        other = V(count_where)(V(lt)(limit, value), other);
    }
    return V(add)(count, other);
}

/* The forms for blocks: without and with exponentials kept, with moments, and the one for all else. */
static LOOP V(vec) V(exp_moments)(const REAL *z, ptrdiff_t n, REAL ref, ptrdiff_t fetched, V(vec) * moment) {
    return V(exp_part)(z, NULL, n, ref, false, 0, fetched, false, false, NULL, moment, NULL);
}
static LOOP V(vec) V(exp_sums)(const REAL *z, ptrdiff_t n, REAL ref, ptrdiff_t fetched) {
    return V(exp_part)(z, NULL, n, ref, false, 0, fetched, false, false, NULL, NULL, NULL);
}
static LOOP V(vec) V(exp_kept)(const REAL *z, REAL *e, ptrdiff_t n, REAL ref, ptrdiff_t fetched) {
    return V(exp_part)(z, e, n, ref, false, 0, fetched, false, false, NULL, NULL, NULL);
}
static LOOP V(vec) V(exp_kept_and_fetched)(const REAL *z, REAL *e, ptrdiff_t n, REAL ref, ptrdiff_t fetched) {
    return V(exp_part)(z, e, n, ref, false, 0, fetched, true, false, NULL, NULL, NULL);
}
static LOOP V(vec) V(exp_block)(const REAL *z, REAL *e, ptrdiff_t n, REAL ref, ptrdiff_t y, ptrdiff_t fetched,
                                bool fetch_e, V(vec) * sum_x, V(vec) * moment) {
    return V(exp_part)(z, e, n, ref, true, y, fetched, fetch_e, false, sum_x, moment, NULL);
}

/* e = e * factor - shift. */
static INLINE void V(scale_block)(REAL *e, ptrdiff_t n, REAL factor, REAL shift) {
    const V(vec) f = V(set)(factor), minus = V(set)(-shift);
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        V(store)(e + i, V(fma)(V(load)(e + i), f, minus));
        V(store)(e + i + LANES, V(fma)(V(load)(e + i + LANES), f, minus));
    }
    for (; i + LANES <= n; i += LANES) V(store)(e + i, V(fma)(V(load)(e + i), f, minus));
    if (i < n) V(store_part)(e + i, V(fma)(V(load_part)(e + i, n - i, 0), f, minus), n - i);
}

/* p = block * factor - shift, written past the caches: for what will not stay in them, it spares the reading of the
 * lines that it overwrites. Goes from where it stopped before, `from`, to `end`, and returns where it stopped, which is
 * where a whole vector would pass the end, or with `last` the end. p is aligned for its type. */
static INLINE ptrdiff_t V(stream_scaled)(REAL *p, ptrdiff_t from, ptrdiff_t end, bool last, const REAL *block,
                                         REAL factor, REAL shift) {
    const V(vec) f = V(set)(factor), minus = V(set)(-shift);
    ptrdiff_t i = from;
    if (i == 0) {
        const ptrdiff_t head = (ptrdiff_t)(-(uintptr_t)p & (VEC_BYTES - 1)) / (ptrdiff_t)sizeof(REAL);
        if (head > end && !last) return 0;
        i = head < end ? head : end;
        if (i > 0) V(store_part)(p, V(fma)(V(load_part)(block, i, 0), f, minus), i);
    }
    for (; i + LANES <= end; i += LANES) V(stream)(p + i, V(fma)(V(load)(block + i), f, minus));
    if (!last || i == end) return i;
    V(store_part)(p + i, V(fma)(V(load_part)(block + i, end - i, 0), f, minus), end - i);
    return end;
}

#if WORKING_TYPE == 32
static INLINE f_vec f_load_as(const void *p, int dtype) {
    if (dtype == FL_F32) return f_load(p);
    return dtype == FL_F16 ? f_load_f16(p) : f_load_bf16(p);
}
static INLINE void f_store_as(void *p, int dtype, f_vec v) {
    if (dtype == FL_F32)
        f_store(p, v);
    else if (dtype == FL_F16)
        f_store_f16(p, v);
    else
        f_store_bf16(p, v);
}
#else
static INLINE d_vec d_load_as(const void *p, int dtype) {
    (void)dtype;
    return d_load(p);
}
static INLINE void d_store_as(void *p, int dtype, d_vec v) {
    (void)dtype;
    d_store(p, v);
}
#endif

#ifndef COPY_PART
#define COPY_PART
/* Fewer than 64 bytes; a call of memcpy with a size that varies costs more than the rest. */
static INLINE void copy_part(void *to, const void *from, ptrdiff_t bytes) {
    char *q = to;
    const char *p = from;
#define PIECE(size)         \
    if (bytes & (size)) {   \
        memcpy(q, p, size); \
        q += (size);        \
        p += (size);        \
    }
    PIECE(32)
    PIECE(16)
    PIECE(8)
    PIECE(4)
    PIECE(2)
#undef PIECE
}
#endif

static INLINE V(vec) V(load_part_as)(const void *p, int dtype, ptrdiff_t n) {
    REAL part[64 / sizeof(REAL)] = {0};
    copy_part(part, p, n * dtype_size(dtype));
    return V(load_as)(part, dtype);
}
static INLINE void V(store_part_as)(void *p, int dtype, V(vec) v, ptrdiff_t n) {
    REAL part[64 / sizeof(REAL)];
    V(store_as)(part, dtype, v);
    copy_part(p, part, n * dtype_size(dtype));
}

/* Runs the loop with the type known, so that it holds no branch. */
#undef FOR_DTYPE
#if WORKING_TYPE == 32
#define FOR_DTYPE(dtype, loop)    \
    switch (dtype) {              \
        case FL_F32: {            \
            enum { D = FL_F32 };  \
            loop break;           \
        }                         \
        case FL_F16: {            \
            enum { D = FL_F16 };  \
            loop break;           \
        }                         \
        default: {                \
            enum { D = FL_BF16 }; \
            loop                  \
        }                         \
    }
#else
#define FOR_DTYPE(dtype, loop) \
    {                          \
        enum { D = FL_F64 };   \
        (void)(dtype);         \
        loop                   \
    }
#endif

/* n elements of any floating type as the working type, padded with `fill` to a whole number of vectors. Returns the
 * maximum of each lane, and of the fill. */
static INLINE V(vec) V(load_block)(const void *p, int dtype, ptrdiff_t n, REAL fill, REAL *block) {
    const char *from = p;
    V(vec) max = V(set)(-INFINITY);
    FOR_DTYPE(dtype, {
        const ptrdiff_t size = dtype_size(D);
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            const V(vec) v = V(load_as)(from + i * size, D);
            max = V(max)(v, max);
            V(store)(block + i, v);
        }
        if (i < n) {
            V(store)(block + i, V(load_part_as)(from + i * size, D, n - i));
            for (ptrdiff_t k = n; k < i + LANES; k++) block[k] = fill;
            max = V(max)(V(load)(block + i), max);
        }
    })
    return max;
}

/* block * factor - shift, rounded to any floating type. */
static INLINE void V(store_scaled)(void *p, int dtype, ptrdiff_t n, const REAL *block, REAL factor, REAL shift) {
    char *to = p;
    const V(vec) f = V(set)(factor), minus = V(set)(-shift);
    FOR_DTYPE(dtype, {
        const ptrdiff_t size = dtype_size(D);
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES) V(store_as)(to + i * size, D, V(fma)(V(load)(block + i), f, minus));
        if (i < n) V(store_part_as)(to + i * size, D, V(fma)(V(load_part)(block + i, n - i, 0), f, minus), n - i);
    })
}

static INLINE void V(store_block)(void *p, int dtype, ptrdiff_t n, const REAL *block) {
    char *to = p;
    FOR_DTYPE(dtype, {
        const ptrdiff_t size = dtype_size(D);
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES) V(store_as)(to + i * size, D, V(load)(block + i));
        if (i < n) V(store_part_as)(to + i * size, D, V(load_part)(block + i, n - i, 0), n - i);
    })
}

/* A copy of a block past the caches; both are aligned for their type, and no line is shared but at the ends. */
static INLINE void V(stream_block)(void *p, const void *block, ptrdiff_t n, ptrdiff_t size) {
    char *to = p;
    const char *from = block;
    ptrdiff_t bytes = n * size, head = -(uintptr_t)p & (VEC_BYTES - 1);
    if (head > bytes) head = bytes;
    memcpy(to, from, (size_t)head);
    for (; head + VEC_BYTES <= bytes; head += VEC_BYTES)
        f_stream((float *)(to + head), f_load((const float *)(from + head)));
    memcpy(to + head, from + head, (size_t)(bytes - head));
}

static INLINE REAL V(load_one)(const void *p, int dtype) { return V(first_lane)(V(load_part_as)(p, dtype, 1)); }
static INLINE void V(store_one)(void *p, int dtype, REAL value) { V(store_part_as)(p, dtype, V(set)(value), 1); }

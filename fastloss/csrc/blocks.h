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
        m0 = V(max)(m0, V(load)(z + i));
        m1 = V(max)(m1, V(load)(z + i + LANES));
        m2 = V(max)(m2, V(load)(z + i + 2 * LANES));
        m3 = V(max)(m3, V(load)(z + i + 3 * LANES));
    }
    for (; i + LANES <= n; i += LANES) m0 = V(max)(m0, V(load)(z + i));
    if (i < n) m1 = V(max)(m1, V(load_part)(z + i, n - i, -INFINITY));
    return V(max)(V(max)(m0, m1), V(max)(m2, m3));
}

/* Asks for the cache lines of n numbers. */
static INLINE void V(prefetch)(const REAL *p, ptrdiff_t n, bool for_writing) {
    for (ptrdiff_t line = 0; line < n * (ptrdiff_t)sizeof(REAL); line += LINE_BYTES)
        for_writing ? __builtin_prefetch((const char *)p + line, 1) : __builtin_prefetch((const char *)p + line, 0);
}

/* The numbers of a block's elements, for comparison with the target's: to load them is cheaper than to move a number
 * into all lanes for each vector. */
#ifndef NUMBERS_256
#define NUMBERS_4(n) n, n + 1, n + 2, n + 3
#define NUMBERS_16(n) NUMBERS_4(n), NUMBERS_4(n + 4), NUMBERS_4(n + 8), NUMBERS_4(n + 12)
#define NUMBERS_64(n) NUMBERS_16(n), NUMBERS_16(n + 16), NUMBERS_16(n + 32), NUMBERS_16(n + 48)
#define NUMBERS_256(n) NUMBERS_64(n), NUMBERS_64(n + 64), NUMBERS_64(n + 128), NUMBERS_64(n + 192)
#endif
static const V(index) V(numbers)[BLOCK] = {NUMBERS_256(0), NUMBERS_256(256)};

#ifndef FETCHED_PAGES
#define FETCHED_PAGES 4
#define PAGE_BYTES 4096
/* What a step of a loop reads: one line for each page. */
#define GROUP_BYTES (FETCHED_PAGES * LINE_BYTES)

/* How far ahead of p lines are fetched into the first-level cache: those that are in the second by then, and others. */
#define NEAR_BYTES 1024
#define FAR_BYTES (3 * PAGE_BYTES)

/* While `bytes` of lines at p are used, a group or half of one, fetches as many. Where memory gives more of several
 * pages at once: of each of the FETCHED_PAGES pages after those that hold p one line, into the second-level cache; a
 * prefetcher follows each of them, and none goes past the end of its page. Such lines come late for the first-level
 * cache's own prefetcher, and are fetched again from near. Elsewhere, just as many from far. */
static INLINE void fetch_ahead(const void *p, ptrdiff_t bytes, bool pages) {
    const uintptr_t at = (uintptr_t)p, window = FETCHED_PAGES * PAGE_BYTES, used = at % window;
    const char *line = (const char *)(at - used + window + used / GROUP_BYTES * LINE_BYTES);
    const ptrdiff_t first = (ptrdiff_t)(used % GROUP_BYTES) / bytes * bytes / LINE_BYTES;
    for (ptrdiff_t i = 0; i < bytes / LINE_BYTES; i++) {
        const char *next = (const char *)p + i * LINE_BYTES;
        if (pages) __builtin_prefetch(line + (first + i) * PAGE_BYTES, 0, 2);
        __builtin_prefetch(next + (pages ? NEAR_BYTES : FAR_BYTES));
    }
}
static INLINE bool fetches_pages(void) { return atomic_load_explicit(&fl_fetches_pages, memory_order_relaxed); }
/* Line after line: of what is written, several pages at once gain nothing. The distances are those that were quickest
 * on Intel's CPUs, which like several pages for reading, and on AMD's. */
static INLINE void fetch_ahead_for_writing(const void *p, bool pages) {
    for (int line = 0; line < FETCHED_PAGES; line++)
        __builtin_prefetch((const char *)p + (pages ? PAGE_BYTES / 2 : PAGE_BYTES) + line * LINE_BYTES, 1);
}
#endif

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

/* ---- Pairs of vectors: of bf16 the elements with even numbers and those with odd ones, of other types one after the
 * other. */

static INLINE void V(load_pair_as)(const void *p, int dtype, V(vec) * a, V(vec) * b) {
#if WORKING_TYPE == 32
    if (dtype == FL_BF16) {
        f_load_bf16_pair(p, a, b);
        return;
    }
#endif
    *a = V(load_as)(p, dtype);
    *b = V(load_as)((const char *)p + LANES * dtype_size(dtype), dtype);
}

/* Numbers from a pair of bf16, of NaN only what store_bf16_pair takes. */
static INLINE void V(store_bf16_pair_as)(void *p, int dtype, V(vec) even, V(vec) odd) {
#if WORKING_TYPE == 32
    if (dtype == FL_BF16) {
        f_store_bf16_pair(p, even, odd);
        return;
    }
#endif
    REAL a[LANES], b[LANES], both[2 * LANES];
    V(store)(a, even);
    V(store)(b, odd);
    for (int k = 0; k < LANES; k++) {
        both[2 * k] = a[k];
        both[2 * k + 1] = b[k];
    }
    V(store_as)(p, dtype, V(load)(both));
    V(store_as)((char *)p + LANES * dtype_size(dtype), dtype, V(load)(both + LANES));
}

#ifndef COPY_PART
#define COPY_PART
/* Less than a line; a call of memcpy with a size that varies costs more than the rest. */
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
    REAL part[LINE_BYTES / sizeof(REAL)] = {0};
    copy_part(part, p, n * dtype_size(dtype));
    return V(load_as)(part, dtype);
}
/* Fewer than LANES, the others `fill`. */
static INLINE V(vec) V(load_filled)(const void *p, int dtype, ptrdiff_t n, REAL fill) {
    if (dtype == NATIVE) return V(load_part)(p, n, fill);
    REAL part[LANES];
    V(store)(part, V(load_part_as)(p, dtype, n));
    for (ptrdiff_t k = n; k < LANES; k++) part[k] = fill;
    return V(load)(part);
}
static INLINE void V(store_part_as)(void *p, int dtype, V(vec) v, ptrdiff_t n) {
    REAL part[LINE_BYTES / sizeof(REAL)];
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

#ifndef EXP_FORM_TYPE
#define EXP_FORM_TYPE
/* What a loop over exponentials has to do besides adding them up; known to the compiler. */
typedef struct {
    int dtype;         /* of the logits */
    bool quick;        /* whole vectors are not clamped: positions tell whether they had to be */
    bool keeps;        /* exponentials are kept in e */
    bool has_target;   /* sums leave out one element */
    bool fetches_kept; /* what lies ahead of e as well as of z, where both stay in the caches */
    bool distances, moments;
} exp_form;
#endif

/* The next smaller number, but for -inf: what is above it is at or above x. */
static INLINE V(vec) V(below)(V(vec) x) {
    const V(vec) zero = V(set)(0);
    const V(vec) step = V(select)(V(lt)(zero, x), V(from_bits)(V(int_set)(-1)), V(from_bits)(V(int_set)(1)));
    const V(vec) next = V(from_bits)(V(int_add)(V(bits)(x), V(bits)(step)));
    return V(select)(V(eq)(x, zero), V(from_bits)(V(int_add)(V(bits)(V(set)((REAL)-0.0)), V(int_set)(1))),
                     V(select)(V(lt)(x, V(set)(REAL_LOWEST)), x, next));
}

/* What the loops over exponentials add up, in two sums that do not wait for each other. */
typedef struct {
    V(vec) sum[2];
    V(vec) distance;  /* x */
    V(vec) moment[2]; /* of what is in the sums, x e^x */
    V(int) positions; /* the bits that are set in any V(exp_position) */
    V(int) target;    /* the number of the element that sums leave out, in all lanes; it may be none of them */
} V(exp_sums);

static INLINE V(exp_sums) V(no_exps)(ptrdiff_t target) {
    const V(vec) zero = V(set)(0);
    return (V(exp_sums)){{zero, zero}, zero, {zero, zero}, V(bits)(V(set)(2)), V(int_set)((V(index))target)};
}

/* One vector of logits from number c on, of which x is the distance from the reference and `distance` the same, but 0
 * past the end. At most LANES elements, in full vectors all of them, of which `keep` are kept. Where x is clamped, a
 * moment takes the bound for it, so that no 0 meets an infinity. */
static INLINE void V(exp_step)(V(vec) x, V(vec) distance, REAL *e, ptrdiff_t keep, exp_form form, bool clamps,
                               ptrdiff_t c, int k, V(exp_sums) * sums) {
    if (form.distances) {
        sums->distance = V(add)(sums->distance, distance);
        VEC_SETTLE(sums->distance);
    }
    if (clamps) x = V(exp_floor)(x, EXP_SCALE_BITS);
    V(vec) exps = V(exp_floored)(x);
    if (form.quick) sums->positions = V(int_or)(sums->positions, V(bits)(V(exp_position)(x)));
    if (form.keeps) keep == LANES ? V(store)(e, exps) : V(store_part)(e, exps, keep);
    if (form.has_target) exps = V(zero_where)(V(int_eq)(sums->target, V(int_load)(V(numbers) + c)), exps);
    sums->sum[k] = V(add)(sums->sum[k], exps);
    if (form.moments) sums->moment[k] = V(fma)(exps, x, sums->moment[k]);
}

#undef GROUP
/* Elements a step of exp_part. */
#define GROUP (GROUP_BYTES / VEC_BYTES * LANES)

/* How many of n elements exp_part takes as pairs of bf16, and keeps as such. */
static INLINE ptrdiff_t V(bf16_pairs)(int dtype, ptrdiff_t n) { return dtype == FL_BF16 ? n / GROUP * GROUP : 0; }
/* Where in such pairs element i is. */
static INLINE ptrdiff_t V(bf16_place)(ptrdiff_t i) {
    return i / (2 * LANES) * (2 * LANES) + i % 2 * LANES + i % (2 * LANES) / 2;
}

/* Scaled exponentials of z - ref, at most BLOCK. */
static INLINE void V(exp_part)(const void *logits, REAL *e, ptrdiff_t n, REAL ref, exp_form form, bool pages,
                               V(exp_sums) * sums) {
    const V(vec) minus = V(set)(-ref); /* added, so that a load can be the other operand */
    const ptrdiff_t whole = n / LANES * LANES, size = dtype_size(form.dtype);
    const char *z = logits;
    ptrdiff_t i = 0;
    for (; i + GROUP <= n; i += GROUP) {
        fetch_ahead(z + i * size, GROUP * size, pages);
        if (form.fetches_kept) fetch_ahead_for_writing(e + i, pages);
        /* Unrolled, or the sums, which take turns, would be in memory. */
#pragma GCC unroll 16
        for (ptrdiff_t k = i; k < i + GROUP; k += 2 * LANES) {
            V(vec) pair[2];
            V(load_pair_as)(z + k * size, form.dtype, &pair[0], &pair[1]);
#pragma GCC unroll 2
            for (int turn = 0; turn < 2; turn++) {
                const V(vec) x = V(add)(minus, pair[turn]);
                const ptrdiff_t at = k + turn * LANES;
                V(exp_step)(x, x, form.keeps ? e + at : NULL, LANES, form, !form.quick, at, turn, sums);
                VEC_SETTLE(sums->sum[turn]);
                if (form.quick) VEC_SETTLE(sums->positions);
            }
        }
    }
    if (i < n) fetch_ahead(z + i * size, GROUP * size, pages);
    if (form.fetches_kept && i < n) fetch_ahead_for_writing(e + i, pages);
    for (; i < whole; i += LANES) {
        const V(vec) x = V(add)(minus, V(load_as)(z + i * size, form.dtype));
        V(exp_step)(x, x, form.keeps ? e + i : NULL, LANES, form, !form.quick, i, 0, sums);
    }
    if (i < n) {
        const V(vec) x = V(add)(minus, V(load_filled)(z + i * size, form.dtype, n - i, -INFINITY));
        const V(vec) last = V(load_filled)(z + i * size, form.dtype, n - i, ref); /* before e replaces z */
        V(exp_step)(x, V(add)(minus, last), form.keeps ? e + i : NULL, n - i, form, true, i, 1, sums);
    }
}

/* Whether all exponentials of a quick loop, whose sum is given, were in its range: of those that were not clamped none
 * is of -inf or so low that it would have to be, and none is so high that sums would not hold many, or NaN. `high` is
 * below e^JUMP, so that no block that has to jump passes. */
static INLINE bool V(in_range)(V(vec) sum, V(int) positions) {
    const V(vec) high = V(set)((REAL)((uint64_t)1 << EXP_SCALE_BITS) * (1 << 23));
    const V(int) upper = V(int_and)(positions, V(int_set)(~EXP_POSITIONS));
    return V(set_lanes)(V(int_eq)(upper, V(bits)(V(set)(2)))) == ALL_LANES &&
           V(set_lanes)(V(lt)(sum, high)) == ALL_LANES;
}

/* The forms for blocks of long rows, each a function of its own: the quick ones that most blocks take; "others" leave
 * the target out, and "summed" ones have the other sums too; "clamped" ones are for logits that are not in range. Each
 * tells whether its sums are good. */
typedef struct {
    V(vec) sum, distance, moment;
} V(block_sums);

static INLINE bool V(exp_form_block)(const void *z, REAL *e, ptrdiff_t n, REAL ref, exp_form form, bool pages,
                                     ptrdiff_t y, V(block_sums) * out) {
    V(exp_sums) sums = V(no_exps)(y >= 0 && y < V(bf16_pairs)(form.dtype, n) ? V(bf16_place)(y) : y);
    V(exp_part)(z, e, n, ref, form, pages, &sums);
    out->sum = V(add)(sums.sum[0], sums.sum[1]);
    if (form.distances) out->distance = sums.distance;
    if (form.moments) out->moment = V(add)(sums.moment[0], sums.moment[1]);
    return !form.quick || V(in_range)(out->sum, sums.positions);
}
#undef EXP_FORM
#define EXP_FORM(name, ...)                                                                                           \
    static LOOP bool V(name)(int dtype, const void *z, REAL *e, ptrdiff_t n, REAL ref, bool pages, ptrdiff_t y,       \
                             V(block_sums) * out) {                                                                   \
        FOR_DTYPE(dtype, return V(exp_form_block)(z, e, n, ref, (exp_form){.dtype = D, __VA_ARGS__}, pages, y, out);) \
    }
EXP_FORM(exp_added, .quick = true)
EXP_FORM(exp_kept, .quick = true, .keeps = true)
EXP_FORM(exp_kept_and_fetched, .quick = true, .keeps = true, .fetches_kept = true)
EXP_FORM(exp_moments, .quick = true, .moments = true)
EXP_FORM(exp_others, .quick = true, .has_target = true)
EXP_FORM(exp_others_kept, .quick = true, .keeps = true, .has_target = true)
EXP_FORM(exp_others_kept_and_fetched, .quick = true, .keeps = true, .fetches_kept = true, .has_target = true)
EXP_FORM(exp_others_moments, .quick = true, .has_target = true, .moments = true)
EXP_FORM(exp_others_summed, .quick = true, .has_target = true, .distances = true, .moments = true)
EXP_FORM(exp_summed_kept, .quick = true, .keeps = true, .distances = true)
EXP_FORM(exp_summed_kept_and_fetched, .quick = true, .keeps = true, .fetches_kept = true, .distances = true)
EXP_FORM(exp_others_summed_kept, .quick = true, .keeps = true, .has_target = true, .distances = true)
EXP_FORM(exp_others_summed_kept_and_fetched, .quick = true, .keeps = true, .fetches_kept = true, .has_target = true,
         .distances = true)
EXP_FORM(exp_clamped, .has_target = true, .distances = true, .moments = true)
EXP_FORM(exp_clamped_kept, .keeps = true)
EXP_FORM(exp_others_clamped_kept, .keeps = true, .has_target = true, .distances = true)

/* e * f + minus_shift, in loops that know whether it is 0: the product has the same bits, and is an instruction less.
 */
static INLINE V(vec) V(scaled)(const REAL *e, V(vec) f, V(vec) minus_shift, bool shifts) {
    return shifts ? V(fma)(f, V(load)(e), minus_shift) : V(mul)(f, V(load)(e));
}

/* e = e * factor - shift. */
static INLINE void V(scale_block)(REAL *e, ptrdiff_t n, REAL factor, REAL shift) {
    const V(vec) f = V(set)(factor), minus = V(set)(-shift);
    ptrdiff_t i = 0;
    if (shift == 0) {
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (ptrdiff_t k = i; k < i + 4 * LANES; k += LANES) V(store)(e + k, V(scaled)(e + k, f, minus, false));
    } else {
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (ptrdiff_t k = i; k < i + 4 * LANES; k += LANES) V(store)(e + k, V(scaled)(e + k, f, minus, true));
    }
    for (; i + LANES <= n; i += LANES) V(store)(e + i, V(scaled)(e + i, f, minus, true));
    if (i < n) V(store_part)(e + i, V(fma)(V(load_part)(e + i, n - i, 0), f, minus), n - i);
}

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

/* block * factor - shift, rounded to any floating type, of which the first `pairs` are pairs of bf16. Where an element
 * is NaN, so is the factor. */
static INLINE void V(store_scaled)(void *p, int dtype, ptrdiff_t n, const REAL *block, ptrdiff_t pairs, REAL factor,
                                   REAL shift) {
    char *to = p;
    /* For all that is NaN, one whose lower bits no rounding carries out of, instead of those that came in. */
    REAL nan[LANES];
    V(store)(nan, V(set)((REAL)NAN));
    const bool is_nan = isnan(factor);
    const REAL *from = is_nan ? nan : block;
    const ptrdiff_t step = is_nan ? 0 : 1;
    const V(vec) f = V(set)(is_nan ? 0 : factor), minus = V(set)(is_nan ? 0 : -shift);
    FOR_DTYPE(dtype, {
        const ptrdiff_t size = dtype_size(D);
        ptrdiff_t i = 0;
        for (; i < pairs; i += 2 * LANES)
            V(store_bf16_pair_as)(to + i * size, D, V(fma)(V(load)(from + i * step), f, minus),
                                  V(fma)(V(load)(from + (i + LANES) * step), f, minus));
        for (; i + 2 * LANES <= n; i += 2 * LANES)
            for (ptrdiff_t k = i; k < i + 2 * LANES; k += LANES)
                V(store_as)(to + k * size, D, V(fma)(V(load)(from + k * step), f, minus));
        for (; i + LANES <= n; i += LANES) V(store_as)(to + i * size, D, V(fma)(V(load)(from + i * step), f, minus));
        if (i < n) V(store_part_as)(to + i * size, D, V(fma)(V(load_part)(from + i * step, n - i, 0), f, minus), n - i);
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

#ifndef LINE_STREAM
#define LINE_STREAM
/* Bytes that are written past the caches one block after the other, each aligned for its type. A line of which a part
 * is written is read before, so that it is put together here where two blocks meet in it. */
typedef struct {
    char *next;
    ptrdiff_t kept; /* bytes before `next` that are in `line`, and not written yet */
    char line[LINE_BYTES];
} line_stream;

static INLINE void stream_line(char *p, const char *line) {
    for (int i = 0; i < LINE_BYTES; i += VEC_BYTES) f_stream((float *)(p + i), f_load((const float *)(line + i)));
}

static INLINE void stream_next(line_stream *stream, const void *block, ptrdiff_t bytes) {
    const char *from = block;
    const ptrdiff_t before = (ptrdiff_t)((uintptr_t)stream->next % LINE_BYTES);
    if (before > 0) {
        const ptrdiff_t n = bytes < LINE_BYTES - before ? bytes : LINE_BYTES - before;
        copy_part(stream->kept ? stream->line + before : stream->next, from, n);
        if (stream->kept) stream->kept += n;
        if (stream->kept == LINE_BYTES) {
            stream_line(stream->next - before, stream->line);
            stream->kept = 0;
        }
        stream->next += n;
        from += n;
        bytes -= n;
    }
    for (; bytes >= LINE_BYTES; bytes -= LINE_BYTES, from += LINE_BYTES, stream->next += LINE_BYTES)
        stream_line(stream->next, from);
    if (bytes == 0) return;
    copy_part(stream->line, from, bytes);
    stream->kept = bytes;
    stream->next += bytes;
}

static INLINE void stream_end(line_stream *stream) {
    if (stream->kept) copy_part(stream->next - stream->kept, stream->line, stream->kept);
    stream->kept = 0;
}

/* One block that no other follows. */
static INLINE void stream_block(char *p, const void *block, ptrdiff_t bytes) {
    line_stream stream = {p, 0, {0}};
    stream_next(&stream, block, bytes);
    stream_end(&stream);
}

/* What comes next begins at p: perhaps where the stream is. */
static INLINE void stream_from(line_stream *stream, char *p) {
    if (stream->next == p) return;
    stream_end(stream);
    stream->next = p;
}
#endif

/* e * factor - shift, but `other` for number y, if it is one of the n. A whole line may be read from where e's last one
 * begins. */
static LOOP void V(stream_scaled)(line_stream *stream, const REAL *e, ptrdiff_t n, REAL factor, REAL shift, ptrdiff_t y,
                                  REAL other) {
    const V(vec) f = V(set)(factor), minus = V(set)(-shift);
    const ptrdiff_t line = LINE_BYTES / (ptrdiff_t)sizeof(REAL), whole = y >= 0 && y < n ? y : n;
    for (ptrdiff_t i = 0, count; i < n; i += count) {
        REAL *to = (REAL *)stream->next;
        const ptrdiff_t before = (ptrdiff_t)((uintptr_t)to % LINE_BYTES) / (ptrdiff_t)sizeof(REAL);
        const ptrdiff_t lines = before ? 0 : ((i <= whole ? whole : n) - i) / line;
        count = lines * line;
        for (ptrdiff_t k = 0; k < count; k += LANES) V(stream)(to + k, V(fma)(V(load)(e + i + k), f, minus));
        stream->next = (char *)(to + count);
        if (count > 0) continue;
        REAL part[LINE_BYTES / sizeof(REAL)];
        for (ptrdiff_t k = 0; k < line; k += LANES) V(store)(part + k, V(fma)(V(load)(e + i + k), f, minus));
        count = n - i < line - before ? n - i : line - before;
        if (y >= i && y < i + count) part[y - i] = other;
        stream_next(stream, part, count * (ptrdiff_t)sizeof(REAL));
    }
}

static INLINE REAL V(load_one)(const void *p, int dtype) { return V(first_lane)(V(load_part_as)(p, dtype, 1)); }
static INLINE void V(store_one)(void *p, int dtype, REAL value) { V(store_part_as)(p, dtype, V(set)(value), 1); }

/* Vector operations, plain form: 4 floats or 2 doubles in the compilers' own vector types, which become SSE2 on
 * x86-64, NEON on aarch64, and scalar code elsewhere. vec_avx2.h lists what each operation means. */
#include <math.h>
#include <string.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define VEC_BYTES 16
#define VEC_SETTLE(v) (void)(v)

static INLINE void vec_fence(void) {}

/* A table of sixteen numbers: without an instruction for it, compilers call a function. */
static INLINE int count_lanes(unsigned bits) { return (int)(UINT64_C(0x4332322132212110) >> 4 * bits & 7); }

typedef float f_vec __attribute__((vector_size(16)));
typedef int32_t f_int __attribute__((vector_size(16)));
typedef uint32_t f_bits_vec __attribute__((vector_size(16)));
typedef f_int f_mask;
typedef int32_t f_index;
typedef double d_vec __attribute__((vector_size(16)));
typedef int64_t d_int __attribute__((vector_size(16)));
typedef uint64_t d_bits_vec __attribute__((vector_size(16)));
typedef d_int d_mask;
typedef int64_t d_index;
typedef struct {
    d_vec low, high;
} f_acc;
typedef struct {
    d_vec all;
} d_acc;

/* What both lane types share. P: prefix, R: real type, N: lanes. */
#define PLAIN_OPERATIONS(P, R, N, MANTISSA, SIGN)                                                                    \
    static INLINE P##_vec P##_load(const R *p) {                                                                     \
        P##_vec v;                                                                                                   \
        memcpy(&v, p, sizeof v);                                                                                     \
        return v;                                                                                                    \
    }                                                                                                                \
    static INLINE void P##_store(R *p, P##_vec v) { memcpy(p, &v, sizeof v); }                                       \
    static INLINE void P##_stream(R *p, P##_vec v) { memcpy(p, &v, sizeof v); }                                      \
    static INLINE P##_vec P##_set(R x) { return x - (P##_vec){0}; }                                                  \
    static INLINE P##_vec P##_load_part(const R *p, ptrdiff_t n, R fill) {                                           \
        P##_vec v = P##_set(fill);                                                                                   \
        for (ptrdiff_t i = 0; i < N; i++)                                                                            \
            if (i < n) v[i] = p[i];                                                                                  \
        return v;                                                                                                    \
    }                                                                                                                \
    static INLINE void P##_store_part(R *p, P##_vec v, ptrdiff_t n) {                                                \
        for (ptrdiff_t i = 0; i < N - 1; i++)                                                                        \
            if (i < n) p[i] = v[i];                                                                                  \
    }                                                                                                                \
    static INLINE P##_vec P##_add(P##_vec a, P##_vec b) { return a + b; }                                            \
    static INLINE P##_vec P##_sub(P##_vec a, P##_vec b) { return a - b; }                                            \
    static INLINE P##_vec P##_mul(P##_vec a, P##_vec b) { return a * b; }                                            \
    static INLINE P##_vec P##_div(P##_vec a, P##_vec b) { return a / b; }                                            \
    static INLINE P##_vec P##_reciprocal(P##_vec x) { return P##_div(P##_set(1), x); }                               \
    static INLINE P##_mask P##_lt(P##_vec a, P##_vec b) { return (P##_mask)(a < b); }                                \
    static INLINE P##_mask P##_eq(P##_vec a, P##_vec b) { return (P##_mask)(a == b); }                               \
    static INLINE bool P##_any(P##_mask m) {                                                                         \
        bool any = false;                                                                                            \
        for (int i = 0; i < N; i++) any |= m[i] != 0;                                                                \
        return any;                                                                                                  \
    }                                                                                                                \
    static INLINE P##_vec P##_select(P##_mask m, P##_vec a, P##_vec b) {                                             \
        return (P##_vec)(((P##_int)a & m) | ((P##_int)b & ~m));                                                      \
    }                                                                                                                \
    static INLINE P##_vec P##_zero_where(P##_mask m, P##_vec a) { return (P##_vec)((P##_int)a & ~m); }               \
    static INLINE P##_vec P##_abs(P##_vec a) { return (P##_vec)((P##_int)a & ~(P##_int)P##_set((R) - 0.0)); }        \
    static INLINE P##_vec P##_minus_abs(P##_vec a) { return (P##_vec)((P##_int)a | (P##_int)P##_set((R) - 0.0)); }   \
    static INLINE P##_vec P##_select_sign(P##_vec x, P##_vec a, P##_vec b) {                                         \
        return P##_select((P##_mask)((P##_int)x < 0), a, b);                                                         \
    }                                                                                                                \
    static INLINE P##_vec P##_flip(P##_vec v, P##_vec x) {                                                           \
        return (P##_vec)((P##_int)v ^ ((P##_int)x & (P##_int)P##_set((R) - 0.0)));                                   \
    }                                                                                                                \
    static INLINE P##_vec P##_pow2(P##_vec t) { return (P##_vec)((P##_bits_vec)t << MANTISSA); }                     \
    static INLINE P##_int P##_int_load(const P##_index *p) {                                                         \
        P##_int v;                                                                                                   \
        memcpy(&v, p, sizeof v);                                                                                     \
        return v;                                                                                                    \
    }                                                                                                                \
    static INLINE P##_int P##_int_set(P##_index x) { return x - (P##_int){0}; }                                      \
    static INLINE P##_mask P##_int_eq(P##_int a, P##_int b) { return (P##_mask)(a == b); }                           \
    static INLINE P##_mask P##_int_lt(P##_int a, P##_int b) { return (P##_mask)(a < b); }                            \
    static INLINE P##_int P##_int_count(P##_mask m, P##_int n) { return n - (P##_int)m; }                            \
    static INLINE P##_int P##_bits(P##_vec v) { return (P##_int)v; }                                                 \
    static INLINE P##_vec P##_from_bits(P##_int v) { return (P##_vec)v; }                                            \
    static INLINE P##_int P##_int_add(P##_int a, P##_int b) { return (P##_int)((P##_bits_vec)a + (P##_bits_vec)b); } \
    static INLINE P##_int P##_int_and(P##_int a, P##_int b) { return a & b; }                                        \
    static INLINE P##_int P##_int_or(P##_int a, P##_int b) { return a | b; }                                         \
    static INLINE P##_vec P##_number(P##_int v) {                                                                    \
        P##_vec x = {0};                                                                                             \
        for (int i = 0; i < N; i++) x[i] = (R)v[i];                                                                  \
        return x;                                                                                                    \
    }                                                                                                                \
    static INLINE P##_vec P##_exponent(P##_int v) {                                                                  \
        P##_vec x = {0};                                                                                             \
        for (int i = 0; i < N; i++) x[i] = (R)(v[i] >> MANTISSA);                                                    \
        return x;                                                                                                    \
    }                                                                                                                \
    static INLINE R P##_hmax(P##_vec v) {                                                                            \
        R m = v[0];                                                                                                  \
        for (int i = 1; i < N; i++) m = m > v[i] ? m : v[i];                                                         \
        return m;                                                                                                    \
    }                                                                                                                \
    static INLINE P##_vec P##_rows_max(const P##_vec v[N]) {                                                         \
        P##_vec m = {0};                                                                                             \
        for (int i = 0; i < N; i++) m[i] = P##_hmax(v[i]);                                                           \
        return m;                                                                                                    \
    }                                                                                                                \
    static INLINE P##_vec P##_rows_sum(const P##_vec v[N]) {                                                         \
        P##_vec s = {0};                                                                                             \
        for (int i = 0; i < N; i++) s[i] = v[i][0] + v[i][1];                                                        \
        for (int i = 0; N > 2 && i < N; i++) s[i] += v[i][N - 2] + v[i][N - 1];                                      \
        return s;                                                                                                    \
    }                                                                                                                \
    static INLINE P##_vec P##_load_quads(const R *p, ptrdiff_t stride) {                                             \
        (void)stride;                                                                                                \
        return P##_load(p);                                                                                          \
    }                                                                                                                \
    static INLINE void P##_transpose_quads(P##_vec v[N]) {                                                           \
        P##_vec t[N];                                                                                                \
        for (int i = 0; i < N; i++) t[i] = v[i];                                                                     \
        for (int i = 0; i < N; i++)                                                                                  \
            for (int k = 0; k < N; k++) v[i][k] = t[k][i];                                                           \
    }                                                                                                                \
    static INLINE P##_vec P##_permute(P##_vec v, P##_vec n) {                                                        \
        P##_vec x = {0};                                                                                             \
        for (int i = 0; i < N; i++) x[i] = v[((P##_int)n)[i] & (N - 1)];                                             \
        return x;                                                                                                    \
    }                                                                                                                \
    static INLINE P##_vec P##_fold(P##_vec a, P##_vec b) {                                                           \
        P##_vec x = {0};                                                                                             \
        for (int i = 0; i < N / 2; i++) {                                                                            \
            x[i] = a[2 * i] + a[2 * i + 1];                                                                          \
            x[i + N / 2] = b[2 * i] + b[2 * i + 1];                                                                  \
        }                                                                                                            \
        return x;                                                                                                    \
    }

PLAIN_OPERATIONS(f, float, 4, 23, )
PLAIN_OPERATIONS(d, double, 2, 52, )

#if defined(__aarch64__)
#define VEC_HAS_FMA 1
static INLINE f_vec f_fma(f_vec a, f_vec b, f_vec c) { return vfmaq_f32(c, a, b); }
static INLINE f_vec f_fnma(f_vec a, f_vec b, f_vec c) { return vfmsq_f32(c, a, b); }
static INLINE d_vec d_fma(d_vec a, d_vec b, d_vec c) { return vfmaq_f64(c, a, b); }
static INLINE d_vec d_fnma(d_vec a, d_vec b, d_vec c) { return vfmsq_f64(c, a, b); }
#else
#define VEC_HAS_FMA 0
static INLINE f_vec f_fma(f_vec a, f_vec b, f_vec c) { return a * b + c; }
static INLINE f_vec f_fnma(f_vec a, f_vec b, f_vec c) { return c - a * b; }
static INLINE d_vec d_fma(d_vec a, d_vec b, d_vec c) { return a * b + c; }
static INLINE d_vec d_fnma(d_vec a, d_vec b, d_vec c) { return c - a * b; }
#endif

#if defined(__SSE2__)
static INLINE f_vec f_max(f_vec a, f_vec b) { return _mm_max_ps(a, b); }
static INLINE f_vec f_min(f_vec a, f_vec b) { return _mm_min_ps(a, b); }
static INLINE d_vec d_max(d_vec a, d_vec b) { return _mm_max_pd(a, b); }
static INLINE d_vec d_min(d_vec a, d_vec b) { return _mm_min_pd(a, b); }
static INLINE unsigned f_set_lanes(f_mask m) { return (unsigned)_mm_movemask_ps((f_vec)m); }
static INLINE unsigned d_set_lanes(d_mask m) { return (unsigned)_mm_movemask_pd((d_vec)m); }
#else
static INLINE unsigned f_set_lanes(f_mask m) {
    const f_mask bits = m & (f_mask){1, 2, 4, 8};
    return (unsigned)(bits[0] | bits[1] | bits[2] | bits[3]);
}
static INLINE unsigned d_set_lanes(d_mask m) {
    const d_mask bits = m & (d_mask){1, 2};
    return (unsigned)(bits[0] | bits[1]);
}
static INLINE f_vec f_max(f_vec a, f_vec b) { return f_select(f_lt(b, a), a, b); }
static INLINE f_vec f_min(f_vec a, f_vec b) { return f_select(f_lt(a, b), a, b); }
static INLINE d_vec d_max(d_vec a, d_vec b) { return d_select(d_lt(b, a), a, b); }
static INLINE d_vec d_min(d_vec a, d_vec b) { return d_select(d_lt(a, b), a, b); }
#endif

static INLINE f_acc f_acc_zero(void) { return (f_acc){{0}, {0}}; }
static INLINE void f_acc_add(f_acc *acc, f_vec v) {
    acc->low += (d_vec){v[0], v[1]};
    acc->high += (d_vec){v[2], v[3]};
}
static INLINE double f_acc_sum(f_acc acc) {
    const d_vec both = acc.low + acc.high;
    return both[0] + both[1];
}
static INLINE f_vec f_acc_lanes(f_acc acc) {
    return (f_vec){(float)acc.low[0], (float)acc.low[1], (float)acc.high[0], (float)acc.high[1]};
}
static INLINE d_acc d_acc_zero(void) { return (d_acc){{0}}; }
static INLINE void d_acc_add(d_acc *acc, d_vec v) { acc->all += v; }
static INLINE double d_acc_sum(d_acc acc) { return acc.all[0] + acc.all[1]; }
static INLINE d_vec d_acc_lanes(d_acc acc) { return acc.all; }

/* Half precision by integer arithmetic: shift the fields into place and let one multiplication by 2^112 set the
 * exponent, which also normalises subnormals; infinities and NaN get their exponent back by hand. */
static INLINE float float_from_half(uint16_t h) {
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f;
    memcpy(&bits, &x, 4);
    if ((h & 0x7c00) == 0x7c00) bits = 0x7f800000u | (uint32_t)(h & 0x3ff) << 13;
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&x, &bits, 4);
    return x;
}
static INLINE uint16_t half_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00; /* rounds to 65536 or more */
    if (bits < 0x38800000) {                      /* subnormal: adding 0.5 leaves the rounded value in the low bits */
        float y;
        memcpy(&y, &bits, 4);
        y += 0.5f;
        memcpy(&bits, &y, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
}
static INLINE f_vec f_load_f16(const uint16_t *p) {
    return (f_vec){float_from_half(p[0]), float_from_half(p[1]), float_from_half(p[2]), float_from_half(p[3])};
}
static INLINE void f_store_f16(uint16_t *p, f_vec v) {
    for (int i = 0; i < 4; i++) p[i] = half_from_float(v[i]);
}
static INLINE f_vec f_load_bf16(const uint16_t *p) {
    const f_bits_vec bits = {p[0], p[1], p[2], p[3]};
    return (f_vec)(bits << 16);
}
static INLINE void f_store_bf16(uint16_t *p, f_vec v) {
    const f_bits_vec bits = (f_bits_vec)v;
    const f_bits_vec kept = bits + (((bits >> 16 & 1) + 0x7fff) & (f_bits_vec)(v == v));
    for (int i = 0; i < 4; i++) p[i] = (uint16_t)(kept[i] >> 16);
}
static INLINE void f_load_bf16_pair(const uint16_t *p, f_vec *even, f_vec *odd) {
    *even = (f_vec)((f_bits_vec){p[0], p[2], p[4], p[6]} << 16);
    *odd = (f_vec)((f_bits_vec){p[1], p[3], p[5], p[7]} << 16);
}
static INLINE void f_store_bf16_pair(uint16_t *p, f_vec even, f_vec odd) {
    const f_bits_vec a = (f_bits_vec)even, b = (f_bits_vec)odd;
    const f_bits_vec rounded_a = a + (a >> 16 & 1) + 0x7fff, rounded_b = b + (b >> 16 & 1) + 0x7fff;
    for (int i = 0; i < 4; i++) {
        p[2 * i] = (uint16_t)(rounded_a[i] >> 16);
        p[2 * i + 1] = (uint16_t)(rounded_b[i] >> 16);
    }
}

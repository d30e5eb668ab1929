/* Vector operations, AVX-512 form (F, BW, DQ, VL): 16 floats or 8 doubles. vec_avx2.h lists what each one means. */
#include <immintrin.h>

#define VEC_BYTES 64
#define VEC_HAS_FMA 1
#define POW2_STEP_BITS 4
#define VEC_SETTLE(v) (void)(v)

/* Puts streamed stores before all that follows. */
static INLINE void vec_fence(void) { _mm_sfence(); }

/* How many of the bits of set_lanes are set. */
static INLINE int count_lanes(unsigned bits) { return __builtin_popcount(bits); }

typedef __m512 f_vec;
typedef __m512i f_int;
typedef __mmask16 f_mask;
typedef int32_t f_index;
typedef struct {
    __m512d low, high;
} f_acc;

static INLINE f_vec f_load(const float *p) { return _mm512_loadu_ps(p); }
static INLINE void f_store(float *p, f_vec v) { _mm512_storeu_ps(p, v); }
static INLINE void f_stream(float *p, f_vec v) { _mm512_stream_ps(p, v); }
static INLINE f_mask f_first(ptrdiff_t n) { return (f_mask)((1u << n) - 1); }
static INLINE f_vec f_load_part(const float *p, ptrdiff_t n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), f_first(n), p);
}
static INLINE void f_store_part(float *p, f_vec v, ptrdiff_t n) { _mm512_mask_storeu_ps(p, f_first(n), v); }
static INLINE f_vec f_set(float x) { return _mm512_set1_ps(x); }
static INLINE f_vec f_add(f_vec a, f_vec b) { return _mm512_add_ps(a, b); }
static INLINE f_vec f_sub(f_vec a, f_vec b) { return _mm512_sub_ps(a, b); }
static INLINE f_vec f_mul(f_vec a, f_vec b) { return _mm512_mul_ps(a, b); }
static INLINE f_vec f_div(f_vec a, f_vec b) { return _mm512_div_ps(a, b); }
static INLINE f_vec f_fma(f_vec a, f_vec b, f_vec c) { return _mm512_fmadd_ps(a, b, c); }
static INLINE f_vec f_fnma(f_vec a, f_vec b, f_vec c) { return _mm512_fnmadd_ps(a, b, c); }
/* An estimate of 14 bits and a step of Newton's: a division would keep its unit busy for 16 cycles on some CPUs. */
static INLINE f_vec f_reciprocal(f_vec x) {
    const f_vec r = _mm512_rcp14_ps(x);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(x, r, _mm512_set1_ps(1)), r, r);
}
static INLINE f_vec f_max(f_vec a, f_vec b) { return _mm512_max_ps(a, b); }
static INLINE f_vec f_min(f_vec a, f_vec b) { return _mm512_min_ps(a, b); }
static INLINE f_vec f_abs(f_vec a) { return _mm512_abs_ps(a); }
static INLINE f_vec f_minus_abs(f_vec a) { return _mm512_or_ps(_mm512_set1_ps(-0.0f), a); }
static INLINE f_vec f_select_sign(f_vec x, f_vec a, f_vec b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
}
static INLINE f_vec f_flip(f_vec v, f_vec x) { return _mm512_xor_ps(v, _mm512_and_ps(_mm512_set1_ps(-0.0f), x)); }
static INLINE f_mask f_lt(f_vec a, f_vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static INLINE f_mask f_eq(f_vec a, f_vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static INLINE bool f_any(f_mask m) { return m != 0; }
static INLINE unsigned f_set_lanes(f_mask m) { return m; }
static INLINE f_vec f_select(f_mask m, f_vec a, f_vec b) { return _mm512_mask_blend_ps(m, b, a); }
static INLINE f_vec f_zero_where(f_mask m, f_vec a) { return _mm512_maskz_mov_ps((f_mask)~m, a); }
static INLINE f_vec f_pow2(f_vec t) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23)); }
static const int32_t power_table[16] = {0x0,      -0x2553d, -0x46a3e, -0x63c2d, -0x7c810, -0x90ace, -0xa0129, -0xaa7c1,
                                        -0xafb0d, -0xaf75c, -0xa98d6, -0x9db74, -0x8bb03, -0x73321, -0x53f39, -0x2da83};
static INLINE f_vec f_pow2_steps(f_vec t, int more) {
    const __m512i bits = _mm512_castps_si512(t), table = _mm512_loadu_si512(power_table);
    const __m512i bent = _mm512_permutexvar_epi32(bits, _mm512_add_epi32(table, _mm512_set1_epi32(more * (1 << 23))));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(bits, 23 - POW2_STEP_BITS), bent));
}
static INLINE f_vec f_permute(f_vec v, f_vec n) { return _mm512_permutexvar_ps(_mm512_castps_si512(n), v); }
static const int32_t neighbours_f[32] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                         1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
static INLINE f_vec f_fold(f_vec a, f_vec b) {
    return _mm512_add_ps(_mm512_permutex2var_ps(a, _mm512_loadu_si512(neighbours_f), b),
                         _mm512_permutex2var_ps(a, _mm512_loadu_si512(neighbours_f + 16), b));
}
static INLINE f_int f_int_load(const f_index *p) { return _mm512_loadu_si512(p); }
static INLINE f_int f_int_set(f_index x) { return _mm512_set1_epi32(x); }
static INLINE f_mask f_int_eq(f_int a, f_int b) { return _mm512_cmpeq_epi32_mask(a, b); }
static INLINE f_mask f_int_lt(f_int a, f_int b) { return _mm512_cmplt_epi32_mask(a, b); }
static INLINE f_int f_int_count(f_mask m, f_int n) { return _mm512_mask_add_epi32(n, m, n, _mm512_set1_epi32(1)); }
static INLINE f_vec f_number(f_int v) { return _mm512_cvtepi32_ps(v); }
static INLINE f_int f_bits(f_vec v) { return _mm512_castps_si512(v); }
static INLINE f_vec f_from_bits(f_int v) { return _mm512_castsi512_ps(v); }
static INLINE f_int f_int_add(f_int a, f_int b) { return _mm512_add_epi32(a, b); }
static INLINE f_int f_int_and(f_int a, f_int b) { return _mm512_and_si512(a, b); }
static INLINE f_int f_int_or(f_int a, f_int b) { return _mm512_or_si512(a, b); }
static INLINE f_vec f_exponent(f_int v) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(v, 23)); }
static INLINE float f_hmax(f_vec v) { return _mm512_reduce_max_ps(v); }
static INLINE f_acc f_acc_zero(void) { return (f_acc){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
static INLINE void f_acc_add(f_acc *acc, f_vec v) {
    acc->low = _mm512_add_pd(acc->low, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    acc->high = _mm512_add_pd(acc->high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}
static INLINE double f_acc_sum(f_acc acc) { return _mm512_reduce_add_pd(_mm512_add_pd(acc.low, acc.high)); }
static INLINE f_vec f_acc_lanes(f_acc acc) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(acc.low)), _mm512_cvtpd_ps(acc.high), 1);
}

#define REDUCE_ROWS_F(name, op)                                                                             \
    static INLINE f_vec name(const f_vec v[16]) {                                                           \
        f_vec quad[4];                                                                                      \
        for (int i = 0; i < 4; i++) {                                                                       \
            const f_vec *r = v + 4 * i;                                                                     \
            const f_vec ab = op(_mm512_shuffle_ps(r[0], r[1], 0x88), _mm512_shuffle_ps(r[0], r[1], 0xdd));  \
            const f_vec cd = op(_mm512_shuffle_ps(r[2], r[3], 0x88), _mm512_shuffle_ps(r[2], r[3], 0xdd));  \
            quad[i] = op(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xdd));                 \
        }                                                                                                   \
        const f_vec x =                                                                                     \
            op(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd)); \
        const f_vec y =                                                                                     \
            op(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd)); \
        return op(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));                      \
    }
REDUCE_ROWS_F(f_rows_max, _mm512_max_ps)
REDUCE_ROWS_F(f_rows_sum, _mm512_add_ps)

static INLINE f_vec f_load_quads(const float *p, ptrdiff_t stride) {
    f_vec v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + stride), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * stride), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * stride), 3);
}
static INLINE void f_transpose_quads(f_vec v[4]) {
    const f_vec ab = _mm512_unpacklo_ps(v[0], v[1]), ab_high = _mm512_unpackhi_ps(v[0], v[1]);
    const f_vec cd = _mm512_unpacklo_ps(v[2], v[3]), cd_high = _mm512_unpackhi_ps(v[2], v[3]);
    v[0] = _mm512_shuffle_ps(ab, cd, 0x44);
    v[1] = _mm512_shuffle_ps(ab, cd, 0xee);
    v[2] = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
    v[3] = _mm512_shuffle_ps(ab_high, cd_high, 0xee);
}

static INLINE f_vec f_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static INLINE void f_store_f16(uint16_t *p, f_vec v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static INLINE f_vec f_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
/* The upper halves of 32-bit lanes. */
static const uint16_t upper_halves[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
static INLINE void f_store_bf16(uint16_t *p, f_vec v) {
    const __m512i bits = _mm512_castps_si512(v), below = _mm512_set1_epi32(0x7fff), above = _mm512_set1_epi32(0x8000);
    const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __mmask16 is_number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    const __m512i half = _mm512_mask_blend_epi32(is_odd, below, above);
    const __m512i kept = _mm512_mask_add_epi32(bits, is_number, bits, half);
    const __m512i packed = _mm512_permutexvar_epi16(_mm512_loadu_si512(upper_halves), kept);
    _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(packed));
}
static INLINE void f_load_bf16_pair(const uint16_t *p, f_vec *even, f_vec *odd) {
    const __m512i both = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}
/* Upper halves go up by 1 where the lower ones are above their half, or equal to it and the upper one is odd: where the
 * highest bit is set in the lower ones less 1 of even ones. */
static INLINE void f_store_bf16_pair(uint16_t *p, f_vec even, f_vec odd) {
    const __m512i a = _mm512_castps_si512(even), b = _mm512_castps_si512(odd);
    const __m512i upper = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
    const __m512i lower = _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
    const __m512i is_even = _mm512_andnot_si512(upper, _mm512_set1_epi16(1));
    const __m512i more = _mm512_srli_epi16(_mm512_subs_epu16(lower, is_even), 15);
    _mm512_storeu_si512(p, _mm512_add_epi16(upper, more));
}

typedef __m512d d_vec;
typedef __m512i d_int;
typedef __mmask8 d_mask;
typedef int64_t d_index;
typedef struct {
    __m512d all;
} d_acc;

static INLINE d_vec d_load(const double *p) { return _mm512_loadu_pd(p); }
static INLINE void d_store(double *p, d_vec v) { _mm512_storeu_pd(p, v); }
static INLINE void d_stream(double *p, d_vec v) { _mm512_stream_pd(p, v); }
static INLINE d_mask d_first(ptrdiff_t n) { return (d_mask)((1u << n) - 1); }
static INLINE d_vec d_load_part(const double *p, ptrdiff_t n, double fill) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), d_first(n), p);
}
static INLINE void d_store_part(double *p, d_vec v, ptrdiff_t n) { _mm512_mask_storeu_pd(p, d_first(n), v); }
static INLINE d_vec d_set(double x) { return _mm512_set1_pd(x); }
static INLINE d_vec d_add(d_vec a, d_vec b) { return _mm512_add_pd(a, b); }
static INLINE d_vec d_sub(d_vec a, d_vec b) { return _mm512_sub_pd(a, b); }
static INLINE d_vec d_mul(d_vec a, d_vec b) { return _mm512_mul_pd(a, b); }
static INLINE d_vec d_div(d_vec a, d_vec b) { return _mm512_div_pd(a, b); }
static INLINE d_vec d_fma(d_vec a, d_vec b, d_vec c) { return _mm512_fmadd_pd(a, b, c); }
static INLINE d_vec d_fnma(d_vec a, d_vec b, d_vec c) { return _mm512_fnmadd_pd(a, b, c); }
static INLINE d_vec d_reciprocal(d_vec x) { return _mm512_div_pd(_mm512_set1_pd(1), x); }
static INLINE d_vec d_max(d_vec a, d_vec b) { return _mm512_max_pd(a, b); }
static INLINE d_vec d_min(d_vec a, d_vec b) { return _mm512_min_pd(a, b); }
static INLINE d_vec d_abs(d_vec a) { return _mm512_abs_pd(a); }
static INLINE d_vec d_minus_abs(d_vec a) { return _mm512_or_pd(_mm512_set1_pd(-0.0), a); }
static INLINE d_vec d_select_sign(d_vec x, d_vec a, d_vec b) {
    return _mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(x)), b, a);
}
static INLINE d_vec d_flip(d_vec v, d_vec x) { return _mm512_xor_pd(v, _mm512_and_pd(_mm512_set1_pd(-0.0), x)); }
static INLINE d_mask d_lt(d_vec a, d_vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
static INLINE d_mask d_eq(d_vec a, d_vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
static INLINE bool d_any(d_mask m) { return m != 0; }
static INLINE unsigned d_set_lanes(d_mask m) { return m; }
static INLINE d_vec d_select(d_mask m, d_vec a, d_vec b) { return _mm512_mask_blend_pd(m, b, a); }
static INLINE d_vec d_zero_where(d_mask m, d_vec a) { return _mm512_maskz_mov_pd((d_mask)~m, a); }
static INLINE d_vec d_pow2(d_vec t) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52)); }
static INLINE d_vec d_permute(d_vec v, d_vec n) { return _mm512_permutexvar_pd(_mm512_castpd_si512(n), v); }
static const int64_t neighbours_d[16] = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};
static INLINE d_vec d_fold(d_vec a, d_vec b) {
    return _mm512_add_pd(_mm512_permutex2var_pd(a, _mm512_loadu_si512(neighbours_d), b),
                         _mm512_permutex2var_pd(a, _mm512_loadu_si512(neighbours_d + 8), b));
}
static INLINE d_int d_int_load(const d_index *p) { return _mm512_loadu_si512(p); }
static INLINE d_int d_int_set(d_index x) { return _mm512_set1_epi64(x); }
static INLINE d_mask d_int_eq(d_int a, d_int b) { return _mm512_cmpeq_epi64_mask(a, b); }
static INLINE d_mask d_int_lt(d_int a, d_int b) { return _mm512_cmplt_epi64_mask(a, b); }
static INLINE d_int d_int_count(d_mask m, d_int n) { return _mm512_mask_add_epi64(n, m, n, _mm512_set1_epi64(1)); }
static INLINE d_vec d_number(d_int v) { return _mm512_cvtepi64_pd(v); }
static INLINE d_int d_bits(d_vec v) { return _mm512_castpd_si512(v); }
static INLINE d_vec d_from_bits(d_int v) { return _mm512_castsi512_pd(v); }
static INLINE d_int d_int_add(d_int a, d_int b) { return _mm512_add_epi64(a, b); }
static INLINE d_int d_int_and(d_int a, d_int b) { return _mm512_and_si512(a, b); }
static INLINE d_int d_int_or(d_int a, d_int b) { return _mm512_or_si512(a, b); }
static INLINE d_vec d_exponent(d_int v) { return _mm512_cvtepi64_pd(_mm512_srai_epi64(v, 52)); }
static INLINE double d_hmax(d_vec v) { return _mm512_reduce_max_pd(v); }
static INLINE d_acc d_acc_zero(void) { return (d_acc){_mm512_setzero_pd()}; }
static INLINE void d_acc_add(d_acc *acc, d_vec v) { acc->all = _mm512_add_pd(acc->all, v); }
static INLINE double d_acc_sum(d_acc acc) { return _mm512_reduce_add_pd(acc.all); }
static INLINE d_vec d_acc_lanes(d_acc acc) { return acc.all; }

#define REDUCE_ROWS_D(name, op)                                                                                   \
    static INLINE d_vec name(const d_vec v[8]) {                                                                  \
        d_vec pair[4];                                                                                            \
        for (int i = 0; i < 4; i++)                                                                               \
            pair[i] = op(_mm512_unpacklo_pd(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_pd(v[2 * i], v[2 * i + 1])); \
        const d_vec x =                                                                                           \
            op(_mm512_shuffle_f64x2(pair[0], pair[1], 0x88), _mm512_shuffle_f64x2(pair[0], pair[1], 0xdd));       \
        const d_vec y =                                                                                           \
            op(_mm512_shuffle_f64x2(pair[2], pair[3], 0x88), _mm512_shuffle_f64x2(pair[2], pair[3], 0xdd));       \
        return op(_mm512_shuffle_f64x2(x, y, 0x88), _mm512_shuffle_f64x2(x, y, 0xdd));                            \
    }
REDUCE_ROWS_D(d_rows_max, _mm512_max_pd)
REDUCE_ROWS_D(d_rows_sum, _mm512_add_pd)

static INLINE d_vec d_load_quads(const double *p, ptrdiff_t stride) {
    d_vec v = _mm512_castpd128_pd512(_mm_loadu_pd(p));
    v = _mm512_insertf64x2(v, _mm_loadu_pd(p + stride), 1);
    v = _mm512_insertf64x2(v, _mm_loadu_pd(p + 2 * stride), 2);
    return _mm512_insertf64x2(v, _mm_loadu_pd(p + 3 * stride), 3);
}
static INLINE void d_transpose_quads(d_vec v[2]) {
    const d_vec low = _mm512_unpacklo_pd(v[0], v[1]), high = _mm512_unpackhi_pd(v[0], v[1]);
    v[0] = low;
    v[1] = high;
}

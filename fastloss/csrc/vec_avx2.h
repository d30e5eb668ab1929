/* clang-format off */
/* Vector operations, AVX2 + FMA + F16C form: 8 floats or 4 doubles. Each operation has a form in vec_avx512.h and
 * vec_plain.h as well; f_ works on float lanes, d_ on double lanes.
 *
 *     load, store              any alignment
 *     stream                   a store past the caches, aligned to VEC_BYTES
 *     load_part                the first n lanes only, 0 < n <= lanes, and `fill` in the others
 *     store_part               the first n lanes only, 0 < n < lanes
 *     fma, fnma                a b + c, c - a b; one rounding where VEC_HAS_FMA
 *     reciprocal               1 / x within 1 ULP, for x and 1 / x among the normal numbers
 *     max, min                 the second operand where either is NaN
 *     lt, eq, any              lane masks, false for NaN; whether any lane is set
 *     set_lanes                the lanes of a mask that are set, as bits
 *     select, zero_where       select(m, a, b): m ? a : b;  zero_where(m, a): m ? 0 : a
 *     select_sign, flip        where x has its sign bit set, select_sign(x, a, b) is a, else b, and flip(v, x) is -v
 *     pow2                     2^n, from a number whose lowest bits are n + bias (see exp in vector_math.h)
 *     pow2_steps               2^(n / 2^POW2_STEP_BITS + more) likewise, by a table in a register, from minimax.py; the
 *                              bias is in steps. Float only, and only where POW2_STEP_BITS is defined
 *     int_count                int_count(m, n): m ? n + 1 : n
 *     number                   an integer below 2^31, as a number
 *     exponent                 an integer's bits above the mantissa, as a number
 *     acc                      a sum in double, lane by lane
 *     VEC_SETTLE               has a sum computed here: compilers put additions off, and with so few registers keep on
 *                              the stack what is to be added. Nothing where there are more
 *     permute                  permute(v, n): lane i is the lane of v whose number is in the lowest bits of n's lane i
 *     fold                     sums of neighbouring lanes: those of a, then those of b
 *     rows_max, rows_sum       lane i of the result reduces vector i: as many vectors as lanes; sums are those of
 *                              neighbours, then of neighbouring sums, and so on
 *     load_quads               16 bytes from p, from p + stride, and so on
 *     transpose_quads          as many vectors as 16 bytes hold elements, each 16 bytes of them for itself
 *     load_f16, store_f16      half precision, rounded to nearest even; bf16 likewise, but of NaN only what
 *                              arithmetic makes, whose bits are quiet
 *     load_bf16_pair           two vectors: the elements with even numbers, and those with odd ones, for which nothing
 *                              has to change its lane; store_bf16_pair likewise, but of NaN only what arithmetic makes
 *                              of numbers, whose lower bits are 0 */
/* clang-format on */
#include <immintrin.h>

#define VEC_BYTES 32
#define VEC_HAS_FMA 1
#define POW2_STEP_BITS 3
#define VEC_SETTLE(v) __asm__("" : "+x"(v))

/* Puts streamed stores before all that follows. */
static INLINE void vec_fence(void) { _mm_sfence(); }

/* How many of the bits of set_lanes are set. */
static INLINE int count_lanes(unsigned bits) { return __builtin_popcount(bits); }

typedef __m256 f_vec;
typedef __m256i f_int;
typedef __m256 f_mask;
typedef int32_t f_index;
typedef struct {
    __m256d low, high;
} f_acc;

/* A window on this table, starting at 8 - n, is a mask of the first n lanes. */
static const int32_t first_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

static INLINE f_vec f_load(const float *p) { return _mm256_loadu_ps(p); }
static INLINE void f_store(float *p, f_vec v) { _mm256_storeu_ps(p, v); }
static INLINE void f_stream(float *p, f_vec v) { _mm256_stream_ps(p, v); }
static INLINE f_vec f_load_part(const float *p, ptrdiff_t n, float fill) {
    const __m256i mask = _mm256_loadu_si256((const __m256i *)(first_lanes + 8 - n));
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
/* Masked stores are slow on some CPUs. */
static INLINE void f_store_part(float *p, f_vec v, ptrdiff_t n) {
    __m128 rest = _mm256_castps256_ps128(v);
    if (n & 4) {
        _mm_storeu_ps(p, rest);
        rest = _mm256_extractf128_ps(v, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)p, rest);
        rest = _mm_movehl_ps(rest, rest);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, rest);
}
static INLINE f_vec f_set(float x) { return _mm256_set1_ps(x); }
static INLINE f_vec f_add(f_vec a, f_vec b) { return _mm256_add_ps(a, b); }
static INLINE f_vec f_sub(f_vec a, f_vec b) { return _mm256_sub_ps(a, b); }
static INLINE f_vec f_mul(f_vec a, f_vec b) { return _mm256_mul_ps(a, b); }
static INLINE f_vec f_div(f_vec a, f_vec b) { return _mm256_div_ps(a, b); }
static INLINE f_vec f_fma(f_vec a, f_vec b, f_vec c) { return _mm256_fmadd_ps(a, b, c); }
static INLINE f_vec f_fnma(f_vec a, f_vec b, f_vec c) { return _mm256_fnmadd_ps(a, b, c); }
static INLINE f_vec f_reciprocal(f_vec x) { return _mm256_div_ps(_mm256_set1_ps(1), x); }
static INLINE f_vec f_max(f_vec a, f_vec b) { return _mm256_max_ps(a, b); }
static INLINE f_vec f_min(f_vec a, f_vec b) { return _mm256_min_ps(a, b); }
static INLINE f_vec f_abs(f_vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static INLINE f_vec f_minus_abs(f_vec a) { return _mm256_or_ps(_mm256_set1_ps(-0.0f), a); }
static INLINE f_vec f_select_sign(f_vec x, f_vec a, f_vec b) { return _mm256_blendv_ps(b, a, x); }
static INLINE f_vec f_flip(f_vec v, f_vec x) { return _mm256_xor_ps(v, _mm256_and_ps(_mm256_set1_ps(-0.0f), x)); }
static INLINE f_mask f_lt(f_vec a, f_vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static INLINE f_mask f_eq(f_vec a, f_vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static INLINE bool f_any(f_mask m) { return _mm256_movemask_ps(m) != 0; }
static INLINE unsigned f_set_lanes(f_mask m) { return (unsigned)_mm256_movemask_ps(m); }
static INLINE f_vec f_select(f_mask m, f_vec a, f_vec b) { return _mm256_blendv_ps(b, a, m); }
static INLINE f_vec f_zero_where(f_mask m, f_vec a) { return _mm256_andnot_ps(m, a); }
static INLINE f_vec f_pow2(f_vec t) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23)); }
static const int32_t power_table[8] = {0x0, -0x46a3e, -0x7c810, -0xa0129, -0xafb0d, -0xa98d6, -0x8bb03, -0x53f39};
static INLINE f_vec f_pow2_steps(f_vec t, int more) {
    const __m256i bits = _mm256_castps_si256(t), table = _mm256_loadu_si256((const __m256i *)power_table);
    const __m256i shifted = _mm256_add_epi32(table, _mm256_set1_epi32(more * (1 << 23)));
    const __m256i bent = _mm256_permutevar8x32_epi32(shifted, bits);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(bits, 23 - POW2_STEP_BITS), bent));
}
static INLINE f_vec f_permute(f_vec v, f_vec n) { return _mm256_permutevar8x32_ps(v, _mm256_castps_si256(n)); }
static INLINE f_vec f_fold(f_vec a, f_vec b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(a, b)), 0xd8));
}
static INLINE f_int f_int_load(const f_index *p) { return _mm256_loadu_si256((const __m256i *)p); }
static INLINE f_int f_int_set(f_index x) { return _mm256_set1_epi32(x); }
static INLINE f_mask f_int_eq(f_int a, f_int b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)); }
static INLINE f_mask f_int_lt(f_int a, f_int b) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)); }
static INLINE f_int f_int_count(f_mask m, f_int n) { return _mm256_sub_epi32(n, _mm256_castps_si256(m)); }
static INLINE f_vec f_number(f_int v) { return _mm256_cvtepi32_ps(v); }
static INLINE f_int f_bits(f_vec v) { return _mm256_castps_si256(v); }
static INLINE f_vec f_from_bits(f_int v) { return _mm256_castsi256_ps(v); }
static INLINE f_int f_int_add(f_int a, f_int b) { return _mm256_add_epi32(a, b); }
static INLINE f_int f_int_and(f_int a, f_int b) { return _mm256_and_si256(a, b); }
static INLINE f_int f_int_or(f_int a, f_int b) { return _mm256_or_si256(a, b); }
static INLINE f_vec f_exponent(f_int v) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(v, 23)); }
static INLINE float f_hmax(f_vec v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static INLINE f_acc f_acc_zero(void) { return (f_acc){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
static INLINE void f_acc_add(f_acc *acc, f_vec v) {
    acc->low = _mm256_add_pd(acc->low, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    acc->high = _mm256_add_pd(acc->high, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}
static INLINE double sum_lanes(__m256d v) {
    const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}
static INLINE double f_acc_sum(f_acc acc) { return sum_lanes(_mm256_add_pd(acc.low, acc.high)); }
static INLINE f_vec f_acc_lanes(f_acc acc) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(acc.low)), _mm256_cvtpd_ps(acc.high), 1);
}

#define REDUCE_ROWS_F(name, op)                                                                                    \
    static INLINE f_vec name(const f_vec v[8]) {                                                                   \
        f_vec quad[2];                                                                                             \
        for (int i = 0; i < 2; i++) {                                                                              \
            const f_vec *r = v + 4 * i;                                                                            \
            const f_vec ab = op(_mm256_shuffle_ps(r[0], r[1], 0x88), _mm256_shuffle_ps(r[0], r[1], 0xdd));         \
            const f_vec cd = op(_mm256_shuffle_ps(r[2], r[3], 0x88), _mm256_shuffle_ps(r[2], r[3], 0xdd));         \
            quad[i] = op(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));                        \
        }                                                                                                          \
        return op(_mm256_permute2f128_ps(quad[0], quad[1], 0x20), _mm256_permute2f128_ps(quad[0], quad[1], 0x31)); \
    }
REDUCE_ROWS_F(f_rows_max, _mm256_max_ps)
REDUCE_ROWS_F(f_rows_sum, _mm256_add_ps)

static INLINE f_vec f_load_quads(const float *p, ptrdiff_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
static INLINE void f_transpose_quads(f_vec v[4]) {
    const f_vec ab = _mm256_unpacklo_ps(v[0], v[1]), ab_high = _mm256_unpackhi_ps(v[0], v[1]);
    const f_vec cd = _mm256_unpacklo_ps(v[2], v[3]), cd_high = _mm256_unpackhi_ps(v[2], v[3]);
    v[0] = _mm256_shuffle_ps(ab, cd, 0x44);
    v[1] = _mm256_shuffle_ps(ab, cd, 0xee);
    v[2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    v[3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}

static INLINE f_vec f_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static INLINE void f_store_f16(uint16_t *p, f_vec v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static INLINE f_vec f_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static INLINE void f_load_bf16_pair(const uint16_t *p, f_vec *even, f_vec *odd) {
    const __m256i both = _mm256_loadu_si256((const __m256i *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}
static INLINE void f_store_bf16(uint16_t *p, f_vec v) {
    const __m128i upper_halves = _mm_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i is_number = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_ORD_Q)), bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_and_si256(is_number, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i rounded = _mm256_add_epi32(bits, half);
    const __m256i kept = _mm256_shuffle_epi8(rounded, _mm256_broadcastsi128_si256(upper_halves));
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(kept, 0x08)));
}
/* Upper halves go up by 1 where the lower ones are above their half, or equal to it and the upper one is odd: where the
 * highest bit is set in the lower ones less 1 of even ones. */
static INLINE void f_store_bf16_pair(uint16_t *p, f_vec even, f_vec odd) {
    const __m256i a = _mm256_castps_si256(even), b = _mm256_castps_si256(odd);
    const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
    const __m256i lower = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
    const __m256i is_even = _mm256_andnot_si256(upper, _mm256_set1_epi16(1));
    const __m256i more = _mm256_srli_epi16(_mm256_subs_epu16(lower, is_even), 15);
    _mm256_storeu_si256((__m256i *)p, _mm256_add_epi16(upper, more));
}

typedef __m256d d_vec;
typedef __m256i d_int;
typedef __m256d d_mask;
typedef int64_t d_index;
typedef struct {
    __m256d all;
} d_acc;

static INLINE d_vec d_load(const double *p) { return _mm256_loadu_pd(p); }
static INLINE void d_store(double *p, d_vec v) { _mm256_storeu_pd(p, v); }
static INLINE void d_stream(double *p, d_vec v) { _mm256_stream_pd(p, v); }
static INLINE d_vec d_load_part(const double *p, ptrdiff_t n, double fill) {
    const __m256i mask = _mm256_loadu_si256((const __m256i *)(first_lanes + 8 - 2 * n));
    return _mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(p, mask), _mm256_castsi256_pd(mask));
}
static INLINE void d_store_part(double *p, d_vec v, ptrdiff_t n) {
    __m128d rest = _mm256_castpd256_pd128(v);
    if (n & 2) {
        _mm_storeu_pd(p, rest);
        rest = _mm256_extractf128_pd(v, 1);
        p += 2;
    }
    if (n & 1) _mm_store_sd(p, rest);
}
static INLINE d_vec d_set(double x) { return _mm256_set1_pd(x); }
static INLINE d_vec d_add(d_vec a, d_vec b) { return _mm256_add_pd(a, b); }
static INLINE d_vec d_sub(d_vec a, d_vec b) { return _mm256_sub_pd(a, b); }
static INLINE d_vec d_mul(d_vec a, d_vec b) { return _mm256_mul_pd(a, b); }
static INLINE d_vec d_div(d_vec a, d_vec b) { return _mm256_div_pd(a, b); }
static INLINE d_vec d_fma(d_vec a, d_vec b, d_vec c) { return _mm256_fmadd_pd(a, b, c); }
static INLINE d_vec d_fnma(d_vec a, d_vec b, d_vec c) { return _mm256_fnmadd_pd(a, b, c); }
static INLINE d_vec d_reciprocal(d_vec x) { return _mm256_div_pd(_mm256_set1_pd(1), x); }
static INLINE d_vec d_max(d_vec a, d_vec b) { return _mm256_max_pd(a, b); }
static INLINE d_vec d_min(d_vec a, d_vec b) { return _mm256_min_pd(a, b); }
static INLINE d_vec d_abs(d_vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
static INLINE d_vec d_minus_abs(d_vec a) { return _mm256_or_pd(_mm256_set1_pd(-0.0), a); }
static INLINE d_vec d_select_sign(d_vec x, d_vec a, d_vec b) { return _mm256_blendv_pd(b, a, x); }
static INLINE d_vec d_flip(d_vec v, d_vec x) { return _mm256_xor_pd(v, _mm256_and_pd(_mm256_set1_pd(-0.0), x)); }
static INLINE d_mask d_lt(d_vec a, d_vec b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
static INLINE d_mask d_eq(d_vec a, d_vec b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
static INLINE bool d_any(d_mask m) { return _mm256_movemask_pd(m) != 0; }
static INLINE unsigned d_set_lanes(d_mask m) { return (unsigned)_mm256_movemask_pd(m); }
static INLINE d_vec d_select(d_mask m, d_vec a, d_vec b) { return _mm256_blendv_pd(b, a, m); }
static INLINE d_vec d_zero_where(d_mask m, d_vec a) { return _mm256_andnot_pd(m, a); }
static INLINE d_vec d_pow2(d_vec t) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52)); }
/* By halves of lanes, whose numbers are 2 n and 2 n + 1. */
static INLINE d_vec d_permute(d_vec v, d_vec n) {
    const __m256i bits = _mm256_castpd_si256(n);
    const __m256i upper = _mm256_or_si256(_mm256_slli_epi64(bits, 33), _mm256_set1_epi64x((int64_t)1 << 32));
    const __m256i halves = _mm256_blend_epi32(_mm256_slli_epi64(bits, 1), upper, 0xaa);
    return _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(v), halves));
}
static INLINE d_vec d_fold(d_vec a, d_vec b) { return _mm256_permute4x64_pd(_mm256_hadd_pd(a, b), 0xd8); }
static INLINE d_int d_int_load(const d_index *p) { return _mm256_loadu_si256((const __m256i *)p); }
static INLINE d_int d_int_set(d_index x) { return _mm256_set1_epi64x(x); }
static INLINE d_mask d_int_eq(d_int a, d_int b) { return _mm256_castsi256_pd(_mm256_cmpeq_epi64(a, b)); }
static INLINE d_mask d_int_lt(d_int a, d_int b) { return _mm256_castsi256_pd(_mm256_cmpgt_epi64(b, a)); }
static INLINE d_int d_int_count(d_mask m, d_int n) { return _mm256_sub_epi64(n, _mm256_castpd_si256(m)); }
static INLINE d_int d_bits(d_vec v) { return _mm256_castpd_si256(v); }
static INLINE d_vec d_from_bits(d_int v) { return _mm256_castsi256_pd(v); }
static INLINE d_int d_int_add(d_int a, d_int b) { return _mm256_add_epi64(a, b); }
static INLINE d_int d_int_and(d_int a, d_int b) { return _mm256_and_si256(a, b); }
static INLINE d_int d_int_or(d_int a, d_int b) { return _mm256_or_si256(a, b); }
/* There is no conversion from 64-bit integers: the lower halves, or the upper ones, which hold the exponents, are
 * packed and converted. */
static INLINE d_vec d_number(d_int v) {
    const __m256i lower = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    return _mm256_cvtepi32_pd(_mm256_castsi256_si128(lower));
}
static INLINE d_vec d_exponent(d_int v) {
    const __m256i upper = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7));
    return _mm256_cvtepi32_pd(_mm_srai_epi32(_mm256_castsi256_si128(upper), 20));
}
static INLINE double d_hmax(d_vec v) {
    const __m128d m = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
}
static INLINE d_acc d_acc_zero(void) { return (d_acc){_mm256_setzero_pd()}; }
static INLINE void d_acc_add(d_acc *acc, d_vec v) { acc->all = _mm256_add_pd(acc->all, v); }
static INLINE double d_acc_sum(d_acc acc) { return sum_lanes(acc.all); }
static INLINE d_vec d_acc_lanes(d_acc acc) { return acc.all; }

#define REDUCE_ROWS_D(name, op)                                                                \
    static INLINE d_vec name(const d_vec v[4]) {                                               \
        const d_vec ab = op(_mm256_unpacklo_pd(v[0], v[1]), _mm256_unpackhi_pd(v[0], v[1]));   \
        const d_vec cd = op(_mm256_unpacklo_pd(v[2], v[3]), _mm256_unpackhi_pd(v[2], v[3]));   \
        return op(_mm256_permute2f128_pd(ab, cd, 0x20), _mm256_permute2f128_pd(ab, cd, 0x31)); \
    }
REDUCE_ROWS_D(d_rows_max, _mm256_max_pd)
REDUCE_ROWS_D(d_rows_sum, _mm256_add_pd)

static INLINE d_vec d_load_quads(const double *p, ptrdiff_t stride) {
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(p + stride), 1);
}
static INLINE void d_transpose_quads(d_vec v[2]) {
    const d_vec low = _mm256_unpacklo_pd(v[0], v[1]), high = _mm256_unpackhi_pd(v[0], v[1]);
    v[0] = low;
    v[1] = high;
}

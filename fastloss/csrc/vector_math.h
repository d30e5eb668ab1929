/* exp, 1 - exp, log1p on vectors. Included once per working type. Coefficients: minimax.py. Errors:
 * tests/c/test_math.c, over every float, and sampled for double. */

#undef EXP_SCALE_BITS
#undef EXP_POSITIONS
#undef EXP_STEPS
#if WORKING_TYPE == 32

/* Scaled exponentials e^x 2^24 stay normal numbers wherever e^x is not zero, subnormals included. */
#define EXP_SCALE_BITS 24

/* e^r - 1, in pairs, so that few steps wait for each other. */
static INLINE f_vec f_exp_tail(f_vec r) {
    const f_vec square = f_mul(r, r);
    f_vec p = f_fma(f_set(0x1.6a23d2p-10f), r, f_set(0x1.123a26p-7f));
    p = f_fma(p, square, f_fma(f_set(0x1.5558f4p-5f), r, f_set(0x1.555490p-3f)));
    p = f_fma(p, r, f_set(0x1.fffffcp-2f));
    return f_fma(p, square, r);
}

/* log(1 + f) = 2 s + s R(z), z = s^2. */
static INLINE f_vec f_log_tail(f_vec z) {
    f_vec p = f_fma(f_set(0x1.31e2c6p-2f), z, f_set(0x1.995ec0p-2f));
    p = f_fma(p, z, f_set(0x1.55557ap-1f));
    return f_mul(p, z);
}

/* The constant's upper part has 9 bits, so that n * upper is exact without FMA too. */
#define EXP_PER_LN2 0x1.715476p+0f
#define EXP_LN2_UPPER 0x1.63p-1f
#define EXP_LN2_LOWER -0x1.bd0106p-13f
/* Adding it rounds to an integer, and leaves that in the low bits. */
#define EXP_ROUND 0x1.8p23f
#define EXP_UNIT 0x1p-22f
#define EXP_BIAS 127
#define EXP_EXPONENT_BITS 8
#define LOG_MANTISSA 0x007fffff
#define LOG_TINY 0x1p-126f
#define LOG_SQRT_HALF 0x3f3504f3

#else

#define EXP_SCALE_BITS 53

static INLINE d_vec d_exp_tail(d_vec r) {
    const d_vec square = d_mul(r, r);
    d_vec p = d_fma(d_set(0x1.ad7f457020b3fp-26), r, d_set(0x1.28ad9def2129fp-22));
    p = d_fma(p, square, d_fma(d_set(0x1.71df25b33092ap-19), r, d_set(0x1.a01999dfd5278p-16)));
    p = d_fma(p, square, d_fma(d_set(0x1.a01a012a0d266p-13), r, d_set(0x1.6c16c184399bfp-10)));
    p = d_fma(p, square, d_fma(d_set(0x1.1111111127d1bp-7), r, d_set(0x1.555555555083ap-5)));
    p = d_fma(p, square, d_fma(d_set(0x1.55555555554f9p-3), r, d_set(0x1.000000000000ap-1)));
    return d_fma(p, square, r);
}

static INLINE d_vec d_log_tail(d_vec z) {
    d_vec p = d_fma(d_set(0x1.2f071e68b62b2p-3), z, d_set(0x1.39a195775ba1ep-3));
    p = d_fma(p, z, d_set(0x1.746640143a4bfp-3));
    p = d_fma(p, z, d_set(0x1.c71c52050dca6p-3));
    p = d_fma(p, z, d_set(0x1.24924941f4a16p-2));
    p = d_fma(p, z, d_set(0x1.999999997fd9bp-2));
    p = d_fma(p, z, d_set(0x1.5555555555592p-1));
    return d_mul(p, z);
}

#undef EXP_PER_LN2
#undef EXP_LN2_UPPER
#undef EXP_LN2_LOWER
#undef EXP_ROUND
#undef EXP_UNIT
#undef EXP_BIAS
#undef EXP_EXPONENT_BITS
#undef LOG_MANTISSA
#undef LOG_TINY
#undef LOG_SQRT_HALF
#define EXP_PER_LN2 0x1.71547652b82fep+0
#define EXP_LN2_UPPER 0x1.62e42feep-1
#define EXP_LN2_LOWER 0x1.a39ef35793c76p-33
#define EXP_ROUND 0x1.8p52
#define EXP_UNIT 0x1p-51
#define EXP_BIAS 1023
#define EXP_EXPONENT_BITS 11
#define LOG_MANTISSA 0x000fffffffffffff
#define LOG_TINY 0x1p-1022
#define LOG_SQRT_HALF 0x3fe6a09e667f3bcd

#endif

/* x, or what is as good where it is so low that e^x 2^scale_bits is 0. NaN stays. */
static INLINE V(vec) V(exp_floor)(V(vec) x, int scale_bits) {
    return V(max)(V(set)((REAL)(-(EXP_BIAS + scale_bits)) / EXP_PER_LN2), x);
}

#if WORKING_TYPE == 32 && defined(POW2_STEP_BITS)
#define EXP_STEPS (1 << POW2_STEP_BITS)
#else
#define EXP_STEPS 1
#endif

/* Positions say which power of 2 is in e^x 2^scale_bits. That of x, which is n when rounded in units of ln 2 / steps,
 * is 2 + (n + bias) EXP_UNIT, EXP_UNIT being the distance from 2 to the next number: its lowest bits are n + bias. The
 * origin is that of 0. x is at least V(exp_floor), where the power is exactly 0. */
static INLINE V(vec) V(exp_origin)(int steps, int scale_bits) {
    return V(set)(2 + EXP_UNIT * (REAL)(steps * (EXP_BIAS + scale_bits)));
}
static INLINE V(vec) V(exp_position_of)(V(vec) x, int steps, V(vec) origin) {
    return V(fma)(x, V(set)(EXP_UNIT * (REAL)steps * EXP_PER_LN2), origin);
}

/* x = n ln 2 + r: *power becomes 2^(n + scale_bits), and the result is e^r - 1. position: that of x, in steps of ln 2;
 * origin: that of scale_bits. */
static INLINE V(vec) V(exp_split)(V(vec) x, V(vec) position, V(vec) origin, V(vec) * power) {
    const V(vec) n = V(sub)(position, origin);
    V(vec) r = V(fnma)(n, V(set)(EXP_LN2_UPPER / EXP_UNIT), x);
    r = V(fnma)(n, V(set)(EXP_LN2_LOWER / EXP_UNIT), r);
    *power = V(pow2)(position);
    return V(exp_tail)(r);
}

/* That of e^x 2^EXP_SCALE_BITS. Its bits are those of 2 but for EXP_POSITIONS, the lowest, as long as x is in
 * the range in which that is neither 0 nor infinite; and elsewhere others are set as well: 2 has but one bit, the
 * highest of the exponent, so that without others there is only 0, which has position 0 too. */
#define EXP_POSITIONS ((V(index))(EXP_STEPS << EXP_EXPONENT_BITS) - 1)
static INLINE V(vec) V(exp_position)(V(vec) x) {
    return V(exp_position_of)(x, EXP_STEPS, V(exp_origin)(EXP_STEPS, EXP_SCALE_BITS));
}

/* e^x 2^(scale_bits + more), from the position of x for the origin of scale_bits; `more` is added to the exponent of
 * the power. */
#if WORKING_TYPE == 32 && defined(POW2_STEP_BITS)
/* A table of the powers between those of two leaves so little to the polynomial that two coefficients do, and that
 * only its first term needs what rounding took from ln 2, which the others do not wait for. */
static INLINE f_vec f_exp_at(f_vec x, f_vec position, f_vec origin, int more) {
    const f_vec c2 = f_set(POW2_STEP_BITS == 3 ? 0x1.000878p-1f : 0x1.000220p-1f);
    const f_vec c3 = f_set(POW2_STEP_BITS == 3 ? 0x1.5556fap-3f : 0x1.55561cp-3f);
    const f_vec n = f_sub(position, origin);
    const f_vec near = f_fnma(n, f_set(0x1.62e430p-1f / EXP_UNIT / EXP_STEPS), x);
    const f_vec r = f_fnma(n, f_set(-0x1.05c610p-29f / EXP_UNIT / EXP_STEPS), near);
    const f_vec power = f_pow2_steps(position, more);
    return f_fma(f_fma(f_fma(c3, near, c2), f_mul(near, near), r), power, power);
}
#else
static INLINE V(vec) V(exp_at)(V(vec) x, V(vec) position, V(vec) origin, int more) {
    V(vec) power;
    const V(vec) tail = V(exp_split)(x, position, origin, &power);
    /* The position of a number whose exponent, with the bias, is `more`. */
    const V(vec) exponent = V(pow2)(V(exp_origin)(1, more - EXP_BIAS));
    if (more) power = V(from_bits)(V(int_add)(V(bits)(power), V(bits)(exponent)));
    return V(fma)(tail, power, power);
}
#endif

/* e^x 2^scale_bits for the origin of scale_bits. */
static INLINE V(vec) V(exp_from)(V(vec) x, V(vec) origin) {
    return V(exp_at)(x, V(exp_position_of)(x, EXP_STEPS, origin), origin, 0);
}

/* e^x 2^EXP_SCALE_BITS for x of V(exp_floor); exactly 0 for its lowest, exactly 2^EXP_SCALE_BITS for 0. The caller
 * keeps x in range, or finds out afterwards: see V(in_range). */
static INLINE V(vec) V(exp_floored)(V(vec) x) { return V(exp_from)(x, V(exp_origin)(EXP_STEPS, EXP_SCALE_BITS)); }
static INLINE V(vec) V(exp_scaled)(V(vec) x) { return V(exp_floored)(V(exp_floor)(x, EXP_SCALE_BITS)); }

static INLINE V(vec) V(unscale)(V(vec) e) { return V(mul)(e, V(set)((REAL)1 / ((uint64_t)1 << EXP_SCALE_BITS))); }

static INLINE V(vec) V(exp)(V(vec) x) { return V(unscale)(V(exp_scaled)(x)); }

#undef DIRECT_BELOW
#undef DIRECT_POSITIONS
/* e^x of x that is neither large nor small, from 2^-95 to 2^33 in float: powers of half of all exponents, of which so
 * many are negative. An odd number, as EXP_BIAS is: the origins of V(exp_direct) and of V(exp_from) without a scale are
 * an even number of positions apart, so that both round halves alike, and have the same bits. */
#define DIRECT_BELOW ((3 << (EXP_EXPONENT_BITS - 3)) - 1)
#define DIRECT_POSITIONS ((V(index))(EXP_STEPS << (EXP_EXPONENT_BITS - 1)) - 1)

/* e^x for x in that range. *positions, which begins as V(no_positions), collects the bits of the positions, and
 * V(are_direct) tells from them whether all x were. Without FMA, some large x have position 0, which would pass: see
 * EXP_POSITIONS. */
static INLINE V(int) V(no_positions)(void) { return VEC_HAS_FMA ? V(bits)(V(set)(2)) : V(int_set)(0); }
static INLINE V(vec) V(exp_direct)(V(vec) x, V(int) * positions) {
    const V(vec) origin = V(exp_origin)(EXP_STEPS, DIRECT_BELOW - EXP_BIAS);
    const V(vec) position = V(exp_position_of)(x, EXP_STEPS, origin);
    const V(int) bits = V(bits)(position), without = V(bits)(V(set)(-2));
    *positions = V(int_or)(*positions, VEC_HAS_FMA ? bits : V(int_add)(bits, without));
    return V(exp_at)(x, position, origin, EXP_BIAS - DIRECT_BELOW);
}
/* Likewise, lane by lane. */
static INLINE V(mask) V(direct_lanes)(V(int) positions) {
    return V(int_eq)(V(int_and)(positions, V(int_set)(~DIRECT_POSITIONS)), V(no_positions)());
}
static INLINE bool V(are_direct)(V(int) positions) { return V(set_lanes)(V(direct_lanes)(positions)) == ALL_LANES; }

/* e^x, and 1 - e^x with all its digits, for x <= 0. */
static INLINE V(vec) V(exp_and_rest)(V(vec) x, V(vec) * rest) {
    V(vec) power;
    const V(vec) floored = V(exp_floor)(x, 0);
    const V(vec) origin = V(exp_origin)(1, 0);
    const V(vec) tail = V(exp_split)(floored, V(exp_position_of)(floored, 1, origin), origin, &power);
    *rest = V(fnma)(tail, power, V(sub)(V(set)(1), power));
    return V(fma)(tail, power, power);
}

/* The exponent k of u = 2^k m with m in [sqrt(1/2), sqrt(2)), and m - 1. */
static INLINE V(vec) V(split)(V(vec) u, V(vec) * k) {
    const V(int) shifted = V(int_add)(V(bits)(u), V(int_set)(-LOG_SQRT_HALF));
    *k = V(exponent)(shifted);
    const V(int) mantissa = V(int_add)(V(int_and)(shifted, V(int_set)(LOG_MANTISSA)), V(int_set)(LOG_SQRT_HALF));
    return V(sub)(V(from_bits)(mantissa), V(set)(1));
}

/* log(u) + c, where c is small; u is a positive normal number, or c is NaN. */
static INLINE V(vec) V(log_and)(V(vec) u, V(vec) c) {
    V(vec) k;
    const V(vec) f = V(split)(u, &k);
    const V(vec) s = V(mul)(f, V(reciprocal)(V(add)(V(set)(2), f)));
    const V(vec) half_square = V(mul)(V(set)((REAL)0.5), V(mul)(f, f));
    /* log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + R)) */
    const V(vec) tail = V(fma)(s, V(add)(half_square, V(log_tail)(V(mul)(s, s))), V(fma)(k, V(set)(EXP_LN2_LOWER), c));
    return V(fma)(k, V(set)(EXP_LN2_UPPER), V(sub)(f, V(sub)(half_square, tail)));
}

/* log(a + b), where 1 / (a + b) is known: what rounding takes from the sum comes back as a quotient. */
static INLINE V(vec) V(log_sum)(V(vec) a, V(vec) b, V(vec) inverse) {
    const V(vec) u = V(add)(a, b), b_in_u = V(sub)(u, a);
    const V(vec) lost = V(add)(V(sub)(a, V(sub)(u, b_in_u)), V(sub)(b, b_in_u));
    return V(log_and)(u, V(mul)(lost, inverse));
}

/* log(1 + x) for finite x > -1/2. */
static INLINE V(vec) V(log1p)(V(vec) x) {
    const V(vec) one = V(set)(1);
    return V(log_sum)(one, x, V(div)(one, V(add)(one, x)));
}

/* x = 2^k m with m in [sqrt(1/2), sqrt(2)): returns log(m). x is finite and above 0, or NaN. */
static INLINE V(vec) V(log_split)(V(vec) x, V(vec) * k) {
    const V(mask) is_tiny = V(lt)(x, V(set)((REAL)LOG_TINY));
    x = V(select)(is_tiny, V(mul)(x, V(set)((REAL)0x1p64)), x);
    const V(vec) f = V(split)(x, k);
    *k = V(sub)(*k, V(select)(is_tiny, V(set)(64), V(set)(0)));
    const V(vec) s = V(div)(f, V(add)(V(set)(2), f));
    const V(vec) half_square = V(mul)(V(set)((REAL)0.5), V(mul)(f, f));
    const V(vec) tail = V(mul)(s, V(add)(half_square, V(log_tail)(V(mul)(s, s))));
    return V(add)(V(sub)(f, V(sub)(half_square, tail)), V(sub)(x, x));
}

/* log(x) for x >= 0: -inf at 0. Negative x gives NaN. */
static INLINE V(vec) V(log)(V(vec) x) {
    V(vec) k;
    const V(vec) zero = V(set)(0);
    const V(vec) log_m = V(log_split)(x, &k);
    const V(vec) value = V(fma)(k, V(set)(EXP_LN2_UPPER), V(fma)(k, V(set)(EXP_LN2_LOWER), log_m));
    return V(select)(V(lt)(x, zero), V(set)(NAN), V(select)(V(eq)(x, zero), V(set)(-INFINITY), value));
}

/* e^x for any x. */
static INLINE V(vec) V(exp_any)(V(vec) x) {
    V(vec) power;
    const V(vec) limit = V(set)((REAL)((EXP_BIAS) / EXP_PER_LN2));
    const V(vec) bounded = V(exp_floor)(V(min)(limit, x), 0), origin = V(exp_origin)(1, 0);
    const V(vec) tail = V(exp_split)(bounded, V(exp_position_of)(bounded, 1, origin), origin, &power);
    return V(select)(V(lt)(limit, x), V(set)(INFINITY), V(fma)(tail, power, power));
}

/* x^a for x in [0, 1] and a > 0. With x = 2^k m, the integer part of a k is split off without rounding, so that what is
 * left of the exponent is small, however small x is. Results below the normal numbers are 0. */
static INLINE V(vec) V(pow_unit)(V(vec) x, REAL a) {
    if (a > (REAL)1e30) a = (REAL)1e30;
    /* k times the upper half of a's digits is exact. */
    const REAL spread = a * (((int64_t)1 << (WORKING_TYPE == 32 ? 12 : 27)) + 1), upper = spread - (spread - a);
    V(vec) k;
    const V(vec) round = V(set)(EXP_ROUND), limit = V(set)(2 * EXP_BIAS);
    const V(vec) log_m = V(log_split)(x, &k);
    const V(vec) t = V(mul)(V(set)(upper), k);
    const V(vec) n = V(sub)(V(add)(t, round), round);
    const V(vec) fraction = V(fma)(V(set)(a - upper), k, V(sub)(t, n));
    V(vec) r = V(fma)(V(set)(a), log_m, V(mul)(fraction, V(set)((REAL)(1 / EXP_PER_LN2))));
    /* Past the limit n alone makes the result 0. */
    r = V(min)(limit, V(max)(V(sub)(V(set)(0), limit), r));
    const V(vec) more = V(sub)(V(fma)(r, V(set)(EXP_PER_LN2), round), round);
    r = V(fnma)(more, V(set)(EXP_LN2_UPPER), r);
    r = V(fnma)(more, V(set)(EXP_LN2_LOWER), r);
    const V(vec) whole = V(max)(V(set)(-EXP_BIAS), V(add)(n, more));
    const V(vec) power = V(pow2)(V(add)(whole, V(set)(EXP_ROUND + EXP_BIAS)));
    return V(zero_where)(V(eq)(x, V(set)(0)), V(fma)(V(exp_tail)(r), power, power));
}

#if WORKING_TYPE == 32
/* log(1 + u) for u in [0, 1], as u - u^2 Q(u): fewer operations than f_log1p, and no division. Q adds up in pairs, so
 * that few steps wait for each other; without FMA the error would be above 2 ULP, and Horner's scheme is taken. */
static INLINE f_vec f_log1p_unit(f_vec u) {
    const f_vec square = f_mul(u, u);
    f_vec q = f_fma(f_set(0x1.b2f010p-9f), u, f_set(-0x1.4b0542p-6f));
#if VEC_HAS_FMA
    const f_vec middle = f_fma(f_set(0x1.d8607ep-5f), u, f_set(-0x1.b5787cp-4f));
    const f_vec upper = f_fma(f_set(-0x1.935c82p-3f), u, f_set(0x1.ff26dcp-3f));
    const f_vec lower = f_fma(f_set(-0x1.554df0p-2f), u, f_set(0x1.ffffd2p-2f));
    q = f_fma(f_fma(q, square, middle), u, f_set(0x1.3a7a26p-3f));
    q = f_fma(f_mul(square, square), q, f_fma(upper, square, lower));
#else
    q = f_fma(q, u, f_set(0x1.d8607ep-5f));
    q = f_fma(q, u, f_set(-0x1.b5787cp-4f));
    q = f_fma(q, u, f_set(0x1.3a7a26p-3f));
    q = f_fma(q, u, f_set(-0x1.935c82p-3f));
    q = f_fma(q, u, f_set(0x1.ff26dcp-3f));
    q = f_fma(q, u, f_set(-0x1.554df0p-2f));
    q = f_fma(q, u, f_set(0x1.ffffd2p-2f));
#endif
    return f_fnma(square, q, u);
}
#else
static INLINE d_vec d_log1p_unit(d_vec u) { return d_log1p(u); }
#endif

/* q^gamma for q in [0, 1]: how much a focal loss takes from a target that is right with 1 - q. */
static INLINE V(vec) V(focus)(V(vec) q, REAL gamma) {
    if (gamma == 2) return V(mul)(q, q);
    if (gamma == 1) return q;
    if (gamma == 0) return V(add)(V(set)(1), V(sub)(q, q));
    return V(pow_unit)(q, gamma);
}

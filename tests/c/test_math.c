/* exp, log1p, log and powers of one vector header, over every float that the kernels can pass, and sampled for double.
 *
 *     cc -O2 -fopenmp -I include -I fastloss/csrc -DVECTORS='"vec_avx2.h"' -mavx2 -mfma -mf16c tests/c/test_math.c -lm
 *     ./a.out [double samples, default 100000000]
 *
 * Prints the worst error of each in ULP and the input that attains it; fails above the bound that each is given. float
 * is compared with double's functions, double with long double's. */
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include VECTORS

#define WORKING_TYPE 32
#include "working_type.h"
#include "vector_math.h"
static f_vec f_exp_by_row(f_vec x) { return f_exp_from(x, f_exp_origin(EXP_STEPS, 0)); }
#undef WORKING_TYPE
#define WORKING_TYPE 64
#include "working_type.h"
#include "vector_math.h"
static d_vec d_exp_by_row(d_vec x) { return d_exp_from(x, d_exp_origin(EXP_STEPS, 0)); }

#define FLOATS ((int)(VEC_BYTES / sizeof(float)))
#define DOUBLES ((int)(VEC_BYTES / sizeof(double)))

typedef struct {
    double error, at;
} worst;

/* What rounds to the right number is this far off at most; only the others are measured, which takes long. */
#define WELL_ROUNDED 0.5

static worst larger(worst a, worst b) { return b.error > a.error || isnan(b.error) ? b : a; }

static double ulps(long double got, long double want, int digits, int lowest) {
    if (isnan(got) || isinf(got)) return INFINITY;
    int exponent;
    frexpl(want, &exponent);
    return (double)(fabsl(got - want) / ldexpl(1, (exponent < lowest ? lowest : exponent) - digits));
}

static int failures;
static void report(const char *name, double bound, worst w) {
    const bool fine = w.error <= bound;
    printf("%-28s %.3f ULP at %a (%.9g)%s\n", name, w.error, w.at, w.at, fine ? "" : "  FAILED");
    failures += !fine;
}

typedef enum { EXP, EXPM1, LOG1P, LOG1P_UNIT, LOG, EXP_ANY, EXP_DIRECT, POWER } function;

static double power; /* of POWER */

static f_vec f_minus_rest(f_vec x) {
    f_vec rest;
    f_exp_and_rest(x, &rest);
    return f_sub(f_set(0), rest);
}
static d_vec d_minus_rest(d_vec x) {
    d_vec rest;
    d_exp_and_rest(x, &rest);
    return d_sub(d_set(0), rest);
}

/* Whether exp_direct takes x for good, alone in its vector; and its result where it does, NaN if exp_from without a
 * scale has other bits, elsewhere one that is known to be good. */
#define DIRECT_OR_ANY(P, REAL, COUNT)                       \
    static bool P##_is_direct(REAL x) {                     \
        P##_int positions = P##_no_positions();             \
        P##_exp_direct(P##_set(x), &positions);             \
        return P##_are_direct(positions);                   \
    }                                                       \
    static P##_vec P##_direct_or_any(P##_vec v) {           \
        P##_int positions = P##_no_positions();             \
        REAL x[COUNT], y[COUNT], by_row[COUNT], any[COUNT]; \
        P##_store(x, v);                                    \
        P##_store(y, P##_exp_direct(v, &positions));        \
        P##_store(by_row, P##_exp_by_row(v));               \
        P##_store(any, P##_exp_any(v));                     \
        const bool all = P##_are_direct(positions);         \
        for (int k = 0; k < COUNT; k++)                     \
            if (!all && !P##_is_direct(x[k]))               \
                y[k] = any[k];                              \
            else if (y[k] != by_row[k])                     \
                y[k] = NAN;                                 \
        return P##_load(y);                                 \
    }
DIRECT_OR_ANY(f, float, FLOATS)
DIRECT_OR_ANY(d, double, DOUBLES)

static f_vec f_apply(function f, f_vec x) {
    switch (f) {
        case EXP:
            return f_exp(x);
        case EXPM1:
            return f_minus_rest(x);
        case LOG1P:
            return f_log1p(x);
        case LOG:
            return f_log(x);
        case EXP_ANY:
            return f_exp_any(x);
        case EXP_DIRECT:
            return f_direct_or_any(x);
        case POWER:
            return f_pow_unit(x, (float)power);
        default:
            return f_log1p_unit(x);
    }
}
static d_vec d_apply(function f, d_vec x) {
    switch (f) {
        case EXP:
            return d_exp(x);
        case EXPM1:
            return d_minus_rest(x);
        case LOG1P:
            return d_log1p(x);
        case LOG:
            return d_log(x);
        case EXP_ANY:
            return d_exp_any(x);
        case EXP_DIRECT:
            return d_direct_or_any(x);
        case POWER:
            return d_pow_unit(x, power);
        default:
            return d_log1p_unit(x);
    }
}
static long double exact(function f, long double x) {
    switch (f) {
        case EXP:
        case EXP_ANY:
        case EXP_DIRECT:
            return expl(x);
        case EXPM1:
            return expm1l(x);
        case LOG:
            return logl(x);
        case POWER:
            return powl(x, power);
        default:
            return log1pl(x);
    }
}

/* Results below this may come out as 0: these functions do without subnormal numbers. */
static double lowest_of(function f, double smallest) {
    return f == POWER || f == EXP_ANY || f == EXP_DIRECT ? smallest : 0;
}
static bool vanishes(long double got, long double want, double lowest) {
    return want < lowest && got >= 0 && got <= 2 * lowest;
}
static double exact_for_float(function f, double x) {
    switch (f) {
        case EXP:
        case EXP_ANY:
        case EXP_DIRECT:
            return exp(x);
        case EXPM1:
            return expm1(x);
        case LOG:
            return log(x);
        case POWER:
            return pow(x, (float)power);
        default:
            return log1p(x);
    }
}

/* Every `step`th float from `from` to `to`, which have one sign. */
static worst some_floats(function f, float from, float to, int step) {
    uint32_t low, high;
    memcpy(&low, &from, 4);
    memcpy(&high, &to, 4);
    if (low > high) {
        const uint32_t swap = low;
        low = high;
        high = swap;
    }
    const double lowest = lowest_of(f, FLT_MIN);
    worst all = {0, 0};
#pragma omp parallel for schedule(dynamic)
    for (int64_t start = low; start <= (int64_t)high; start += (int64_t)step << 16) {
        worst mine = {0, 0};
        for (int64_t bits = start; bits < start + ((int64_t)step << 16) && bits <= high; bits += FLOATS * step) {
            float x[FLOATS], y[FLOATS];
            for (int k = 0; k < FLOATS; k++) {
                const uint32_t b = (uint32_t)(bits + k * step > high ? high : bits + k * step);
                memcpy(&x[k], &b, 4);
            }
            f_store(y, f_apply(f, f_load(x)));
            for (int k = 0; k < FLOATS; k++) {
                const double want = exact_for_float(f, x[k]);
                worst w = {WELL_ROUNDED, x[k]};
                if (y[k] != (float)want && !vanishes(y[k], want, lowest)) w.error = ulps(y[k], want, 24, -125);
                mine = larger(mine, w);
            }
        }
#pragma omp critical
        all = larger(all, mine);
    }
    return all;
}

static worst every_float(function f, float from, float to) { return some_floats(f, from, to, 1); }

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Samples, half of them uniform between the ends, half with a uniform logarithm; and the ends and cases near k ln 2 /
 * 2, where the argument's reduction is hardest. */
static worst sampled(function f, double from, double to, int64_t samples) {
    const double lowest = lowest_of(f, DBL_MIN);
    worst all = {0, 0};
#pragma omp parallel for schedule(dynamic)
    for (int64_t chunk = 0; chunk < samples; chunk += 1 << 14) {
        worst mine = {0, 0};
        uint64_t state = (uint64_t)chunk * 77 + 1;
        for (int64_t i = 0; i < 1 << 14; i += DOUBLES) {
            double x[DOUBLES], y[DOUBLES];
            for (int k = 0; k < DOUBLES; k++) {
                const double u = (double)(next_random(&state) >> 11) * 0x1p-53;
                x[k] = from + (to - from) * u;
                if (k & 1) x[k] = (to == 0 || fabs(from) > fabs(to) ? from : to) * exp2(-60 * u);
                if (i % 1024 == 0 && k == 0) x[k] = rint(x[k] / 0.34657359027997264) * 0.34657359027997264;
                if (x[k] < from || x[k] > to) x[k] = from;
            }
            d_store(y, d_apply(f, d_load(x)));
            for (int k = 0; k < DOUBLES; k++) {
                const long double want = exact(f, x[k]);
                worst w = {WELL_ROUNDED, x[k]};
                if (y[k] != (double)want && !vanishes(y[k], want, lowest)) w.error = ulps(y[k], want, 53, -1021);
                mine = larger(mine, w);
            }
        }
#pragma omp critical
        all = larger(all, mine);
    }
    return all;
}

static void expect_direct(const char *name, bool got, bool want) {
    if (got == want) return;
    printf("%s is %sdirect  FAILED\n", name, got ? "" : "not ");
    failures++;
}

static void exactly(const char *name, double got, double want) {
    if (got == want || (isnan(got) && isnan(want))) return;
    printf("%s is %a, not %a  FAILED\n", name, got, want);
    failures++;
}

static float f_one(function f, float x) {
    float y[FLOATS];
    f_store(y, f_apply(f, f_set(x)));
    return y[0];
}
static double d_one(function f, double x) {
    double y[DOUBLES];
    d_store(y, d_apply(f, d_set(x)));
    return y[0];
}

int main(int argc, char **argv) {
    const int64_t samples = argc > 1 ? atoll(argv[1]) : 100000000;
    /* What the kernels rely on to the last bit. */
    exactly("float exp(0)", f_one(EXP, 0), 1);
    exactly("float exp(-inf)", f_one(EXP, -INFINITY), 0);
    exactly("float exp(NaN)", f_one(EXP, NAN), NAN);
    exactly("float log1p(0)", f_one(LOG1P, 0), 0);
    exactly("float log1p(NaN)", f_one(LOG1P, NAN), NAN);
    exactly("double exp(0)", d_one(EXP, 0), 1);
    exactly("double exp(-inf)", d_one(EXP, -INFINITY), 0);
    exactly("double exp(NaN)", d_one(EXP, NAN), NAN);
    exactly("double log1p(0)", d_one(LOG1P, 0), 0);
    exactly("double log1p(NaN)", d_one(LOG1P, NAN), NAN);
    exactly("float log(0)", f_one(LOG, 0), -INFINITY);
    exactly("float log(1)", f_one(LOG, 1), 0);
    exactly("float log(-1)", f_one(LOG, -1), NAN);
    exactly("double log(0)", d_one(LOG, 0), -INFINITY);
    exactly("double log(1)", d_one(LOG, 1), 0);
    exactly("double log(NaN)", d_one(LOG, NAN), NAN);
    exactly("float exp_any(inf)", f_one(EXP_ANY, INFINITY), INFINITY);
    exactly("double exp_any(NaN)", d_one(EXP_ANY, NAN), NAN);
    exactly("float exp_direct(0)", f_one(EXP_DIRECT, 0), 1);
    exactly("double exp_direct(0)", d_one(EXP_DIRECT, 0), 1);
    static const struct {
        double x;
        bool float_is, double_is;
    } ends[] = {{22.3, true, true},   {22.9, false, true},      {177, false, true},        {178, false, false},
                {-65.8, true, true},  {-67, false, true},       {-531, false, true},       {-533, false, false},
                {NAN, false, false},  {INFINITY, false, false}, {-INFINITY, false, false}, {1e30, false, false},
                {-1e30, false, false}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        char name[40];
        snprintf(name, sizeof name, "float %g", ends[i].x);
        expect_direct(name, f_is_direct((float)ends[i].x), ends[i].float_is);
        snprintf(name, sizeof name, "double %g", ends[i].x);
        expect_direct(name, d_is_direct(ends[i].x), ends[i].double_is);
    }
    for (power = 0.25; power < 1e38; power *= 8) {
        exactly("float 0^a", f_one(POWER, 0), 0);
        exactly("float 1^a", f_one(POWER, 1), 1);
        exactly("float NaN^a", f_one(POWER, NAN), NAN);
        exactly("double 0^a", d_one(POWER, 0), 0);
        exactly("double 1^a", d_one(POWER, 1), 1);
        exactly("double NaN^a", d_one(POWER, NAN), NAN);
    }
    for (uint32_t payload = 1; payload < 1u << 23; payload += 4097) {
        const uint32_t bits = 0x7f800000u | payload;
        float nan;
        memcpy(&nan, &bits, 4);
        exactly("float exp(NaN with a payload)", f_one(EXP, nan), NAN);
    }
    report("float exp [-inf, 0]", 2, larger(every_float(EXP, -0.0f, -FLT_MAX), every_float(EXP, 0, 17)));
    /* Those between 88 and 89 are left out, which exp_any takes for infinite too early. */
    report("float exp_direct", 2,
           larger(every_float(EXP_DIRECT, -0.0f, -FLT_MAX),
                  larger(every_float(EXP_DIRECT, 0, 88), every_float(EXP_DIRECT, 89, FLT_MAX))));
    report("double exp_direct [-746, 0]", 2, sampled(EXP_DIRECT, -746, 0, samples / 4));
    report("double exp_direct [0, 709]", 2, sampled(EXP_DIRECT, 0, 709, samples / 4));
    report("float expm1 [-inf, 0]", 2, every_float(EXPM1, -0.0f, -FLT_MAX));
    report("float log1p [0, 2^31]", 2, every_float(LOG1P, 0, 0x1p31f));
    report("float log1p_unit [0, 1]", 2, every_float(LOG1P_UNIT, 0, 1));
    report("double exp [-745.2, 17]", 2, larger(sampled(EXP, -745.2, 0, samples), sampled(EXP, 0, 17, samples / 4)));
    report("double expm1 [-745, 0]", 2, sampled(EXPM1, -745, 0, samples));
    report("double expm1 [-1, 0]", 2, sampled(EXPM1, -1, 0, samples));
    report("double log1p [0, 1]", 2, sampled(LOG1P, 0, 1, samples));
    report("double log1p [0, 2^31]", 2, sampled(LOG1P, 0, 0x1p31, samples));
    /* These take libm's long double functions, which are slow: all of them only where time does not matter. */
    const int step = samples >= 100000000 ? 1 : 101;
    const int64_t few = samples >= 100000000 ? samples : samples / 10;
    report("float log [2^-149, inf)", 1.5, some_floats(LOG, 0x1p-149f, FLT_MAX, step));
    report("double log [2^-1074, 1]", 1.5, sampled(LOG, 0x1p-1074, 1, few));
    report("double log [1/2, 2]", 1.5, sampled(LOG, 0.5, 2, few));
    report("double log [1, 2^1023]", 1.5, sampled(LOG, 1, 0x1p1023, few));
    report("float exp_any [-inf, 88]", 1.5,
           larger(some_floats(EXP_ANY, -0.0f, -FLT_MAX, step), some_floats(EXP_ANY, 0, 88, step)));
    report("double exp_any [-746, 0]", 1.5, sampled(EXP_ANY, -746, 0, few));
    report("double exp_any [0, 709]", 1.5, sampled(EXP_ANY, 0, 709, few));
    /* The error grows with the exponent: what is left of a log(x) after its integer part is rounded once. */
    static const double powers[][2] = {{0.25, 1.5}, {0.5, 1.5}, {1.5, 2}, {2.5, 3}, {3.7, 4.5}, {10, 7}, {200, 150}};
    for (int i = 0; i < 7; i++) {
        char name[40];
        power = powers[i][0];
        snprintf(name, sizeof name, "float x^%g [2^-149, 1]", power);
        report(name, powers[i][1], some_floats(POWER, 0x1p-149f, 1, 3 * step));
        snprintf(name, sizeof name, "double x^%g [2^-1074, 1]", power);
        report(name, powers[i][1],
               larger(sampled(POWER, 0x1p-1000, 1, few), sampled(POWER, 0x1p-1074, 0x1p-960, few / 4)));
    }
    return failures > 0;
}

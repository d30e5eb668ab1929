/* What the tests of the C ABI share: checks that count, random numbers, arrays of every floating type. Each program
 * includes it once. C99 that is also C++17. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fastloss.h>

static int checks, failures;

static void check(int ok, int line, const char *what) {
    checks++;
    if (ok) return;
    if (++failures <= 20) fprintf(stderr, "line %d: %s\n", line, what);
}

static void check_near(double value, double expected, double tolerance, int line, const char *what) {
    const int ok = fabs(value - expected) <= tolerance || (isnan(value) && isnan(expected)) || value == expected;
    check(ok, line, what);
    if (!ok && failures <= 20) fprintf(stderr, "    %.17g, expected %.17g within %.3g\n", value, expected, tolerance);
}

#define CHECK(condition) check((condition) ? 1 : 0, __LINE__, #condition)
#define CHECK_NEAR(value, expected, tolerance) check_near(value, expected, tolerance, __LINE__, #value)
#define CHECK_STATUS(call, expected) check_near(call, expected, 0, __LINE__, #call)

static void *get_memory(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (p == NULL) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    return p;
}

/* Uniform in [-1, 1). */
static double uniform(void) {
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 4503599627370496.0 - 1.0;
}

static double get_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const double sign = bits >> 15 ? -1 : 1, mantissa = bits & 1023;
    if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
    return sign * ldexp(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25);
}

/* Of a number that it holds exactly. */
static uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x == 0) return 0;
    return (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023));
}

static double get(const void *p, int dtype, ptrdiff_t i) {
    if (dtype == FL_F64) return ((const double *)p)[i];
    if (dtype == FL_F32) return (double)((const float *)p)[i];
    const uint16_t half = ((const uint16_t *)p)[i];
    if (dtype == FL_F16) return get_half(half);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static void put(void *p, int dtype, ptrdiff_t i, double x) {
    if (dtype == FL_F64) {
        ((double *)p)[i] = x;
    } else if (dtype == FL_F32) {
        ((float *)p)[i] = (float)x;
    } else if (dtype == FL_F16) {
        ((uint16_t *)p)[i] = half_of((float)x);
    } else {
        const float single = (float)x;
        uint32_t bits;
        memcpy(&bits, &single, sizeof bits);
        ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
    }
}

static size_t size_of(int dtype) {
    return dtype == FL_F64 ? sizeof(double) : dtype == FL_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* Random numbers of one dtype. */
static void *random_array(int dtype, ptrdiff_t n, double low, double high) {
    void *p = get_memory((size_t)n * size_of(dtype));
    for (ptrdiff_t i = 0; i < n; i++) put(p, dtype, i, low + (high - low) * 0.5 * (uniform() + 1));
    return p;
}

static fl_array new_array(void *data, int dtype, ptrdiff_t stride0, ptrdiff_t stride1, ptrdiff_t class_stride) {
    fl_array a;
    a.data = data;
    a.dtype = dtype;
    a.stride[0] = stride0;
    a.stride[1] = stride1;
    a.class_stride = class_stride;
    return a;
}

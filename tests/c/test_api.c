/* The C ABI, on the instruction set that FASTLOSS_ISA names: values against formulas in double, status codes, layouts,
 * tiles, and what must not be written. C99 that is also C++17.
 *
 *     test_api                  run the checks
 *     test_api --isa-list       print fl_isa_list()
 *     test_api --isa-error      check that every call refuses what FASTLOSS_ISA names */
#include "checks.h"

static ptrdiff_t at(const fl_array *a, ptrdiff_t i, ptrdiff_t j, ptrdiff_t c, ptrdiff_t k) {
    return i * a->stride[0] + j * a->stride[1] + c * a->class_stride + k;
}

/* n x classes, contiguous. */
static fl_class_call rows_call(void *logits, int dtype, const void *target, ptrdiff_t n, ptrdiff_t classes,
                               void *grad) {
    fl_class_call call = fl_class_call_init();
    call.n[0] = 1;
    call.n[1] = n;
    call.classes = classes;
    call.logits = new_array(logits, dtype, 0, classes, 1);
    call.grad = new_array(grad, dtype, 0, classes, 1);
    call.target = target;
    call.target_dtype = FL_I64;
    return call;
}

/* ---- Known values ------------------------------------------------------------------------------------------------ */

static void test_known_values(void) {
    const float logits[2][3] = {{2.0f, 0.1f, 0.4f}, {1.0f, 8.0f, -1.0f}};
    const int64_t target[2] = {1, 2};
    float grad[2][3];
    double loss;
    CHECK_STATUS(fl_cross_entropy_f32(&logits[0][0], target, 2, 3, &loss, &grad[0][0]), FL_OK);
    CHECK_NEAR(loss, 5.601112, 1e-6);
    CHECK_NEAR(grad[0][0] + grad[0][1] + grad[0][2], 0, 1e-7);
    CHECK_STATUS(fl_cross_entropy_f32(&logits[0][0], target, 2, 3, &loss, NULL), FL_OK);
    CHECK_NEAR(loss, 5.601112, 1e-6);

    const double one[3] = {3.05, 3.13, 3.48};
    const int64_t two = 2;
    CHECK_STATUS(fl_cross_entropy_f64(one, &two, 1, 3, &loss, NULL), FL_OK);
    CHECK_NEAR(loss, 0.8566, 5e-5);

    const double confident[2] = {100, 0};
    const int64_t zero = 0;
    double confident_grad[2];
    CHECK_STATUS(fl_cross_entropy_f64(confident, &zero, 1, 2, &loss, confident_grad), FL_OK);
    CHECK_NEAR(loss / exp(-100.0), 1, 1e-13);
    CHECK_NEAR(confident_grad[0] / -exp(-100.0), 1, 1e-13);
    CHECK_NEAR(confident_grad[1] / exp(-100.0), 1, 1e-13);

    const double z[2] = {1.8, 0.75}, y[2] = {1, 0};
    double g[2];
    CHECK_STATUS(fl_bce_with_logits_f64(z, y, 2, &loss, g), FL_OK);
    CHECK_NEAR(loss, 0.6449, 5e-5);
    CHECK_NEAR(g[0], (1 / (1 + exp(-1.8)) - 1) / 2, 1e-15);
    CHECK_NEAR(g[1], 1 / (1 + exp(-0.75)) / 2, 1e-15);
    const float zf[2] = {1.8f, 0.75f}, yf[2] = {1, 0};
    CHECK_STATUS(fl_bce_with_logits_f32(zf, yf, 2, &loss, NULL), FL_OK);
    CHECK_NEAR(loss, 0.6449, 5e-5);

    /* Probability targets: logits log([.3, .15, .25, .3]), and the entropy of the target itself. */
    double log_p[4] = {log(.3), log(.15), log(.25), log(.3)}, q[4] = {.4, .1, .25, .25}, log_q[4], entropy;
    fl_class_call call = rows_call(log_p, FL_F64, NULL, 1, 4, NULL);
    call.target_probs = new_array(q, FL_F64, 0, 4, 1);
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    CHECK_NEAR(loss, 1.3189, 5e-5);
    for (int c = 0; c < 4; c++) log_q[c] = log(q[c]);
    fl_softmax_call softmax = fl_softmax_call_init();
    softmax.kind = FL_ENTROPY;
    softmax.n[0] = softmax.n[1] = 1;
    softmax.classes = 4;
    softmax.logits = new_array(log_q, FL_F64, 0, 4, 1);
    softmax.values = &entropy;
    CHECK_STATUS(fl_softmax(&softmax), FL_OK);
    CHECK_NEAR(entropy, 1.2899, 5e-5);
}

/* ---- Softmax cross-entropy against its formula, every option, both layouts ----------------------------------------
 */

enum {
    WEIGHT = 1,
    SAMPLE_WEIGHT = 2,
    SMOOTHING = 4,
    Z_LOSS = 8,
    SOFTCAP = 16,
    IGNORE = 32,
    GRAD_OUTPUT = 64,
    PROBS = 128
};

/* Fills loss (one a target) and grad (the logits' layout) in double; returns the mean's denominator. */
static double formula(const fl_class_call *call, double *losses, double *grad, unsigned char *is_grad) {
    const int dtype = call->logits.dtype;
    const ptrdiff_t C = call->classes;
    double *p = (double *)get_memory((size_t)C * sizeof *p), *a = (double *)get_memory((size_t)C * sizeof *a);
    double denominator = 0;
    ptrdiff_t row = 0;
    for (ptrdiff_t i = 0; i < call->n[0]; i++) {
        for (ptrdiff_t j = 0; j < call->n[1]; j++) {
            for (ptrdiff_t k = 0; k < call->inner; k++, row++) {
                const int64_t t = call->target ? ((const int64_t *)call->target)[row] : -1;
                const int ignored = call->target && t == call->ignore_index;
                const double s = call->sample_weight ? get(call->sample_weight, dtype, row) : 1;
                double max = -INFINITY, sum = 0, total = 0, loss = 0;
                for (ptrdiff_t c = 0; c < C; c++) {
                    p[c] = get(call->logits.data, dtype, at(&call->logits, i, j, c, k));
                    if (call->softcap > 0) p[c] = call->softcap * tanh(p[c] / call->softcap);
                    if (p[c] > max) max = p[c];
                }
                for (ptrdiff_t c = 0; c < C; c++) sum += exp(p[c] - max);
                const double lse = max + log(sum);
                for (ptrdiff_t c = 0; c < C; c++) {
                    const double w = call->weight ? get(call->weight, dtype, c) : 1;
                    const double q = call->target
                                         ? (double)(c == t)
                                         : get(call->target_probs.data, dtype, at(&call->target_probs, i, j, c, k));
                    a[c] = w * ((1 - call->label_smoothing) * q + call->label_smoothing / (double)C);
                    total += a[c];
                    loss += a[c] * (lse - p[c]);
                }
                losses[row] = ignored ? 0 : s * (loss + call->z_loss * lse * lse);
                if (!ignored) denominator += s * (call->weight && call->target ? get(call->weight, dtype, t) : 1);
                const double upstream =
                    s * call->grad_scale * (call->grad_output ? get(call->grad_output, dtype, row) : 1);
                for (ptrdiff_t c = 0; c < C; c++) {
                    const double capped = call->softcap > 0 ? p[c] / call->softcap : 0;
                    const double slope = (total + 2 * call->z_loss * lse) * exp(p[c] - lse) - a[c];
                    grad[at(&call->grad, i, j, c, k)] = ignored ? 0 : upstream * slope * (1 - capped * capped);
                    is_grad[at(&call->grad, i, j, c, k)] = 1;
                }
            }
        }
    }
    free(p);
    free(a);
    return denominator;
}

static void test_formula(int dtype, ptrdiff_t classes, ptrdiff_t inner, int options, int reduction) {
    enum { N0 = 2, N1 = 9, GUARD = 64 };
    const ptrdiff_t rows = N0 * N1 * inner;
    const double tolerance = dtype == FL_F32 ? 3e-6 : 1e-13;
    /* The strides leave gaps, which must stay as they are. */
    const ptrdiff_t class_stride = inner == 1 ? 1 : inner + 2;
    const ptrdiff_t stride1 = classes * class_stride + 3, stride0 = N1 * stride1 + 5, size = N0 * stride0;

    int64_t *target = (int64_t *)get_memory((size_t)rows * sizeof *target);
    for (ptrdiff_t i = 0; i < rows; i++) {
        target[i] = (int64_t)((uniform() + 1) * 0.5 * (double)classes);
        if ((options & IGNORE) && i % 3 == 1) target[i] = -7;
    }
    void *logits = random_array(dtype, size, -6, 6), *probs = random_array(dtype, size, 0, 2.0 / (double)classes);
    void *weight = random_array(dtype, classes, 0.5, 1.5), *sample_weight = random_array(dtype, rows, 0.5, 1.5);
    void *grad_output = random_array(dtype, rows, -1, 1);
    const size_t grad_bytes = (size_t)(size + 2 * GUARD) * size_of(dtype),
                 loss_bytes = (size_t)(rows + 2 * GUARD) * size_of(dtype);
    char *grad_block = (char *)get_memory(grad_bytes), *loss_block = (char *)get_memory(loss_bytes);
    memset(grad_block, 0x5a, grad_bytes);
    memset(loss_block, 0x5a, loss_bytes);
    char *grad = grad_block + GUARD * size_of(dtype), *losses = loss_block + GUARD * size_of(dtype);

    fl_class_call call = fl_class_call_init();
    call.n[0] = N0;
    call.n[1] = N1;
    call.classes = classes;
    call.inner = inner;
    call.logits = new_array(logits, dtype, stride0, stride1, class_stride);
    call.grad = new_array(grad, dtype, stride0, stride1, class_stride);
    if (options & PROBS) {
        call.target_probs = new_array(probs, dtype, stride0, stride1, class_stride);
    } else {
        call.target = target;
        call.target_dtype = FL_I64;
    }
    if (options & WEIGHT) call.weight = weight;
    if (options & SAMPLE_WEIGHT) call.sample_weight = sample_weight;
    if (options & SMOOTHING) call.label_smoothing = 0.1;
    if (options & Z_LOSS) call.z_loss = 0.01;
    if (options & SOFTCAP) call.softcap = 5;
    if (options & IGNORE) call.ignore_index = -7;
    if (options & GRAD_OUTPUT) call.grad_output = grad_output;
    call.grad_scale = 0.5;
    call.reduction = reduction;
    call.losses = losses;

    double *expected_losses = (double *)get_memory((size_t)rows * sizeof(double));
    double *expected = (double *)get_memory((size_t)size * sizeof(double));
    unsigned char *is_grad = (unsigned char *)calloc((size_t)size, 1);
    if (is_grad == NULL) exit(2);
    const double computed = formula(&call, expected_losses, expected, is_grad);
    const double denominator = reduction == FL_MEAN ? computed : 1;

    double loss = NAN, sum = 0;
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    for (ptrdiff_t i = 0; i < rows; i++) {
        CHECK_NEAR(get(losses, dtype, i), expected_losses[i], tolerance * (1 + fabs(expected_losses[i])));
        sum += expected_losses[i];
    }
    CHECK_NEAR(loss, sum / denominator, tolerance * (1 + fabs(sum / denominator)));
    for (ptrdiff_t i = 0; i < size; i++) {
        if (is_grad[i]) CHECK_NEAR(get(grad, dtype, i), expected[i] / denominator, tolerance / denominator * 2);
    }
    int untouched = 1;
    for (size_t i = 0; i < grad_bytes; i++) {
        const ptrdiff_t element = (ptrdiff_t)(i / size_of(dtype)) - GUARD;
        if (element < 0 || element >= size || !is_grad[element]) untouched = untouched && grad_block[i] == 0x5a;
    }
    for (size_t i = 0; i < loss_bytes; i++) {
        const ptrdiff_t element = (ptrdiff_t)(i / size_of(dtype)) - GUARD;
        if (element < 0 || element >= rows) untouched = untouched && loss_block[i] == 0x5a;
    }
    CHECK(untouched);

    /* The loss alone has the same bits; in place, so has the gradient. */
    double again = NAN;
    fl_class_call alone = call;
    alone.grad.data = NULL;
    CHECK_STATUS(fl_class_loss(&alone, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    fl_class_call in_place = call;
    in_place.grad.data = logits;
    CHECK_STATUS(fl_class_loss(&in_place, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    for (ptrdiff_t i = 0; i < size; i++) {
        if (is_grad[i]) CHECK(get(logits, dtype, i) == get(grad, dtype, i));
    }

    free(target);
    free(logits);
    free(probs);
    free(weight);
    free(sample_weight);
    free(grad_output);
    free(grad_block);
    free(loss_block);
    free(expected_losses);
    free(expected);
    free(is_grad);
}

static void test_formulas(void) {
    static const ptrdiff_t sizes[] = {1, 2, 3, 5, 8, 10, 17, 32, 33, 100, 1000};
    for (int dtype = FL_F32; dtype <= FL_F64; dtype++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int options = 0; options < 256; options++) {
                /* Every combination for few classes, one option at a time and all at once for many. */
                const int simple = (options & (options - 1)) == 0 || options == 127;
                if ((options & PROBS) && (options & IGNORE)) continue;
                if (sizes[i] > 10 && !simple) continue;
                test_formula(dtype, sizes[i], 1, options, options % 3 ? FL_MEAN : FL_SUM);
                if (sizes[i] < 40 && simple) test_formula(dtype, sizes[i], 21, options, FL_MEAN);
            }
        }
    }
}

/* ---- Special values, ignored targets, empty means ------------------------------------------------------------------
 */

static void test_special_values(void) {
    enum { N = 6, C = 3 };
    float logits[N][C] = {{1, 2, 3}, {NAN, 1, 2}, {-INFINITY, 1, 2}, {INFINITY, 1, 2}, {NAN, NAN, NAN}, {1, 1, 1}};
    const int64_t target[N] = {0, 0, 1, 1, -100, 2};
    float grad[N][C], losses[N];
    double loss;
    fl_class_call call = rows_call(logits, FL_F32, target, N, C, grad);
    call.reduction = FL_NONE;
    call.losses = losses;
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    CHECK_NEAR(losses[0], 2.407606, 1e-6);
    CHECK(isnan(losses[1]) && isnan(grad[1][0]) && isnan(grad[1][1]) && isnan(grad[1][2]));
    CHECK_NEAR(losses[2], 1.313262, 1e-6);
    CHECK(grad[2][0] == 0);
    CHECK(isnan(losses[3]) && isnan(grad[3][1]));
    CHECK(losses[4] == 0 && grad[4][0] == 0 && grad[4][1] == 0 && grad[4][2] == 0);
    CHECK_NEAR(losses[5], log(3.0), 1e-6);

    /* The mean over nothing. */
    const int64_t none[2] = {-100, -100};
    fl_class_call empty = rows_call(logits, FL_F32, none, 2, C, grad);
    memset(grad, 0x5a, sizeof grad);
    CHECK_STATUS(fl_class_loss(&empty, &loss), FL_OK);
    CHECK(isnan(loss) && grad[0][0] == 0 && grad[1][2] == 0);
    empty.empty = FL_EMPTY_ZERO;
    CHECK_STATUS(fl_class_loss(&empty, &loss), FL_OK);
    CHECK(loss == 0 && grad[0][0] == 0);
    empty.normalizer = 4;
    CHECK_STATUS(fl_class_loss(&empty, &loss), FL_OK);
    CHECK(loss == 0);

    /* No rows at all. */
    fl_class_call no_rows = rows_call(logits, FL_F32, none, 0, C, grad);
    CHECK_STATUS(fl_class_loss(&no_rows, &loss), FL_OK);
    CHECK(isnan(loss));
}

/* Long rows are tried without a clamp on their exponentials: no logit may be so far from the reference that nobody
 * notices that it needs one. `many` logits of a row are x, the others 0, the target among them. */
static void check_extreme_logits(int dtype, double x, ptrdiff_t many, int in_place) {
    enum { C = 600, FIRST = 333, TARGET = 5 };
    static double memory[2][C];
    const int64_t target = TARGET;
    const double high = x > 0 ? x : 0, own = exp(-high), other = exp(x - high);
    const double sum = (double)(C - many) * own + (double)many * other;
    /* The narrowest vectors round a lane's sum 64 times before it goes into double. */
    const double tolerance = dtype == FL_F64 ? 1e-13 : 64 / 16777216.0;
    double loss = NAN;
    for (ptrdiff_t c = 0; c < C; c++) put(memory[0], dtype, c, c >= FIRST && c < FIRST + many ? x : 0);
    void *grad = memory[in_place ? 0 : 1];
    fl_class_call call = rows_call(memory[0], dtype, &target, 1, C, grad);
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    CHECK_NEAR(loss, high + log(sum), tolerance * (1 + high));
    CHECK_NEAR(get(grad, dtype, 0), own / sum, tolerance);
    CHECK_NEAR(get(grad, dtype, FIRST), other / sum, tolerance);
    CHECK_NEAR(get(grad, dtype, TARGET), own / sum - 1, tolerance);
    if (x < (dtype == FL_F64 ? -1000 : -109)) CHECK(get(grad, dtype, FIRST) == 0);
    if (in_place) return;
    call.grad.data = NULL;
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    CHECK_NEAR(loss, high + log(sum), tolerance * (1 + high));
}

static void test_extreme_logits(void) {
    for (int variant = 0; variant < 4; variant++) {
        const ptrdiff_t many = variant < 2 ? 1 : 200;
        for (int x = 1500; x > -3000000; x -= variant == 0 || x > -1500 ? 7 : 91)
            check_extreme_logits(FL_F32, x, many, variant % 2);
        for (int x = -1500; x < 1500; x++) {
            check_extreme_logits(FL_F32, x / 4.0, many, variant % 2);
            check_extreme_logits(FL_F64, x, many, variant % 2);
        }
        for (int power = 10; power < 62; power++)
            for (int step = -20; step <= 20; step++)
                check_extreme_logits(FL_F64, -(ldexp(log(2), power) + step * 200.0) - 5000, many, variant % 2);
    }
}

/* ---- Status codes: each is given, and then nothing was written -----------------------------------------------------
 */

static void test_status_codes(void) {
    static const char *const names[] = {"FL_OK",          "FL_ERROR_NULL",   "FL_ERROR_SIZE",
                                        "FL_ERROR_DTYPE", "FL_ERROR_OPTION", "FL_ERROR_INDEX",
                                        "FL_ERROR_EMPTY", "FL_ERROR_ISA",    "FL_ERROR_PROBABILITY"};
    for (int status = FL_OK; status <= FL_ERROR_PROBABILITY; status++) {
        CHECK(strncmp(fl_status_name(status), names[status], strlen(names[status])) == 0);
    }
    CHECK(fl_status_name(-1) != NULL && fl_status_name(1000) != NULL);

    enum { N = 3, C = 4 };
    float logits[N][C] = {{0}}, grad[N][C], losses[N], untouched[N][C];
    const int64_t target[N] = {0, 3, -100}, high[N] = {0, 1, 4}, low[N] = {0, -1, 2}, none[N] = {-100, -100, -100};
    double loss = 42;
    memset(grad, 0x5a, sizeof grad);
    memset(losses, 0x5a, sizeof losses);
    memset(untouched, 0x5a, sizeof untouched);

    const fl_class_call good = rows_call(logits, FL_F32, target, N, C, grad);
    fl_class_call call;
#define REFUSED(expected, change)                            \
    do {                                                     \
        call = good;                                         \
        call.losses = losses;                                \
        change;                                              \
        CHECK_STATUS(fl_class_loss(&call, &loss), expected); \
    } while (0)
    CHECK_STATUS(fl_class_loss(NULL, &loss), FL_ERROR_NULL);
    CHECK_STATUS(fl_class_loss(&good, NULL), FL_ERROR_NULL);
    REFUSED(FL_ERROR_NULL, call.logits.data = NULL);
    REFUSED(FL_ERROR_NULL, call.target = NULL);
    REFUSED(FL_ERROR_SIZE, call.n[0] = -1);
    REFUSED(FL_ERROR_SIZE, call.n[1] = -1);
    REFUSED(FL_ERROR_SIZE, call.classes = 0);
    REFUSED(FL_ERROR_SIZE, call.classes = -4);
    REFUSED(FL_ERROR_SIZE, call.inner = -1);
    REFUSED(FL_ERROR_SIZE, call.struct_size = sizeof call + 8);
    REFUSED(FL_ERROR_SIZE, call.struct_size = (size_t)-1);
    REFUSED(FL_ERROR_SIZE, call.struct_size = 0);
    REFUSED(FL_ERROR_DTYPE, call.logits.dtype = 0);
    REFUSED(FL_ERROR_DTYPE, call.logits.dtype = FL_I32);
    REFUSED(FL_ERROR_DTYPE, call.logits.dtype = 99);
    REFUSED(FL_ERROR_DTYPE, call.grad.dtype = FL_F64);
    REFUSED(FL_ERROR_DTYPE, call.target_dtype = FL_F32);
    REFUSED(FL_ERROR_DTYPE, call.target_dtype = 0);
    REFUSED(FL_ERROR_OPTION, call.label_smoothing = 1.5);
    REFUSED(FL_ERROR_OPTION, call.label_smoothing = -0.1);
    REFUSED(FL_ERROR_OPTION, call.label_smoothing = NAN);
    REFUSED(FL_ERROR_OPTION, call.z_loss = -1);
    REFUSED(FL_ERROR_OPTION, call.softcap = -1);
    REFUSED(FL_ERROR_OPTION, call.reduction = 7);
    REFUSED(FL_ERROR_OPTION, call.empty = 7);
    REFUSED(FL_ERROR_INDEX, call.target = high);
    REFUSED(FL_ERROR_INDEX, call.target = low);
    REFUSED(FL_ERROR_EMPTY, (call.target = none, call.empty = FL_EMPTY_ERROR));
#undef REFUSED
    if (sizeof(ptrdiff_t) > 4) {
        call = good;
        call.classes = (ptrdiff_t)1 << (sizeof(ptrdiff_t) > 4 ? 31 : 0);
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_ERROR_SIZE);
    }
    ptrdiff_t tiles = 42;
    call = good;
    call.n[1] = -1;
    CHECK_STATUS(fl_class_tiles(&call, &tiles), FL_ERROR_SIZE);
    CHECK(tiles == 42);

    CHECK_STATUS(fl_cross_entropy_f32(&logits[0][0], high, N, C, &loss, &grad[0][0]), FL_ERROR_INDEX);
    CHECK_STATUS(fl_cross_entropy_f32(NULL, target, N, C, &loss, &grad[0][0]), FL_ERROR_NULL);
    CHECK_STATUS(fl_cross_entropy_f32(&logits[0][0], NULL, N, C, &loss, &grad[0][0]), FL_ERROR_NULL);
    CHECK_STATUS(fl_cross_entropy_f32(&logits[0][0], target, N, C, NULL, &grad[0][0]), FL_ERROR_NULL);
    CHECK_STATUS(fl_cross_entropy_f32(&logits[0][0], target, -1, C, &loss, &grad[0][0]), FL_ERROR_SIZE);
    CHECK_STATUS(fl_bce_with_logits_f32(NULL, &logits[0][0], N, &loss, &grad[0][0]), FL_ERROR_NULL);
    CHECK_STATUS(fl_bce_with_logits_f32(&logits[0][0], NULL, N, &loss, &grad[0][0]), FL_ERROR_NULL);
    CHECK_STATUS(fl_bce_with_logits_f32(&logits[0][0], &logits[0][0], -1, &loss, &grad[0][0]), FL_ERROR_SIZE);

    fl_element_call bce = fl_element_call_init();
    bce.n[0] = bce.n[1] = 1;
    bce.n[2] = N;
    bce.logits = bce.target = logits;
    bce.logits_dtype = bce.target_dtype = bce.grad_dtype = FL_F32;
    bce.grad = grad;
    const fl_element_call good_bce = bce;
    CHECK_STATUS(fl_element_loss(NULL, &loss), FL_ERROR_NULL);
    bce.logits = NULL;
    CHECK_STATUS(fl_element_loss(&bce, &loss), FL_ERROR_NULL);
    bce = good_bce;
    bce.struct_size = sizeof bce + 8;
    CHECK_STATUS(fl_element_loss(&bce, &loss), FL_ERROR_SIZE);
    bce = good_bce;
    bce.logits_dtype = FL_U8;
    CHECK_STATUS(fl_element_loss(&bce, &loss), FL_ERROR_DTYPE);
    bce = good_bce;
    bce.label_smoothing = 2;
    CHECK_STATUS(fl_element_loss(&bce, &loss), FL_ERROR_OPTION);

    fl_softmax_call softmax = fl_softmax_call_init();
    softmax.kind = 9;
    softmax.n[0] = 1;
    softmax.n[1] = N;
    softmax.classes = C;
    softmax.logits = new_array(logits, FL_F32, 0, C, 1);
    softmax.output = new_array(grad, FL_F32, 0, C, 1);
    CHECK_STATUS(fl_softmax(&softmax), FL_ERROR_OPTION);
    softmax.kind = FL_SOFTMAX;
    softmax.output.data = NULL;
    CHECK_STATUS(fl_softmax(&softmax), FL_ERROR_NULL);
    softmax.kind = FL_LOGSUMEXP;
    CHECK_STATUS(fl_softmax(&softmax), FL_ERROR_NULL);
    softmax.values = losses;
    softmax.struct_size += 8;
    CHECK_STATUS(fl_softmax(&softmax), FL_ERROR_SIZE);
    CHECK_STATUS(fl_softmax(NULL), FL_ERROR_NULL);

    CHECK_STATUS(fl_map(9, FL_F32, logits, N, grad), FL_ERROR_OPTION);
    CHECK_STATUS(fl_map(FL_SIGMOID, FL_I8, logits, N, grad), FL_ERROR_DTYPE);
    CHECK_STATUS(fl_map(FL_SIGMOID, FL_F32, NULL, N, grad), FL_ERROR_NULL);
    CHECK_STATUS(fl_map(FL_SIGMOID, FL_F32, logits, N, NULL), FL_ERROR_NULL);
    CHECK_STATUS(fl_map(FL_SIGMOID, FL_F32, logits, -1, grad), FL_ERROR_SIZE);

    CHECK(loss == 42);
    CHECK(memcmp(grad, untouched, sizeof grad) == 0);
    CHECK(memcmp(losses, untouched, sizeof losses) == 0);
}

/* ---- A program that was compiled with an older header ---------------------------------------------------------------
 */

static void test_older_struct(void) {
    enum { N = 2, C = 3 };
    float logits[N][C] = {{2.0f, 0.1f, 0.4f}, {1.0f, 8.0f, -1.0f}}, grad[N][C], old_grad[N][C];
    const int64_t target[N] = {1, 2};
    double loss, old_loss;
    const fl_class_call call = rows_call(logits, FL_F32, target, N, C, grad);
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);

    /* What follows the older struct is not ours to read: AddressSanitizer watches the end of this allocation. */
    const size_t size = offsetof(fl_class_call, label_smoothing);
    fl_class_call *old = (fl_class_call *)get_memory(size);
    fl_class_call shorter = call;
    shorter.struct_size = size;
    shorter.grad.data = old_grad;
    memcpy((void *)old, &shorter, size);
    CHECK_STATUS(fl_class_loss(old, &old_loss), FL_OK);
    CHECK(memcmp(&loss, &old_loss, sizeof loss) == 0);
    CHECK(memcmp(grad, old_grad, sizeof grad) == 0);
    free(old);

    /* Fields behind struct_size are not read, even where there is memory. */
    shorter.label_smoothing = 5;
    shorter.reduction = 99;
    CHECK_STATUS(fl_class_loss(&shorter, &old_loss), FL_OK);
    CHECK(memcmp(&loss, &old_loss, sizeof loss) == 0);
}

/* ---- Tiles: in any order the same bits as the one call
 * --------------------------------------------------------------- */

enum { MAX_TILES = 4096 };

static void test_cross_entropy_tiles(int dtype, ptrdiff_t n, ptrdiff_t classes, ptrdiff_t inner) {
    static double weights[MAX_TILES], losses[MAX_TILES];
    const ptrdiff_t size = n * classes * inner;
    void *logits = random_array(dtype, size, -5, 5), *weight = random_array(dtype, classes, 0.5, 1.5);
    void *grad = get_memory((size_t)size * size_of(dtype)), *tiled = get_memory((size_t)size * size_of(dtype));
    int64_t *target = (int64_t *)get_memory((size_t)(n * inner) * sizeof *target);
    for (ptrdiff_t i = 0; i < n * inner; i++) target[i] = i % 11 == 5 ? -100 : i % classes;

    fl_class_call call = rows_call(logits, dtype, target, n, classes, grad);
    call.inner = inner;
    call.logits.stride[1] = call.grad.stride[1] = classes * inner;
    call.logits.class_stride = call.grad.class_stride = inner;
    call.weight = weight;
    double whole;
    CHECK_STATUS(fl_class_loss(&call, &whole), FL_OK);

    ptrdiff_t tiles = 0;
    call.grad.data = tiled;
    CHECK_STATUS(fl_class_tiles(&call, &tiles), FL_OK);
    CHECK(tiles > 1 && tiles <= MAX_TILES);
    if (tiles > MAX_TILES) return;
    double normalizer = 0, loss = 0;
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        fl_target_check result;
        CHECK_STATUS(fl_class_check(&call, tile, &result), FL_OK);
        CHECK(result.bad_position == -1);
        weights[tile] = result.weight;
    }
    for (ptrdiff_t tile = 0; tile < tiles; tile++) normalizer += weights[tile];
    call.normalizer = normalizer;
    /* Odd tiles first, each half backwards. */
    for (int parity = 1; parity >= 0; parity--) {
        for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--) {
            if (tile % 2 == parity) CHECK_STATUS(fl_class_tile(&call, tile, NULL, &losses[tile]), FL_OK);
        }
    }
    for (ptrdiff_t tile = 0; tile < tiles; tile++) loss += losses[tile];
    loss /= normalizer;
    CHECK(memcmp(&loss, &whole, sizeof loss) == 0);
    CHECK(memcmp(grad, tiled, (size_t)size * size_of(dtype)) == 0);

    /* The position of the first bad target is that in the whole batch. */
    const ptrdiff_t bad = n * inner - 2;
    target[bad] = classes + 3;
    call.normalizer = -INFINITY;
    ptrdiff_t found = -1;
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        fl_target_check result;
        (void)fl_class_check(&call, tile, &result);
        if (found < 0 && result.bad_position >= 0) {
            found = result.bad_position;
            CHECK(result.bad_value == classes + 3);
        }
    }
    CHECK(found == bad);
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_ERROR_INDEX);

    free(logits);
    free(weight);
    free(grad);
    free(tiled);
    free(target);
}

/* Gradients past the caches are written by whole lines, so where they begin says how a tile is cut into steps. */
static void test_steps_of_a_tile(void) {
    const ptrdiff_t classes = 9, inner = 1 << 19;
    double *logits = (double *)random_array(FL_F64, classes * inner, -5, 5);
    double *grad = (double *)get_memory((size_t)(classes * inner + 8) * sizeof *grad);
    int64_t *target = (int64_t *)get_memory((size_t)inner * sizeof *target);
    for (ptrdiff_t i = 0; i < inner; i++) target[i] = i % classes;
    fl_class_call call = rows_call(logits, FL_F64, target, 1, classes, NULL);
    call.inner = inner;
    call.normalizer = 1;
    call.logits.class_stride = call.grad.class_stride = inner;
    for (ptrdiff_t tile = 0; tile < 10; tile++) {
        double alone, loss;
        call.grad.data = NULL;
        CHECK_STATUS(fl_class_tile(&call, tile, NULL, &alone), FL_OK);
        for (ptrdiff_t offset = 0; offset < 8; offset++) {
            call.grad.data = grad + offset;
            CHECK_STATUS(fl_class_tile(&call, tile, NULL, &loss), FL_OK);
            CHECK(memcmp(&loss, &alone, sizeof loss) == 0);
        }
    }
    free(logits);
    free(grad);
    free(target);
}

/* ---- Binary cross-entropy
 * --------------------------------------------------------------------------------------------- */

static double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

static void test_bce(int dtype, int options, ptrdiff_t last) {
    enum { N0 = 3, N1 = 5 };
    const ptrdiff_t n = N0 * N1 * last;
    const double tolerance = dtype == FL_F32 ? 2e-6 : 1e-14, smoothing = options & SMOOTHING ? 0.1 : 0;
    void *logits = random_array(dtype, n, -8, 8), *target = random_array(dtype, n, 0, 1);
    void *weight = random_array(dtype, N1, 0.5, 1.5), *pos_weight = random_array(dtype, last, 0.5, 1.5);
    void *grad = get_memory((size_t)n * size_of(dtype)), *losses = get_memory((size_t)n * size_of(dtype));
    for (ptrdiff_t i = 3; i < n; i += 4) put(target, dtype, i, -1);

    fl_element_call call = fl_element_call_init();
    call.n[0] = N0;
    call.n[1] = N1;
    call.n[2] = last;
    call.logits = logits;
    call.grad = grad;
    call.target = target;
    call.logits_dtype = call.grad_dtype = call.target_dtype = dtype;
    call.losses = losses;
    call.grad_scale = 2;
    call.label_smoothing = smoothing;
    if (options & WEIGHT) {
        call.weight.data = weight;
        call.weight.stride[1] = 1;
        call.pos_weight.data = pos_weight;
        call.pos_weight.stride[2] = 1;
    }
    call.has_ignore = 1;
    call.ignore_value = -1;
    double loss = NAN, again = NAN, count = 0;
    long double sum = 0; /* in double, the order of the terms would show */
    CHECK_STATUS(fl_element_loss(&call, &loss), FL_OK);

    for (ptrdiff_t i = 0; i < n; i++) count += get(target, dtype, i) != -1;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double t = get(target, dtype, i), z = get(logits, dtype, i), y = t * (1 - smoothing) + smoothing / 2;
        const double w = options & WEIGHT ? get(weight, dtype, i / last % N1) : 1;
        const double pos = options & WEIGHT ? get(pos_weight, dtype, i % last) : 1;
        const double p = 1 / (1 + exp(-z));
        const double element = t == -1 ? 0 : w * (pos * y * softplus(-z) + (1 - y) * softplus(z));
        const double slope = t == -1 ? 0 : w * ((1 - y) * p - pos * y * (1 - p));
        CHECK_NEAR(get(losses, dtype, i), element, tolerance * (1 + element));
        CHECK_NEAR(get(grad, dtype, i), 2 * slope / count, 4 * tolerance / count);
        sum += element;
    }
    CHECK_NEAR(loss, (double)sum / count, tolerance * (1 + (double)sum / count));

    /* In place, and in tiles from the last to the first. */
    static double weights[MAX_TILES], tile_losses[MAX_TILES];
    ptrdiff_t tiles = 0;
    call.grad = logits;
    CHECK_STATUS(fl_element_tiles(&call, &tiles), FL_OK);
    CHECK(tiles >= 1 && tiles <= MAX_TILES);
    if (tiles > MAX_TILES) return;
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        fl_target_check result;
        CHECK_STATUS(fl_element_check(&call, tile, &result), FL_OK);
        weights[tile] = result.weight;
    }
    call.normalizer = again = 0;
    for (ptrdiff_t tile = 0; tile < tiles; tile++) call.normalizer += weights[tile];
    CHECK_NEAR(call.normalizer, count, 0);
    for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--)
        CHECK_STATUS(fl_element_tile(&call, tile, &tile_losses[tile]), FL_OK);
    for (ptrdiff_t tile = 0; tile < tiles; tile++) again += tile_losses[tile];
    again /= call.normalizer;
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    CHECK(memcmp(logits, grad, (size_t)n * size_of(dtype)) == 0);

    free(logits);
    free(target);
    free(weight);
    free(pos_weight);
    free(grad);
    free(losses);
}

/* ---- Softmax and its relatives, and functions of one element
 * ----------------------------------------------------------- */

static void test_softmax(int dtype, ptrdiff_t classes, ptrdiff_t inner) {
    enum { N = 7 };
    const double tolerance = dtype == FL_F32 ? 3e-6 : 1e-14;
    const ptrdiff_t size = N * classes * inner;
    void *logits = random_array(dtype, size, -9, 9);
    for (int kind = FL_SOFTMAX; kind <= FL_ENTROPY; kind++) {
        void *output = get_memory((size_t)size * size_of(dtype));
        memcpy(output, logits, (size_t)size * size_of(dtype));
        fl_softmax_call call = fl_softmax_call_init();
        call.kind = kind;
        call.n[0] = 1;
        call.n[1] = N;
        call.classes = classes;
        call.inner = inner;
        call.logits = new_array(logits, dtype, 0, classes * inner, inner);
        if (kind <= FL_LOG_SOFTMAX) {
            call.output = call.logits = new_array(output, dtype, 0, classes * inner, inner); /* in place */
        } else {
            call.values = output;
        }
        CHECK_STATUS(fl_softmax(&call), FL_OK);
        for (ptrdiff_t i = 0; i < N; i++) {
            for (ptrdiff_t k = 0; k < inner; k++) {
                double max = -INFINITY, sum = 0, entropy = 0;
                for (ptrdiff_t c = 0; c < classes; c++) {
                    const double z = get(logits, dtype, (i * classes + c) * inner + k);
                    if (z > max) max = z;
                }
                for (ptrdiff_t c = 0; c < classes; c++)
                    sum += exp(get(logits, dtype, (i * classes + c) * inner + k) - max);
                const double lse = max + log(sum);
                for (ptrdiff_t c = 0; c < classes; c++) {
                    const ptrdiff_t position = (i * classes + c) * inner + k;
                    const double log_p = get(logits, dtype, position) - lse;
                    entropy -= exp(log_p) * log_p;
                    if (kind == FL_SOFTMAX) CHECK_NEAR(get(output, dtype, position), exp(log_p), tolerance);
                    if (kind == FL_LOG_SOFTMAX) CHECK_NEAR(get(output, dtype, position), log_p, tolerance * 10);
                }
                if (kind == FL_LOGSUMEXP) CHECK_NEAR(get(output, dtype, i * inner + k), lse, tolerance * 10);
                if (kind == FL_ENTROPY) CHECK_NEAR(get(output, dtype, i * inner + k), entropy, tolerance * 10);
            }
        }
        free(output);
    }
    free(logits);
}

static void test_maps(int dtype) {
    enum { N = 1003 };
    const double tolerance = dtype == FL_F32 ? 1e-6 : 1e-15;
    void *input = random_array(dtype, N, -20, 20), *output = get_memory((N + 1) * size_of(dtype));
    put(input, dtype, 0, -1000);
    put(input, dtype, 1, 1000);
    put(input, dtype, 2, 0);
    put(input, dtype, 3, NAN);
    for (int kind = FL_SIGMOID; kind <= FL_SOFTPLUS; kind++) {
        put(output, dtype, N, 77);
        CHECK_STATUS(fl_map(kind, dtype, input, N, output), FL_OK);
        CHECK(get(output, dtype, N) == 77);
        for (ptrdiff_t i = 0; i < N; i++) {
            const double x = get(input, dtype, i);
            double expected = softplus(x);
            if (kind == FL_SIGMOID) expected = 1 / (1 + exp(-x));
            if (kind == FL_LOG_SIGMOID) expected = -softplus(-x);
            CHECK_NEAR(get(output, dtype, i), expected, tolerance * fabs(expected));
        }
    }
    CHECK_STATUS(fl_map(FL_SOFTPLUS, dtype, input, N, input), FL_OK);
    for (ptrdiff_t i = 0; i < N; i++) {
        CHECK(get(input, dtype, i) == get(output, dtype, i) || isnan(get(input, dtype, i)));
    }
    CHECK_STATUS(fl_map(FL_SIGMOID, dtype, input, 0, output), FL_OK);
    free(input);
    free(output);
}

/* ---- Integer targets of every dtype, and half-precision logits
 * ---------------------------------------------------------- */

static void test_target_dtypes(void) {
    enum { N = 3, C = 3 };
    float logits[N][C] = {{2.0f, 0.1f, 0.4f}, {1.0f, 8.0f, -1.0f}, {0}};
    const int8_t i8[N] = {1, 2, -1};
    const int16_t i16[N] = {1, 2, -1};
    const int32_t i32[N] = {1, 2, -1};
    const int64_t i64[N] = {1, 2, -1};
    const uint8_t u8[N] = {1, 2, 255};
    const uint16_t u16[N] = {1, 2, 255};
    const uint32_t u32[N] = {1, 2, 255};
    const uint64_t u64[N] = {1, 2, 255};
    const void *const targets[] = {i8, i16, i32, i64, u8, u16, u32, u64};
    for (int dtype = FL_I8; dtype <= FL_U64; dtype++) {
        double loss;
        fl_class_call call = rows_call(logits, FL_F32, targets[dtype - FL_I8], N, C, NULL);
        call.target_dtype = dtype;
        call.ignore_index = dtype < FL_U8 ? -1 : 255;
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
        CHECK_NEAR(loss, 5.601112, 1e-6);
        call.ignore_index = -100;
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_ERROR_INDEX);
    }
}

/* NaN of a float, whatever its bits, is NaN in the half gradients of its row, of any length. */
static void test_nan_to_half(void) {
    enum { MOST = 1000 };
    static const int lengths[] = {3, 40, 100, MOST};
    static const uint32_t nans[] = {0x7fffffff, 0xffffffff, 0x7fc00000, 0x7f80ffff};
    static float z[MOST];
    static uint16_t half_grad[MOST];
    const int64_t target = 2;
    for (int dtype = FL_F16; dtype <= FL_BF16; dtype++)
        for (int length = 0; length < 4; length++)
            for (int k = 0; k < 4; k++) {
                const int classes = lengths[length];
                const unsigned infinity = dtype == FL_F16 ? 0x7c00 : 0x7f80;
                double loss;
                memset(z, 0, sizeof z);
                memcpy(&z[1], &nans[k], sizeof z[1]);
                fl_class_call call = rows_call(z, FL_F32, &target, 1, classes, NULL);
                call.grad = new_array(half_grad, dtype, 0, classes, 1);
                CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
                for (int c = 0; c < classes; c++) CHECK((half_grad[c] & 0x7fffu) > infinity);
            }
}

static void test_half_types(void) {
    /* 1, 2, -1.5 and 0 in each format, with a gradient in float. */
    const uint16_t f16[4] = {0x3c00, 0x4000, 0xbe00, 0}, bf16[4] = {0x3f80, 0x4000, 0xbfc0, 0};
    const float f32[4] = {1, 2, -1.5f, 0};
    const int64_t target = 2;
    float expected[4], grad[4];
    double loss, expected_loss;
    CHECK_STATUS(fl_cross_entropy_f32(f32, &target, 1, 4, &expected_loss, expected), FL_OK);
    for (int dtype = FL_F16; dtype <= FL_BF16; dtype++) {
        uint16_t half[4], half_grad[4];
        memcpy(half, dtype == FL_F16 ? f16 : bf16, sizeof half);
        fl_class_call call = rows_call(half, dtype, &target, 1, 4, grad);
        call.grad.dtype = FL_F32;
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
        CHECK_NEAR(loss, expected_loss, 1e-6);
        for (int c = 0; c < 4; c++) CHECK_NEAR(grad[c], expected[c], 1e-6);
        call.grad = new_array(half_grad, dtype, 0, 4, 1);
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
        CHECK(half_grad[2] >> 15 == 1 && half_grad[0] >> 15 == 0);
        if (dtype == FL_BF16) {
            const uint32_t bits = (uint32_t)half_grad[1] << 16;
            float value;
            memcpy(&value, &bits, sizeof value);
            CHECK_NEAR(value, expected[1], 0.004 * fabs(expected[1]));
        }
    }
}

/* ---- What the library says of itself
 * ------------------------------------------------------------------------------------ */

static void test_identity(void) {
    CHECK(strcmp(fl_version(), FL_VERSION) == 0);
    const char *wanted = getenv("FASTLOSS_ISA"), *isa = fl_isa(), *list = fl_isa_list();
    CHECK(isa != NULL && list != NULL && list[0] != '\0');
    if (isa == NULL || list == NULL) return;
    const char *last = strrchr(list, ' ');
    CHECK(strcmp(isa, wanted && *wanted ? wanted : last ? last + 1 : list) == 0);
}

static int test_isa_error(void) {
    float x[2] = {0, 0}, out[2] = {7, 7};
    const int64_t target = 0;
    double loss = 42;
    ptrdiff_t tiles = 42;
    fl_class_call call = rows_call(x, FL_F32, &target, 1, 2, out);
    CHECK(fl_isa() == NULL);
    CHECK(fl_isa_list()[0] != '\0');
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_ERROR_ISA);
    CHECK_STATUS(fl_class_tiles(&call, &tiles), FL_ERROR_ISA);
    CHECK_STATUS(fl_cross_entropy_f32(x, &target, 1, 2, &loss, out), FL_ERROR_ISA);
    CHECK_STATUS(fl_bce_with_logits_f32(x, x, 2, &loss, out), FL_ERROR_ISA);
    CHECK_STATUS(fl_map(FL_SIGMOID, FL_F32, x, 2, out), FL_ERROR_ISA);
    CHECK(loss == 42 && tiles == 42 && out[0] == 7 && out[1] == 7);
    return failures != 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--isa-list") == 0) return puts(fl_isa_list()) < 0;
    if (argc > 1 && strcmp(argv[1], "--isa-error") == 0) return test_isa_error();

    test_identity();
    test_known_values();
    test_special_values();
    test_extreme_logits();
    test_status_codes();
    test_older_struct();
    test_target_dtypes();
    test_half_types();
    test_nan_to_half();
    test_formulas();
    test_steps_of_a_tile();
    for (int dtype = FL_F32; dtype <= FL_F64; dtype++) {
        test_cross_entropy_tiles(dtype, 30000, 10, 1);
        test_cross_entropy_tiles(dtype, 600, 1001, 1);
        test_cross_entropy_tiles(dtype, 5, 40000, 1);
        test_cross_entropy_tiles(dtype, 40, 7, 1300);
        for (int options = 0; options < 8; options++) {
            test_bce(dtype, options, 1);
            test_bce(dtype, options, 37);
            test_bce(dtype, options, 20000);
        }
        for (ptrdiff_t classes = 1; classes < 40; classes += 3) {
            test_softmax(dtype, classes, 1);
            test_softmax(dtype, classes, 19);
        }
        test_softmax(dtype, 1000, 1);
        test_maps(dtype);
    }
    printf("%s: %d checks, %d failed\n", fl_isa() ? fl_isa() : "?", checks, failures);
    return failures != 0;
}

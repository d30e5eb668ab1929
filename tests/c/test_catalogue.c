/* The losses beside cross-entropy and binary cross-entropy, on the instruction set that FASTLOSS_ISA names: losses and
 * gradients against naive formulas in double, layouts, tiles, status codes, and what must not be written. C99 that is
 * also C++17. */
#include "checks.h"

enum { GUARD = 64, MAX_TILES = 256 };

static int working(int dtype) { return dtype == FL_F64 ? FL_F64 : FL_F32; }

/* What the results of a working type may be off by, and what storing them in a half type adds. */
static double tolerance_of(int dtype) { return dtype == FL_F64 ? 2e-13 : 4e-6; }
static double storage_of(int dtype) { return dtype == FL_F16 ? 5e-4 : dtype == FL_BF16 ? 4e-3 : 0; }

/* Multiples of 1/8, which every type holds: ties are frequent and margins are attained exactly. */
static void *coarse_array(int dtype, ptrdiff_t n, double low, double high) {
    void *p = get_memory((size_t)n * size_of(dtype));
    for (ptrdiff_t i = 0; i < n; i++) put(p, dtype, i, floor((low + (high - low) * 0.5 * (uniform() + 1)) * 8) / 8);
    return p;
}

/* n numbers between guards. */
typedef struct guarded {
    char *block, *data;
    size_t bytes;
} guarded;

static guarded new_guarded(size_t bytes) {
    guarded g;
    g.bytes = bytes;
    g.block = (char *)get_memory(bytes + 2 * GUARD);
    g.data = g.block + GUARD;
    memset(g.block, 0x5a, bytes + 2 * GUARD);
    return g;
}

/* Whether the guards hold, and all that is not marked as written; unit: bytes of one of the marked elements. */
static int is_untouched(const guarded *g, const unsigned char *written, size_t unit) {
    int fine = 1;
    for (size_t i = 0; i < GUARD; i++) fine = fine && g->block[i] == 0x5a && g->data[g->bytes + i] == 0x5a;
    for (size_t i = 0; i < g->bytes; i++) fine = fine && ((written && written[i / unit]) || g->data[i] == 0x5a);
    return fine;
}

/* A batch whose strides leave gaps. */
typedef struct shape {
    int dtype;
    ptrdiff_t n1, classes, inner;
} shape;

enum { N0 = 2 };

static ptrdiff_t rows_of(const shape *s) { return N0 * s->n1 * s->inner; }
static ptrdiff_t class_stride_of(const shape *s) { return s->inner == 1 ? 1 : s->inner + 2; }
static ptrdiff_t stride1_of(const shape *s) { return s->classes * class_stride_of(s) + 3; }
static ptrdiff_t stride0_of(const shape *s) { return s->n1 * stride1_of(s) + 5; }
static ptrdiff_t size_of_batch(const shape *s) { return N0 * stride0_of(s); }

static fl_array batch_array(const shape *s, void *data, int dtype) {
    return new_array(data, dtype, stride0_of(s), stride1_of(s), class_stride_of(s));
}

/* Where class c of target number `row` lies. */
static ptrdiff_t place_of(const shape *s, ptrdiff_t row, ptrdiff_t c) {
    const ptrdiff_t outer = row / s->inner;
    return outer / s->n1 * stride0_of(s) + outer % s->n1 * stride1_of(s) + c * class_stride_of(s) + row % s->inner;
}

static unsigned char *places_of(const shape *s) {
    unsigned char *written = (unsigned char *)get_memory((size_t)size_of_batch(s));
    memset(written, 0, (size_t)size_of_batch(s));
    for (ptrdiff_t row = 0; row < rows_of(s); row++)
        for (ptrdiff_t c = 0; c < s->classes; c++) written[place_of(s, row, c)] = 1;
    return written;
}

/* The gradient at every place of a batch. */
static void check_grad(const shape *s, const void *grad, const double *expected, double tolerance) {
    const double stored = storage_of(s->dtype);
    for (ptrdiff_t row = 0; row < rows_of(s); row++) {
        for (ptrdiff_t c = 0; c < s->classes; c++) {
            const double want = expected[row * s->classes + c];
            CHECK_NEAR(get(grad, s->dtype, place_of(s, row, c)), want, tolerance + stored * fabs(want) + stored * 1e-4);
        }
    }
}

/* p = softmax(z), and logsumexp(z). */
static double naive_softmax(const double *z, ptrdiff_t n, double *p) {
    double max = -INFINITY, sum = 0;
    for (ptrdiff_t c = 0; c < n; c++) max = z[c] > max ? z[c] : max;
    for (ptrdiff_t c = 0; c < n; c++) sum += exp(z[c] - max);
    for (ptrdiff_t c = 0; c < n; c++) p[c] = exp(z[c] - max) / sum;
    return max + log(sum);
}

/* ---- Losses over an axis of classes
 * -----------------------------------------------------------------------------------*/

enum {
    WEIGHT = 1,
    SAMPLE_WEIGHT = 2,
    UPSTREAM = 4,
    IGNORE = 8,
    SMOOTHING = 16,
    SOFTCAP = 32,
    PROBS = 64,
    Z_LOSS = 128
};

/* sum_c a_c f(p_c) (lse - z_c) + z_loss lse^2, differentiated term by term: adds the gradient by z. */
static double naive_focal(const fl_class_call *call, const double *z, const double *a, double *grad) {
    const ptrdiff_t classes = call->classes;
    double *p = (double *)get_memory((size_t)classes * sizeof *p), loss = 0;
    const double lse = naive_softmax(z, classes, p), focal = call->focal, gamma = call->gamma;
    for (ptrdiff_t c = 0; c < classes; c++) {
        const double f = 1 - focal + focal * pow(1 - p[c], gamma);
        const double slope = focal > 0 && p[c] < 1 ? -focal * gamma * pow(1 - p[c], gamma - 1) : 0;
        loss += a[c] * f * (lse - z[c]);
        for (ptrdiff_t k = 0; k < classes; k++) {
            const double by_z = p[c] * ((c == k) - p[k]);
            grad[k] += a[c] * (slope * by_z * (lse - z[c]) + f * (p[k] - (c == k)));
        }
    }
    for (ptrdiff_t k = 0; k < classes; k++) grad[k] += 2 * call->z_loss * lse * p[k];
    free(p);
    return loss + call->z_loss * lse * lse;
}

static double naive_multi_margin(const fl_class_call *call, const double *z, ptrdiff_t y, double a, double *grad) {
    double loss = 0;
    for (ptrdiff_t c = 0; c < call->classes; c++) {
        const double lack = call->margin - z[y] + z[c];
        if (c == y || lack <= 0) continue;
        const double slope = a / (double)call->classes * (call->power == 2 ? 2 * lack : 1);
        loss += a / (double)call->classes * (call->power == 2 ? lack * lack : lack);
        grad[c] += slope;
        grad[y] -= slope;
    }
    return loss;
}

static double naive_multilabel_margin(const fl_class_call *call, const double *z, const int64_t *labels, double *grad) {
    const double share = 1 / (double)call->classes;
    double loss = 0;
    for (ptrdiff_t k = 0; k < call->classes && labels[k] >= 0; k++) {
        for (ptrdiff_t c = 0; c < call->classes; c++) {
            int is_label = 0;
            for (ptrdiff_t j = 0; j < call->classes && labels[j] >= 0; j++) is_label |= labels[j] == c;
            const double lack = 1 - z[labels[k]] + z[c];
            if (is_label || lack <= 0) continue;
            loss += share * lack;
            grad[c] += share;
            grad[labels[k]] -= share;
        }
    }
    return loss;
}

/* Losses (one a target) and gradients (rows x classes) before the reduction; returns the mean's denominator. */
static double naive_class_loss(const fl_class_call *call, const shape *s, double *losses, double *grads) {
    const ptrdiff_t classes = s->classes;
    const int real = working(s->dtype);
    double *z = (double *)get_memory((size_t)classes * sizeof *z),
           *a = (double *)get_memory((size_t)classes * sizeof *a);
    double denominator = 0;
    for (ptrdiff_t row = 0; row < rows_of(s); row++) {
        const int multilabel = call->loss == FL_MULTILABEL_MARGIN;
        const int64_t *target = (const int64_t *)call->target;
        const ptrdiff_t y = !target || multilabel ? -1 : (ptrdiff_t)target[row];
        const double weight = call->sample_weight ? get(call->sample_weight, real, row) : 1;
        const double own = call->weight && y >= 0 ? get(call->weight, real, y) : 1;
        double *grad = grads + row * classes, loss = 0;
        for (ptrdiff_t c = 0; c < classes; c++) {
            const double w = call->weight ? get(call->weight, real, c) : 1;
            const double q = target ? (double)(c == y) : get(call->target_probs.data, real, place_of(s, row, c));
            z[c] = get(call->logits.data, s->dtype, place_of(s, row, c));
            if (call->softcap > 0) z[c] = call->softcap * tanh(z[c] / call->softcap);
            a[c] = w * ((1 - call->label_smoothing) * q + call->label_smoothing / (double)classes);
            grad[c] = 0;
        }
        losses[row] = 0;
        if (target && !multilabel && y == call->ignore_index) continue;
        if (call->loss == FL_CROSS_ENTROPY) loss = naive_focal(call, z, a, grad);
        if (call->loss == FL_MULTI_MARGIN) loss = naive_multi_margin(call, z, y, own, grad);
        if (multilabel) loss = naive_multilabel_margin(call, z, target + row * classes, grad);
        if (call->loss == FL_NLL) {
            loss = -own * z[y];
            grad[y] = -own;
        }
        losses[row] = weight * loss;
        denominator += call->loss >= FL_MULTI_MARGIN ? 1 : weight * own;
        const double upstream = weight * (call->grad_output ? get(call->grad_output, real, row) : 1) * call->grad_scale;
        for (ptrdiff_t c = 0; c < classes; c++) {
            const double u = call->softcap > 0 ? z[c] / call->softcap : 0;
            grad[c] *= upstream * (1 - u * u);
        }
    }
    free(z);
    free(a);
    return denominator;
}

/* A class call in tiles, from the last to the first, has the bits of the whole. */
static void check_class_tiles(fl_class_call call, double whole, const void *whole_grad, size_t grad_bytes) {
    static double losses[MAX_TILES];
    ptrdiff_t tiles = 0;
    double sum = 0, normalizer = 0;
    guarded grad = new_guarded(grad_bytes);
    if (call.grad.data) call.grad.data = grad.data;
    CHECK_STATUS(fl_class_tiles(&call, &tiles), FL_OK);
    CHECK(tiles >= 1 && tiles <= MAX_TILES);
    for (ptrdiff_t tile = 0; tile < tiles && tile < MAX_TILES; tile++) {
        fl_target_check found;
        CHECK_STATUS(fl_class_check(&call, tile, &found), FL_OK);
        CHECK(found.bad_position == -1);
        normalizer += found.weight;
    }
    call.normalizer = normalizer;
    for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--)
        CHECK_STATUS(fl_class_tile(&call, tile, NULL, &losses[tile % MAX_TILES]), FL_OK);
    for (ptrdiff_t tile = 0; tile < tiles; tile++) sum += losses[tile % MAX_TILES];
    sum = call.reduction == FL_MEAN ? sum / normalizer : sum;
    CHECK(memcmp(&sum, &whole, sizeof sum) == 0);
    CHECK(!call.grad.data || memcmp(grad.data, whole_grad, grad_bytes) == 0);
    free(grad.block);
}

/* Rows of labels, each ended by -1 unless it is full; label 1 may stand twice. */
static void fill_labels(int64_t *target, ptrdiff_t rows, ptrdiff_t classes) {
    for (ptrdiff_t row = 0; row < rows; row++) {
        const ptrdiff_t count = row % 4 == 3 ? classes : row % 4 % classes;
        for (ptrdiff_t c = 0; c < classes; c++)
            target[row * classes + c] = c < count ? (row * 5 + c * 3) % classes : c == count ? -1 : (row + c) % classes;
        if (count > 2) target[row * classes + 2] = target[row * classes];
    }
}

static void test_class(shape s, int options, fl_class_call call) {
    const ptrdiff_t rows = rows_of(&s), size = size_of_batch(&s);
    const int real = working(s.dtype), multilabel = call.loss == FL_MULTILABEL_MARGIN;
    const double tolerance = tolerance_of(s.dtype);
    const size_t grad_bytes = (size_t)size * size_of(s.dtype);
    void *logits = coarse_array(s.dtype, size, -5, 5), *probs = random_array(real, size, 0, 2.0 / (double)s.classes);
    void *weight = random_array(real, s.classes, 0.5, 1.5), *sample_weight = random_array(real, rows, 0.5, 1.5);
    void *upstream = random_array(real, rows, -1, 1);
    guarded grad = new_guarded(grad_bytes), losses = new_guarded((size_t)rows * size_of(real));
    int64_t *target = (int64_t *)get_memory((size_t)(rows * (multilabel ? s.classes : 1)) * sizeof *target);
    for (ptrdiff_t i = 0; i < rows && !multilabel; i++)
        target[i] = options & IGNORE && i % 4 == 1 ? -7 : i * 5 % s.classes;
    if (multilabel) fill_labels(target, rows, s.classes);

    call.n[0] = N0;
    call.n[1] = s.n1;
    call.classes = s.classes;
    call.inner = s.inner;
    call.logits = batch_array(&s, logits, s.dtype);
    call.grad = batch_array(&s, grad.data, s.dtype);
    call.losses = losses.data;
    call.grad_scale = 0.5;
    call.ignore_index = -7;
    call.target_dtype = FL_I64;
    if (options & PROBS)
        call.target_probs = batch_array(&s, probs, real);
    else
        call.target = target;
    if (options & WEIGHT) call.weight = weight;
    if (options & SAMPLE_WEIGHT) call.sample_weight = sample_weight;
    if (options & UPSTREAM) call.grad_output = upstream;
    if (options & SMOOTHING) call.label_smoothing = 0.1;
    if (options & SOFTCAP) call.softcap = 4;
    if (options & Z_LOSS) call.z_loss = 0.01;

    double *expected_losses = (double *)get_memory((size_t)rows * sizeof(double)), sum = 0, loss = NAN, again = NAN;
    double *expected = (double *)get_memory((size_t)(rows * s.classes) * sizeof(double));
    const double computed = naive_class_loss(&call, &s, expected_losses, expected);
    const double denominator = call.reduction == FL_MEAN ? computed : 1;
    for (ptrdiff_t i = 0; i < rows * s.classes; i++) expected[i] /= denominator;
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    for (ptrdiff_t i = 0; i < rows; i++) {
        CHECK_NEAR(get(losses.data, real, i), expected_losses[i], tolerance * (1 + fabs(expected_losses[i])));
        sum += expected_losses[i];
    }
    CHECK_NEAR(loss, sum / denominator, tolerance * (1 + fabs(sum / denominator)));
    check_grad(&s, grad.data, expected, 4 * tolerance / denominator);
    unsigned char *written = places_of(&s);
    CHECK(is_untouched(&grad, written, size_of(s.dtype)));
    memset(written, 1, (size_t)size);
    CHECK(is_untouched(&losses, written, grad_bytes + losses.bytes));

    check_class_tiles(call, loss, grad.data, grad_bytes);
    fl_class_call alone = call;
    alone.grad.data = NULL;
    CHECK_STATUS(fl_class_loss(&alone, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    fl_class_call in_place = call;
    in_place.grad.data = logits;
    if (!multilabel) {
        CHECK_STATUS(fl_class_loss(&in_place, &again), FL_OK);
        CHECK(memcmp(&again, &loss, sizeof loss) == 0);
        for (ptrdiff_t row = 0; row < rows; row++)
            for (ptrdiff_t c = 0; c < s.classes; c++) {
                const ptrdiff_t at = place_of(&s, row, c);
                CHECK(get(logits, s.dtype, at) == get(grad.data, s.dtype, at));
            }
    } else {
        CHECK_STATUS(fl_class_loss(&in_place, &again), FL_ERROR_OPTION);
    }
    free(logits);
    free(probs);
    free(weight);
    free(sample_weight);
    free(upstream);
    free(grad.block);
    free(losses.block);
    free(target);
    free(expected_losses);
    free(expected);
    free(written);
}

static void test_classes(void) {
    static const ptrdiff_t sizes[] = {1, 2, 3, 5, 10, 16, 17, 33, 100, 300};
    static const double gammas[] = {0.5, 1, 1.5, 2, 3, 0};
    static const int options[] = {0,
                                  WEIGHT,
                                  SAMPLE_WEIGHT | UPSTREAM,
                                  IGNORE,
                                  SMOOTHING,
                                  PROBS,
                                  SOFTCAP,
                                  WEIGHT | SMOOTHING | SAMPLE_WEIGHT | IGNORE,
                                  PROBS | WEIGHT | UPSTREAM | SMOOTHING,
                                  WEIGHT | SOFTCAP | Z_LOSS | UPSTREAM | IGNORE};
    for (int dtype = FL_F32; dtype <= FL_BF16; dtype++) {
        for (int i = 0; i < 10; i++) {
            for (int o = 0; o < 10; o++) {
                const int set = options[o];
                shape s = {dtype, 9, sizes[i], 1};
                fl_class_call call = fl_class_call_init();
                call.reduction = o % 3 == 1 ? FL_SUM : FL_MEAN;
                call.focal = o % 2 ? 1 : 0.25;
                call.gamma = gammas[(i + o) % 6];
                test_class(s, set, call);
                s.inner = 21;
                if (sizes[i] < 40 && dtype != FL_F16) test_class(s, set, call);
                if (set & (SMOOTHING | PROBS | SOFTCAP)) continue;

                call.focal = 0;
                call.loss = FL_NLL;
                test_class(s, set, call);
                s.inner = 1;
                test_class(s, set, call);
                if (set & IGNORE) continue;
                call.loss = FL_MULTI_MARGIN;
                call.power = 1 + o % 2;
                call.margin = o % 3 ? 1 : 0.375;
                test_class(s, set, call);
                call.loss = FL_MULTILABEL_MARGIN;
                if (!(set & WEIGHT)) test_class(s, set, call);
            }
        }
        /* Several tiles. */
        for (int loss = FL_CROSS_ENTROPY; loss <= FL_MULTILABEL_MARGIN; loss++) {
            const shape rows = {dtype, 2500, 10, 1}, images = {dtype, 2, 10, 2600};
            fl_class_call call = fl_class_call_init();
            call.loss = loss;
            call.focal = loss == FL_CROSS_ENTROPY;
            test_class(rows, SAMPLE_WEIGHT, call);
            if (loss <= FL_NLL) test_class(images, WEIGHT | IGNORE, call);
        }
    }
}

/* ---- What a validation loop asks for
 * ----------------------------------------------------------------------------------*/

static void test_metrics(shape s, int options, double levels) {
    static const int topk[] = {1, 3, 2, 1000000};
    enum { K = 4 };
    const ptrdiff_t rows = rows_of(&s), size = size_of_batch(&s);
    const int real = working(s.dtype);
    const double tolerance = tolerance_of(s.dtype);
    /* Few levels: many classes tie with the target's. */
    void *logits = coarse_array(s.dtype, size, -levels / 16, levels / 16),
         *weight = random_array(real, s.classes, 0.5, 1.5);
    guarded lse = new_guarded((size_t)rows * size_of(real));
    int64_t *target = (int64_t *)get_memory((size_t)rows * sizeof *target);
    for (ptrdiff_t i = 0; i < rows; i++) target[i] = options & IGNORE && i % 4 == 1 ? -100 : i * 7 % s.classes;
    fl_class_call call = fl_class_call_init();
    call.n[0] = N0;
    call.n[1] = s.n1;
    call.classes = s.classes;
    call.inner = s.inner;
    call.logits = batch_array(&s, logits, s.dtype);
    call.target = target;
    call.target_dtype = FL_I64;
    if (options & WEIGHT) call.weight = weight;
    if (options & SMOOTHING) call.label_smoothing = 0.1;
    double plain = NAN, loss = NAN;
    CHECK_STATUS(fl_class_loss(&call, &plain), FL_OK);
    ptrdiff_t tiles = 0;
    CHECK_STATUS(fl_class_tiles(&call, &tiles), FL_OK);
    guarded metrics = new_guarded((size_t)tiles * sizeof(fl_metrics));
    call.metrics = (fl_metrics *)(void *)metrics.data;
    call.topk = topk;
    call.topk_count = K;
    call.lse = lse.data;
    CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
    CHECK_NEAR(loss, plain, tolerance * (1 + fabs(plain)));

    ptrdiff_t counted = 0, correct[K] = {0}, found[K] = {0}, found_counted = 0;
    double entropy = 0, found_entropy = 0;
    double *z = (double *)get_memory((size_t)s.classes * sizeof *z),
           *p = (double *)get_memory((size_t)s.classes * sizeof *p);
    for (ptrdiff_t row = 0; row < rows; row++) {
        const ptrdiff_t y = (ptrdiff_t)target[row];
        for (ptrdiff_t c = 0; c < s.classes; c++) z[c] = get(logits, s.dtype, place_of(&s, row, c));
        const double expected = naive_softmax(z, s.classes, p);
        CHECK_NEAR(get(lse.data, real, row), y < 0 ? 0 : expected, 2 * tolerance * (1 + fabs(expected)));
        if (y < 0) continue;
        ptrdiff_t in_front = 0;
        for (ptrdiff_t c = 0; c < s.classes; c++) {
            in_front += z[c] > z[y] || (z[c] == z[y] && c < y);
            entropy += p[c] * (expected - z[c]);
        }
        for (int k = 0; k < K; k++) correct[k] += in_front < topk[k];
        counted++;
    }
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        found_counted += call.metrics[tile].counted;
        found_entropy += call.metrics[tile].entropy;
        for (int k = 0; k < K; k++) found[k] += call.metrics[tile].correct[k];
    }
    CHECK(found_counted == counted);
    for (int k = 0; k < K; k++) CHECK(found[k] == correct[k]);
    CHECK_NEAR(found_entropy, entropy, 4 * tolerance * (1 + entropy));
    free(logits);
    free(weight);
    free(lse.block);
    free(metrics.block);
    free(target);
    free(z);
    free(p);
}

static void test_every_metric(void) {
    static const ptrdiff_t sizes[] = {1, 2, 5, 16, 17, 64, 65, 200, 256, 257, 1000};
    static const int options[] = {0, IGNORE, WEIGHT | IGNORE, SMOOTHING};
    for (int dtype = FL_F32; dtype <= FL_BF16; dtype++) {
        for (int i = 0; i < 11; i++) {
            for (int o = 0; o < 4; o++) {
                shape s = {dtype, 11, sizes[i], 1};
                test_metrics(s, options[o], 6);
                test_metrics(s, options[o], 80);
                s.inner = 19;
                if (sizes[i] < 300 && dtype <= FL_F64) test_metrics(s, options[o], 10);
            }
        }
        const shape tiles = {dtype, 3000, 10, 1};
        test_metrics(tiles, IGNORE, 20);
    }

    /* A row without a softmax is a miss, and one whose other classes are impossible is certain. */
    float logits[3][3] = {{9, NAN, 1}, {-INFINITY, 2, -INFINITY}, {1, 2, INFINITY}};
    const int64_t target[3] = {0, 1, 2};
    const int one = 1;
    fl_metrics metrics[4];
    for (int n = 2; n <= 3; n++) {
        double loss;
        fl_class_call call = fl_class_call_init();
        call.n[0] = 1;
        call.n[1] = n;
        call.classes = 3;
        call.logits = new_array(logits, FL_F32, 0, 3, 1);
        call.target = target;
        call.target_dtype = FL_I64;
        call.metrics = metrics;
        call.topk = &one;
        call.topk_count = 1;
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
        CHECK(isnan(loss) && isnan(metrics[0].entropy) && metrics[0].counted == n && metrics[0].correct[0] == 1);
        call.logits.data = logits[1];
        call.target = target + 1;
        call.n[1] = 1;
        CHECK_STATUS(fl_class_loss(&call, &loss), FL_OK);
        CHECK(loss == 0 && metrics[0].entropy == 0 && metrics[0].correct[0] == 1);
    }
}

/* ---- Losses of single elements
 * ----------------------------------------------------------------------------------------*/

static double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double naive_element(const fl_element_call *call, double z, double y, double *slope) {
    const double p = sigmoid(z), q = y * (1 - p) + (1 - y) * p, entropy = y * softplus(-z) + (1 - y) * softplus(z);
    const double alpha = call->alpha < 0 ? 1 : call->alpha * y + (1 - call->alpha) * (1 - y), gamma = call->gamma;
    const double power = alpha * pow(q, gamma);
    switch (call->loss) {
        case FL_BCE:
            *slope = (z - y) / fmax(z * (1 - z), 1e-12);
            return -y * fmax(log(z), -100) - (1 - y) * fmax(log(1 - z), -100);
        case FL_SIGMOID_FOCAL:
            *slope = alpha * gamma * (gamma > 0 ? pow(q, gamma - 1) : 0) * (1 - 2 * y) * p * (1 - p) * entropy;
            *slope += power * (p - y);
            return power * entropy;
        case FL_SOFT_MARGIN:
            *slope = -y * sigmoid(-y * z);
            return softplus(-y * z);
        case FL_HINGE:
            *slope = call->margin - y * z > 0 ? -y : 0;
            return fmax(0, call->margin - y * z);
        case FL_KL_DIV:
            *slope = -y;
            return y == 0 ? 0 : y * (log(y) - z);
        case FL_KL_DIV_LOG:
            *slope = -exp(y);
            return exp(y) * (y - z);
        default:
            *slope = p - y;
            return entropy;
    }
}

/* A target that the loss is made for. */
static double target_of(const fl_element_call *call, ptrdiff_t i) {
    const double u = floor((uniform() + 1) * 8) / 16;
    if (call->loss == FL_HINGE || call->loss == FL_SOFT_MARGIN) return i % 2 ? 1 : call->zero_one ? 0 : -1;
    if (call->loss == FL_KL_DIV_LOG) return -8 * u;
    return i % 3 == 0 ? 0 : i % 3 == 1 ? 1 : u;
}

static void check_element_tiles(fl_element_call call, double whole, const void *whole_grad, double count,
                                size_t bytes) {
    static double losses[MAX_TILES];
    ptrdiff_t tiles = 0;
    double sum = 0;
    guarded grad = new_guarded(bytes);
    call.grad = grad.data;
    call.normalizer = 0;
    CHECK_STATUS(fl_element_tiles(&call, &tiles), FL_OK);
    CHECK(tiles >= 1 && tiles <= MAX_TILES);
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        fl_target_check found;
        CHECK_STATUS(fl_element_check(&call, tile, &found), FL_OK);
        CHECK(found.bad_position == -1);
        call.normalizer += found.weight;
    }
    CHECK(call.normalizer == count);
    for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--)
        CHECK_STATUS(fl_element_tile(&call, tile, &losses[tile % MAX_TILES]), FL_OK);
    for (ptrdiff_t tile = 0; tile < tiles; tile++) sum += losses[tile % MAX_TILES];
    sum = call.reduction == FL_MEAN ? sum / call.normalizer : sum;
    CHECK(memcmp(&sum, &whole, sizeof sum) == 0);
    CHECK(memcmp(grad.data, whole_grad, bytes) == 0 && is_untouched(&grad, (const unsigned char *)"\1", bytes));
    free(grad.block);
}

static void test_element(fl_element_call call, int dtype, int target_dtype, ptrdiff_t last, int options) {
    enum { M0 = 3, M1 = 5 };
    const ptrdiff_t n = M0 * M1 * last;
    const int real = working(dtype), probability = call.loss == FL_BCE;
    const double tolerance = tolerance_of(dtype), stored = storage_of(dtype);
    const size_t grad_bytes = (size_t)n * size_of(dtype);
    void *z = coarse_array(dtype, n, probability ? 0.125 : -6, probability ? 0.95 : 6);
    void *target = get_memory((size_t)n * 8), *weight = random_array(real, M1, 0.5, 1.5);
    void *upstream = random_array(real, n, -1, 1);
    guarded grad = new_guarded(grad_bytes), losses = new_guarded((size_t)n * size_of(real));
    for (ptrdiff_t i = 0; i < n; i++) {
        double y = target_of(&call, i);
        if (options & IGNORE && i % 4 == 1) y = 5;
        if (target_dtype == FL_I64)
            ((int64_t *)target)[i] = (int64_t)y;
        else
            put(target, target_dtype, i, y);
    }
    if (probability) {
        put(z, dtype, 0, 0); /* targets 0 and 1, wrong and right */
        put(z, dtype, 1, 0);
        put(z, dtype, 3, 1);
        put(z, dtype, 4, 1);
    }
    call.n[0] = M0;
    call.n[1] = M1;
    call.n[2] = last;
    call.logits = z;
    call.grad = grad.data;
    call.target = target;
    call.logits_dtype = call.grad_dtype = dtype;
    call.target_dtype = target_dtype;
    call.grad_scale = 2;
    if (options & WEIGHT) {
        call.weight.data = weight;
        call.weight.stride[1] = 1;
    }
    if (options & UPSTREAM) call.grad_output = upstream;
    if (options & SAMPLE_WEIGHT) call.losses = losses.data;
    call.has_ignore = options & IGNORE ? 1 : 0;
    call.ignore_value = 5;
    double loss = NAN, again = NAN, count = 0;
    long double sum = 0;
    CHECK_STATUS(fl_element_loss(&call, &loss), FL_OK);
    for (ptrdiff_t i = 0; i < n; i++) count += !(options & IGNORE && i % 4 == 1);
    const double denominator = call.reduction == FL_MEAN ? count : 1;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double t = target_dtype == FL_I64 ? (double)((const int64_t *)target)[i] : get(target, target_dtype, i);
        const double w = options & WEIGHT ? get(weight, real, i / last % M1) : 1;
        double slope, value = w * naive_element(&call, get(z, dtype, i), call.zero_one ? 2 * t - 1 : t, &slope);
        slope *= 2 * w * (options & UPSTREAM ? get(upstream, real, i) : 1) / denominator;
        if (options & IGNORE && i % 4 == 1) value = slope = 0;
        if (call.losses) CHECK_NEAR(get(losses.data, real, i), value, tolerance * (1 + fabs(value)));
        if (dtype == FL_F16 && fabs(slope) > 60000) continue;
        CHECK_NEAR(get(grad.data, dtype, i), slope,
                   tolerance * (4 / denominator + fabs(slope)) + stored * (fabs(slope) + 1e-4));
        sum += value;
    }
    CHECK(is_untouched(&grad, (const unsigned char *)"\1", grad_bytes));
    if (call.losses) CHECK(is_untouched(&losses, (const unsigned char *)"\1", losses.bytes));
    if (dtype != FL_F16 || !probability)
        CHECK_NEAR(loss, (double)sum / denominator, tolerance * (1 + fabs((double)sum / denominator)));

    check_element_tiles(call, loss, grad.data, count, grad_bytes);
    fl_element_call alone = call;
    alone.grad = NULL;
    CHECK_STATUS(fl_element_loss(&alone, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    call.grad = z;
    CHECK_STATUS(fl_element_loss(&call, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0 && memcmp(z, grad.data, grad_bytes) == 0);
    free(z);
    free(target);
    free(weight);
    free(upstream);
    free(grad.block);
    free(losses.block);
}

static void test_elements(void) {
    static const double gammas[] = {2, 0.5, 1, 0, 3.5};
    static const ptrdiff_t sizes[] = {1, 2, 17, 100};
    for (int loss = FL_BCE_WITH_LOGITS; loss <= FL_KL_DIV_LOG; loss++) {
        for (int dtype = FL_F32; dtype <= FL_BF16; dtype++) {
            for (int variant = 0; variant < 20; variant++) {
                static const int options[] = {0,      WEIGHT,        UPSTREAM,
                                              IGNORE, SAMPLE_WEIGHT, WEIGHT | UPSTREAM | IGNORE | SAMPLE_WEIGHT};
                fl_element_call call = fl_element_call_init();
                call.loss = loss;
                call.gamma = gammas[variant % 5];
                call.alpha = variant % 2 ? 0.25 : -1;
                call.margin = variant % 3 ? 1 : 0.5;
                call.zero_one = (loss == FL_HINGE || loss == FL_SOFT_MARGIN) && variant % 4 == 1;
                call.reduction = variant % 5 == 2 ? FL_SUM : FL_MEAN;
                test_element(call, dtype, variant % 7 == 3 ? FL_I64 : dtype, sizes[variant % 4], options[variant % 6]);
            }
            fl_element_call call = fl_element_call_init();
            call.loss = loss;
            test_element(call, dtype, dtype, 5000, IGNORE);
        }
    }
}

/* ---- Overlap
 * ---------------------------------------------------------------------------------------------------------*/

enum {
    SQUARED = 1,
    GROUPS = 2,
    LOG = 4,
    POWER = 8,
    WEIGHTED = 16,
    ABSENT = 32,
    SUM = 64,
    SKIP = 128,
    ENTROPY = 256,
    FOCAL = 512,
    MASK = 1024
};

/* The loss, its gradient (rows x classes), and in scores each class's loss, one group after the other. */
static double naive_overlap(const fl_overlap_call *call, const shape *s, double *scores, double *grads) {
    const ptrdiff_t rows = rows_of(s), classes = s->classes, group_rows = rows / call->groups;
    const int real = working(s->dtype), softmax = call->activation == FL_ACTIVATION_SOFTMAX;
    const double share = call->reduction == FL_MEAN ? 1 / (double)call->groups : 1;
    double *z = (double *)get_memory((size_t)classes * sizeof *z),
           *a = (double *)get_memory((size_t)classes * sizeof *a);
    double *p = (double *)get_memory((size_t)(rows * classes) * sizeof *p);
    double *y = (double *)get_memory((size_t)(rows * classes) * sizeof *y);
    double total = 0, entropy = 0, denominator = 0;
    fl_class_call focal = fl_class_call_init();
    focal.classes = classes;
    focal.focal = call->focal;
    focal.gamma = call->gamma;
    memset(grads, 0, (size_t)(rows * classes) * sizeof *grads);
    for (ptrdiff_t row = 0; row < rows; row++) { /* y < 0: ignored */
        for (ptrdiff_t c = 0; c < classes; c++) {
            const ptrdiff_t at = row * classes + c, t = call->target ? ((const int32_t *)call->target)[row] : 0;
            z[c] = get(call->logits.data, s->dtype, place_of(s, row, c));
            p[at] = call->activation == FL_ACTIVATION_SIGMOID ? sigmoid(z[c]) : z[c];
            y[at] = call->target ? t == c : ((const uint8_t *)call->mask.data)[place_of(s, row, c)];
            if (call->has_ignore && (call->target ? t : y[at]) == call->ignore_index) y[at] = -1;
        }
        if (softmax) naive_softmax(z, classes, p + row * classes);
        if (call->entropy > 0 && y[row * classes] >= 0) {
            for (ptrdiff_t c = 0; c < classes; c++) {
                a[c] = y[row * classes + c] * (call->entropy_weight ? get(call->entropy_weight, real, c) : 1);
                denominator += a[c];
            }
            entropy += naive_focal(&focal, z, a, grads + row * classes);
        }
    }
    if (call->reduction != FL_MEAN) denominator = 1;
    for (ptrdiff_t i = 0; i < rows * classes; i++) grads[i] *= call->entropy > 0 ? call->entropy / denominator : 0;
    for (ptrdiff_t group = 0; group < call->groups; group++) {
        double loss = 0, weights = 0;
        for (int pass = 0; pass < 2; pass++) { /* the loss, then the gradient */
            const double outer = share * (call->power == 1 ? 1 : call->power * pow(loss, call->power - 1));
            for (ptrdiff_t c = 0; c < classes; c++) {
                double I = 0, P = 0, Y = 0;
                const double w = call->class_weight ? call->class_weight[c] : 1;
                for (ptrdiff_t row = group * group_rows; row < (group + 1) * group_rows; row++) {
                    const ptrdiff_t at = row * classes + c;
                    if (y[at] < 0) continue;
                    I += p[at] * y[at];
                    P += call->squared ? p[at] * p[at] : p[at];
                    Y += y[at];
                }
                const double N = I + call->smooth, D = N + call->alpha * (P - I) + call->beta * (Y - I);
                const int counts = call->count_absent || Y > 0;
                if (pass == 0) {
                    const double one = !counts          ? 0
                                       : call->log_loss ? -log(N / fmax(D, call->eps))
                                                        : 1 - N / fmax(D, call->eps);
                    scores[group * classes + c] = one;
                    weights += w;
                    loss += w * one;
                    continue;
                }
                if (!counts) continue;
                const double slope = outer * w / weights * (call->log_loss ? -D / N : -1);
                const double by_i = slope * (1 / D - N * (1 - call->alpha - call->beta) / (D * D));
                const double by_p = slope * -N * call->alpha / (D * D);
                for (ptrdiff_t row = group * group_rows; row < (group + 1) * group_rows; row++) {
                    const ptrdiff_t at = row * classes + c;
                    if (y[at] < 0) continue;
                    const double by = by_i * y[at] + by_p * (call->squared ? 2 * p[at] : 1);
                    for (ptrdiff_t k = 0; softmax && k < classes; k++)
                        grads[row * classes + k] += by * p[at] * ((k == c) - p[row * classes + k]);
                    if (!softmax) grads[at] += by * (call->activation ? p[at] * (1 - p[at]) : 1);
                }
            }
            if (pass == 0) loss /= weights;
        }
        total += share * pow(loss, call->power);
    }
    for (ptrdiff_t i = 0; i < rows * classes; i++) grads[i] *= call->grad_scale;
    free(z);
    free(a);
    free(p);
    free(y);
    return total + (call->entropy > 0 ? call->entropy * entropy / denominator : 0);
}

/* By the caller's own loss, here Dice's of one group: the sums of the tiles, and the gradient that follows from them.
 */
static void check_overlap_tiles(fl_overlap_call call, const shape *s, double whole, const void *whole_grad,
                                size_t bytes) {
    const ptrdiff_t classes = s->classes;
    const size_t stride = 3 * (size_t)classes + 2;
    double *slopes = (double *)get_memory(2 * (size_t)classes * sizeof *slopes), loss = 0;
    double *sums = (double *)get_memory(stride * sizeof *sums);
    guarded part = new_guarded(stride * sizeof(double)), grad = new_guarded(bytes), again = new_guarded(bytes);
    ptrdiff_t tiles = 0;
    CHECK_STATUS(fl_overlap_tiles(&call, &tiles), FL_OK);
    memset(sums, 0, stride * sizeof *sums);
    for (ptrdiff_t tile = 0; tile < tiles; tile++) {
        fl_target_check found;
        CHECK_STATUS(fl_overlap_check(&call, tile, &found), FL_OK);
        CHECK(found.bad_position == -1);
        memset(part.data, 0, part.bytes);
        CHECK_STATUS(fl_overlap_sums(&call, tile, (double *)(void *)part.data), FL_OK);
        for (size_t i = 0; i < stride; i++) sums[i] += ((const double *)(const void *)part.data)[i];
    }
    for (ptrdiff_t c = 0; c < classes; c++) {
        const double hits = sums[3 * c], bottom = 2 * hits + sums[3 * c + 1] + sums[3 * c + 2];
        slopes[2 * c] = slopes[2 * c + 1] = 0;
        if (hits + sums[3 * c + 2] == 0) continue; /* no target is of the class */
        loss += (1 - 2 * hits / bottom) / (double)classes;
        slopes[2 * c] = -2 / bottom / (double)classes;
        slopes[2 * c + 1] = 2 * hits / (bottom * bottom) / (double)classes;
    }
    const double scale = call.entropy / sums[3 * classes + 1];
    if (call.entropy > 0) loss += scale * sums[3 * classes];
    CHECK_NEAR(loss, whole, 1e-13 * (1 + whole));
    call.grad.data = grad.data;
    for (ptrdiff_t tile = 0; tile < tiles; tile++) CHECK_STATUS(fl_overlap_gradient(&call, tile, slopes, scale), FL_OK);
    call.grad.data = again.data;
    for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--)
        CHECK_STATUS(fl_overlap_gradient(&call, tile, slopes, scale), FL_OK);
    CHECK(memcmp(grad.data, again.data, bytes) == 0);
    for (ptrdiff_t row = 0; row < rows_of(s); row++) {
        for (ptrdiff_t c = 0; c < classes; c++) {
            const ptrdiff_t at = place_of(s, row, c);
            const double want = get(whole_grad, s->dtype, at);
            CHECK_NEAR(
                get(grad.data, s->dtype, at), want,
                3 * tolerance_of(s->dtype) * (fabs(want) + 1e-6) + 2 * storage_of(s->dtype) * (fabs(want) + 1e-4));
        }
    }
    CHECK(is_untouched(&part, (const unsigned char *)"\1", part.bytes));
    free(slopes);
    free(sums);
    free(part.block);
    free(grad.block);
    free(again.block);
}

static void test_overlap(shape s, int activation, int options) {
    const ptrdiff_t rows = rows_of(&s), size = size_of_batch(&s);
    const int real = working(s.dtype);
    const double tolerance = tolerance_of(s.dtype);
    const size_t grad_bytes = (size_t)size * size_of(s.dtype);
    void *logits = coarse_array(s.dtype, size, activation ? -5 : 0, activation ? 5 : 1);
    void *entropy_weight = random_array(real, s.classes, 0.5, 1.5);
    double *class_weight = (double *)random_array(FL_F64, s.classes, 0.5, 1.5);
    int32_t *target = (int32_t *)get_memory((size_t)rows * sizeof *target);
    uint8_t *mask = (uint8_t *)get_memory((size_t)size);
    guarded grad = new_guarded(grad_bytes);
    /* The last class is absent, so that it is seen what that makes. */
    const ptrdiff_t present = s.classes > 2 && options & (ABSENT | LOG) ? s.classes - 1 : s.classes;
    for (ptrdiff_t i = 0; i < rows; i++)
        target[i] = (options & SKIP) && i % 5 == 2 ? 255 : (int32_t)((uniform() + 1) / 2 * (double)present);
    for (ptrdiff_t i = 0; i < size; i++) mask[i] = (options & SKIP) && i % 5 == 2 ? 255 : uniform() > 0.2;

    fl_overlap_call call = fl_overlap_call_init();
    call.n[0] = N0;
    call.n[1] = s.n1;
    call.classes = s.classes;
    call.inner = s.inner;
    call.logits = batch_array(&s, logits, s.dtype);
    call.grad = batch_array(&s, grad.data, s.dtype);
    call.activation = activation;
    if (options & MASK) {
        call.mask = batch_array(&s, mask, FL_U8);
    } else {
        call.target = target;
        call.target_dtype = FL_I32;
    }
    call.squared = options & SQUARED ? 1 : 0;
    call.has_ignore = options & SKIP ? 1 : 0;
    call.ignore_index = 255;
    call.groups = options & GROUPS ? N0 : 1;
    call.log_loss = options & LOG ? 1 : 0;
    call.count_absent = options & ABSENT ? 1 : 0;
    if (options & POWER) {
        call.power = 1.5;
        call.alpha = 0.3;
        call.beta = 0.9;
    }
    if (options & (ABSENT | LOG)) call.smooth = 0.5;
    if (options & WEIGHTED) call.class_weight = class_weight;
    if (options & SUM) call.reduction = FL_SUM;
    if (options & ENTROPY) call.entropy = 0.7;
    if (options & ENTROPY && options & WEIGHTED) call.entropy_weight = entropy_weight;
    if (options & FOCAL) call.focal = 0.8;
    call.gamma = 1.5;
    call.grad_scale = options & SUM ? 0.5 : 1;

    const size_t losses = (size_t)(call.groups * s.classes), numbers = fl_overlap_workspace(&call);
    double *scores = (double *)get_memory(losses * sizeof *scores), loss = NAN, again = NAN;
    double *expected = (double *)get_memory((size_t)(rows * s.classes) * sizeof *expected), largest = 0;
    guarded workspace = new_guarded(numbers * sizeof(double));
    const double want = naive_overlap(&call, &s, scores, expected);
    CHECK(numbers >= losses);
    CHECK_STATUS(fl_overlap_loss(&call, (double *)(void *)workspace.data, &loss), FL_OK);
    CHECK_NEAR(loss, want, 4 * tolerance * (1 + fabs(want)));
    for (size_t i = 0; i < losses; i++)
        CHECK_NEAR(((double *)(void *)workspace.data)[i], scores[i], 4 * tolerance * (1 + fabs(scores[i])));
    for (ptrdiff_t i = 0; i < rows * s.classes; i++) largest = fmax(largest, fabs(expected[i]));
    check_grad(&s, grad.data, expected, 6 * tolerance * largest);
    CHECK(is_untouched(&workspace, (const unsigned char *)"\1", workspace.bytes));
    unsigned char *written = places_of(&s);
    CHECK(is_untouched(&grad, written, size_of(s.dtype)));

    if (!(options & ~(SQUARED | SKIP | ENTROPY | FOCAL | MASK)))
        check_overlap_tiles(call, &s, loss, grad.data, grad_bytes);
    fl_overlap_call alone = call;
    alone.grad.data = NULL;
    CHECK_STATUS(fl_overlap_loss(&alone, (double *)(void *)workspace.data, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    call.grad.data = logits;
    CHECK_STATUS(fl_overlap_loss(&call, (double *)(void *)workspace.data, &again), FL_OK);
    CHECK(memcmp(&again, &loss, sizeof loss) == 0);
    for (ptrdiff_t i = 0; i < size; i++)
        if (written[i]) CHECK(get(logits, s.dtype, i) == get(grad.data, s.dtype, i));
    free(logits);
    free(entropy_weight);
    free(class_weight);
    free(target);
    free(mask);
    free(grad.block);
    free(scores);
    free(expected);
    free(workspace.block);
    free(written);
}

static void test_overlaps(void) {
    static const ptrdiff_t sizes[] = {1, 2, 3, 5, 17, 64};
    static const int options[] = {0,
                                  SQUARED,
                                  SKIP,
                                  GROUPS | SUM,
                                  LOG,
                                  POWER | GROUPS,
                                  WEIGHTED,
                                  ABSENT,
                                  SQUARED | SKIP | POWER | GROUPS | WEIGHTED};
    static const int entropies[] = {ENTROPY, ENTROPY | SKIP, ENTROPY | FOCAL, ENTROPY | FOCAL | WEIGHTED | SKIP | SUM,
                                    ENTROPY | SQUARED | SKIP};
    for (int dtype = FL_F32; dtype <= FL_BF16; dtype++) {
        for (int i = 0; i < 6; i++) {
            for (int inner = 1; inner <= 37; inner += 18) { /* 1, 19 and 37 */
                const shape s = {dtype, 7, sizes[i], inner};
                for (int o = 0; o < 9; o++) {
                    test_overlap(s, FL_ACTIVATION_SOFTMAX, options[o]);
                    test_overlap(s, FL_ACTIVATION_NONE, options[o]);
                    test_overlap(s, FL_ACTIVATION_NONE, options[o] | MASK);
                    test_overlap(s, FL_ACTIVATION_SIGMOID, options[o] | MASK);
                }
                for (int o = 0; o < 5; o++) test_overlap(s, FL_ACTIVATION_SOFTMAX, entropies[o]);
            }
        }
        /* Several tiles, and more classes than a stage holds. */
        const shape tiles = {dtype, 2, 4, 9001}, many = {dtype, 3, 2500, 1};
        test_overlap(tiles, FL_ACTIVATION_SOFTMAX, ENTROPY | SKIP);
        test_overlap(tiles, FL_ACTIVATION_SIGMOID, MASK | GROUPS | SKIP);
        test_overlap(many, FL_ACTIVATION_SOFTMAX, SKIP | ABSENT | POWER);
        test_overlap(many, FL_ACTIVATION_SOFTMAX, ENTROPY | FOCAL | WEIGHTED | ABSENT);
        test_overlap(many, FL_ACTIVATION_SIGMOID, MASK | SQUARED | ABSENT);
        test_overlap(many, FL_ACTIVATION_NONE, ABSENT | SKIP);
    }
}

/* ---- The Lovasz extension
 * ---------------------------------------------------------------------------------------------*/

/* The Jaccard loss of being wrong at `wrong` of n elements, `missed` of them among the `positives`. */
static double jaccard(double positives, double missed, double wrong) {
    return wrong == 0 ? 0 : 1 - (positives - missed) / (positives + wrong - missed);
}

static void test_lovasz(int dtype, ptrdiff_t n, int hinge, int positive_share) {
    void *errors = coarse_array(dtype, n, -1, 2), *slopes = get_memory((size_t)n * size_of(dtype));
    uint8_t *positive = (uint8_t *)get_memory((size_t)n);
    guarded workspace = new_guarded(fl_lovasz_workspace(n));
    double loss = NAN, alone = NAN, positives = 0, expected = 0;
    if (n > 5) {
        put(errors, dtype, 3, 0.0);
        put(errors, dtype, 1, dtype == FL_F32 ? (double)-0.0f : -0.0); /* equal to the one that follows */
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        positive[i] = uniform() < positive_share;
        positives += positive[i];
    }
    CHECK_STATUS(fl_lovasz(dtype, errors, positive, n, hinge, workspace.data, &loss, slopes), FL_OK);
    for (ptrdiff_t i = 0; i < n; i++) {
        const double error = get(errors, dtype, i);
        double wrong = 0, missed = 0;
        for (ptrdiff_t j = 0; j < n; j++) {
            const double other = get(errors, dtype, j);
            if (!(other > error || (other == error && j < i))) continue;
            wrong += 1;
            missed += positive[j];
        }
        double slope = jaccard(positives, missed + positive[i], wrong + 1) - jaccard(positives, missed, wrong);
        if (hinge && error <= 0) slope = 0;
        CHECK_NEAR(get(slopes, dtype, i), slope, dtype == FL_F32 ? 1e-7 : 1e-15);
        expected += error * slope;
    }
    CHECK_NEAR(loss, expected, 1e-13 * (1 + fabs(expected)));
    CHECK(is_untouched(&workspace, (const unsigned char *)"\1", workspace.bytes + 1));
    CHECK_STATUS(fl_lovasz(dtype, errors, positive, n, hinge, workspace.data, &alone, NULL), FL_OK);
    CHECK(memcmp(&alone, &loss, sizeof loss) == 0);
    free(errors);
    free(slopes);
    free(positive);
    free(workspace.block);
}

/* ---- Status codes: each is given, and then nothing was written
 * --------------------------------------------------------*/

static void test_class_refusals(void) {
    enum { N = 3, C = 4 };
    float logits[N][C] = {{0}}, grad[N][C], losses[N], untouched[N][C];
    const int64_t target[N] = {0, 3, 1}, high[N] = {0, 1, 4}, labels[N][C] = {{0, -1}, {1, 2, -1}, {3, 2, 4, -1}};
    const uint8_t unsigned_labels[N][C] = {{0}};
    const int topk[2] = {1, 0};
    fl_metrics metrics[4];
    double loss = 42;
    memset(grad, 0x5a, sizeof grad);
    memset(losses, 0x5a, sizeof losses);
    memset(untouched, 0x5a, sizeof untouched);
    fl_class_call good = fl_class_call_init(), call;
    good.n[0] = 1;
    good.n[1] = N;
    good.classes = C;
    good.logits = new_array(logits, FL_F32, 0, C, 1);
    good.grad = new_array(grad, FL_F32, 0, C, 1);
    good.target = target;
    good.target_dtype = FL_I64;
    good.losses = losses;
#define REFUSED(expected, change)                            \
    do {                                                     \
        call = good;                                         \
        change;                                              \
        CHECK_STATUS(fl_class_loss(&call, &loss), expected); \
    } while (0)
    REFUSED(FL_ERROR_OPTION, call.loss = 4);
    REFUSED(FL_ERROR_OPTION, call.loss = -1);
    REFUSED(FL_ERROR_OPTION, call.focal = 1.5);
    REFUSED(FL_ERROR_OPTION, call.focal = -0.5);
    REFUSED(FL_ERROR_OPTION, call.focal = NAN);
    REFUSED(FL_ERROR_OPTION, call.gamma = -1);
    REFUSED(FL_ERROR_OPTION, call.gamma = INFINITY);
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_MULTI_MARGIN, call.power = 3));
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_MULTI_MARGIN, call.margin = NAN));
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_MULTI_MARGIN, call.inner = 2, call.logits.class_stride = 2));
    for (int loss_kind = FL_NLL; loss_kind <= FL_MULTILABEL_MARGIN; loss_kind++) {
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.label_smoothing = 0.1));
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.z_loss = 0.1));
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.softcap = 2));
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.focal = 1));
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.target = NULL, call.target_probs = call.logits));
        if (loss_kind != FL_MULTILABEL_MARGIN) REFUSED(FL_ERROR_INDEX, (call.loss = loss_kind, call.target = high));
    }
    REFUSED(FL_ERROR_INDEX, (call.loss = FL_MULTI_MARGIN, call.ignore_index = 4, call.target = high));
    good.loss = FL_MULTILABEL_MARGIN;
    good.target = labels;
    REFUSED(FL_ERROR_INDEX, (void)0);
    REFUSED(FL_ERROR_OPTION, call.weight = logits);
    REFUSED(FL_ERROR_OPTION, call.grad.data = logits);
    REFUSED(FL_ERROR_OPTION, (call.target = unsigned_labels, call.target_dtype = FL_U8));
    good.loss = FL_CROSS_ENTROPY;
    good.target = target;
    good.metrics = metrics;
    REFUSED(FL_ERROR_OPTION, (void)0); /* with a gradient */
    good.grad.data = NULL;
    memset(metrics, 0x5a, sizeof metrics);
    REFUSED(FL_ERROR_OPTION, call.focal = 1);
    REFUSED(FL_ERROR_OPTION, call.softcap = 1);
    REFUSED(FL_ERROR_OPTION, (call.weight = logits, call.label_smoothing = 0.1));
    REFUSED(FL_ERROR_OPTION, call.loss = FL_NLL);
    REFUSED(FL_ERROR_OPTION, call.topk_count = -1);
    REFUSED(FL_ERROR_OPTION, (call.topk = topk, call.topk_count = FL_MAX_TOPK + 1));
    REFUSED(FL_ERROR_OPTION, (call.topk = topk, call.topk_count = 2));
    REFUSED(FL_ERROR_NULL, call.topk_count = 1);
    REFUSED(FL_ERROR_NULL, (call.metrics = NULL, call.lse = losses));
    REFUSED(FL_ERROR_INDEX, call.target = high);
    CHECK(metrics[0].counted == metrics[3].counted && metrics[0].counted != N);
#undef REFUSED
    CHECK(loss == 42 && memcmp(grad, untouched, sizeof grad) == 0 && memcmp(losses, untouched, sizeof losses) == 0);
}

static void test_element_refusals(void) {
    enum { N = 5 };
    float p[N] = {0.5f, 0, 1, 0.25f, 0.75f}, target[N] = {0, 1, 1, 0, 1}, grad[N], untouched[N];
    double loss = 42;
    memset(grad, 0x5a, sizeof grad);
    memset(untouched, 0x5a, sizeof untouched);
    fl_element_call good = fl_element_call_init(), call;
    good.n[2] = N;
    good.logits = p;
    good.target = target;
    good.grad = grad;
    good.logits_dtype = good.grad_dtype = good.target_dtype = FL_F32;
#define REFUSED(expected, change)                              \
    do {                                                       \
        call = good;                                           \
        change;                                                \
        CHECK_STATUS(fl_element_loss(&call, &loss), expected); \
    } while (0)
    REFUSED(FL_ERROR_OPTION, call.loss = 7);
    REFUSED(FL_ERROR_OPTION, call.loss = -1);
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_SIGMOID_FOCAL, call.gamma = -1));
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_SIGMOID_FOCAL, call.gamma = NAN));
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_SIGMOID_FOCAL, call.alpha = 1.5));
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_SIGMOID_FOCAL, call.alpha = NAN));
    REFUSED(FL_ERROR_OPTION, (call.loss = FL_HINGE, call.margin = INFINITY));
    for (int loss_kind = FL_BCE; loss_kind <= FL_KL_DIV_LOG; loss_kind++) {
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.label_smoothing = 0.1));
        REFUSED(FL_ERROR_OPTION, (call.loss = loss_kind, call.pos_weight.data = p));
    }
    good.loss = FL_BCE;
    for (int i = 0; i < N; i++) {
        const float kept = p[i];
        p[i] = i % 2 ? 1.001f : -1e-20f;
        REFUSED(FL_ERROR_PROBABILITY, (void)0);
        fl_target_check found;
        CHECK_STATUS(fl_element_check(&good, 0, &found), FL_OK);
        CHECK(found.bad_position == i);
        p[i] = kept;
    }
    CHECK(loss == 42 && memcmp(grad, untouched, sizeof grad) == 0);
#undef REFUSED
    /* NaN is no probability outside [0, 1], and goes where it belongs. */
    p[3] = NAN;
    CHECK_STATUS(fl_element_loss(&good, &loss), FL_OK);
    CHECK(isnan(loss) && isnan(grad[3]) && !isnan(grad[2]) && !isnan(grad[4]));

    /* A program compiled before there were kinds of losses gets the only one there was. */
    double now = NAN, before = NAN;
    p[3] = 0.25f;
    good.loss = FL_BCE_WITH_LOGITS;
    CHECK_STATUS(fl_element_loss(&good, &now), FL_OK);
    call = good;
    call.loss = FL_HINGE;
    call.struct_size = offsetof(fl_element_call, loss);
    CHECK_STATUS(fl_element_loss(&call, &before), FL_OK);
    CHECK(memcmp(&now, &before, sizeof now) == 0);
}

static void test_overlap_refusals(void) {
    enum { N = 4, C = 3 };
    float logits[N][C] = {{0}}, grad[N][C], untouched[N][C];
    const int64_t target[N] = {0, 1, 2, 1}, high[N] = {0, 1, 2, 3}, low[N] = {0, -1, 2, 1};
    double workspace[64], kept[64], loss = 42;
    memset(grad, 0x5a, sizeof grad);
    memset(workspace, 0x5a, sizeof workspace);
    memcpy(kept, workspace, sizeof kept);
    memset(untouched, 0x5a, sizeof untouched);
    fl_overlap_call good = fl_overlap_call_init(), call;
    good.n[0] = 1;
    good.n[1] = N;
    good.classes = C;
    good.logits = new_array(logits, FL_F32, 0, C, 1);
    good.grad = new_array(grad, FL_F32, 0, C, 1);
    good.target = target;
    good.target_dtype = FL_I64;
    CHECK(fl_overlap_workspace(&good) <= 64);
#define REFUSED(expected, change)                                         \
    do {                                                                  \
        call = good;                                                      \
        change;                                                           \
        CHECK_STATUS(fl_overlap_loss(&call, workspace, &loss), expected); \
    } while (0)
    CHECK_STATUS(fl_overlap_loss(NULL, workspace, &loss), FL_ERROR_NULL);
    CHECK_STATUS(fl_overlap_loss(&good, NULL, &loss), FL_ERROR_NULL);
    CHECK_STATUS(fl_overlap_loss(&good, workspace, NULL), FL_ERROR_NULL);
    REFUSED(FL_ERROR_NULL, call.logits.data = NULL);
    REFUSED(FL_ERROR_NULL, call.target = NULL);
    REFUSED(FL_ERROR_NULL, call.mask = call.logits); /* both */
    REFUSED(FL_ERROR_SIZE, call.groups = 0);
    REFUSED(FL_ERROR_SIZE, call.groups = 3); /* of 4 targets */
    REFUSED(FL_ERROR_SIZE, call.classes = 0);
    REFUSED(FL_ERROR_SIZE, call.n[1] = -1);
    REFUSED(FL_ERROR_SIZE, call.inner = 0);
    REFUSED(FL_ERROR_SIZE, call.struct_size = sizeof call + 8);
    REFUSED(FL_ERROR_DTYPE, call.logits.dtype = FL_I32);
    REFUSED(FL_ERROR_DTYPE, call.grad.dtype = FL_F64);
    REFUSED(FL_ERROR_DTYPE, call.target_dtype = FL_F32);
    REFUSED(FL_ERROR_DTYPE, (call.target = NULL, call.mask = call.logits, call.mask.dtype = 99, call.activation = 2));
    REFUSED(FL_ERROR_OPTION, (call.target = NULL, call.mask = call.logits)); /* softmax of a mask */
    REFUSED(FL_ERROR_OPTION, call.activation = FL_ACTIVATION_SIGMOID);       /* of index targets */
    REFUSED(FL_ERROR_OPTION, call.activation = 3);
    REFUSED(FL_ERROR_OPTION, (call.activation = FL_ACTIVATION_NONE, call.entropy = 1));
    REFUSED(FL_ERROR_OPTION, call.entropy = -1);
    REFUSED(FL_ERROR_OPTION, call.alpha = -1);
    REFUSED(FL_ERROR_OPTION, call.beta = NAN);
    REFUSED(FL_ERROR_OPTION, call.smooth = INFINITY);
    REFUSED(FL_ERROR_OPTION, call.eps = -1);
    REFUSED(FL_ERROR_OPTION, call.power = 0);
    REFUSED(FL_ERROR_OPTION, call.focal = 2);
    REFUSED(FL_ERROR_OPTION, call.gamma = -1);
    REFUSED(FL_ERROR_OPTION, call.reduction = FL_NONE);
    REFUSED(FL_ERROR_OPTION, call.logits.class_stride = 2);
    REFUSED(FL_ERROR_INDEX, call.target = high);
    REFUSED(FL_ERROR_INDEX, call.target = low);
    REFUSED(FL_ERROR_INDEX, (call.target = low, call.ignore_index = -1)); /* without has_ignore */
#undef REFUSED
    call = good;
    call.target = high;
    fl_target_check found;
    CHECK_STATUS(fl_overlap_check(&call, 0, &found), FL_OK);
    CHECK(found.bad_position == 3 && found.bad_value == 3);
    CHECK_STATUS(fl_overlap_check(&call, 1, &found), FL_ERROR_SIZE);
    CHECK_STATUS(fl_overlap_sums(&good, 1, workspace), FL_ERROR_SIZE);
    CHECK_STATUS(fl_overlap_gradient(&good, -1, kept, 0), FL_ERROR_SIZE);
    CHECK_STATUS(fl_overlap_gradient(&good, 0, NULL, 0), FL_ERROR_NULL);
    call = good;
    call.grad.data = NULL;
    CHECK_STATUS(fl_overlap_gradient(&call, 0, kept, 0), FL_ERROR_NULL);
    call.groups = 3;
    CHECK(fl_overlap_workspace(&call) == 0);

    const uint8_t positive[2] = {1, 0};
    CHECK_STATUS(fl_lovasz(FL_F16, logits, positive, 2, 0, kept, &loss, grad), FL_ERROR_DTYPE);
    CHECK_STATUS(fl_lovasz(FL_F32, logits, positive, -1, 0, kept, &loss, grad), FL_ERROR_SIZE);
    CHECK_STATUS(fl_lovasz(FL_F32, NULL, positive, 2, 0, kept, &loss, grad), FL_ERROR_NULL);
    CHECK_STATUS(fl_lovasz(FL_F32, logits, NULL, 2, 0, kept, &loss, grad), FL_ERROR_NULL);
    CHECK_STATUS(fl_lovasz(FL_F32, logits, positive, 2, 0, NULL, &loss, grad), FL_ERROR_NULL);
    CHECK_STATUS(fl_lovasz(FL_F32, logits, positive, 2, 0, kept, NULL, grad), FL_ERROR_NULL);
    CHECK(loss == 42 && memcmp(grad, untouched, sizeof grad) == 0 && memcmp(workspace, kept, sizeof kept) == 0);
    CHECK_STATUS(fl_lovasz(FL_F32, NULL, NULL, 0, 0, NULL, &loss, NULL), FL_OK);
    CHECK(loss == 0);
}

int main(void) {
    test_class_refusals();
    test_element_refusals();
    test_overlap_refusals();
    test_classes();
    test_every_metric();
    test_elements();
    test_overlaps();
    for (int dtype = FL_F32; dtype <= FL_F64; dtype++) {
        for (ptrdiff_t n = 1; n < 1500; n = n * 3 / 2 + 1) {
            for (int hinge = 0; hinge < 2; hinge++)
                for (int share = -1; share <= 1; share++) test_lovasz(dtype, n, hinge, share);
        }
    }
    printf("%s: %d checks of the catalogue, %d failed\n", fl_isa() ? fl_isa() : "?", checks, failures);
    return failures != 0;
}

/* Nothing outside of the arrays of a call is read or written: each lies once at the end of its memory and once at the
 * beginning, with pages in front and behind that end the program where they are touched. The results of both have the
 * same bits. On the instruction set that FASTLOSS_ISA names; C99 with POSIX.1-2001, and mmap's MAP_ANONYMOUS. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fastloss.h>

static char description[200] = "start"; /* of the case that runs, for the handler below */
static long cases;

static void on_fault(int number) {
    static const char text[] = "an access outside of an array in: ";
    ssize_t written = write(2, text, sizeof text - 1);
    written += write(2, description, strlen(description));
    written += write(2, "\n", 1);
    _exit(written > 0 ? 100 + number : 99);
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", description, what);
    exit(1);
}

/* ---- Memory between two pages that can't be touched
 * -----------------------------------------------------------------*/

enum { ARRAYS = 9 };
enum { Z, GRAD, TARGET, PROBS, WEIGHT, SAMPLE_WEIGHT, UPSTREAM, LOSSES, SCRATCH };
#define CAPACITY ((size_t)1 << 20)

static char *memory[ARRAYS];

static void reserve(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < ARRAYS; i++) {
        char *p = (char *)mmap(NULL, CAPACITY + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == (char *)MAP_FAILED || mprotect(p, page, PROT_NONE) != 0 ||
            mprotect(p + page + CAPACITY, page, PROT_NONE) != 0) {
            fprintf(stderr, "no memory\n");
            exit(2);
        }
        memory[i] = p + page;
    }
}

static char *place(int array, size_t bytes, int at_end) {
    if (bytes > CAPACITY) fail("the array is too large for this test");
    return at_end ? memory[array] + CAPACITY - bytes : memory[array];
}

/* ---- Arrays of every type
 * --------------------------------------------------------------------------------------------*/

static uint32_t next_random(void) {
    static uint64_t state = 3;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static size_t size_of(int dtype) {
    if (dtype == FL_U8) return 1;
    return dtype == FL_F64 || dtype == FL_I64 ? 8 : dtype == FL_F32 || dtype == FL_I32 ? 4 : 2;
}

static int working(int dtype) { return dtype == FL_F64 ? FL_F64 : FL_F32; }

/* Numbers in [0, 2) that every floating type holds, negative ones too where `negative`. */
static void fill(void *p, int dtype, ptrdiff_t n, int negative) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t random = next_random();
        const float x = (float)(random % 128) / 64.0f * (negative && random % 512 > 255 ? -1.0f : 1.0f);
        if (dtype == FL_F64) ((double *)p)[i] = (double)x;
        if (dtype == FL_F32) ((float *)p)[i] = x;
        if (dtype == FL_F16) ((uint16_t *)p)[i] = (uint16_t)((random & 0x83ff) | 0x3c00);
        if (dtype == FL_BF16) ((uint16_t *)p)[i] = (uint16_t)((random & 0x807f) | 0x3f80);
    }
}

/* 1, 2, 3, 1, 2, 3, ..., of a working type. */
static void count_up(void *p, int real, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        if (real == FL_F64) {
            ((double *)p)[i] = 1 + (double)(i % 3);
        } else {
            ((float *)p)[i] = 1 + (float)(i % 3);
        }
    }
}

/* 1/2, in every floating type. */
static void fill_half(void *p, int dtype, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        if (dtype == FL_F64) ((double *)p)[i] = 0.5;
        if (dtype == FL_F32) ((float *)p)[i] = 0.5f;
        if (dtype == FL_F16) ((uint16_t *)p)[i] = 0x3800;
        if (dtype == FL_BF16) ((uint16_t *)p)[i] = 0x3f00;
    }
}

/* ---- Softmax cross-entropy
 * --------------------------------------------------------------------------------------------*/

enum { NO_GRAD = 1, IN_PLACE = 2, SMOOTHING = 4, WEIGHTS = 8, SOFTCAP = 16, PROBABILITIES = 32, WITH_SCRATCH = 64 };
static const int option_sets[] = {0,
                                  NO_GRAD,
                                  IN_PLACE,
                                  SMOOTHING,
                                  SMOOTHING | NO_GRAD,
                                  WEIGHTS,
                                  WEIGHTS | SMOOTHING,
                                  WEIGHTS | SMOOTHING | SOFTCAP | IN_PLACE,
                                  SOFTCAP | NO_GRAD,
                                  PROBABILITIES,
                                  PROBABILITIES | WEIGHTS | IN_PLACE,
                                  WITH_SCRATCH,
                                  WITH_SCRATCH | SMOOTHING};

/* Keeps what the first placement gave, or compares with it. */
static void same_as_before(const void *p, size_t bytes, int first, char *kept, const char *what) {
    if (first) {
        memcpy(kept, p, bytes);
    } else if (memcmp(kept, p, bytes) != 0) {
        fail(what);
    }
}

static void test_cross_entropy(int dtype, ptrdiff_t n, ptrdiff_t classes, ptrdiff_t inner, int options) {
    static char kept_grad[CAPACITY], kept_losses[CAPACITY], source[CAPACITY];
    const ptrdiff_t rows = n * inner, size = rows * classes;
    const int real = working(dtype);
    double kept_loss = 0;
    snprintf(description, sizeof description, "cross_entropy, dtype %d, %ld x %ld x %ld, options %d", dtype, (long)n,
             (long)classes, (long)inner, options);
    fill(source, dtype, size, 1);
    for (int at_end = 1; at_end >= 0; at_end--) {
        fl_class_call call = fl_class_call_init();
        char *z = place(Z, (size_t)size * size_of(dtype), at_end);
        char *grad = options & IN_PLACE ? z : place(GRAD, (size_t)size * size_of(dtype), at_end);
        memcpy(z, source, (size_t)size * size_of(dtype));
        call.n[0] = 1;
        call.n[1] = n;
        call.classes = classes;
        call.inner = inner;
        call.logits.data = z;
        if (!(options & NO_GRAD)) call.grad.data = grad;
        call.logits.dtype = call.grad.dtype = dtype;
        call.logits.stride[1] = call.grad.stride[1] = classes * inner;
        call.logits.class_stride = call.grad.class_stride = inner;
        if (options & PROBABILITIES) {
            char *probs = place(PROBS, (size_t)size * size_of(real), at_end);
            for (ptrdiff_t i = 0; i < size; i++) {
                if (real == FL_F64) {
                    ((double *)probs)[i] = (double)(i % 7) / 8;
                } else {
                    ((float *)probs)[i] = (float)(i % 7) / 8;
                }
            }
            call.target_probs = call.logits;
            call.target_probs.data = probs;
            call.target_probs.dtype = real;
        } else {
            int64_t *target = (int64_t *)(void *)place(TARGET, (size_t)rows * sizeof *target, at_end);
            /* Rows that all count lie behind each other. */
            for (ptrdiff_t i = 0; i < rows; i++)
                target[i] = i % 5 == 3 && rows % 32 ? -100 : (i * 7 + classes - 1) % classes;
            call.target = target;
            call.target_dtype = FL_I64;
        }
        if (options & WEIGHTS) {
            void *arrays[3] = {place(WEIGHT, (size_t)classes * size_of(real), at_end),
                               place(SAMPLE_WEIGHT, (size_t)rows * size_of(real), at_end),
                               place(UPSTREAM, (size_t)rows * size_of(real), at_end)};
            for (int k = 0; k < 3; k++) count_up(arrays[k], real, k == 0 ? classes : rows);
            call.weight = arrays[0];
            call.sample_weight = arrays[1];
            call.grad_output = arrays[2];
        }
        if (options & SMOOTHING) call.label_smoothing = 0.125;
        if (options & SOFTCAP) call.softcap = 4;
        call.losses = place(LOSSES, (size_t)rows * size_of(real), at_end);
        call.reduction = FL_NONE;
        double loss = NAN;
        if (options & WITH_SCRATCH) {
            const size_t bytes = fl_class_scratch(&call);
            void *scratch = bytes ? place(SCRATCH, (bytes + 7) / 8 * 8, at_end) : NULL;
            ptrdiff_t tiles = 0;
            if (fl_class_tiles(&call, &tiles) != FL_OK) fail("refused");
            loss = 0;
            for (ptrdiff_t tile = 0; tile < tiles; tile++) {
                double part = 0;
                if (fl_class_tile(&call, tile, scratch, &part) != FL_OK) fail("refused");
                loss += part;
            }
        } else if (fl_class_loss(&call, &loss) != FL_OK) {
            fail("refused");
        }
        same_as_before(&loss, sizeof loss, at_end, (char *)&kept_loss, "the loss differs");
        same_as_before(call.losses, (size_t)rows * size_of(real), at_end, kept_losses, "the losses differ");
        if (call.grad.data)
            same_as_before(grad, (size_t)size * size_of(dtype), at_end, kept_grad, "the gradients differ");
        cases++;
    }
}

/* One tile of rows of a gradient that is written past the caches; the others, which are not computed, need not exist.
 */
static void test_streamed(int dtype, ptrdiff_t classes, int with_ignored) {
    static char kept_grad[CAPACITY], source[CAPACITY];
    const ptrdiff_t size = (ptrdiff_t)size_of(dtype);
    ptrdiff_t rows = ((32 << 20) / size / classes + 63) / 64 * 64, tiles = 0;
    double kept_loss = 0;
    fill(source, dtype, (ptrdiff_t)CAPACITY / size, 1);
    for (int at_end = 1; at_end >= 0; at_end--) {
        snprintf(description, sizeof description, "streamed, dtype %d, %ld x %ld", dtype, (long)rows, (long)classes);
        fl_class_call call = fl_class_call_init();
        int64_t none[2];
        call.n[0] = 1;
        call.classes = classes;
        call.logits = call.grad = (fl_array){none, dtype, {0, classes}, 1};
        call.grad.data = none + 1; /* not in place */
        call.target = none;
        call.target_dtype = FL_I64;
        call.normalizer = 1;
        /* Tiles of equal size. */
        for (call.n[1] = rows; fl_class_tiles(&call, &tiles) == FL_OK && rows % tiles != 0;) call.n[1] = rows += 64;
        if (tiles == 0) fail("refused");
        const ptrdiff_t per_tile = rows / tiles, before = at_end ? rows - per_tile : 0;
        const size_t bytes = (size_t)(per_tile * classes * size), scratch_bytes = fl_class_scratch(&call);
        if (scratch_bytes == 0) fail("not streamed");
        char *z = place(Z, bytes, at_end), *grad = place(GRAD, bytes, at_end);
        int64_t *target = (int64_t *)place(TARGET, (size_t)per_tile * sizeof *target, at_end);
        void *scratch = place(SCRATCH, (scratch_bytes + 7) / 8 * 8, at_end);
        memcpy(z, source, bytes);
        for (ptrdiff_t i = 0; i < per_tile; i++)
            target[i] = with_ignored && i % 5 == 3 ? -100 : (i * 7 + classes - 1) % classes;
        call.logits.data = (void *)((uintptr_t)z - (uintptr_t)(before * classes * size));
        call.grad.data = (void *)((uintptr_t)grad - (uintptr_t)(before * classes * size));
        call.target = (const void *)((uintptr_t)target - (uintptr_t)before * sizeof *target);
        double loss = NAN;
        if (fl_class_tile(&call, at_end ? tiles - 1 : 0, scratch, &loss) != FL_OK) fail("refused");
        same_as_before(&loss, sizeof loss, at_end, (char *)&kept_loss, "the loss differs");
        same_as_before(grad, bytes, at_end, kept_grad, "the gradients differ");
        cases++;
    }
}

static void test_softmax(int dtype, ptrdiff_t n, ptrdiff_t classes, ptrdiff_t inner) {
    const ptrdiff_t size = n * classes * inner;
    for (int kind = FL_SOFTMAX; kind <= FL_ENTROPY; kind++) {
        snprintf(description, sizeof description, "softmax kind %d, dtype %d, %ld x %ld x %ld", kind, dtype, (long)n,
                 (long)classes, (long)inner);
        for (int at_end = 0; at_end < 2; at_end++) {
            fl_softmax_call call = fl_softmax_call_init();
            call.kind = kind;
            call.n[0] = 1;
            call.n[1] = n;
            call.classes = classes;
            call.inner = inner;
            call.logits.data = place(Z, (size_t)size * size_of(dtype), at_end);
            fill(call.logits.data, dtype, size, 1);
            call.logits.dtype = dtype;
            call.logits.stride[1] = classes * inner;
            call.logits.class_stride = inner;
            call.output = call.logits;
            call.output.data = place(GRAD, (size_t)size * size_of(dtype), at_end);
            call.values = place(LOSSES, (size_t)(n * inner) * size_of(working(dtype)), at_end);
            if (fl_softmax(&call) != FL_OK) fail("refused");
            cases++;
        }
    }
}

static void test_elements(int dtype, ptrdiff_t n) {
    static const int targets[] = {FL_F32, FL_F64, FL_F16, FL_BF16, FL_I64};
    for (int at_end = 0; at_end < 2; at_end++) {
        void *z = place(Z, (size_t)n * size_of(dtype), at_end), *out = place(GRAD, (size_t)n * size_of(dtype), at_end);
        fill(z, dtype, n, 1);
        for (int kind = FL_SIGMOID; kind <= FL_SOFTPLUS; kind++) {
            snprintf(description, sizeof description, "map kind %d, dtype %d, %ld", kind, dtype, (long)n);
            if (fl_map(kind, dtype, z, n, out) != FL_OK) fail("refused");
            cases++;
        }
        for (int t = 0; t < 5; t++) {
            for (int options = 0; options < 16; options++) {
                /* Every option for the first loss, half of them for one other after the other. */
                const int real = working(dtype), loss_kind = options < 8 ? 0 : 1 + (t + options + (int)n) % 6;
                snprintf(description, sizeof description, "element loss %d, dtypes %d and %d, %ld, options %d",
                         loss_kind, dtype, targets[t], (long)n, options);
                fl_element_call call = fl_element_call_init();
                call.loss = loss_kind;
                call.gamma = options & 1 ? 1.5 : 2;
                if (loss_kind == FL_BCE) fill_half(z, dtype, n);
                call.n[2] = n;
                call.logits = z;
                call.grad = out;
                call.target = place(TARGET, (size_t)n * size_of(targets[t]), at_end);
                memset((void *)call.target, 0, (size_t)n * size_of(targets[t]));
                call.logits_dtype = call.grad_dtype = dtype;
                call.target_dtype = targets[t];
                if (options & 1) {
                    call.weight.data = place(WEIGHT, (size_t)n * size_of(real), at_end);
                    call.weight.stride[2] = 1;
                    if (loss_kind == 0) call.pos_weight.data = place(SAMPLE_WEIGHT, size_of(real), at_end);
                    call.grad_output = place(UPSTREAM, (size_t)n * size_of(real), at_end);
                }
                if (options & 2) call.losses = place(LOSSES, (size_t)n * size_of(real), at_end);
                if (options & 4) {
                    call.label_smoothing = loss_kind == 0 ? 0.1 : 0;
                    call.has_ignore = 1;
                    call.ignore_value = 1;
                }
                double loss;
                if (fl_element_loss(&call, &loss) != FL_OK) fail("refused");
                cases++;
            }
        }
    }
}

/* ---- The other losses over an axis of classes, and the by-products of cross-entropy
 * -----------------------------------------------------------------------------------*/

static fl_array neighbours(void *data, int dtype, ptrdiff_t classes, ptrdiff_t inner) {
    fl_array array = {data, dtype, {0, classes * inner}, inner};
    return array;
}

enum { FOCAL = 4, METRICS = 5, KINDS = 6 }; /* after enum fl_class_kind */

static void test_class(int kind, int dtype, ptrdiff_t n, ptrdiff_t classes, ptrdiff_t inner) {
    static char kept_grad[CAPACITY], kept_losses[CAPACITY], kept_lse[CAPACITY], source[CAPACITY];
    const ptrdiff_t rows = n * inner, size = rows * classes;
    const int real = working(dtype), multilabel = kind == FL_MULTILABEL_MARGIN,
              target_dtype = rows % 2 ? FL_I16 : FL_I32;
    const size_t grad_bytes = (size_t)size * size_of(dtype), loss_bytes = (size_t)rows * size_of(real);
    double kept_loss = 0, loss = NAN;
    fill(source, dtype, size, 1);
    snprintf(description, sizeof description, "class loss %d, dtype %d, %ld x %ld x %ld", kind, dtype, (long)n,
             (long)classes, (long)inner);
    for (int at_end = 1; at_end >= 0; at_end--) {
        const ptrdiff_t targets = multilabel ? size : rows;
        void *target = place(TARGET, (size_t)targets * size_of(target_dtype), at_end);
        void *z = place(Z, grad_bytes, at_end), *weight = place(WEIGHT, (size_t)classes * size_of(real), at_end);
        memcpy(z, source, grad_bytes);
        count_up(weight, real, classes);
        for (ptrdiff_t i = 0; i < targets; i++) {
            const ptrdiff_t y = multilabel && i % classes == classes / 2 ? -1
                                : i % 5 == 3 && kind != FL_MULTI_MARGIN  ? 0
                                                                         : (i * 7 + classes - 1) % classes;
            if (target_dtype == FL_I32) ((int32_t *)target)[i] = (int32_t)y;
            if (target_dtype == FL_I16) ((int16_t *)target)[i] = (int16_t)y;
        }
        fl_class_call call = fl_class_call_init();
        call.n[0] = 1;
        call.n[1] = n;
        call.classes = classes;
        call.inner = inner;
        call.logits = neighbours(z, dtype, classes, inner);
        if (kind != METRICS) call.grad = neighbours(place(GRAD, grad_bytes, at_end), dtype, classes, inner);
        call.target = target;
        call.target_dtype = target_dtype;
        call.losses = place(LOSSES, loss_bytes, at_end);
        if (!multilabel) call.weight = weight;
        if (kind <= FL_MULTILABEL_MARGIN) call.loss = kind;
        /* Whole groups of rows of which none is ignored are read where they are. */
        if (kind != FL_MULTI_MARGIN && !multilabel && n % 32 > 0) call.ignore_index = 0;
        call.power = 1 + (int)(n % 2);
        call.focal = kind == FOCAL;
        call.gamma = 1.5;
        if (kind == METRICS) {
            ptrdiff_t tiles = 0;
            if (fl_class_tiles(&call, &tiles) != FL_OK) fail("refused");
            int *topk = (int *)(void *)place(UPSTREAM, 2 * sizeof *topk, at_end);
            topk[0] = 1;
            topk[1] = 5;
            call.topk = topk;
            call.topk_count = 2;
            call.metrics = (fl_metrics *)(void *)place(SCRATCH, (size_t)tiles * sizeof(fl_metrics), at_end);
            call.lse = place(PROBS, loss_bytes, at_end);
        }
        call.reduction = FL_SUM;
        if (fl_class_loss(&call, &loss) != FL_OK) fail("refused");
        same_as_before(&loss, sizeof loss, at_end, (char *)&kept_loss, "the loss differs");
        same_as_before(call.losses, loss_bytes, at_end, kept_losses, "the losses differ");
        if (call.lse) same_as_before(call.lse, loss_bytes, at_end, kept_lse, "the logsumexp differs");
        if (call.grad.data) same_as_before(call.grad.data, grad_bytes, at_end, kept_grad, "the gradients differ");
        cases++;
    }
}

/* ---- Overlap losses
 * ---------------------------------------------------------------------------------------------------*/

enum { SQUARED = 1, ENTROPY = 2, OVER = 4 };

static void test_overlap(int activation, int is_mask, int dtype, ptrdiff_t n, ptrdiff_t classes, ptrdiff_t inner,
                         int options) {
    static char kept_grad[CAPACITY], source[CAPACITY];
    const ptrdiff_t rows = n * inner, size = rows * classes;
    const int real = working(dtype), softmax = activation == FL_ACTIVATION_SOFTMAX;
    const size_t grad_bytes = (size_t)size * size_of(dtype);
    double kept_loss = 0, loss = NAN;
    fill(source, dtype, size, activation != FL_ACTIVATION_NONE);
    snprintf(description, sizeof description, "overlap, activation %d, mask %d, dtype %d, %ld x %ld x %ld, options %d",
             activation, is_mask, dtype, (long)n, (long)classes, (long)inner, options);
    for (int at_end = 1; at_end >= 0; at_end--) {
        const ptrdiff_t targets = is_mask ? size : rows;
        uint8_t *target = (uint8_t *)place(TARGET, (size_t)targets, at_end);
        void *z = place(Z, grad_bytes, at_end), *weight = place(WEIGHT, (size_t)classes * size_of(real), at_end);
        double *class_weight = (double *)(void *)place(SAMPLE_WEIGHT, (size_t)classes * sizeof(double), at_end);
        memcpy(z, source, grad_bytes);
        count_up(weight, real, classes);
        for (ptrdiff_t c = 0; c < classes; c++) class_weight[c] = 1 + (double)(c % 3);
        for (ptrdiff_t i = 0; i < targets; i++)
            target[i] = (uint8_t)(i % 5 == 3 ? 255
                                  : is_mask  ? i % 3 == 0
                                             : (i * 7 + classes - 1) % (classes < 255 ? classes : 255));
        fl_overlap_call call = fl_overlap_call_init();
        call.n[0] = 1;
        call.n[1] = n;
        call.classes = classes;
        call.inner = inner;
        call.logits = neighbours(z, dtype, classes, inner);
        call.grad = neighbours(options & OVER ? z : place(GRAD, grad_bytes, at_end), dtype, classes, inner);
        if (is_mask) {
            call.mask = neighbours(target, FL_U8, classes, inner);
        } else {
            call.target = target;
            call.target_dtype = FL_U8;
        }
        call.activation = activation;
        call.squared = options & SQUARED ? 1 : 0;
        call.has_ignore = 1;
        call.ignore_index = 255;
        call.groups = n;
        call.class_weight = class_weight;
        if (softmax && options & ENTROPY) {
            call.entropy = 1;
            call.entropy_weight = weight;
            call.focal = 0.5;
        }
        double *workspace = (double *)(void *)place(SCRATCH, fl_overlap_workspace(&call) * sizeof(double), at_end);
        if (fl_overlap_loss(&call, workspace, &loss) != FL_OK) fail("refused");
        same_as_before(&loss, sizeof loss, at_end, (char *)&kept_loss, "the loss differs");
        same_as_before(call.grad.data, grad_bytes, at_end, kept_grad, "the gradients differ");

        double *sums = (double *)(void *)place(LOSSES, (3 * (size_t)classes + 2) * sizeof(double), at_end);
        double *slopes = (double *)(void *)place(UPSTREAM, 2 * (size_t)(n * classes) * sizeof(double), at_end);
        ptrdiff_t tiles = 0;
        memset(sums, 0, (3 * (size_t)classes + 2) * sizeof(double));
        for (ptrdiff_t c = 0; c < 2 * n * classes; c++) slopes[c] = 1;
        if (fl_overlap_tiles(&call, &tiles) != FL_OK) fail("refused");
        for (ptrdiff_t tile = 0; tile < tiles; tile++)
            if (fl_overlap_sums(&call, tile, sums) != FL_OK || fl_overlap_gradient(&call, tile, slopes, 1) != FL_OK)
                fail("refused");
        cases++;
    }
}

static void test_overlaps(int dtype, ptrdiff_t n, ptrdiff_t classes, ptrdiff_t inner) {
    for (int options = 0; options < 8; options++)
        test_overlap(FL_ACTIVATION_SOFTMAX, 0, dtype, n, classes, inner, options);
    for (int options = 0; options < 8; options += 5) {
        test_overlap(FL_ACTIVATION_NONE, 0, dtype, n, classes, inner, options);
        test_overlap(FL_ACTIVATION_NONE, 1, dtype, n, classes, inner, options);
        test_overlap(FL_ACTIVATION_SIGMOID, 1, dtype, n, classes, inner, options);
    }
}

static void test_lovasz(int dtype, ptrdiff_t n) {
    static char kept_slopes[CAPACITY];
    double kept_loss = 0, loss = NAN;
    static double source[4096];
    fill(source, dtype, n, 1);
    snprintf(description, sizeof description, "lovasz, dtype %d, %ld", dtype, (long)n);
    for (int at_end = 1; at_end >= 0; at_end--) {
        const size_t bytes = (size_t)n * size_of(dtype);
        void *errors = place(Z, bytes, at_end), *slopes = place(GRAD, bytes, at_end);
        uint8_t *positive = (uint8_t *)place(TARGET, (size_t)n, at_end);
        memcpy(errors, source, bytes);
        for (ptrdiff_t i = 0; i < n; i++) positive[i] = i % 3 == 1;
        void *workspace = place(SCRATCH, fl_lovasz_workspace(n), at_end);
        if (fl_lovasz(dtype, errors, positive, n, 0, workspace, &loss, slopes) != FL_OK) fail("refused");
        same_as_before(&loss, sizeof loss, at_end, (char *)&kept_loss, "the loss differs");
        same_as_before(slopes, bytes, at_end, kept_slopes, "the slopes differ");
        cases++;
    }
}

int main(void) {
    static const ptrdiff_t rows[] = {1, 2, 3, 5, 8, 17, 33};
    static const ptrdiff_t positions[] = {2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 65, 129, 300};
    static const ptrdiff_t more_classes[] = {63,  64,  65,  100, 127, 255, 256,  257,
                                             300, 384, 385, 511, 512, 513, 1000, 1537};
    const int sets = (int)(sizeof option_sets / sizeof *option_sets);
    const int more = (int)(sizeof more_classes / sizeof *more_classes);
    if (signal(SIGSEGV, on_fault) == SIG_ERR || signal(SIGBUS, on_fault) == SIG_ERR) return 2;
    reserve();
    for (int dtype = FL_F32; dtype <= FL_BF16; dtype++) {
        for (ptrdiff_t classes = 1; classes <= 40; classes++) {
            for (int r = 0; r < 7; r++)
                for (int s = 0; s < sets; s++) test_cross_entropy(dtype, rows[r], classes, 1, option_sets[s]);
            for (int s = 0; s < sets && classes <= 16; s++) test_cross_entropy(dtype, 32, classes, 1, option_sets[s]);
            test_softmax(dtype, 5, classes, 1);
        }
        for (int c = 0; c < more; c++) {
            for (int r = 0; r < 6; r += 2)
                for (int s = 0; s < sets; s++) test_cross_entropy(dtype, rows[r], more_classes[c], 1, option_sets[s]);
            test_softmax(dtype, 3, more_classes[c], 1);
        }
        for (int s = 0; s < sets; s++) test_cross_entropy(dtype, 2, 40000, 1, option_sets[s]);
        for (int c = 0; c < more; c++) {
            test_streamed(dtype, more_classes[c], 0);
            test_streamed(dtype, more_classes[c], 1);
        }
        test_streamed(dtype, 10, 0);
        test_streamed(dtype, 5003, 0);
        for (int p = 0; p < 13; p++) {
            for (ptrdiff_t classes = 1; classes <= 22; classes += 3) {
                for (int s = 0; s < sets; s++) test_cross_entropy(dtype, 2, classes, positions[p], option_sets[s]);
                test_softmax(dtype, 2, classes, positions[p]);
            }
        }
        /* Too many classes for a stage. */
        for (int s = 0; s < sets; s++) test_cross_entropy(dtype, 1, 2100, 19, option_sets[s]);
        for (int kind = FL_NLL; kind < KINDS; kind++) {
            const int has_positions = kind <= FL_NLL || kind == FOCAL || (kind == METRICS && dtype <= FL_F64);
            for (int r = 0; r < 7; r += 2) {
                for (ptrdiff_t classes = 1; classes <= 40; classes += r ? 3 : 1)
                    test_class(kind, dtype, rows[r], classes, 1);
                for (int c = 0; c < more; c++) test_class(kind, dtype, rows[r], more_classes[c], 1);
            }
            for (int p = 0; has_positions && p < 13; p++)
                for (ptrdiff_t classes = 1; classes <= 22; classes += 3)
                    test_class(kind, dtype, 2, classes, positions[p]);
            if (has_positions) test_class(kind, dtype, 1, 2100, 19);
        }
        for (ptrdiff_t classes = 1; classes <= 40; classes++) test_class(METRICS, dtype, 32, classes, 1);
        for (ptrdiff_t classes = 1; classes <= 22; classes += 3) {
            for (int r = 0; r < 7; r++) test_overlaps(dtype, rows[r], classes, 1);
            for (int p = 0; p < 13; p++) test_overlaps(dtype, 2, classes, positions[p]);
        }
        for (int c = 0; c < more; c += 3) test_overlaps(dtype, 3, more_classes[c], 1);
        test_overlaps(dtype, 1, 3000, 5); /* too many classes for a stage */
        test_overlaps(dtype, 5, 3000, 1);
        for (ptrdiff_t n = 1; n <= 4000 && dtype <= FL_F64; n = n * 4 / 3 + 1) test_lovasz(dtype, n);
        for (ptrdiff_t n = 1; n <= 40; n++) test_elements(dtype, n);
        test_elements(dtype, 511);
        test_elements(dtype, 513);
        test_elements(dtype, 33000);
    }
    printf("%s: %ld cases between guard pages\n", fl_isa(), cases);
    return 0;
}

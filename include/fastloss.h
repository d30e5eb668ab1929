/* fastloss: classification losses and their gradients in one pass over the logits.
 *
 * A training step needs the loss and its gradient with respect to the logits. fastloss reads the logits once,
 * writes the gradient once, and is stable and exact on the way: the loss of a confident row keeps its digits
 * where log(softmax) rounds to zero.
 *
 *     #include <stdio.h>
 *     #include <fastloss.h>
 *
 *     int main(void) {
 *         const float logits[2][3] = {{2.0f, 0.1f, 0.4f}, {1.0f, 8.0f, -1.0f}};
 *         const int64_t target[2] = {1, 2};
 *         float grad[2][3];
 *         double loss;
 *         int status = fl_cross_entropy_f32(&logits[0][0], target, 2, 3, &loss, &grad[0][0]);
 *         if (status != FL_OK) return fprintf(stderr, "%s\n", fl_status_name(status)), 1;
 *         printf("%.6f\n", loss);                             // 5.601112
 *     }
 *
 *     cc example.c $(pkg-config --cflags --libs fastloss)
 *
 * Contents: status codes; the simple calls; the advanced calls (every option, any layout, your own threads);
 * what the library says of itself; precision; what is not promised.
 *
 * Thread safety: every function here may be called from any thread at any time, also at once with itself, as long
 * as the outputs are different memory. The library starts no threads, allocates no memory (it takes up to 192 KiB of
 * stack), and leaves the locale and the floating-point environment alone. */
#ifndef FASTLOSS_H
#define FASTLOSS_H

#include <stddef.h>
#include <stdint.h>

#define FL_VERSION "0.1.0"
#define FL_VERSION_NUMBER 100 /* 10000 * major + 100 * minor + patch */

#if defined(_WIN32) && defined(FL_SHARED)
#ifdef FL_BUILD
#define FL_API __declspec(dllexport)
#else
#define FL_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define FL_API __attribute__((visibility("default")))
#else
#define FL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status codes ------------------------------------------------------------------------------------------
 *
 * Every call returns one. Nothing has been written to any output when it is not FL_OK. */

#define FL_OK 0
#define FL_ERROR_NULL 1        /* a pointer that is needed is NULL */
#define FL_ERROR_SIZE 2        /* a negative size, no classes, more than 2^31 - 1 classes, or an unknown struct_size */
#define FL_ERROR_DTYPE 3       /* an unknown data type, or one that does not fit here */
#define FL_ERROR_OPTION 4      /* an option outside its range */
#define FL_ERROR_INDEX 5       /* a target that is neither a class nor ignore_index */
#define FL_ERROR_EMPTY 6       /* the mean over no targets, with empty = FL_EMPTY_ERROR */
#define FL_ERROR_ISA 7         /* FASTLOSS_ISA names an instruction set that is unknown or not to be had here */
#define FL_ERROR_PROBABILITY 8 /* a probability outside [0, 1] */

/* "FL_OK", "FL_ERROR_NULL: a pointer that is needed is NULL", ...: never NULL, static memory. */
FL_API const char *fl_status_name(int status);

/* ---- The simple calls --------------------------------------------------------------------------------------
 *
 * The mean loss over the batch, and its gradient where grad is not NULL (it may be the logits themselves: in
 * place). Rows are contiguous. On an error in target, the status is FL_ERROR_INDEX. */

/* Softmax cross-entropy: mean over rows of logsumexp(logits[i]) - logits[i][target[i]]. A target of -100 is
 * ignored. logits: n x classes, target: n. */
FL_API int fl_cross_entropy_f32(const float *logits, const int64_t *target, ptrdiff_t n, ptrdiff_t classes,
                                double *loss, float *grad);
FL_API int fl_cross_entropy_f64(const double *logits, const int64_t *target, ptrdiff_t n, ptrdiff_t classes,
                                double *loss, double *grad);

/* Binary cross-entropy with logits: mean of softplus(z) - y z over n elements; targets in [0, 1]. */
FL_API int fl_bce_with_logits_f32(const float *logits, const float *target, ptrdiff_t n, double *loss, float *grad);
FL_API int fl_bce_with_logits_f64(const double *logits, const double *target, ptrdiff_t n, double *loss, double *grad);

/* ---- The advanced calls ------------------------------------------------------------------------------------
 *
 * One struct holds a whole call. Start from its initialiser, which sets struct_size and the defaults, and set what
 * you need. A program compiled with an older, smaller struct keeps working: missing fields mean their defaults. */

enum fl_dtype {
    FL_F32 = 1,
    FL_F64 = 2,
    FL_F16 = 3,  /* IEEE half */
    FL_BF16 = 4, /* the upper half of a float */
    FL_I8 = 5,
    FL_I16 = 6,
    FL_I32 = 7,
    FL_I64 = 8,
    FL_U8 = 9, /* also C's bool */
    FL_U16 = 10,
    FL_U32 = 11,
    FL_U64 = 12
};

enum fl_reduction { FL_MEAN = 0, FL_SUM = 1, FL_NONE = 2 };

enum fl_empty { FL_EMPTY_NAN = 0, FL_EMPTY_ZERO = 1, FL_EMPTY_ERROR = 2 };

/* An array over a batch: element (i, j, c, k) is at data[i * stride[0] + j * stride[1] + c * class_stride + k].
 * Strides count elements and may be negative. See fl_class_call for i, j, c and k. */
typedef struct fl_array {
    void *data;
    int dtype;
    ptrdiff_t stride[2];
    ptrdiff_t class_stride;
} fl_array;

/* Losses over an axis of classes, with every option.
 *
 * The batch is n[0] x n[1] x classes x inner, and has n[0] * n[1] * inner targets, in that order. With inner = 1 the
 * classes are the last axis and class_stride must be 1: n x classes logits are n = {1, n}, stride = {0, classes}; a
 * language model's logits[:, :-1] is n = {batch, time - 1}, stride = {time * classes, classes}. With inner > 1 the
 * class axis lies in front of positions that are contiguous: images of batch x classes x height x width are
 * n = {1, batch}, inner = height * width, class_stride = inner, stride = {0, classes * inner}.
 *
 * "Working type" below is double for double logits and float for all others.
 *
 * FL_CROSS_ENTROPY, for one target: with a_c = weight_c * q_c, where q is the target distribution after smoothing
 * ((1 - label_smoothing) * target + label_smoothing / classes),
 *     loss = sample_weight * (sum_c a_c f_c (lse - z_c) + z_loss * lse^2),     lse = logsumexp(z),
 *     f_c = (1 - focal) + focal * (1 - softmax(z)_c)^gamma,
 * with z = softcap * tanh(logits / softcap) where a softcap is given. focal = 1 is the focal loss.
 *
 * FL_NLL, of log-probabilities z: sample_weight * weight_y * -z_y.
 *
 * FL_MULTI_MARGIN: weight_y / classes * sum over c != y of max(0, margin - z_y + z_c)^power; inner = 1.
 *
 * FL_MULTILABEL_MARGIN: 1 / classes * the sum over labels y and classes c that are none of max(0, 1 - z_y + z_c). The
 * target has the logits' n x classes shape and holds the labels of each row, then -1. inner = 1, not in place.
 *
 * FL_MEAN divides the sum by `normalizer`, or where that is -INFINITY by the sum of weight[target] * sample_weight over
 * the targets that count (the sum of sample_weight for probability targets, the number of rows for the margins). */
enum fl_class_kind { FL_CROSS_ENTROPY = 0, FL_NLL = 1, FL_MULTI_MARGIN = 2, FL_MULTILABEL_MARGIN = 3 };

/* What a tile's targets are worth to a validation loop: see the field `metrics`. */
#define FL_MAX_TOPK 8
typedef struct fl_metrics {
    ptrdiff_t counted;              /* targets that are not ignored */
    ptrdiff_t correct[FL_MAX_TOPK]; /* for each k of topk: targets among the k largest logits; of equal logits the first
                                       ranks first; rows without a softmax are misses */
    double entropy;                 /* the sum of -sum_c p_c log(p_c) */
} fl_metrics;

typedef struct fl_class_call {
    size_t struct_size;
    ptrdiff_t n[2];
    ptrdiff_t classes;
    ptrdiff_t inner;
    fl_array logits;       /* FL_F32, FL_F64, FL_F16 or FL_BF16; only read */
    fl_array grad;         /* data NULL: no gradient. The logits' dtype; FL_F32, FL_F16, FL_BF16 mix freely. May be the
                              logits themselves, must not partly overlap them */
    const void *target;    /* class indices, contiguous; NULL where target_probs is given */
    int target_dtype;      /* FL_I8 ... FL_U64 */
    fl_array target_probs; /* probabilities, of the working type */
    const void *weight;    /* one a class, working type, or NULL */
    const void *sample_weight; /* one a target, working type, contiguous, or NULL */
    const void *grad_output;   /* upstream gradient, one a target, working type, or NULL */
    void *losses;              /* receives each target's loss (working type, contiguous), or NULL */
    double grad_scale;         /* upstream gradient, a number; default 1 */
    int64_t ignore_index;      /* default -100 */
    double label_smoothing;    /* in [0, 1] */
    double z_loss;             /* >= 0 */
    double softcap;            /* > 0; 0 is none */
    int reduction;             /* enum fl_reduction, default FL_MEAN */
    int empty;                 /* enum fl_empty: what the mean over nothing is, default FL_EMPTY_NAN */
    double normalizer;         /* the mean's denominator; -INFINITY (default): computed */
    int loss;                  /* enum fl_class_kind, default FL_CROSS_ENTROPY */
    double focal;              /* in [0, 1] */
    double gamma;              /* >= 0, default 2 */
    int power;                 /* FL_MULTI_MARGIN: 1 (default) or 2 */
    double margin;             /* FL_MULTI_MARGIN: default 1 */
    fl_metrics *metrics;       /* one a tile, or NULL: by-products of cross-entropy from class indices without gradient,
                                  focal, softcap, class weights together with smoothing, or half logits of inner > 1 */
    const int *topk;           /* their k, */
    int topk_count;            /* at most FL_MAX_TOPK */
    void *lse;                 /* with metrics: receives each target's logsumexp (working type, contiguous), or NULL */
} fl_class_call;

FL_API fl_class_call fl_class_call_init(void);

/* Everything at once, on the calling thread. loss receives the mean or the sum (the sum for FL_NONE). */
FL_API int fl_class_loss(const fl_class_call *call, double *loss);

/* The same in pieces, for your own threads. A call consists of tiles, whose number depends on the shape alone, so the
 * result has the same bits however they are shared out:
 *     1. fl_class_tiles gives their number, and checks everything but the targets;
 *     2. fl_class_check reads the targets of one tile;
 *     3. add the tiles' weights in order; set call.normalizer to the sum, where it was -INFINITY;
 *     4. fl_class_tile computes one tile; add the losses in order, and divide by the normalizer.
 *
 * Rows of thousands of classes are faster with fl_class_scratch bytes of memory for each thread, aligned for a
 * double, where gradients are large (they are written past the caches) or in half precision (it is converted on the
 * way); NULL works too, in half precision with last bits that are not always the same. */
typedef struct fl_target_check {
    double weight;          /* the tile's share of the mean's denominator */
    ptrdiff_t bad_position; /* the first target that is not a class, or -1 */
    int64_t bad_value;
} fl_target_check;

FL_API int fl_class_tiles(const fl_class_call *call, ptrdiff_t *tiles);
FL_API int fl_class_check(const fl_class_call *call, ptrdiff_t tile, fl_target_check *check);
FL_API size_t fl_class_scratch(const fl_class_call *call); /* 0: none is of use */
FL_API int fl_class_tile(const fl_class_call *call, ptrdiff_t tile, void *scratch, double *loss);

/* Losses of single elements, over n[0] x n[1] x n[2] of them in this order. logits, grad and target are contiguous;
 * weight and pos_weight have a stride for each of the three (0 broadcasts). With z the logit and y the target:
 *
 *     FL_BCE_WITH_LOGITS  pos_weight * y * softplus(-z) + (1 - y) * softplus(z),
 *                         y = target * (1 - label_smoothing) + label_smoothing / 2
 *     FL_BCE              -(y log(z) + (1 - y) log(1 - z)) of probabilities z; the logs are at least -100
 *     FL_SIGMOID_FOCAL    (alpha y + (1 - alpha) (1 - y)) q^gamma * binary cross-entropy with logits,
 *                         q = y sigmoid(-z) + (1 - y) sigmoid(z)
 *     FL_SOFT_MARGIN      softplus(-y z), y = -1 or 1
 *     FL_HINGE            max(0, margin - y z), y = -1 or 1
 *     FL_KL_DIV           y (log(y) - z) of log-probabilities z
 *     FL_KL_DIV_LOG       exp(y) (y - z)
 *
 * each times weight. FL_MEAN divides by the number of elements that are not ignored. */
enum fl_element_kind {
    FL_BCE_WITH_LOGITS = 0,
    FL_BCE = 1,
    FL_SIGMOID_FOCAL = 2,
    FL_SOFT_MARGIN = 3,
    FL_HINGE = 4,
    FL_KL_DIV = 5,
    FL_KL_DIV_LOG = 6
};

typedef struct fl_broadcast {
    const void *data; /* working type, or NULL */
    ptrdiff_t stride[3];
} fl_broadcast;

typedef struct fl_element_call {
    size_t struct_size;
    ptrdiff_t n[3];
    const void *logits;
    int logits_dtype; /* FL_F32, FL_F64, FL_F16 or FL_BF16 */
    void *grad;       /* or NULL; may be the logits */
    int grad_dtype;
    const void *target;
    int target_dtype; /* any */
    fl_broadcast weight;
    fl_broadcast pos_weight;
    const void *grad_output; /* one an element, working type, or NULL */
    void *losses;            /* one an element, working type, or NULL */
    double grad_scale;       /* default 1 */
    double label_smoothing;  /* in [0, 1] */
    int has_ignore;          /* 1: elements whose target equals ignore_value count for nothing */
    double ignore_value;
    int reduction;     /* enum fl_reduction, default FL_MEAN */
    double normalizer; /* the mean's denominator; -INFINITY (default): computed */
    int loss;          /* enum fl_element_kind, default FL_BCE_WITH_LOGITS */
    int zero_one;      /* 1: the targets of a margin loss are 0 and 1 instead of -1 and 1 */
    double alpha;      /* FL_SIGMOID_FOCAL: the weight of positives, at most 1; negative (default): none */
    double gamma;      /* FL_SIGMOID_FOCAL: default 2 */
    double margin;     /* FL_HINGE: default 1 */
} fl_element_call;

FL_API fl_element_call fl_element_call_init(void);
FL_API int fl_element_loss(const fl_element_call *call, double *loss);
FL_API int fl_element_tiles(const fl_element_call *call, ptrdiff_t *tiles);
FL_API int fl_element_check(const fl_element_call *call, ptrdiff_t tile, fl_target_check *check);
FL_API int fl_element_tile(const fl_element_call *call, ptrdiff_t tile, double *loss);

/* Overlap losses for segmentation: Dice, Jaccard, Tversky. The layout is that of fl_class_call. With p the activated
 * logits, y the target as 0 and 1, and for each class (and group) the sums I of p y, P of p and Y of y,
 *     score = (I + smooth) / max(I + alpha (P - I) + beta (Y - I) + smooth, eps)
 * is Dice's for alpha = beta = 1/2 and Jaccard's for alpha = beta = 1. The loss of a class is 1 - score, or -log(score)
 * with log_loss; that of a group the mean over its classes, weighted by class_weight, to the power `power`; and
 * FL_MEAN the mean of the groups. `entropy` times the mean cross-entropy (the sum for FL_SUM) is added. */
enum fl_activation { FL_ACTIVATION_NONE = 0, FL_ACTIVATION_SOFTMAX = 1, FL_ACTIVATION_SIGMOID = 2 };

typedef struct fl_overlap_call {
    size_t struct_size;
    ptrdiff_t n[2];
    ptrdiff_t classes;
    ptrdiff_t inner;
    fl_array logits;
    fl_array grad;      /* data NULL: no gradient; may be the logits */
    const void *target; /* class indices, contiguous; NULL where a mask is given */
    int target_dtype;   /* FL_I8 ... FL_U64 */
    fl_array mask;      /* numbers of any type, for each class; not with FL_ACTIVATION_SOFTMAX */
    int activation;     /* enum fl_activation, default FL_ACTIVATION_SOFTMAX */
    int squared;        /* 1: P and Y are sums of squares */
    int has_ignore;     /* 1: targets that equal ignore_index count for nothing */
    int64_t ignore_index;
    ptrdiff_t groups;   /* sets of targets, one after the other, with scores of their own; default 1 */
    double alpha, beta; /* default 1/2 */
    double power;       /* > 0, default 1 */
    double smooth, eps; /* >= 0, default 0 and 1e-7 */
    int log_loss;
    int count_absent;           /* 1: a class that no target of the group has counts; else its loss is 0 */
    const double *class_weight; /* one a class, or NULL */
    double entropy;             /* >= 0: weight of a cross-entropy, with index targets and FL_ACTIVATION_SOFTMAX */
    const void *entropy_weight; /* its class weights, working type, or NULL */
    double focal, gamma;        /* its focal share and gamma: see fl_class_call */
    double grad_scale;          /* default 1 */
    int reduction;              /* FL_MEAN or FL_SUM */
} fl_overlap_call;

FL_API fl_overlap_call fl_overlap_call_init(void);

/* Everything at once. workspace: fl_overlap_workspace(call) numbers, of which the first groups * classes are each
 * class's loss afterwards. */
FL_API size_t fl_overlap_workspace(const fl_overlap_call *call);
FL_API int fl_overlap_loss(const fl_overlap_call *call, double *workspace, double *loss);

/* The same in pieces: check and add up every tile, whose sums are 3 * classes + 2 numbers that start at 0 (of each
 * class I, P - I and Y - I; then the cross-entropy and its denominator); the tiles of a group follow each other, as
 * many for each. From the sums follow the derivatives of your loss by the sums of p y and of p of each group and class,
 * with which every tile writes its gradient, and entropy_scale, the factor of the cross-entropy's. */
FL_API int fl_overlap_tiles(const fl_overlap_call *call, ptrdiff_t *tiles);
FL_API int fl_overlap_check(const fl_overlap_call *call, ptrdiff_t tile, fl_target_check *check);
FL_API int fl_overlap_sums(const fl_overlap_call *call, ptrdiff_t tile, double *sums);
FL_API int fl_overlap_gradient(const fl_overlap_call *call, ptrdiff_t tile, const double *slopes, double entropy_scale);

/* The Lovasz extension of the Jaccard loss of one class: sum over k of e_(k) (J_k - J_(k-1)), with the errors e largest
 * first and J_k the Jaccard loss of being wrong at the first k. errors: n of FL_F32 or FL_F64; positive: 1 where the
 * target is of the class. With hinge, errors at or below 0 add nothing. slopes, or NULL, receives the derivative by
 * each error. workspace: fl_lovasz_workspace(n) bytes, aligned for a double. Equal errors keep their order. */
FL_API size_t fl_lovasz_workspace(ptrdiff_t n);
FL_API int fl_lovasz(int dtype, const void *errors, const uint8_t *positive, ptrdiff_t n, int hinge, void *workspace,
                     double *loss, void *slopes);

/* Softmax and its relatives over the class axis; the layout is that of fl_class_call. */
enum fl_softmax_kind {
    FL_SOFTMAX = 1,     /* output: the logits' shape */
    FL_LOG_SOFTMAX = 2, /* output: the logits' shape */
    FL_LOGSUMEXP = 3,   /* values: one a row */
    FL_ENTROPY = 4      /* values: one a row: -sum_c p_c log p_c, p = softmax(logits) */
};

typedef struct fl_softmax_call {
    size_t struct_size;
    int kind;
    ptrdiff_t n[2];
    ptrdiff_t classes;
    ptrdiff_t inner;
    fl_array logits;
    fl_array output; /* FL_SOFTMAX and FL_LOG_SOFTMAX; may be the logits */
    void *values;    /* FL_LOGSUMEXP and FL_ENTROPY; working type, contiguous */
} fl_softmax_call;

FL_API fl_softmax_call fl_softmax_call_init(void);
FL_API int fl_softmax(const fl_softmax_call *call);
FL_API int fl_softmax_tiles(const fl_softmax_call *call, ptrdiff_t *tiles);
FL_API int fl_softmax_tile(const fl_softmax_call *call, ptrdiff_t tile);

/* Functions of one element. input and output are contiguous, may be the same, and have one dtype. */
enum fl_map_kind { FL_SIGMOID = 1, FL_LOG_SIGMOID = 2, FL_SOFTPLUS = 3 };

FL_API int fl_map(int kind, int dtype, const void *input, ptrdiff_t n, void *output);

/* ---- What the library says of itself -----------------------------------------------------------------------*/

FL_API const char *fl_version(void); /* "0.1.0", of the library that runs */

/* The instruction set in use: the widest of fl_isa_list() that this CPU has, or the one that the environment variable
 * FASTLOSS_ISA names, read at the first call. NULL where that names one which is not to be had: every other call then
 * returns FL_ERROR_ISA. */
FL_API const char *fl_isa(void);

/* Those this build has and this CPU can run, separated by spaces, narrowest first: "x86-64 x86-64-v3". */
FL_API const char *fl_isa_list(void);

/* ---- Precision ---------------------------------------------------------------------------------------------
 *
 * float, half and bfloat16 logits are computed in float, double in double. exp and log1p are within 2 ULP. Sums over
 * classes are flushed into double every few hundred terms, sums over the batch are in double. For a target that leads
 * by a margin d, the relative error of the loss and of each gradient entry is at most (18 + 2 d) * 2^-24 in float.
 *
 * NaN in a row that counts makes that row's loss and gradient NaN, and no other's. A logit of -inf is a class of
 * probability 0, and 0 * -inf is 0. All -inf, or any +inf: NaN. An ignored row's values have no effect.
 *
 * The same call on the same layout gives the same bits on any alignment and however its tiles are shared out, for one
 * build on one instruction set. The loss alone has the bits of the loss computed with its gradient.
 *
 * ---- What is not promised ----------------------------------------------------------------------------------
 *
 * The same bits on different instruction sets, builds or versions. The number and size of tiles. Any particular
 * payload or sign of a NaN. Detection of outputs that partly overlap inputs. */

#ifdef __cplusplus
}
#endif

#endif

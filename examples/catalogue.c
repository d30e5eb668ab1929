/* One call of every family of losses, on a few numbers.
 *
 *     cc -O2 catalogue.c $(pkg-config --cflags --libs fastloss) -o catalogue && ./catalogue */
#include <stdio.h>
#include <stdlib.h>
#include <fastloss.h>

enum { PIXELS = 6, CLASSES = 3 };

static const float logits[PIXELS][CLASSES] = {{2, 0, 1}, {0, 3, 1}, {1, 1, 4}, {0, 2, 1}, {3, 0, 0}, {1, 2, 2}};
static const uint8_t labels[PIXELS] = {0, 1, 2, 2, 0, 255}; /* 255 is no class: ignored */
static float grad[PIXELS][CLASSES];

static void check(int status) {
    if (status == FL_OK) return;
    fprintf(stderr, "%s\n", fl_status_name(status));
    exit(1);
}

static fl_array array(const void *data) { /* PIXELS x CLASSES, contiguous */
    fl_array a = {(void *)data, FL_F32, {0, CLASSES}, 1};
    return a;
}

static fl_class_call class_call(void) {
    fl_class_call call = fl_class_call_init();
    call.n[0] = 1;
    call.n[1] = PIXELS;
    call.classes = CLASSES;
    call.logits = array(logits);
    call.target = labels;
    call.target_dtype = FL_U8;
    call.ignore_index = 255;
    return call;
}

static void element_loss(const char *name, int loss, int zero_one) {
    const float scores[4] = {2, -1, 0.5f, -3}, yes[4] = {1, 1, 0, 0};
    fl_element_call call = fl_element_call_init();
    double value;
    call.n[2] = 4;
    call.logits = scores;
    call.target = yes;
    call.grad = grad;
    call.logits_dtype = call.target_dtype = call.grad_dtype = FL_F32;
    call.loss = loss;
    call.zero_one = zero_one;
    if (loss == FL_SIGMOID_FOCAL) call.alpha = 0.25;
    check(fl_element_loss(&call, &value));
    printf("%-28s %.6f  gradient %9.6f ...\n", name, value, (double)grad[0][0]);
}

int main(void) {
    double value;
    fl_class_call focal = class_call();
    focal.grad = array(grad);
    focal.focal = 1;
    check(fl_class_loss(&focal, &value));
    printf("%-28s %.6f  gradient %9.6f ...\n", "focal", value, (double)grad[0][0]);
    element_loss("sigmoid focal", FL_SIGMOID_FOCAL, 0);
    element_loss("hinge", FL_HINGE, 1);

    /* Dice plus half the cross-entropy, with the gradient of both. */
    fl_overlap_call dice = fl_overlap_call_init();
    double workspace[3 * CLASSES + 2 * (3 * CLASSES + 2)]; /* what fl_overlap_workspace() asks for */
    dice.n[0] = 1;
    dice.n[1] = PIXELS;
    dice.classes = CLASSES;
    dice.logits = array(logits);
    dice.grad = array(grad);
    dice.target = labels;
    dice.target_dtype = FL_U8;
    dice.has_ignore = 1;
    dice.ignore_index = 255;
    dice.entropy = 0.5;
    if (fl_overlap_workspace(&dice) > sizeof workspace / sizeof *workspace) return 1;
    check(fl_overlap_loss(&dice, workspace, &value));
    printf("%-28s %.6f  gradient %9.6f ...\n", "Dice + cross-entropy / 2", value, (double)grad[0][0]);
    printf("%-28s %.6f %.6f %.6f\n", "Dice of each class", workspace[0], workspace[1], workspace[2]);

    /* Validation: loss, accuracy and entropy in one pass. One tile, as there are few targets. */
    const int topk[2] = {1, 2};
    fl_metrics metrics;
    fl_class_call evaluate = class_call();
    evaluate.metrics = &metrics;
    evaluate.topk = topk;
    evaluate.topk_count = 2;
    check(fl_class_loss(&evaluate, &value));
    printf("%-28s %.6f  top 1: %d, top 2: %d of %d, entropy %.6f\n", "cross-entropy", value, (int)metrics.correct[0],
           (int)metrics.correct[1], (int)metrics.counted, metrics.entropy / (double)metrics.counted);

    /* The Lovasz hinge of three predictions: errors 1 - y z, largest first. */
    const float errors[3] = {0.5f, 1.75f, -1};
    const uint8_t positive[3] = {1, 0, 1};
    float slopes[3];
    void *memory = malloc(fl_lovasz_workspace(3));
    if (!memory) return 1;
    check(fl_lovasz(FL_F32, errors, positive, 3, 1, memory, &value, slopes));
    printf("%-28s %.6f  slopes %.6f %.6f %.6f\n", "Lovasz hinge", value, (double)slopes[0], (double)slopes[1],
           (double)slopes[2]);
    free(memory);
    return 0;
}

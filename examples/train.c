/* Trains a small network in C: points on three spirals, two inputs, one hidden layer, softmax cross-entropy.
 *
 *     cc -O2 train.c $(pkg-config --cflags --libs fastloss) -lm -o train && ./train
 *
 * For the copy that comes with the Python package, without pkg-config:
 *
 *     cc -O2 train.c $(python -m fastloss config --cflags --libs) -lm -o train && ./train
 *
 * fastloss does the part between the logits and their gradient, in place: one call a step. */
#include <math.h>
#include <stdio.h>
#include <fastloss.h>

enum { CLASSES = 3, POINTS = 900, HIDDEN = 64, BATCH = 60, EPOCHS = 20 };

typedef struct model {
    float w1[2][HIDDEN], b1[HIDDEN], w2[HIDDEN][CLASSES], b2[CLASSES];
} model;

static float points[POINTS][2];
static int64_t labels[POINTS];

/* Our own generator, so that every machine trains on the same numbers: uniform in [-1, 1). */
static float uniform(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) / (1 << 23) - 1.0f;
}

/* Class k is a spiral that starts at the angle of k thirds of a turn. Consecutive points are of different classes. */
static void make_spirals(void) {
    for (int i = 0; i < POINTS; i++) {
        labels[i] = i % CLASSES;
        const float radius = 0.05f + 0.95f * (float)((i * 7) % POINTS) / POINTS;
        const float angle = 4.0f * radius + 2.0944f * (float)labels[i] + 0.15f * uniform();
        points[i][0] = radius * cosf(angle);
        points[i][1] = radius * sinf(angle);
    }
}

static void forward(const model *m, const float x[2], float hidden[HIDDEN], float logits[CLASSES]) {
    for (int c = 0; c < CLASSES; c++) logits[c] = m->b2[c];
    for (int h = 0; h < HIDDEN; h++) {
        hidden[h] = tanhf(m->b1[h] + x[0] * m->w1[0][h] + x[1] * m->w1[1][h]);
        for (int c = 0; c < CLASSES; c++) logits[c] += hidden[h] * m->w2[h][c];
    }
}

/* Adds to grad what one point contributes, given the gradient with respect to its logits. */
static void backward(const model *m, const float x[2], const float hidden[HIDDEN], const float dlogits[CLASSES],
                     model *grad) {
    for (int c = 0; c < CLASSES; c++) grad->b2[c] += dlogits[c];
    for (int h = 0; h < HIDDEN; h++) {
        float dhidden = 0.0f;
        for (int c = 0; c < CLASSES; c++) {
            grad->w2[h][c] += hidden[h] * dlogits[c];
            dhidden += m->w2[h][c] * dlogits[c];
        }
        const float dsum = dhidden * (1.0f - hidden[h] * hidden[h]);
        grad->b1[h] += dsum;
        for (int i = 0; i < 2; i++) grad->w1[i][h] += x[i] * dsum;
    }
}

static void descend(float *weight, const float *grad, float *velocity, int n) {
    for (int i = 0; i < n; i++) {
        velocity[i] = 0.9f * velocity[i] - 0.3f * grad[i];
        weight[i] += velocity[i];
    }
}

static double accuracy(const model *m) {
    int right = 0;
    for (int i = 0; i < POINTS; i++) {
        float hidden[HIDDEN], logits[CLASSES];
        forward(m, points[i], hidden, logits);
        int best = 0;
        for (int c = 1; c < CLASSES; c++) {
            if (logits[c] > logits[best]) best = c;
        }
        right += best == labels[i];
    }
    return (double)right / POINTS;
}

int main(void) {
    static model m, velocity;
    make_spirals();
    for (int h = 0; h < HIDDEN; h++) {
        for (int i = 0; i < 2; i++) m.w1[i][h] = 3.0f * uniform();
        for (int c = 0; c < CLASSES; c++) m.w2[h][c] = 0.2f * uniform();
        m.b1[h] = uniform();
    }

    printf("fastloss %s, %s\nepoch      loss  accuracy\n", fl_version(), fl_isa() ? fl_isa() : "?");
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
        double epoch_loss = 0.0;
        for (int start = 0; start < POINTS; start += BATCH) {
            float hidden[BATCH][HIDDEN], logits[BATCH][CLASSES];
            for (int i = 0; i < BATCH; i++) forward(&m, points[start + i], hidden[i], logits[i]);

            /* The mean loss of the batch, and its gradient where the logits were. */
            double loss;
            const int status =
                fl_cross_entropy_f32(&logits[0][0], &labels[start], BATCH, CLASSES, &loss, &logits[0][0]);
            if (status != FL_OK) {
                fprintf(stderr, "%s\n", fl_status_name(status));
                return 1;
            }
            epoch_loss += loss * BATCH / POINTS;

            model grad = {{{0}}, {0}, {{0}}, {0}};
            for (int i = 0; i < BATCH; i++) backward(&m, points[start + i], hidden[i], logits[i], &grad);
            descend(&m.w1[0][0], &grad.w1[0][0], &velocity.w1[0][0], 2 * HIDDEN);
            descend(m.b1, grad.b1, velocity.b1, HIDDEN);
            descend(&m.w2[0][0], &grad.w2[0][0], &velocity.w2[0][0], HIDDEN * CLASSES);
            descend(m.b2, grad.b2, velocity.b2, CLASSES);
        }
        printf("%5d  %8.4f  %7.1f%%\n", epoch, epoch_loss, 100.0 * accuracy(&m));
    }
    return accuracy(&m) > 0.9 ? 0 : 1;
}

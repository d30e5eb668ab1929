/* The Lovasz extension of the Jaccard loss: a stable sort of the errors, largest first, and a walk along them. */
#include <math.h>
#include <string.h>

#include "kernels.h"

/* Bits of a key that one pass of the radix sort looks at. */
#define DIGIT 11
#define BUCKETS (1 << DIGIT)

/* Unsigned numbers that grow as the errors fall. Adding 0 makes -0 a 0, which it equals. */
static uint64_t key_of(int dtype, const void *errors, ptrdiff_t i) {
    if (dtype == FL_F64) {
        const double error = ((const double *)errors)[i] + 0.0;
        uint64_t bits;
        memcpy(&bits, &error, sizeof bits);
        return ~(bits >> 63 ? ~bits : bits | (uint64_t)1 << 63);
    }
    const float error = ((const float *)errors)[i] + 0.0f;
    uint32_t bits;
    memcpy(&bits, &error, sizeof bits);
    return (uint32_t)~(bits >> 31 ? ~bits : bits | (uint32_t)1 << 31);
}

typedef struct {
    uint64_t key;
    int64_t index;
} entry;

size_t fl_lovasz_workspace(ptrdiff_t n) { return n > 0 ? 2 * (size_t)n * sizeof(entry) : 0; }

/* Least significant digit first, to and fro between two halves of the workspace; returns the sorted one. */
static entry *sort_entries(entry *from, entry *to, ptrdiff_t n, int bits) {
    for (int shift = 0; shift < bits; shift += DIGIT) {
        ptrdiff_t start[BUCKETS] = {0}, sum = 0;
        for (ptrdiff_t i = 0; i < n; i++) start[from[i].key >> shift & (BUCKETS - 1)]++;
        for (ptrdiff_t k = 0; k < BUCKETS; k++) {
            const ptrdiff_t count = start[k];
            start[k] = sum;
            sum += count;
        }
        for (ptrdiff_t i = 0; i < n; i++) to[start[from[i].key >> shift & (BUCKETS - 1)]++] = from[i];
        entry *swap = from;
        from = to;
        to = swap;
    }
    return from;
}

int fl_lovasz(int dtype, const void *errors, const uint8_t *positive, ptrdiff_t n, int hinge, void *workspace,
              double *loss, void *slopes) {
    if (dtype != FL_F32 && dtype != FL_F64) return FL_ERROR_DTYPE;
    if (n < 0) return FL_ERROR_SIZE;
    if (!loss || (n > 0 && (!errors || !positive || !workspace))) return FL_ERROR_NULL;
    if (n == 0) {
        *loss = 0;
        return FL_OK;
    }
    entry *entries = workspace;
    ptrdiff_t positives = 0, seen = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        entries[i].key = key_of(dtype, errors, i);
        entries[i].index = i;
        positives += positive[i] != 0;
    }
    const entry *sorted = sort_entries(entries, entries + n, n, dtype == FL_F64 ? 64 : 32);
    double sum = 0, before = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        const ptrdiff_t i = (ptrdiff_t)sorted[k].index;
        const double error = dtype == FL_F64 ? ((const double *)errors)[i] : (double)((const float *)errors)[i];
        seen += positive[i] != 0;
        const double jaccard = 1 - (double)(positives - seen) / (double)(positives + k + 1 - seen);
        const double step = isnan(error) ? error : hinge && error <= 0 ? 0 : jaccard - before;
        before = jaccard;
        if (step != 0) sum += error * step;
        if (slopes && dtype == FL_F64) ((double *)slopes)[i] = step;
        if (slopes && dtype == FL_F32) ((float *)slopes)[i] = (float)step;
    }
    *loss = sum;
    return FL_OK;
}

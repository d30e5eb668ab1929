/* Class indices of any integer type, a few at a time as int64. */

/* Targets that a kernel sees at once. */
#define ROW_BATCH 128

#define COPY_TARGETS(type)                                                                 \
    for (ptrdiff_t i = 0; i < n; i++) out[i] = (int64_t)((const type *)target)[first + i]; \
    break

/* Unsigned targets of 2^63 and more come out negative: their caller knows the type. */
static inline void load_targets(const void *target, int dtype, ptrdiff_t first, ptrdiff_t n, int64_t *out) {
    switch (dtype) {
        case FL_I8:
            COPY_TARGETS(int8_t);
        case FL_I16:
            COPY_TARGETS(int16_t);
        case FL_I32:
            COPY_TARGETS(int32_t);
        case FL_I64:
            COPY_TARGETS(int64_t);
        case FL_U8:
            COPY_TARGETS(uint8_t);
        case FL_U16:
            COPY_TARGETS(uint16_t);
        case FL_U32:
            COPY_TARGETS(uint32_t);
        default:
            COPY_TARGETS(uint64_t);
    }
}

static inline bool can_ignore(const fl_class_call *call) {
    return call->loss != FL_MULTI_MARGIN && (call->ignore_index >= 0 || call->target_dtype != FL_U64);
}

static inline bool is_ignored(const fl_class_call *call, int64_t target) {
    return can_ignore(call) && target == call->ignore_index;
}

/* Arithmetic that compilers make vectors of: `skip` is -1 where a target is ignored, and `bad` gets its sign from one
 * that is neither that nor in [0, last]. */
#define READ_CLASSES(type)                                                             \
    for (ptrdiff_t i = 0; i < n; i++) {                                                \
        const uint64_t t = (uint64_t)(int64_t)((const type *)call->target)[first + i]; \
        const uint64_t skip = t == ignored ? may_ignore : 0;                           \
        bad |= (t | (last - t)) & ~skip;                                               \
        y[i] = (int64_t)(t | skip);                                                    \
    }                                                                                  \
    break

/* n targets, -1 for those that are ignored. Whether all are classes, or ignored. */
static inline bool read_classes(const fl_class_call *call, ptrdiff_t first, ptrdiff_t n, int64_t *y) {
    const uint64_t ignored = (uint64_t)call->ignore_index, last = (uint64_t)(call->classes - 1);
    const uint64_t may_ignore = can_ignore(call) ? UINT64_MAX : 0;
    uint64_t bad = 0;
    switch (call->target_dtype) {
        case FL_I8:
            READ_CLASSES(int8_t);
        case FL_I16:
            READ_CLASSES(int16_t);
        case FL_I32:
            READ_CLASSES(int32_t);
        case FL_I64:
            READ_CLASSES(int64_t);
        case FL_U8:
            READ_CLASSES(uint8_t);
        case FL_U16:
            READ_CLASSES(uint16_t);
        case FL_U32:
            READ_CLASSES(uint32_t);
        default:
            READ_CLASSES(uint64_t);
    }
    return bad >> 63 == 0;
}

static inline bool overlap_ignores(const fl_overlap_call *call, int64_t target) {
    return call->has_ignore && target == call->ignore_index && !(call->target_dtype == FL_U64 && target < 0);
}

/* Where an outer position of an array begins, in elements. */
static inline ptrdiff_t position(const fl_array *array, ptrdiff_t i0, ptrdiff_t i1) {
    return i0 * array->stride[0] + i1 * array->stride[1];
}

/* Whether rows of contiguous classes lie behind each other. */
static inline bool are_adjacent(const fl_array *array, const fl_class_call *call) {
    return (call->n[1] == 1 || array->stride[1] == call->classes) &&
           (call->n[0] == 1 || array->stride[0] == call->n[1] * call->classes);
}

/* Where n outer positions begin, from number `first` on; NULL for an array that there is not. */
static inline void locate(const fl_array *array, ptrdiff_t n1, ptrdiff_t first, ptrdiff_t n, char **where) {
    if (!array->data) {
        memset(where, 0, (size_t)n * sizeof *where);
        return;
    }
    const ptrdiff_t size = dtype_size(array->dtype), step = array->stride[1] * size;
    ptrdiff_t i0 = first / n1, i1 = first % n1;
    for (ptrdiff_t done = 0; done < n; i0++, i1 = 0) {
        const ptrdiff_t count = n1 - i1 < n - done ? n1 - i1 : n - done;
        /* Added up as an integer: beyond the last row there need be no array to point into. */
        uintptr_t at = (uintptr_t)array->data + (uintptr_t)(position(array, i0, i1) * size);
        for (ptrdiff_t k = 0; k < count; k++, at += (uintptr_t)step) where[done + k] = (char *)at;
        done += count;
    }
}

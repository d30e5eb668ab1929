/* Losses over an axis of classes that need no softmax: negative log-likelihood and margins. Included once per working
 * type. */

static INLINE REAL V(read_one)(const void *p, int dtype) {
    return dtype == NATIVE ? *(const REAL *)p : V(load_one)(p, dtype);
}
static INLINE void V(write_one)(void *p, int dtype, REAL value) {
    if (dtype == NATIVE)
        *(REAL *)p = value;
    else
        V(store_one)(p, dtype, value);
}

/* -a z_y, and at most ROW_BATCH rows or positions at a time: all are read before any gradient is written, which may
 * take their place. */
static int V(nll_tile)(const class_task *task, ptrdiff_t outer, ptrdiff_t first, ptrdiff_t end, double *loss) {
    const fl_class_call *call = &task->call;
    const bool rows = call->inner == 1;
    const ptrdiff_t in_size = dtype_size(call->logits.dtype), out_size = dtype_size(call->grad.dtype);
    const ptrdiff_t in_class = rows ? in_size : call->logits.class_stride * in_size;
    const ptrdiff_t out_class = rows ? out_size : call->grad.class_stride * out_size;
    REAL *losses = call->losses;
    char *z[ROW_BATCH], *grad[ROW_BATCH];
    int64_t y[ROW_BATCH];
    REAL batch_losses[ROW_BATCH], slopes[ROW_BATCH];
    double sum = 0;
    for (ptrdiff_t from = first; from < end; from += ROW_BATCH) {
        const ptrdiff_t n = end - from < ROW_BATCH ? end - from : ROW_BATCH;
        const ptrdiff_t row = rows ? from : outer * call->inner + from;
        if (!V(target_classes)(task, row, n, y)) return FL_ERROR_INDEX;
        if (rows) {
            locate(&call->logits, call->n[1], from, n, z);
            locate(&call->grad, call->n[1], from, n, grad);
        } else {
            locate(&call->logits, call->n[1], outer, 1, z);
            locate(&call->grad, call->n[1], outer, 1, grad);
            char *z_first = z[0] + from * in_size, *grad_first = grad[0] ? grad[0] + from * out_size : NULL;
            for (ptrdiff_t i = 0; i < n; i++) {
                z[i] = z_first + i * in_size;
                grad[i] = grad_first ? grad_first + i * out_size : NULL;
            }
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            REAL a, s, g;
            batch_losses[i] = slopes[i] = 0;
            if (y[i] == -1) continue;
            V(target_factors)(task, row + i, (ptrdiff_t)y[i], &a, &s, &g);
            const REAL factor = a * s;
            if (factor != 0) batch_losses[i] = -factor * V(read_one)(z[i] + y[i] * in_class, call->logits.dtype);
            slopes[i] = -a * g;
        }
        for (ptrdiff_t c = 0; !rows && grad[0] && c < call->classes; c++)
            memset(grad[0] + c * out_class, 0, (size_t)(n * out_size));
        for (ptrdiff_t i = 0; i < n && grad[0]; i++) {
            if (rows) memset(grad[i], 0, (size_t)(call->classes * out_size));
            if (y[i] != -1) V(write_one)(grad[i] + y[i] * out_class, call->grad.dtype, slopes[i]);
        }
        if (losses) memcpy(losses + row, batch_losses, (size_t)n * sizeof *losses);
        sum += V(sum_losses)(batch_losses, n);
    }
    *loss = sum;
    return FL_OK;
}

/* The gradient of a row whose loss is NaN. */
static void V(poison_row)(const class_task *task, char *grad) {
    const ptrdiff_t size = dtype_size(task->call.grad.dtype);
    for (ptrdiff_t c = 0; c < task->call.classes; c++) V(write_one)(grad + c * size, task->call.grad.dtype, NAN);
}

/* a / classes * sum over c != y of max(0, margin - z_y + z_c)^power. */
static REAL V(multi_margin_row)(const class_task *task, const char *z, char *grad, ptrdiff_t y, REAL a, REAL s,
                                REAL g) {
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    const ptrdiff_t in_size = dtype_size(call->logits.dtype), out_size = dtype_size(call->grad.dtype);
    const bool squared = call->power == 2;
    const V(vec) zero = V(set)(0);
    const V(vec) lead = V(set)((REAL)call->margin - V(read_one)(z + y * in_size, call->logits.dtype));
    const V(vec) factor = V(set)(a * g / (REAL)classes * (squared ? 2 : 1));
    V(acc) losses = V(acc_zero)(), slopes = losses;
    REAL block[BLOCK];
    for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
        const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
        V(load_block)(z + c * in_size, call->logits.dtype, n, -INFINITY, block);
        V(vec) sum = zero, slope_sum = zero;
        for (ptrdiff_t k = 0; k < n; k += LANES) {
            V(vec) lack = V(max)(zero, V(add)(lead, V(load)(block + k))); /* NaN stays */
            if (n - k < LANES || (y >= c + k && y < c + k + LANES)) {
                REAL counts[LANES];
                for (ptrdiff_t i = 0; i < LANES; i++) counts[i] = k + i < n && c + k + i != y;
                lack = V(zero_where)(V(eq)(V(load)(counts), zero), lack);
            }
            const V(vec) step = V(select)(V(lt)(zero, lack), V(set)(1), V(sub)(lack, lack));
            const V(vec) slope = V(mul)(factor, squared ? lack : step);
            sum = V(add)(sum, squared ? V(mul)(lack, lack) : lack);
            slope_sum = V(add)(slope_sum, slope);
            V(store)(block + k, slope);
        }
        V(acc_add)(&losses, sum);
        V(acc_add)(&slopes, slope_sum);
        if (grad) V(store_block)(grad + c * out_size, call->grad.dtype, n, block);
    }
    if (grad) V(write_one)(grad + y * out_size, call->grad.dtype, (REAL)-V(acc_sum)(slopes));
    const double loss = V(acc_sum)(losses) / (double)classes * a;
    return (REAL)(s == 0 ? 0 : s * loss);
}

/* The labels of a row are its targets up to the first -1. */
static bool V(labels_of)(const class_task *task, ptrdiff_t row, ptrdiff_t *count) {
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    bool is_open = true;
    *count = 0;
    for (ptrdiff_t from = 0; from < classes; from += ROW_BATCH) {
        const ptrdiff_t n = classes - from < ROW_BATCH ? classes - from : ROW_BATCH;
        int64_t y[ROW_BATCH];
        load_targets(call->target, call->target_dtype, row * classes + from, n, y);
        for (ptrdiff_t i = 0; i < n; i++) {
            if (y[i] < -1 || y[i] >= classes) return false;
            is_open = is_open && y[i] >= 0;
            *count += is_open;
        }
    }
    return true;
}

/* Which of the classes [c, c + n) are labels. */
static void V(mark_labels)(const class_task *task, ptrdiff_t row, ptrdiff_t labels, ptrdiff_t c, ptrdiff_t n,
                           bool *is_label) {
    memset(is_label, 0, (size_t)n * sizeof *is_label);
    for (ptrdiff_t k = 0; k < labels; k++) {
        int64_t y;
        load_targets(task->call.target, task->call.target_dtype, row * task->call.classes + k, 1, &y);
        if (y >= c && y < c + n) is_label[y - c] = true;
    }
}

/* 1 / classes * the sum over labels y and other classes c of max(0, 1 - z_y + z_c). */
static REAL V(multilabel_margin_row)(const class_task *task, const char *z, char *grad, ptrdiff_t row, REAL s, REAL g) {
    const fl_class_call *call = &task->call;
    const ptrdiff_t classes = call->classes;
    const int dtype = call->logits.dtype;
    const ptrdiff_t in_size = dtype_size(dtype), out_size = dtype_size(call->grad.dtype);
    ptrdiff_t labels;
    double loss = 0;
    if (!V(labels_of)(task, row, &labels)) return NAN;
    REAL block[BLOCK], steps[BLOCK];
    bool is_label[BLOCK];
    const REAL factor = g / (REAL)classes;
    for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
        const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
        V(load_block)(z + c * in_size, dtype, n, 0, block);
        V(mark_labels)(task, row, labels, c, n, is_label);
        memset(steps, 0, sizeof steps);
        for (ptrdiff_t k = 0; k < labels; k++) {
            int64_t y;
            load_targets(call->target, call->target_dtype, row * classes + k, 1, &y);
            const REAL lead = 1 - V(read_one)(z + y * in_size, dtype);
            REAL sum = 0;
            for (ptrdiff_t i = 0; i < n; i++) {
                const REAL lack = lead + block[i];
                const bool counts = !is_label[i] && !(lack <= 0);
                sum += counts ? lack : 0;
                steps[i] += counts ? (isnan(lack) ? lack : 1) : 0;
            }
            loss += (double)sum;
        }
        for (ptrdiff_t i = 0; i < n; i++) steps[i] *= factor;
        if (grad) V(store_block)(grad + c * out_size, call->grad.dtype, n, steps);
    }
    for (ptrdiff_t k = 0; grad && k < labels; k++) {
        int64_t y, other;
        load_targets(call->target, call->target_dtype, row * classes + k, 1, &y);
        ptrdiff_t times = 0;
        bool is_first = true;
        for (ptrdiff_t j = 0; j < labels; j++) {
            load_targets(call->target, call->target_dtype, row * classes + j, 1, &other);
            times += other == y;
            is_first = is_first && !(j < k && other == y);
        }
        if (!is_first) continue;
        const REAL lead = 1 - V(read_one)(z + y * in_size, dtype);
        REAL active = 0;
        for (ptrdiff_t c = 0; c < classes; c += BLOCK) {
            const ptrdiff_t n = classes - c < BLOCK ? classes - c : BLOCK;
            V(load_block)(z + c * in_size, dtype, n, 0, block);
            V(mark_labels)(task, row, labels, c, n, is_label);
            for (ptrdiff_t i = 0; i < n; i++) {
                const REAL lack = lead + block[i];
                if (!is_label[i] && !(lack <= 0)) active += isnan(lack) ? lack : 1;
            }
        }
        V(write_one)(grad + y * out_size, call->grad.dtype, -factor * (REAL)times * active);
    }
    return (REAL)(s == 0 ? 0 : s * loss / (double)classes);
}

static int V(margin_tile)(const class_task *task, ptrdiff_t first, ptrdiff_t end, double *loss) {
    const fl_class_call *call = &task->call;
    REAL *losses = call->losses;
    REAL batch_losses[ROW_BATCH];
    char *z[ROW_BATCH], *grad[ROW_BATCH];
    int64_t y[ROW_BATCH];
    double sum = 0;
    for (ptrdiff_t from = first; from < end; from += ROW_BATCH) {
        const ptrdiff_t n = end - from < ROW_BATCH ? end - from : ROW_BATCH;
        const bool multilabel = call->loss == FL_MULTILABEL_MARGIN;
        locate(&call->logits, call->n[1], from, n, z);
        locate(&call->grad, call->n[1], from, n, grad);
        if (!multilabel && !V(target_classes)(task, from, n, y)) return FL_ERROR_INDEX;
        for (ptrdiff_t i = 0; i < n; i++) {
            REAL a, s, g;
            V(target_factors)(task, from + i, multilabel || y[i] == -1 ? NO_INDEX : (ptrdiff_t)y[i], &a, &s, &g);
            if (task->nothing_counts) {
                batch_losses[i] = 0;
                if (grad[i]) memset(grad[i], 0, (size_t)(call->classes * dtype_size(call->grad.dtype)));
            } else if (multilabel) {
                batch_losses[i] = V(multilabel_margin_row)(task, z[i], grad[i], from + i, s, g);
            } else {
                batch_losses[i] = V(multi_margin_row)(task, z[i], grad[i], (ptrdiff_t)y[i], a, s, g);
            }
            if (grad[i] && isnan(batch_losses[i])) V(poison_row)(task, grad[i]);
        }
        if (losses) memcpy(losses + from, batch_losses, (size_t)n * sizeof *losses);
        sum += V(sum_losses)(batch_losses, n);
    }
    *loss = sum;
    return FL_OK;
}

/* sigmoid, log_sigmoid and softplus, with u = exp(-|z|). Included once per working type. */

static INLINE V(vec) V(map_one)(int kind, V(vec) z) {
    const V(vec) zero = V(set)(0), one = V(set)(1);
    const V(vec) u = V(exp)(V(minus_abs)(z));
    if (kind == FL_SIGMOID) return V(div)(V(select_sign)(z, u, one), V(add)(one, u));
    const V(vec) log_term = V(log1p_unit)(u);
    return kind == FL_SOFTPLUS ? V(add)(V(max)(z, zero), log_term) : V(sub)(V(min)(z, zero), log_term);
}

static void V(map)(int kind, int dtype, const void *input, ptrdiff_t n, void *output) {
    const ptrdiff_t size = dtype_size(dtype);
    REAL block[BLOCK];
    for (ptrdiff_t from = 0; from < n; from += BLOCK) {
        const ptrdiff_t count = n - from < BLOCK ? n - from : BLOCK;
        V(load_block)((const char *)input + from * size, dtype, count, 0, block);
        for (ptrdiff_t i = 0; i < count; i += LANES) V(store)(block + i, V(map_one)(kind, V(load)(block + i)));
        V(store_block)((char *)output + from * size, dtype, count, block);
    }
}

/* Names that depend on the working type: define WORKING_TYPE as 32 or 64 and include this, then the templates. V(exp)
 * is f_exp or d_exp, REAL is float or double, NATIVE its dtype. */
#undef V
#undef REAL
#undef NATIVE
#undef LANES
#undef ALL_LANES
#undef REAL_LOWEST

#define LANES ((ptrdiff_t)(VEC_BYTES / sizeof(REAL)))
/* What V(set_lanes) is where a mask is set in all of them. */
#define ALL_LANES ((1u << LANES) - 1)

#if WORKING_TYPE == 32
#define V(name) f_##name
#define REAL float
#define NATIVE FL_F32
#define REAL_LOWEST (-FLT_MAX)
#else
#define V(name) d_##name
#define REAL double
#define NATIVE FL_F64
#define REAL_LOWEST (-DBL_MAX)
#endif

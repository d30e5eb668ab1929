# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled engine: the C kernels, in parallel over the tiles of a call.

A tile's size does not depend on the number of threads, and the tiles' sums are added in order, so the bits of a result
do not depend on it either."""

import os

import numpy as np

cimport numpy as cnp
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from cpython.object cimport PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF, PyObject
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastloss import threads, validate

cnp.import_array()

cdef extern from "fastloss.h" nogil:
    enum:
        FL_OK
        FL_ERROR_INDEX
        FL_F32
        FL_F64
        FL_F16
        FL_BF16
        FL_I8
        FL_I16
        FL_I32
        FL_I64
        FL_U8
        FL_U16
        FL_U32
        FL_U64
        FL_MEAN
        FL_SUM
        FL_NONE
        FL_EMPTY_NAN
        FL_EMPTY_ZERO
        FL_SOFTMAX
        FL_LOG_SOFTMAX
        FL_LOGSUMEXP
        FL_ENTROPY
        FL_SIGMOID
        FL_LOG_SIGMOID
        FL_SOFTPLUS
        FL_ACTIVATION_NONE
        FL_ACTIVATION_SOFTMAX
        FL_ACTIVATION_SIGMOID
        FL_CROSS_ENTROPY
        FL_NLL
        FL_MULTI_MARGIN
        FL_MULTILABEL_MARGIN
        FL_BCE_WITH_LOGITS
        FL_BCE
        FL_SIGMOID_FOCAL
        FL_SOFT_MARGIN
        FL_HINGE
        FL_KL_DIV
        FL_KL_DIV_LOG

    ctypedef struct fl_array:
        void *data
        int dtype
        Py_ssize_t stride[2]
        Py_ssize_t class_stride

    ctypedef struct fl_metrics:
        Py_ssize_t counted
        Py_ssize_t correct[8]
        double entropy

    ctypedef struct fl_class_call:
        int loss
        double focal
        double gamma
        int power
        double margin
        fl_metrics *metrics
        const int *topk
        int topk_count
        void *lse
        Py_ssize_t n[2]
        Py_ssize_t classes
        Py_ssize_t inner
        fl_array logits
        fl_array grad
        const void *target
        int target_dtype
        fl_array target_probs
        const void *weight
        const void *sample_weight
        const void *grad_output
        void *losses
        double grad_scale
        int64_t ignore_index
        double label_smoothing
        double z_loss
        double softcap
        int reduction
        double normalizer
        int empty

    ctypedef struct fl_target_check:
        double weight
        Py_ssize_t bad_position

    ctypedef struct fl_broadcast:
        const void *data
        Py_ssize_t stride[3]

    ctypedef struct fl_element_call:
        int loss
        int zero_one
        double alpha
        double gamma
        double margin
        Py_ssize_t n[3]
        const void *logits
        int logits_dtype
        void *grad
        int grad_dtype
        const void *target
        int target_dtype
        fl_broadcast weight
        fl_broadcast pos_weight
        const void *grad_output
        void *losses
        double grad_scale
        double label_smoothing
        int has_ignore
        double ignore_value
        int reduction
        double normalizer

    ctypedef struct fl_overlap_call:
        Py_ssize_t n[2]
        Py_ssize_t classes
        Py_ssize_t inner
        fl_array logits
        fl_array grad
        const void *target
        int target_dtype
        fl_array mask
        int activation
        int squared
        int has_ignore
        int64_t ignore_index
        Py_ssize_t groups
        double entropy
        const void *entropy_weight
        double focal
        double gamma

    ctypedef struct fl_softmax_call:
        int kind
        Py_ssize_t n[2]
        Py_ssize_t classes
        Py_ssize_t inner
        fl_array logits
        fl_array output
        void *values

    const char *fl_status_name(int status)
    const char *fl_isa()
    const char *fl_isa_list()
    fl_class_call fl_class_call_init()
    int fl_class_loss(const fl_class_call *, double *)
    int fl_class_tiles(const fl_class_call *, Py_ssize_t *)
    int fl_class_check(const fl_class_call *, Py_ssize_t, fl_target_check *)
    size_t fl_class_scratch(const fl_class_call *)
    int fl_class_tile(const fl_class_call *, Py_ssize_t, void *, double *)
    fl_element_call fl_element_call_init()
    int fl_element_loss(const fl_element_call *, double *)
    int fl_element_tiles(const fl_element_call *, Py_ssize_t *)
    int fl_element_check(const fl_element_call *, Py_ssize_t, fl_target_check *)
    int fl_element_tile(const fl_element_call *, Py_ssize_t, double *)
    fl_overlap_call fl_overlap_call_init()
    int fl_overlap_tiles(const fl_overlap_call *, Py_ssize_t *)
    int fl_overlap_check(const fl_overlap_call *, Py_ssize_t, fl_target_check *)
    int fl_overlap_sums(const fl_overlap_call *, Py_ssize_t, double *)
    int fl_overlap_gradient(const fl_overlap_call *, Py_ssize_t, const double *, double)
    size_t fl_lovasz_workspace(Py_ssize_t)
    int fl_lovasz(int, const void *, const unsigned char *, Py_ssize_t, int, void *, double *, void *)
    fl_softmax_call fl_softmax_call_init()
    int fl_softmax_tiles(const fl_softmax_call *, Py_ssize_t *)
    int fl_softmax_tile(const fl_softmax_call *, Py_ssize_t)
    int fl_map(int, int, const void *, Py_ssize_t, void *)

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewFromDescr(
        PyTypeObject *subtype, cnp.PyArray_Descr *descr, int nd, const cnp.npy_intp *dims, const cnp.npy_intp *strides, void *data,
        int flags, PyObject *obj
    )

cdef extern from "platform.h" nogil:
    int have_openmp()
    int openmp_threads()
    int openmp_processors()
    int is_forked_child
    void watch_forks()
    void *allocate_pages(size_t)
    void free_pages(void *)


# ---- What the engine says of itself ---------------------------------------------------------------------------------


def isa():
    """The instruction set in use."""
    return fl_isa().decode()


def isa_list():
    """The instruction sets that this build has and this CPU can run, narrowest first."""
    return tuple(fl_isa_list().decode().split())


def threading():
    return "OpenMP" if have_openmp() else "serial: built without OpenMP"


watch_forks()
if fl_isa() == NULL:
    raise ValueError(
        f"FASTLOSS_ISA is {os.environ['FASTLOSS_ISA']!r}, which this CPU or build does not have: "
        f"choose from {', '.join(isa_list())}"
    )


# ---- Memory of other libraries --------------------------------------------------------------------------------------

cdef struct DLTensor:  # github.com/dmlc/dlpack, include/dlpack/dlpack.h
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t type_code
    uint8_t type_bits
    uint16_t type_lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef enum:
    DL_CPU = 1
    MOST_AXES = 64


def memory_of(object capsule, cnp.dtype dtype):
    """The array of this dtype, which the caller knows to be the tensor's, on the memory that a DLPack capsule describes
    and keeps alive."""
    cdef DLTensor *tensor = <DLTensor *>PyCapsule_GetPointer(capsule, "dltensor")
    cdef cnp.npy_intp shape[MOST_AXES]
    cdef cnp.npy_intp strides[MOST_AXES]
    cdef Py_ssize_t size = cnp.PyDataType_ELSIZE(dtype)
    if tensor.device_type != DL_CPU or tensor.ndim > MOST_AXES or tensor.type_bits != 8 * size or tensor.type_lanes != 1:
        raise TypeError(
            f"a tensor on device type {tensor.device_type} of {tensor.ndim} axes and {tensor.type_bits} bits is given: "
            f"expected one of the CPU, of at most {MOST_AXES} axes and {8 * size} bits"
        )
    cdef int axis
    cdef bint is_empty = False
    if tensor.ndim > 0 and tensor.strides == NULL:
        raise TypeError("a tensor without strides is given: expected one for each axis")
    for axis in range(tensor.ndim):
        is_empty = is_empty or tensor.shape[axis] == 0
        shape[axis] = tensor.shape[axis]
        strides[axis] = tensor.strides[axis] * size
    if tensor.data == NULL and not is_empty:  # NumPy would take memory of its own
        raise TypeError("a tensor without memory is given: expected one whose elements lie somewhere")
    Py_INCREF(dtype)  # PyArray_NewFromDescr takes a reference
    cdef cnp.ndarray array = PyArray_NewFromDescr(
        <PyTypeObject *>cnp.ndarray, <cnp.PyArray_Descr *>dtype, tensor.ndim, shape, strides,
        <char *>tensor.data + tensor.byte_offset, cnp.NPY_ARRAY_WRITEABLE, NULL,
    )
    cnp.set_array_base(array, capsule)
    return array


# ---- Threads --------------------------------------------------------------------------------------------------------

# Below this many elements a second thread costs more than it does.
cdef enum:
    SERIAL_ELEMENTS = 65536

# Up to so many take microseconds, in one call of the library: to hand out tiles, and to give up Python's lock and get it
# back, would take as long.
cdef enum:
    FEW_ELEMENTS = 4096

# What OpenMP would use unless someone limits it (threadpoolctl, torch.set_num_threads): less than this is a limit.
cdef int openmp_default = threads.from_environment({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}) \
    or openmp_processors()


cdef int thread_count(object num_threads, Py_ssize_t elements) except -1:
    cdef int count, limit
    if elements < SERIAL_ELEMENTS or is_forked_child or not have_openmp():
        return 1
    if num_threads is not None:
        return num_threads
    count = threads.get_num_threads()
    limit = openmp_threads()
    return limit if limit < openmp_default and limit < count else count


# ---- Memory: gradients are large, and fresh pages cost more than the kernels that fill them --------------------------

cdef enum:
    POOL_SLOTS = 32
# Smaller arrays are left to NumPy.
cdef enum:
    POOLED_BYTES = 262144
cdef enum:
    HUGE_PAGE = 2097152

cdef struct Block:
    void *data
    size_t size

cdef Block pool[POOL_SLOTS]  # oldest first
cdef int pooled = 0
cdef size_t pooled_bytes = 0
cdef size_t pool_limit = 1 << 30
cdef PyThread_type_lock pool_lock = PyThread_allocate_lock()


cdef void drop(int slot) noexcept nogil:
    """Takes a block out of the pool; the caller holds the lock."""
    global pooled, pooled_bytes
    cdef int i
    pooled_bytes -= pool[slot].size
    pooled -= 1
    for i in range(slot, pooled):
        pool[i] = pool[i + 1]


cdef void shrink_pool(size_t limit) noexcept nogil:
    """Frees the oldest blocks until the rest fits; the caller holds the lock."""
    while pooled > 0 and pooled_bytes > limit:
        free_pages(pool[0].data)
        drop(0)


cdef class Buffer:
    """Memory of an array that was handed out; it goes back to the pool with the last view on it."""
    cdef void *data
    cdef size_t size

    def __cinit__(self, size_t size):
        cdef int i, best = -1
        size = (size + HUGE_PAGE - 1) // HUGE_PAGE * HUGE_PAGE if size >= 2 * HUGE_PAGE else size
        PyThread_acquire_lock(pool_lock, WAIT_LOCK)
        for i in range(pooled):
            if size <= pool[i].size <= size + size // 4 and (best < 0 or pool[i].size < pool[best].size):
                best = i
        if best >= 0:
            self.data = pool[best].data
            self.size = pool[best].size
            drop(best)
        PyThread_release_lock(pool_lock)
        if best < 0:
            self.data = allocate_pages(size)
            if self.data == NULL:
                raise MemoryError(f"no memory for a gradient of {size} bytes")
            self.size = size

    def __dealloc__(self):
        global pooled, pooled_bytes
        if self.data == NULL:
            return
        PyThread_acquire_lock(pool_lock, WAIT_LOCK)
        if self.size <= pool_limit:
            if pooled == POOL_SLOTS:
                free_pages(pool[0].data)
                drop(0)
            pool[pooled].data = self.data
            pool[pooled].size = self.size
            pooled += 1
            pooled_bytes += self.size
            shrink_pool(pool_limit)
            self.data = NULL
        PyThread_release_lock(pool_lock)
        if self.data != NULL:
            free_pages(self.data)


def set_buffer_limit(size_t limit):
    global pool_limit
    PyThread_acquire_lock(pool_lock, WAIT_LOCK)
    pool_limit = limit
    shrink_pool(pool_limit)
    PyThread_release_lock(pool_lock)


def pooled_memory():
    """Bytes that wait for their next use."""
    return pooled_bytes


cdef cnp.ndarray new_array(int ndim, cnp.npy_intp *shape, cnp.ndarray like):
    """An uninitialised C-contiguous array of like's dtype."""
    cdef cnp.PyArray_Descr *dtype = cnp.PyArray_DESCR(like)
    cdef size_t size = cnp.PyArray_ITEMSIZE(like)
    cdef Buffer buffer
    cdef cnp.ndarray array
    cdef int i
    for i in range(ndim):
        size *= shape[i]
    Py_INCREF(<object>dtype)  # which NewFromDescr takes
    if size < POOLED_BYTES:
        return PyArray_NewFromDescr(<PyTypeObject *>cnp.ndarray, dtype, ndim, shape, NULL, NULL, 0, NULL)
    buffer = Buffer(size)
    array = PyArray_NewFromDescr(<PyTypeObject *>cnp.ndarray, dtype, ndim, shape, NULL, buffer.data, cnp.NPY_ARRAY_CARRAY, NULL)
    cnp.set_array_base(array, buffer)
    return array


cdef cnp.ndarray new_like(cnp.ndarray array):
    """An uninitialised array of the same shape and dtype, its axes in the same order in memory."""
    cdef int ndim = array.ndim, i
    cdef cnp.npy_intp shape[64]
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        return new_array(ndim, array.shape, array)
    order = sorted(range(ndim), key=lambda axis: -abs((<cnp.ndarray>array).strides[axis]))
    for i in range(ndim):
        shape[i] = array.shape[order[i]]
    return new_array(ndim, shape, array).transpose(np.argsort(order))


# ---- From arrays to the C structs -----------------------------------------------------------------------------------

cdef int bfloat16_number = -1  # NumPy's number for ml_dtypes.bfloat16, once one has been seen


cdef int dtype_code(cnp.ndarray array) except -1:
    """fastloss.h's code for a native dtype, or 0."""
    global bfloat16_number
    cdef int number = cnp.PyArray_TYPE(array)
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    if number == cnp.NPY_FLOAT32:
        return FL_F32
    if number == cnp.NPY_FLOAT64:
        return FL_F64
    if number == cnp.NPY_FLOAT16:
        return FL_F16
    if number == cnp.NPY_BOOL:
        return FL_U8
    if cnp.PyTypeNum_ISSIGNED(number) and cnp.PyTypeNum_ISINTEGER(number):
        return FL_I8 if size == 1 else FL_I16 if size == 2 else FL_I32 if size == 4 else FL_I64
    if cnp.PyTypeNum_ISINTEGER(number):
        return FL_U8 if size == 1 else FL_U16 if size == 2 else FL_U32 if size == 4 else FL_U64
    if number != bfloat16_number and array.dtype.name == "bfloat16":
        bfloat16_number = number
    return FL_BF16 if number == bfloat16_number else 0


cdef inline bint is_float_code(int code) noexcept:
    return code == FL_F32 or code == FL_F64 or code == FL_F16 or code == FL_BF16


cdef bint is_simple(cnp.ndarray array):
    """Whether the kernels can read it as it stands, but for its strides."""
    return cnp.PyArray_ISNOTSWAPPED(array) and cnp.PyArray_ISALIGNED(array)


cdef list merged(list shape, list strides):
    """Neighbouring axes joined where every array allows it: [(length, (stride of each array, ...)), ...]."""
    cdef list axes = []
    for length, steps in zip(shape, zip(*strides)):
        if length == 1:
            continue
        if axes and all([outer == inner * length for outer, inner in zip(axes[len(axes) - 1][1], steps)]):
            axes.append((axes.pop()[0] * length, steps))
        else:
            axes.append((length, steps))
    return axes


def batch_layout(shape, int axis, strides):
    """How fastloss.h sees arrays of one shape: (n, inner, outer strides of each array), or None.

    strides: of each array, in elements.
    """
    cdef int i
    count = len(strides)
    if 0 in shape:
        return (0, 0), 1, [(0, 0)] * count
    others = [i for i in range(len(shape)) if i != axis]
    axes = merged([shape[i] for i in others], [[s[i] for i in others] for s in strides])
    if all(s[axis] == 1 or shape[axis] == 1 for s in strides):
        inner = 1
    elif axes and all([step == 1 for step in axes[len(axes) - 1][1]]):
        # Only positions behind the class axis may be joined: those in front of it have other class strides.
        inner = axes.pop()[0]
    else:
        return None
    if len(axes) > 2:
        return None
    axes = [(1, (0,) * count)] * (2 - len(axes)) + axes
    return (axes[0][0], axes[1][0]), inner, [(axes[0][1][k], axes[1][1][k]) for k in range(count)]


cdef tuple element_strides(cnp.ndarray array):
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    cdef int i
    return tuple([array.strides[i] // size for i in range(array.ndim)])


cdef fl_array as_fl_array(cnp.ndarray array, int axis, tuple outer, bint inner):
    cdef fl_array result
    result.data = cnp.PyArray_DATA(array)
    result.dtype = dtype_code(array)
    result.stride[0] = outer[0]
    result.stride[1] = outer[1]
    result.class_stride = array.strides[axis] // cnp.PyArray_ITEMSIZE(array) if inner else 1
    return result


# A vector of positions would be mostly empty below this many behind the class axis.
cdef enum:
    FEW_POSITIONS = 8


cdef list to_common_layout(list arrays, int axis):
    """(arrays, axis, layout): the arrays as they are where the kernels can walk them, else copies.

    Copies have their classes last.
    """
    cdef cnp.ndarray array
    shape = (<object>arrays[0]).shape
    layout = None
    if all(is_simple(array) for array in arrays):
        layout = batch_layout(shape, axis, [element_strides(array) for array in arrays])
        if layout is not None and 1 < layout[1] < FEW_POSITIONS:
            layout = None
    if layout is None:
        arrays = [np.ascontiguousarray(np.moveaxis(array, axis, -1)) for array in arrays]
        axis = len(shape) - 1
        layout = batch_layout((<object>arrays[0]).shape, axis, [element_strides(array) for array in arrays])
    return [arrays, axis, layout]


cdef void *pointer(object array):
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef int raise_status(int status) except -1:
    raise RuntimeError(f"fastloss's C library refused a call: {fl_status_name(status).decode()}")


# ---- Running the tiles ----------------------------------------------------------------------------------------------

# A call's tiles, and what each one found.
cdef struct Tiles:
    Py_ssize_t count
    double *sums
    fl_target_check *checks


cdef int make_tiles(Tiles *tiles, Py_ssize_t count) except -1:
    tiles.count = count
    tiles.sums = <double *> malloc((count + 1) * (sizeof(double) + sizeof(fl_target_check)))
    if tiles.sums == NULL:
        raise MemoryError
    tiles.checks = <fl_target_check *> (tiles.sums + count)
    return 0


cdef double in_order(Tiles *tiles) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(tiles.count):
        total += tiles.sums[i]
    return total


cdef int check_cross_entropy(const fl_class_call *call, Tiles *tiles, int thread_number, double *weight) noexcept nogil:
    """Reads the targets: FL_OK and the mean's denominator, or FL_ERROR_INDEX."""
    cdef Py_ssize_t i
    cdef int status = FL_OK
    if thread_number == 1:
        for i in range(tiles.count):
            fl_class_check(call, i, &tiles.checks[i])
    else:
        for i in prange(tiles.count, schedule="static", num_threads=thread_number):
            fl_class_check(call, i, &tiles.checks[i])
    weight[0] = 0
    for i in range(tiles.count):
        weight[0] += tiles.checks[i].weight
        if tiles.checks[i].bad_position >= 0:
            status = FL_ERROR_INDEX
    return status


cdef double run_cross_entropy(const fl_class_call *call, Tiles *tiles, int thread_number) noexcept nogil:
    cdef Py_ssize_t i
    # Where there is no memory for it, the kernels do without.
    cdef size_t size = (fl_class_scratch(call) + 63) // 64 * 64
    cdef char *scratch = <char *> malloc(size * thread_number) if size else NULL
    if thread_number == 1:
        for i in range(tiles.count):
            fl_class_tile(call, i, scratch, &tiles.sums[i])
    else:
        for i in prange(tiles.count, schedule="static", num_threads=thread_number):
            fl_class_tile(call, i, NULL if scratch == NULL else scratch + threadid() * size, &tiles.sums[i])
    free(scratch)
    return in_order(tiles)


cdef double reduced(double total, double denominator, bint mean, bint empty_is_zero) noexcept:
    if not mean:
        return total
    if denominator == 0:
        return 0.0 if empty_is_zero else float("nan")
    return total / denominator


# ---- Cross-entropy --------------------------------------------------------------------------------------------------


cdef bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two contiguous arrays share memory."""
    cdef char *p = <char *> cnp.PyArray_DATA(a)
    cdef char *q = <char *> cnp.PyArray_DATA(b)
    return p < q + cnp.PyArray_NBYTES(b) and q < p + cnp.PyArray_NBYTES(a)


cdef bint is_plain_array(object array):
    return type(array) is cnp.ndarray and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array)


cdef bint is_plain_output(object out, cnp.ndarray logits, cnp.ndarray target):
    cdef cnp.ndarray array
    if type(out) is not cnp.ndarray or not cnp.PyArray_ISCARRAY(<cnp.ndarray>out):
        return False
    array = out
    if cnp.PyArray_TYPE(array) != cnp.PyArray_TYPE(logits) or not cnp.PyArray_SAMESHAPE(array, logits):
        return False
    if overlap(array, target):
        return False
    return cnp.PyArray_DATA(array) == cnp.PyArray_DATA(logits) or not overlap(array, logits)


cdef bint is_plain_call(
    fl_class_call *call,
    object logits,
    object target,
    object ignore_index,
    object label_smoothing,
    object axis,
    object empty,
    object num_threads,
):
    """Fills in a call of contiguous arrays, index targets and simple options; False where it is no such call."""
    cdef cnp.ndarray z, y
    cdef Py_ssize_t outer = 1, inner = 1, classes
    cdef int class_axis, i, ndim
    if not is_plain_array(logits) or not is_plain_array(target):
        return False
    if type(axis) is not int or type(ignore_index) is not int:
        return False
    z = logits
    y = target
    ndim = z.ndim
    if not is_float_code(dtype_code(z)) or ndim == 0 or y.ndim != ndim - 1 or not -ndim <= axis < ndim and ndim > 1:
        return False
    if not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(y)):
        return False
    class_axis = 0 if ndim == 1 else axis
    if class_axis < 0:
        class_axis += ndim
    for i in range(ndim):
        if i < class_axis:
            outer *= z.shape[i]
            if y.shape[i] != z.shape[i]:
                return False
        elif i > class_axis:
            inner *= z.shape[i]
            if y.shape[i - 1] != z.shape[i]:
                return False
    classes = z.shape[class_axis]
    if classes == 0 or 1 < inner < FEW_POSITIONS or outer == 0 or inner == 0:
        return False
    if empty != "nan" and empty != "zero":
        return False
    if type(label_smoothing) is not float:
        return False
    if num_threads is not None and (type(num_threads) is not int or num_threads < 1):
        return False
    if not -(1 << 63) <= ignore_index < 1 << 63:
        return False
    call[0] = fl_class_call_init()
    call.label_smoothing = label_smoothing
    call.ignore_index = ignore_index
    call.n[0] = 1
    call.n[1] = outer
    call.inner = inner
    call.classes = classes
    call.target = cnp.PyArray_DATA(y)
    call.target_dtype = dtype_code(y)
    call.logits.data = cnp.PyArray_DATA(z)
    call.logits.dtype = call.grad.dtype = dtype_code(z)
    call.logits.stride[1] = call.grad.stride[1] = classes * inner
    call.logits.class_stride = call.grad.class_stride = inner
    return True


def plain_class_loss(
    object logits,
    object target,
    object ignore_index,
    object label_smoothing,
    object z_loss,
    object axis,
    object empty,
    object reduction,
    bint return_grad,
    object out_grad,
    object grad_output,
    object num_threads,
):
    """The common call, without the cost of the general one: contiguous arrays, index targets, simple options.

    None where anything is out of the ordinary, errors included: the general way follows then.
    """
    cdef fl_class_call call
    cdef cnp.ndarray z, grad = None
    cdef Tiles tiles
    cdef Py_ssize_t count
    cdef int thread_number, status
    cdef double denominator = 0, total = 0
    if not is_plain_call(&call, logits, target, ignore_index, label_smoothing, axis, empty, num_threads):
        return None
    z = logits
    if out_grad is not None and not is_plain_output(out_grad, z, target):
        return None
    if reduction == "sum":
        call.reduction = FL_SUM
    elif reduction != "mean":
        return None
    if type(z_loss) is not float:
        return None
    call.z_loss = z_loss
    if grad_output is not None:
        if type(grad_output) is not float:
            return None
        call.grad_scale = grad_output
    if return_grad or out_grad is not None:
        grad = new_array(z.ndim, z.shape, z) if out_grad is None else out_grad
        call.grad.data = cnp.PyArray_DATA(grad)
    if z.size <= FEW_ELEMENTS:
        call.empty = FL_EMPTY_ZERO if empty == "zero" else FL_EMPTY_NAN
        if fl_class_loss(&call, &total) != FL_OK:
            return None
        return total if grad is None else (total, grad)
    if fl_class_tiles(&call, &count) != FL_OK:
        return None
    thread_number = thread_count(num_threads, z.size)
    make_tiles(&tiles, count)
    try:
        with nogil:
            status = check_cross_entropy(&call, &tiles, thread_number, &denominator)
            if status == FL_OK:
                call.normalizer = denominator
                total = run_cross_entropy(&call, &tiles, thread_number)
    finally:
        free(tiles.sums)
    if status != FL_OK:
        return None
    total = reduced(total, denominator, call.reduction == FL_MEAN, empty == "zero")
    return total if grad is None else (total, grad)


cdef dict CLASS_KINDS = {
    "cross_entropy": FL_CROSS_ENTROPY, "nll": FL_NLL, "multi_margin": FL_MULTI_MARGIN,
    "multilabel_margin": FL_MULTILABEL_MARGIN,
}


def class_loss(problem):
    """(loss, gradient or None) of a validate.ClassProblem."""
    cdef fl_class_call call = fl_class_call_init()
    cdef Tiles tiles
    cdef Py_ssize_t count = 0
    cdef int thread_number, status, axis = problem.axis
    cdef double denominator = 0, total = 0
    cdef bint mean = problem.reduction == "mean"
    logits = problem.logits
    out = grad = None
    cdef bint by_rows = problem.loss in ("multi_margin", "multilabel_margin")
    if by_rows:  # which the margins' kernels need; and one of them can't work in place
        logits = np.ascontiguousarray(np.moveaxis(logits, axis, -1))
        axis = logits.ndim - 1
        if problem.loss == "multilabel_margin" and problem.out_grad is not None:
            logits = logits.copy()
    arrays = [logits]
    if problem.want_grad:
        out = grad = new_like(logits) if problem.out_grad is None else problem.out_grad
        if by_rows and not cnp.PyArray_IS_C_CONTIGUOUS(grad):
            grad = np.empty_like(logits, problem.compute_dtype)
        # The kernels write a gradient in the working type of the logits, or a narrower one.
        if not is_simple(grad) or (grad.dtype.itemsize == 8) != (logits.dtype.itemsize == 8):
            grad = np.empty_like(logits, problem.compute_dtype)
        arrays.append(grad)
    if problem.is_probabilities:
        arrays.append(problem.target)
    arrays, axis, layout = to_common_layout(arrays, axis)
    n, inner, outer = layout
    call.n[0] = n[0]
    call.n[1] = n[1]
    call.inner = inner
    call.classes = problem.classes
    call.logits = as_fl_array(arrays[0], axis, outer[0], inner > 1)
    if problem.want_grad:
        grad = arrays[1]
        call.grad = as_fl_array(grad, axis, outer[1], inner > 1)
    if problem.is_probabilities:
        call.target_probs = as_fl_array(arrays[len(arrays) - 1], axis, outer[len(arrays) - 1], inner > 1)
    else:
        target = problem.target
        if problem.loss == "multilabel_margin" and target.dtype.kind == "u":
            target = target.astype(np.int64)  # none is -1, and all are classes
        call.target = pointer(target)
        call.target_dtype = dtype_code(target)
    call.weight = pointer(problem.weight)
    call.sample_weight = pointer(problem.sample_weight)
    losses = None
    if problem.reduction == "none":
        losses = np.empty(problem.row_shape, problem.compute_dtype)
        call.losses = pointer(losses)
        call.reduction = FL_NONE
    elif problem.reduction == "sum":
        call.reduction = FL_SUM
    if isinstance(problem.grad_output, float):
        call.grad_scale = problem.grad_output
    else:
        call.grad_output = pointer(problem.grad_output)
    if problem.ignore_index is not None:
        call.ignore_index = problem.ignore_index
    call.loss = CLASS_KINDS[problem.loss]
    call.focal = problem.focal
    call.gamma = problem.gamma
    call.power = problem.power
    call.margin = problem.margin
    call.label_smoothing = problem.label_smoothing
    call.z_loss = problem.z_loss
    call.softcap = 0 if problem.softcap is None else problem.softcap
    status = fl_class_tiles(&call, &count)
    if status != FL_OK:
        raise_status(status)
    thread_number = thread_count(problem.num_threads, logits.size)
    make_tiles(&tiles, count)
    try:
        with nogil:
            status = check_cross_entropy(&call, &tiles, thread_number, &denominator)
        if status != FL_OK:
            validate.raise_bad_index(problem)
        validate.check_denominator(problem, denominator)
        if problem.normalizer is not None:
            denominator = problem.normalizer
        call.normalizer = denominator
        with nogil:
            total = run_cross_entropy(&call, &tiles, thread_number)
    finally:
        free(tiles.sums)
    if out is not None and grad is not out:
        copy_back(out, grad, problem.axis, axis)
    return losses if losses is not None else reduced(total, denominator, mean, problem.empty == "zero"), out


cdef enum:
    MAX_TOPK = 8


cdef evaluated(fl_class_call *call, int thread_number, tuple ks, object lse, bint empty_is_zero):
    """The figures of a call, and the mean's denominator: None where a target is no class."""
    cdef Tiles tiles
    cdef Py_ssize_t count = 0, i, counted = 0
    cdef Py_ssize_t[MAX_TOPK] correct
    cdef int[MAX_TOPK] topk
    cdef int status, k, number = len(ks)
    cdef double denominator = 0, total = 0, entropy = 0
    cdef fl_metrics *metrics = NULL
    status = fl_class_tiles(call, &count)
    if status != FL_OK:
        raise_status(status)
    for k in range(number):
        topk[k] = min(ks[k], 2147483647)
        correct[k] = 0
    make_tiles(&tiles, count)
    try:
        metrics = <fl_metrics *> malloc(count * sizeof(fl_metrics))
        if metrics == NULL:
            raise MemoryError
        with nogil:
            status = check_cross_entropy(call, &tiles, thread_number, &denominator)
        if status != FL_OK:
            return None
        call.normalizer = denominator
        call.metrics = metrics
        call.topk = topk
        call.topk_count = number
        call.lse = pointer(lse)
        with nogil:
            total = run_cross_entropy(call, &tiles, thread_number)
        for i in range(count):
            counted += metrics[i].counted
            entropy += metrics[i].entropy
            for k in range(number):
                correct[k] += metrics[i].correct[k]
    finally:
        free(tiles.sums)
        free(metrics)
    loss = reduced(total, denominator, True, empty_is_zero)
    return (loss, [correct[k] for k in range(number)], entropy, counted, lse), denominator


cdef bint has_metrics(fl_class_call *call, tuple ks):
    """Whether the kernels can tell the figures of an otherwise valid call in one pass."""
    return len(ks) <= MAX_TOPK and not (call.inner > 1 and call.logits.dtype in (FL_F16, FL_BF16))


def plain_evaluate(logits, target, ks, ignore_index, label_smoothing, axis, empty, num_threads):
    """The common evaluation without lse, as plain_class_loss: None where anything is out of the ordinary."""
    cdef fl_class_call call
    cdef Py_ssize_t count
    if not is_plain_call(&call, logits, target, ignore_index, label_smoothing, axis, empty, num_threads):
        return None
    if fl_class_tiles(&call, &count) != FL_OK or not has_metrics(&call, ks):
        return None
    result = evaluated(&call, thread_count(num_threads, logits.size), ks, None, empty == "zero")
    return result and result[0]


def evaluate(problem, ks, bint want_lse):
    """(loss, correct targets for each k, sum of entropies, number of targets that count, logsumexp or None) of a
    validate.ClassProblem, or None where the kernels can't tell in one pass."""
    cdef fl_class_call call = fl_class_call_init()
    cdef int axis = problem.axis
    logits = problem.logits
    if (problem.weight is not None and problem.label_smoothing > 0) or logits.size == 0:
        return None
    arrays, axis, layout = to_common_layout([logits], axis)
    n, inner, outer = layout
    call.n[0] = n[0]
    call.n[1] = n[1]
    call.inner = inner
    call.classes = problem.classes
    call.logits = as_fl_array(arrays[0], axis, outer[0], inner > 1)
    if not has_metrics(&call, ks):
        return None
    call.target = pointer(problem.target)
    call.target_dtype = dtype_code(problem.target)
    call.weight = pointer(problem.weight)
    call.sample_weight = pointer(problem.sample_weight)
    call.ignore_index = problem.ignore_index
    call.label_smoothing = problem.label_smoothing
    lse = np.empty(problem.row_shape, problem.compute_dtype) if want_lse else None
    result = evaluated(&call, thread_count(problem.num_threads, logits.size), ks, lse, problem.empty == "zero")
    if result is None:
        validate.raise_bad_index(problem)
    figures, denominator = result
    validate.check_denominator(problem, denominator)
    return figures


def copy_back(out, grad, int out_axis, int axis):
    """Copies a gradient, whose class axis may have moved, to where the user wants it."""
    with np.errstate(all="ignore"):
        out[...] = np.moveaxis(grad, axis, out_axis)


# ---- Losses of single elements --------------------------------------------------------------------------------------


cdef int check_elements(const fl_element_call *call, Tiles *tiles, int thread_number, double *weight) noexcept nogil:
    """The mean's denominator, and FL_ERROR_INDEX where an element is out of its range."""
    cdef Py_ssize_t i
    cdef int status = FL_OK
    if thread_number == 1:
        for i in range(tiles.count):
            fl_element_check(call, i, &tiles.checks[i])
    else:
        for i in prange(tiles.count, schedule="static", num_threads=thread_number):
            fl_element_check(call, i, &tiles.checks[i])
    weight[0] = 0
    for i in range(tiles.count):
        weight[0] += tiles.checks[i].weight
        if tiles.checks[i].bad_position >= 0:
            status = FL_ERROR_INDEX
    return status


cdef double run_elements(const fl_element_call *call, Tiles *tiles, int thread_number) noexcept nogil:
    cdef Py_ssize_t i
    if thread_number == 1:
        for i in range(tiles.count):
            fl_element_tile(call, i, &tiles.sums[i])
    else:
        for i in prange(tiles.count, schedule="static", num_threads=thread_number):
            fl_element_tile(call, i, &tiles.sums[i])
    return in_order(tiles)


cdef double element_total(fl_element_call *call, object num_threads, double *denominator, object problem) except? -1:
    """Runs a call; without a normalizer, that becomes the number of elements that count. Returns the sum of the
    losses, and the denominator. problem: what to name the bad element of."""
    cdef Tiles tiles
    cdef Py_ssize_t count = 0
    cdef double total = 0, counted
    cdef Py_ssize_t elements = call.n[0] * call.n[1] * call.n[2]
    cdef int status = fl_element_tiles(call, &count), thread_number = thread_count(num_threads, elements)
    if status != FL_OK:
        raise_status(status)
    make_tiles(&tiles, count)
    counted = <double>elements
    try:
        with nogil:
            if call.has_ignore or call.loss == FL_BCE:
                status = check_elements(call, &tiles, thread_number, &counted)
        if status != FL_OK:
            validate.check_probabilities(problem)
        if call.normalizer == -INFINITY:
            call.normalizer = counted
        denominator[0] = call.normalizer
        with nogil:
            total = run_elements(call, &tiles, thread_number)
    finally:
        free(tiles.sums)
    return total


def plain_element_loss(
    object logits,
    object target,
    object label_smoothing,
    object reduction,
    bint return_grad,
    object out_grad,
    object grad_output,
    object num_threads,
):
    """The common call: contiguous arrays, simple options. None where anything is out of the ordinary."""
    cdef fl_element_call call
    cdef cnp.ndarray z, y, grad = None
    cdef double denominator = 0, total = 0
    cdef int code, status
    if not is_plain_array(logits) or not is_plain_array(target):
        return None
    z = logits
    y = target
    code = dtype_code(z)
    call = fl_element_call_init()
    call.target_dtype = dtype_code(y)
    if not is_float_code(code) or call.target_dtype == 0 or not cnp.PyArray_SAMESHAPE(z, y) or cnp.PyArray_SIZE(z) == 0:
        return None
    if out_grad is not None and not is_plain_output(out_grad, z, y):
        return None
    if reduction == "sum":
        call.reduction = FL_SUM
    elif reduction != "mean":
        return None
    if type(label_smoothing) is not float or not 0 <= label_smoothing <= 1:
        return None
    call.label_smoothing = label_smoothing
    if grad_output is not None:
        if type(grad_output) is not float:
            return None
        call.grad_scale = grad_output
    if num_threads is not None and (type(num_threads) is not int or num_threads < 1):
        return None
    call.n[2] = cnp.PyArray_SIZE(z)
    call.logits = cnp.PyArray_DATA(z)
    call.target = cnp.PyArray_DATA(y)
    call.logits_dtype = call.grad_dtype = code
    if return_grad or out_grad is not None:
        grad = new_array(z.ndim, z.shape, z) if out_grad is None else out_grad
        call.grad = cnp.PyArray_DATA(grad)
    if z.size <= FEW_ELEMENTS:
        status = fl_element_loss(&call, &total)
        if status != FL_OK:
            raise_status(status)
    else:
        total = element_total(&call, num_threads, &denominator, None)
        total = reduced(total, denominator, call.reduction == FL_MEAN, False)
    return total if grad is None else (total, grad)


def broadcast_layout(shape, arrays):
    """Three lengths, and three strides in elements of each array, which broadcasts to shape; or None."""
    strides = []
    for array in arrays:
        view = np.broadcast_to(array, shape)
        strides.append([s // array.itemsize for s in view.strides])
    contiguous = []
    step = 1
    for length in reversed(shape):
        contiguous.insert(0, step)
        step *= length
    axes = merged(list(shape), [contiguous, *strides])
    if len(axes) > 3:
        return None
    axes = [(1, (0,) * (len(arrays) + 1))] * (3 - len(axes)) + axes
    return [a[0] for a in axes], [[a[1][k + 1] for a in axes] for k in range(len(arrays))]


cdef dict ELEMENT_KINDS = {
    "bce_with_logits": FL_BCE_WITH_LOGITS, "bce": FL_BCE, "sigmoid_focal": FL_SIGMOID_FOCAL,
    "soft_margin": FL_SOFT_MARGIN, "hinge": FL_HINGE, "kl_div": FL_KL_DIV, "kl_div_log": FL_KL_DIV_LOG,
}


def element_loss(problem):
    """(loss, gradient or None) of a validate.ElementProblem."""
    cdef fl_element_call call = fl_element_call_init()
    cdef double denominator = 0, total
    cdef int i
    shape = problem.logits.shape
    logits = np.ascontiguousarray(problem.logits).reshape(shape)
    target = np.ascontiguousarray(problem.target).reshape(shape)
    out = grad = None
    if problem.want_grad:
        out = grad = new_array_like_contiguous(logits) if problem.out_grad is None else problem.out_grad
        if not cnp.PyArray_ISCARRAY(<cnp.ndarray>grad) or (grad.dtype.itemsize == 8) != (logits.dtype.itemsize == 8):
            grad = np.empty(shape, problem.compute_dtype)
        call.grad = pointer(grad)
        call.grad_dtype = dtype_code(grad)
    call.logits = pointer(logits)
    call.logits_dtype = dtype_code(logits)
    call.target = pointer(target)
    call.target_dtype = dtype_code(target)
    call.n[2] = logits.size
    weights = [w for w in (problem.weight, problem.pos_weight) if w is not None]
    if weights and logits.size:
        layout = broadcast_layout(shape, weights)
        if layout is None:
            weights = [np.ascontiguousarray(np.broadcast_to(w, shape)) for w in weights]
            layout = broadcast_layout(shape, weights)
        lengths, strides = layout
        for i in range(3):
            call.n[i] = lengths[i]
        k = 0
        if problem.weight is not None:
            call.weight.data = pointer(weights[k])
            for i in range(3):
                call.weight.stride[i] = strides[k][i]
            k += 1
        if problem.pos_weight is not None:
            call.pos_weight.data = pointer(weights[k])
            for i in range(3):
                call.pos_weight.stride[i] = strides[k][i]
    losses = None
    if problem.reduction == "none":
        losses = np.empty(shape, problem.compute_dtype)
        call.losses = pointer(losses)
        call.reduction = FL_NONE
    elif problem.reduction == "sum":
        call.reduction = FL_SUM
    if isinstance(problem.grad_output, float):
        call.grad_scale = problem.grad_output
    else:
        call.grad_output = pointer(problem.grad_output)
    call.label_smoothing = problem.label_smoothing
    if problem.ignore_index is not None:
        call.has_ignore = 1
        call.ignore_value = problem.ignore_index
    call.loss = ELEMENT_KINDS[problem.loss]
    call.zero_one = problem.zero_one
    call.alpha = problem.alpha
    call.gamma = problem.gamma
    call.margin = problem.margin
    if problem.normalizer is not None:
        call.normalizer = problem.normalizer
    total = element_total(&call, problem.num_threads, &denominator, problem)
    if out is not None and grad is not out:
        copy_back(out, grad, 0, 0)
    return losses if losses is not None else reduced(total, denominator, problem.reduction == "mean", False), out


cdef cnp.ndarray new_array_like_contiguous(cnp.ndarray array):
    return new_array(array.ndim, array.shape, array)


# ---- Overlap --------------------------------------------------------------------------------------------------------


cdef class OverlapCall:
    """A fl_overlap_call, the arrays that it points into, and their layout."""
    cdef fl_overlap_call call
    cdef list arrays
    cdef int axis

    def __cinit__(self, problem, grad):
        cdef fl_overlap_call *call = &self.call
        cdef bint is_mask = problem.mode == "multilabel"
        call[0] = fl_overlap_call_init()
        arrays = [problem.logits]
        if grad is not None:
            arrays.append(grad)
        if is_mask:
            arrays.append(problem.target)
        self.arrays, self.axis, layout = to_common_layout(arrays, problem.axis)
        n, inner, outer = layout
        call.n[0] = n[0]
        call.n[1] = n[1]
        call.inner = inner
        call.classes = problem.classes
        call.logits = as_fl_array(self.arrays[0], self.axis, outer[0], inner > 1)
        if grad is not None:
            call.grad = as_fl_array(self.arrays[1], self.axis, outer[1], inner > 1)
        if is_mask:
            last = len(arrays) - 1
            call.mask = as_fl_array(self.arrays[last], self.axis, outer[last], inner > 1)
        else:
            call.target = pointer(problem.target)
            call.target_dtype = dtype_code(problem.target)
        call.activation = FL_ACTIVATION_NONE
        if problem.from_logits:
            call.activation = FL_ACTIVATION_SIGMOID if is_mask else FL_ACTIVATION_SOFTMAX
        call.squared = problem.squared
        if problem.ignore_index is not None:
            call.has_ignore = 1
            call.ignore_index = problem.ignore_index
        call.groups = problem.groups
        call.entropy = problem.cross_entropy
        call.entropy_weight = pointer(problem.class_weight)
        call.focal = problem.focal
        call.gamma = problem.gamma


def overlap_sums(problem):
    """(sums of each group and class, sum of the cross-entropy and its denominator) of a validate.OverlapProblem."""
    cdef Py_ssize_t count = 0, i
    cdef int status, thread_number = thread_count(problem.num_threads, problem.logits.size)
    cdef Py_ssize_t classes = problem.classes, groups = problem.groups, stride = 3 * classes + 2
    cdef OverlapCall prepared
    cdef fl_overlap_call *call
    cdef Tiles tiles
    cdef double *sums
    if problem.logits.size == 0:
        return np.zeros((groups, classes, 3)), np.zeros(2)
    prepared = OverlapCall(problem, None)
    call = &prepared.call
    status = fl_overlap_tiles(call, &count)
    if status != FL_OK:
        raise_status(status)
    of_tiles = np.zeros((count, stride))
    sums = <double *> pointer(of_tiles)
    make_tiles(&tiles, count)
    with nogil:
        for i in prange(count, schedule="static", num_threads=thread_number):
            fl_overlap_check(call, i, &tiles.checks[i])
        for i in range(count):
            if tiles.checks[i].bad_position >= 0:
                status = FL_ERROR_INDEX
        if status == FL_OK:
            for i in prange(count, schedule="dynamic", num_threads=thread_number):
                fl_overlap_sums(call, i, sums + i * stride)
    free(tiles.sums)
    if status != FL_OK:
        validate.raise_bad_index(problem)
    # One after the other, so that their order does not depend on NumPy.
    by_group = of_tiles.reshape(groups, -1, stride)
    total = by_group[:, 0].copy()
    for k in range(1, by_group.shape[1]):
        total += by_group[:, k]
    entropy = np.add.accumulate(total[:, 3 * classes:], axis=0)[groups - 1]
    return total[:, :3 * classes].reshape(groups, classes, 3), entropy


def overlap_gradient(problem, of_intersection, of_sum, double scale):
    """The gradient of a validate.OverlapProblem, from the derivatives by its sums."""
    cdef Py_ssize_t count = 0, i
    cdef int status, thread_number = thread_count(problem.num_threads, problem.logits.size)
    cdef OverlapCall prepared
    cdef fl_overlap_call *call
    cdef const double *slopes
    logits = problem.logits
    out = grad = new_like(logits) if problem.out_grad is None else problem.out_grad
    if logits.size == 0:
        return out
    # The kernels write a gradient in the working type of the logits, or a narrower one.
    if not is_simple(grad) or (grad.dtype.itemsize == 8) != (logits.dtype.itemsize == 8):
        grad = np.empty_like(logits, problem.compute_dtype)
    prepared = OverlapCall(problem, grad)
    call = &prepared.call
    status = fl_overlap_tiles(call, &count)
    if status != FL_OK:
        raise_status(status)
    both = np.ascontiguousarray(np.stack([of_intersection, of_sum], axis=-1), np.float64)
    slopes = <const double *> pointer(both)
    with nogil:
        for i in prange(count, schedule="dynamic", num_threads=thread_number):
            fl_overlap_gradient(call, i, slopes, scale)
    if prepared.arrays[1] is not out:
        copy_back(out, prepared.arrays[1], problem.axis, prepared.axis)
    return out


def lovasz(errors, positive, bint hinge):
    """(loss, derivative by each error) of the Lovasz extension for one class."""
    cdef Py_ssize_t n = errors.size
    cdef double loss = 0
    cdef int status, code
    cdef void *z
    cdef void *slope
    cdef unsigned char *mark
    cdef void *workspace = malloc(fl_lovasz_workspace(n) + 1)
    if workspace == NULL:
        raise MemoryError
    errors = np.ascontiguousarray(errors)
    positive = np.ascontiguousarray(positive, np.uint8)
    slopes = np.empty_like(errors)
    code = dtype_code(errors)
    z = pointer(errors)
    slope = pointer(slopes)
    mark = <unsigned char *> pointer(positive)
    with nogil:
        status = fl_lovasz(code, z, mark, n, hinge, workspace, &loss, slope)
    free(workspace)
    if status != FL_OK:
        raise_status(status)
    return loss, slopes


# ---- Primitives -----------------------------------------------------------------------------------------------------

cdef dict SOFTMAX_KINDS = {
    "softmax": FL_SOFTMAX, "log_softmax": FL_LOG_SOFTMAX, "logsumexp": FL_LOGSUMEXP, "entropy": FL_ENTROPY
}
cdef dict MAP_KINDS = {"sigmoid": FL_SIGMOID, "log_sigmoid": FL_LOG_SIGMOID, "softplus": FL_SOFTPLUS}


def softmax(problem):
    """The result of a validate.SoftmaxProblem."""
    cdef fl_softmax_call call = fl_softmax_call_init()
    cdef Py_ssize_t count = 0, i
    cdef int status, axis, thread_number
    cdef bint per_row = problem.kind in ("logsumexp", "entropy")
    logits = problem.logits
    arrays = [logits]
    if per_row:
        result = np.empty(problem.row_shape, problem.compute_dtype)
        call.values = pointer(result)
    else:
        result = new_like(logits)
        arrays.append(result)
    arrays, axis, layout = to_common_layout(arrays, problem.axis)
    n, inner, outer = layout
    call.kind = SOFTMAX_KINDS[problem.kind]
    call.n[0] = n[0]
    call.n[1] = n[1]
    call.inner = inner
    call.classes = problem.classes
    call.logits = as_fl_array(arrays[0], axis, outer[0], inner > 1)
    if not per_row:
        call.output = as_fl_array(arrays[1], axis, outer[1], inner > 1)
    status = fl_softmax_tiles(&call, &count)
    if status != FL_OK:
        raise_status(status)
    thread_number = thread_count(problem.num_threads, logits.size)
    with nogil:
        if thread_number == 1:
            for i in range(count):
                fl_softmax_tile(&call, i)
        else:
            for i in prange(count, schedule="static", num_threads=thread_number):
                fl_softmax_tile(&call, i)
    if not per_row and arrays[1] is not result:
        copy_back(result, arrays[1], problem.axis, axis)
    return result


cdef enum:
    MAP_TILE = 32768


def map(problem):
    """The result of a validate.MapProblem."""
    cdef Py_ssize_t i, n, count
    cdef int kind = MAP_KINDS[problem.kind], code, thread_number, size
    cdef char *source
    cdef char *target
    x = np.ascontiguousarray(problem.x).reshape(problem.x.shape)
    result = new_array_like_contiguous(x)
    source = <char *> pointer(x)
    target = <char *> pointer(result)
    code = dtype_code(x)
    size = x.itemsize
    n = x.size
    count = (n + MAP_TILE - 1) // MAP_TILE
    thread_number = thread_count(problem.num_threads, n)
    with nogil:
        if thread_number == 1:
            fl_map(kind, code, source, n, target)
        else:
            for i in prange(count, schedule="static", num_threads=thread_number):
                fl_map(kind, code, source + i * MAP_TILE * size, min(MAP_TILE, n - i * MAP_TILE), target + i * MAP_TILE * size)
    return result


# ---- The yardstick --------------------------------------------------------------------------------------------------


def parallel_copy(cnp.ndarray source, cnp.ndarray target, num_threads=None):
    """Copies one contiguous array into another, a slice a thread: what benchmarks compare a loss with."""
    cdef Py_ssize_t i, size = cnp.PyArray_NBYTES(source), slice_size
    cdef int thread_number = thread_count(num_threads, cnp.PyArray_SIZE(source))
    cdef char *p = <char *> cnp.PyArray_DATA(source)
    cdef char *q = <char *> cnp.PyArray_DATA(target)
    if not (cnp.PyArray_ISCARRAY_RO(source) and cnp.PyArray_ISCARRAY(target)) or size != cnp.PyArray_NBYTES(target):
        raise ValueError("parallel_copy needs two contiguous arrays of the same size")
    slice_size = (size // thread_number + 63) // 64 * 64
    with nogil:
        if thread_number == 1:
            memcpy(q, p, size)
        else:
            for i in prange(thread_number, schedule="static", num_threads=thread_number):
                memcpy(q + min(size, i * slice_size), p + min(size, i * slice_size),
                       min(size, (i + 1) * slice_size) - min(size, i * slice_size))

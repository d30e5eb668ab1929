"""What the losses are made of: functions of rows of classes, and of single elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastloss import validate
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, NDArray


def softmax(logits: Array, axis: Index = -1, *, engine: str | None = None, num_threads: Index | None = None) -> NDArray:
    r"""Probabilities from logits, over the class axis.

    ::

        p_c = exp(z_c) / sum_k exp(z_k)

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    axis
        The class axis; one-dimensional logits use their only one.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The input's shape and dtype, in native byte order.

    Errors
    ------
    ValueError for shapes and values, TypeError for types.

    Notes
    -----
    A logit of -inf is a class of probability 0. A row with NaN or +inf, or of nothing but -inf, gives NaN.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.softmax([0.0, 0.0, float("-inf")]).tolist()
    [0.5, 0.5, 0.0]
    """
    problem = validate.softmax("softmax", logits, axis, num_threads)
    return get_engine(engine).softmax(problem)  # type: ignore[no-any-return]


def log_softmax(
    logits: Array, axis: Index = -1, *, engine: str | None = None, num_threads: Index | None = None
) -> NDArray:
    r"""Logs of the probabilities, over the class axis.

    ::

        log p_c = z_c - log(sum_k exp(z_k))

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    axis
        The class axis; one-dimensional logits use their only one.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The input's shape and dtype, in native byte order.

    Errors
    ------
    ValueError for shapes and values, TypeError for types.

    Notes
    -----
    A logit of -inf is a class of probability 0. A row with NaN or +inf, or of nothing but -inf, gives NaN.
    The log of a probability next to 1 keeps its digits.

    Examples
    --------
    >>> import fastloss as fl
    >>> [f"{x:.6g}" for x in fl.log_softmax([100.0, 0.0])]
    ['-3.72008e-44', '-100']
    """
    problem = validate.softmax("log_softmax", logits, axis, num_threads)
    return get_engine(engine).softmax(problem)  # type: ignore[no-any-return]


def logsumexp(
    logits: Array, axis: Index = -1, *, engine: str | None = None, num_threads: Index | None = None
) -> NDArray:
    r"""Log of the sum of exponentials, over the class axis.

    ::

        lse = log(sum_c exp(z_c))

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    axis
        The class axis; one-dimensional logits use their only one.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The logits' shape without the class axis; float64 for float64 logits, float32 for others.

    Errors
    ------
    ValueError for shapes and values, TypeError for types.

    Notes
    -----
    A logit of -inf is a class of probability 0. A row with NaN or +inf, or of nothing but -inf, gives NaN.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.logsumexp([[1000.0, 1000.0], [0.0, float("-inf")]]).round(4).tolist()
    [1000.6931, 0.0]
    """
    problem = validate.softmax("logsumexp", logits, axis, num_threads)
    return get_engine(engine).softmax(problem)  # type: ignore[no-any-return]


def entropy(logits: Array, axis: Index = -1, *, engine: str | None = None, num_threads: Index | None = None) -> NDArray:
    r"""Entropy of the softmax distribution, in nats, over the class axis.

    ::

        -sum_c p_c log(p_c),    p = softmax(logits)

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    axis
        The class axis; one-dimensional logits use their only one.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The logits' shape without the class axis; float64 for float64 logits, float32 for others.

    Errors
    ------
    ValueError for shapes and values, TypeError for types.

    Notes
    -----
    A logit of -inf is a class of probability 0. A row with NaN or +inf, or of nothing but -inf, gives NaN.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.entropy([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]]).round(4).tolist()
    [1.3863, 0.0037]
    """
    problem = validate.softmax("entropy", logits, axis, num_threads)
    return get_engine(engine).softmax(problem)  # type: ignore[no-any-return]


def sigmoid(x: Array, *, engine: str | None = None, num_threads: Index | None = None) -> NDArray:
    r"""Logistic function, element by element.

    ::

        1 / (1 + exp(-x))

    Parameters
    ----------
    x
        float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The input's shape and dtype, in native byte order.

    Errors
    ------
    TypeError for types.

    Notes
    -----
    Small results keep their digits; 0 at -inf, 1 at inf.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.sigmoid([1.8, 0.75]).round(4).tolist()
    [0.8581, 0.6792]
    """
    problem = validate.elementwise("sigmoid", x, num_threads)
    return get_engine(engine).map(problem)  # type: ignore[no-any-return]


def log_sigmoid(x: Array, *, engine: str | None = None, num_threads: Index | None = None) -> NDArray:
    r"""Log of the logistic function, element by element.

    ::

        -log(1 + exp(-x))

    Parameters
    ----------
    x
        float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The input's shape and dtype, in native byte order.

    Errors
    ------
    TypeError for types.

    Notes
    -----
    Results near 0 keep their digits; -inf at -inf, 0 at inf.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.log_sigmoid([0.0, -1000.0]).round(4).tolist()
    [-0.6931, -1000.0]
    """
    problem = validate.elementwise("log_sigmoid", x, num_threads)
    return get_engine(engine).map(problem)  # type: ignore[no-any-return]


def softplus(x: Array, *, engine: str | None = None, num_threads: Index | None = None) -> NDArray:
    r"""Smooth version of max(x, 0), element by element.

    ::

        log(1 + exp(x))

    Parameters
    ----------
    x
        float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        The input's shape and dtype, in native byte order.

    Errors
    ------
    TypeError for types.

    Notes
    -----
    Small results keep their digits; 0 at -inf, inf at inf.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.softplus([0.0, 1000.0]).round(4).tolist()
    [0.6931, 1000.0]
    """
    problem = validate.elementwise("softplus", x, num_threads)
    return get_engine(engine).map(problem)  # type: ignore[no-any-return]

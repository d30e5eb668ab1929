"""How much memory of freed gradients is kept for the next ones."""

from __future__ import annotations

import operator
import sys
from typing import SupportsIndex

from fastloss.engines import engines, get


def set_buffer_limit(limit: SupportsIndex) -> None:
    """Keep at most this many bytes of freed gradients, 2^30 if never called; 0 keeps none.

    Fresh memory costs several times what a loss does, so the compiled engine writes a new gradient of 256 KiB or more
    into the memory of an older one that nothing refers to any more. That memory is never part of an array that is
    still alive, and views keep an array alive; the oldest is given back where the limit is exceeded. Threads share
    the limit. The other engines keep nothing.

    Parameters
    ----------
    limit
        Number of bytes, at least 0.

    Errors
    ------
    ValueError for a negative number, TypeError for what is no integer.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.set_buffer_limit(0)
    >>> fl.set_buffer_limit(2**30)
    """
    if isinstance(limit, bool) or not hasattr(limit, "__index__"):
        raise TypeError(f"limit must be an integer number of bytes, not {limit!r}")
    count = operator.index(limit)
    if count < 0:
        raise ValueError(f"limit must be at least 0 bytes, not {count}")
    if "cython" in engines():
        get("cython").set_buffer_limit(min(count, sys.maxsize))

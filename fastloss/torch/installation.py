"""Putting fastloss's functions in the places of torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.functional as F

from fastloss.torch import counting, functional


def install() -> None:
    """Replace torch's loss functions, and so what every module and library built on them computes.

    Afterwards `torch.nn.functional.cross_entropy` and its relatives are those of `fastloss.torch`, which compute on the
    CPU what fastloss covers and hand the rest to torch. Only code that has fetched a function by name before, as in
    ``from torch.nn.functional import cross_entropy``, keeps torch's; and torch.jit.script, which is deprecated, can't
    read these. Calls are counted from here on: see `fastloss.torch.report`.

    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.install()
    >>> _ = torch.nn.CrossEntropyLoss()(torch.zeros(2, 3), torch.tensor([0, 1]))
    >>> fastloss.torch.uninstall()
    >>> fastloss.torch.report().calls
    {('cross_entropy', 'fastloss'): 1}
    """
    counting.reset()
    for name in functional.OWN:
        setattr(F, name, getattr(functional, name))


def uninstall() -> None:
    """Give torch its own loss functions back."""
    for name, function in functional.OWN.items():
        setattr(F, name, function)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """As `install`, within a with statement.

    >>> import torch
    >>> import fastloss.torch
    >>> with fastloss.torch.installed():
    ...     loss = torch.nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
    >>> loss
    tensor(1.0986)
    """
    before = {name: getattr(F, name) for name in functional.OWN}
    install()
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)

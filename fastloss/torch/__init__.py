"""fastloss for PyTorch on the CPU: modules and functions with torch's names, and `install` for those in use."""

from __future__ import annotations

try:
    import torch
except ModuleNotFoundError as error:
    message = "fastloss.torch needs PyTorch, which is not installed: pip install torch"
    raise ModuleNotFoundError(message, name="torch") from error
else:
    del torch  # no part of this module

from fastloss.torch.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    dice_loss,
    focal_cross_entropy,
    hinge_loss,
    jaccard_loss,
    kl_div,
    lovasz_loss,
    multi_margin_loss,
    multilabel_margin_loss,
    multilabel_soft_margin_loss,
    nll_loss,
    sigmoid_focal_loss,
    soft_margin_loss,
    tversky_loss,
)
from fastloss.torch.installation import install, installed, uninstall
from fastloss.torch.modules import (
    BCELoss,
    BCEWithLogitsLoss,
    CombinedLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalCrossEntropyLoss,
    HingeLoss,
    JaccardLoss,
    KLDivLoss,
    LovaszLoss,
    MultiLabelMarginLoss,
    MultiLabelSoftMarginLoss,
    MultiMarginLoss,
    NLLLoss,
    SigmoidFocalLoss,
    SoftMarginLoss,
    TverskyLoss,
    combine,
)
from fastloss.torch.reporting import Report, report

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalCrossEntropyLoss",
    "HingeLoss",
    "JaccardLoss",
    "KLDivLoss",
    "LovaszLoss",
    "MultiLabelMarginLoss",
    "MultiLabelSoftMarginLoss",
    "MultiMarginLoss",
    "NLLLoss",
    "Report",
    "SigmoidFocalLoss",
    "SoftMarginLoss",
    "TverskyLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "combine",
    "cross_entropy",
    "dice_loss",
    "focal_cross_entropy",
    "hinge_loss",
    "install",
    "installed",
    "jaccard_loss",
    "kl_div",
    "lovasz_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "report",
    "sigmoid_focal_loss",
    "soft_margin_loss",
    "tversky_loss",
    "uninstall",
]

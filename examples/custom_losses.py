"""A gallery of custom losses: a formula each; gradients, second derivatives and kernels are made from it.

python examples/custom_losses.py
"""

import math

import numpy as np

import fastloss as fl
from fastloss import math as m


@fl.elementwise
def huber(z, y, *, delta=1.0):
    """Huber 1964, doi:10.1214/aoms/1177703732."""
    distance = m.abs(z - y)
    return m.where(distance < delta, 0.5 * (z - y) ** 2, delta * (distance - 0.5 * delta))


@fl.elementwise
def log_cosh(z, y):
    """log(cosh(z - y)), which does not overflow: Saleh & Saleh 2022, arXiv:2208.04564."""
    distance = m.abs(z - y)
    return distance + m.softplus(-2 * distance) - math.log(2)


@fl.elementwise
def asymmetric_focal(z, y, *, gamma_positive=0.0, gamma_negative=4.0):
    """For many labels of which few hold, without its shift: Ridnik et al. 2021, arXiv:2009.14119."""
    positive = m.sigmoid(-z) ** gamma_positive * m.log_sigmoid(z)
    negative = m.sigmoid(z) ** gamma_negative * m.log_sigmoid(-z)
    return -y * positive - (1 - y) * negative


@fl.rowwise
def focal(log_p, not_p, *, gamma=2.0):
    """Lin et al. 2017, arXiv:1708.02002."""
    return -(not_p**gamma) * log_p


@fl.rowwise
def poly_1(log_p, not_p, *, epsilon=1.0):
    """Leng et al. 2022, arXiv:2204.12511."""
    return -log_p + epsilon * not_p


@fl.rowwise
def cross_entropy_with_z_loss(log_p, lse, *, factor=1e-4):
    """Chowdhery et al. 2022, arXiv:2204.02311."""
    return -log_p + factor * lse**2


@fl.rowwise
def generalised_cross_entropy(p, *, q=0.7):
    """For noisy labels: Zhang & Sabuncu 2018, arXiv:1805.07836."""
    return (1 - p**q) / q


@fl.rowwise
def symmetric_cross_entropy(log_p, not_p, *, alpha=1.0, beta=1.0, log_of_0=-4.0):
    """For noisy labels; the reverse part is -log_of_0 times the other classes' share: Wang et al. 2019,
    arXiv:1908.06112."""
    return -alpha * log_p - beta * log_of_0 * not_p


@fl.rowwise
def taylor_cross_entropy(not_p):
    """The first terms of -log(1 - not_p), for noisy labels: Feng et al. 2020, doi:10.24963/ijcai.2020/305."""
    return not_p + not_p**2 / 2


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 2, 1000), rng.integers(0, 2, 1000)
    for loss in (huber, log_cosh, asymmetric_focal):
        value, grad, hess = loss(z, y, return_hess=True)
        print(f"{loss.__name__:26} {value:.4f}  |grad| {np.abs(grad).sum():.4f}  |hess| {np.abs(hess).sum():.4f}")
    logits, target = rng.normal(0, 2, (1000, 10)), rng.integers(0, 10, 1000)
    rows = (focal, poly_1, cross_entropy_with_z_loss, generalised_cross_entropy, symmetric_cross_entropy)
    for loss in (*rows, taylor_cross_entropy):
        value, grad = loss(logits, target, return_grad=True)
        print(f"{loss.__name__:26} {value:.4f}  |grad| {np.abs(grad).sum():.4f}")

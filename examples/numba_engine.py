"""The Numba engine: the same calls and numbers as the compiled one, without a compiler.

python examples/numba_engine.py
"""

import time

import numpy as np

import fastloss as fl

rng = np.random.default_rng(0)
logits = rng.standard_normal((4096, 1000), dtype=np.float32)
target = rng.integers(0, 1000, 4096)
grad = np.empty_like(logits)

for engine in fl.engines():
    fl.cross_entropy(logits, target, out_grad=grad, engine=engine)  # Numba compiles here, at its first call ever
    start = time.perf_counter()
    loss, _ = fl.cross_entropy(logits, target, out_grad=grad, engine=engine)
    print(f"{engine:10} loss {loss:.6f}, gradient {grad[0, 0]:.6e}, {1e3 * (time.perf_counter() - start):7.2f} ms")

"""Derive the polynomial coefficients of vector_math.h: run `python minimax.py` and compare with the constants there.

Each polynomial minimises the largest relative error of the function that is computed with it. It is printed as
hexadecimal floats, highest power first, with that error in units of 2^-24 or 2^-53.
"""

import struct

from mpmath import exp, log, lu_solve, matrix, mp, mpf

mp.dps = 50


def minimax(target, basis, weight, low, high, points=240, steps=60):
    """Coefficients c minimising max |weight(x) (sum c_k basis_k(x) - target(x))| on [low, high], and that maximum.

    Lawson's algorithm: least squares, each point's weight multiplied by its error until the errors level out. It
    asks nothing of the basis, where Remez exchange fails for polynomials with a fixed zero inside the interval.
    """
    low, high = mpf(low), mpf(high)
    xs = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * k / (points - 1)) for k in range(points)]
    rows = [[weight(x) * b(x) for b in basis] for x in xs]
    goal = [weight(x) * target(x) for x in xs]
    share = [mpf(1) / points] * points
    best = None
    n = len(basis)
    for _ in range(steps):
        normal = matrix(n, n)
        right = matrix(n, 1)
        for row, y, w in zip(rows, goal, share, strict=True):
            for i in range(n):
                right[i] += w * row[i] * y
                for k in range(i, n):
                    normal[i, k] += w * row[i] * row[k]
        for i in range(n):
            for k in range(i):
                normal[i, k] = normal[k, i]
        solution = lu_solve(normal, right)
        c = [solution[k] for k in range(n)]
        error = [abs(sum(ck * r for ck, r in zip(c, row, strict=True)) - y) for row, y in zip(rows, goal, strict=True)]
        if best is None or max(error) < best[1]:
            best = c, max(error)
        total = sum(w * e for w, e in zip(share, error, strict=True))
        share = [w * e / total for w, e in zip(share, error, strict=True)]
    return best


def monomials(powers):
    return [lambda x, k=k: x**k for k in powers]


def single(x):
    return struct.unpack("f", struct.pack("f", float(x)))[0].hex().replace("0000000p", "p") + "f"


def double(x):
    return float(x).hex()


def show(name, fit, literal, bits):
    c, error = fit
    print(f"{name}: {float(error * 2**bits):.3g} * 2^-{bits}")
    print("    " + ", ".join(literal(x) for x in reversed(c)))


def power_table(bits):
    """For k < 2^bits the bits of the float 2^(k / 2^bits) less those of 1 + k / 2^bits: adding it to the latter turns a
    line into the exponential."""
    for k in range(2**bits):
        (power,) = struct.unpack("i", struct.pack("f", float(2 ** (mpf(k) / 2**bits))))
        yield power - (127 << 23) - (k << (23 - bits))


def main():

    def exponential(degree, table=1):
        """e^r = 1 + r + r^2 (c2 + c3 r + ...); a table of that many powers of two halves r as often."""
        edge = log(2) / (2 * table) * mpf("1.0005")
        return minimax(lambda r: exp(r) - 1 - r, monomials(range(2, degree + 1)), lambda r: exp(-r), -edge, edge)

    show("exp, float", exponential(6), single, 24)
    show("exp, float, table of 8", exponential(3, 8), single, 24)
    show("exp, float, table of 16", exponential(3, 16), single, 24)
    show("exp, double", exponential(11), double, 53)
    for bits in (3, 4):
        print(f"table of {2**bits}, float:", ", ".join(hex(entry) for entry in power_table(bits)))

    def logarithm(terms):
        """log(1 + f) = 2 s + s R(s^2), s = f / (2 + f), sqrt(1/2) - 1 <= f <= sqrt(2) - 1."""
        largest = (mp.sqrt(2) - 1) ** 2 / (1 + mp.sqrt(2)) ** 2 * mpf("1.0005")

        def rest(z):
            s = mp.sqrt(z)
            return log((1 + s) / (1 - s)) / s - 2

        return minimax(rest, monomials(range(1, terms + 1)), lambda z: 1 / (2 + rest(z)), mpf(10) ** -12, largest)

    show("log1p, float", logarithm(3), single, 24)
    show("log1p, double", logarithm(7), double, 53)

    def unit_logarithm(degree):
        """log1p(u) = u - u^2 Q(u) on [0, 1]."""

        def quotient(u):
            return (u - log(1 + u)) / u**2

        return minimax(quotient, monomials(range(degree + 1)), lambda u: u**2 / log(1 + u), mpf(10) ** -9, 1)

    show("log1p on [0, 1], float", unit_logarithm(8), single, 24)


if __name__ == "__main__":
    main()

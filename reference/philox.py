"""Philox4x32-10 and Box-Muller normals, bit for bit as every device of ladd-fast draws them.

Element e of the stream (seed, step, stream) is lane e % 4 of the block whose counter is
(block_lo, block_hi, step, stream) with block = e // 4, and whose key is (seed_lo, seed_hi).
The normals use float32 + - * / sqrt and comparisons only, one rounding each, never a fused multiply-add:
that is what makes the bits the same in numpy, Rust and CUDA.  `python philox.py` runs the known answers.
"""

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
F = np.float32

ONE_BITS = np.uint32(0x3F800000)  # 1.0
SQRT_HALF_BITS = np.uint32(0x3F3504F3)  # sqrt(1/2): the mantissa of ln's argument lands in [sqrt(1/2), sqrt(2))
MANTISSA = np.uint32(0x007FFFFF)
LN2 = F(0.69314718)
TWO_PI = F(6.2831855)
LN_SERIES = [F(1) / F(9), F(1) / F(7), F(1) / F(5), F(1) / F(3), F(1)]  # 2 atanh(s) = 2s (1 + z/3 + z^2/5 + ...), z = s^2
SIN_SERIES = [F(1) / F(362880), F(-1) / F(5040), F(1) / F(120), F(-1) / F(6), F(1)]
COS_SERIES = [F(-1) / F(3628800), F(1) / F(40320), F(-1) / F(720), F(1) / F(24), F(-1) / F(2), F(1)]


def philox4x32(counter, key):
    """Ten rounds.  counter: four uint64 arrays holding 32-bit words; key: two ints.  Returns uint32 [n, 4]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = MULTIPLIERS[0] * c0
        product1 = MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> HALF) ^ c1 ^ np.uint64(k0),
            product1 & LOW,
            (product0 >> HALF) ^ c3 ^ np.uint64(k1),
            product0 & LOW,
        )
        k0 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF
        k1 = (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def blocks(seed, step, stream, first_block, count):
    """Words of `count` consecutive blocks, uint32 [count, 4]."""
    block = np.arange(count, dtype=np.uint64) + np.uint64(first_block)
    counter = (
        block & LOW,
        block >> HALF,
        np.full(count, step, np.uint64),
        np.full(count, stream, np.uint64),
    )
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def covering_blocks(seed, step, stream, first, count):
    """The blocks that hold elements first .. first+count-1, and where the first of them stands inside."""
    first_block = first // 4
    last_block = (first + count + 3) // 4
    return blocks(seed, step, stream, first_block, last_block - first_block), first % 4


def words(seed, step, stream, first, count):
    """32-bit words of elements first .. first+count-1, uint32 [count]."""
    block, lane = covering_blocks(seed, step, stream, first, count)
    return block.reshape(-1)[lane : lane + count]


def uniform_of_words(word):
    """(word >> 9) + 1/2 in units of 2^-23: strictly inside (0, 1), exact in float32."""
    return ((word >> np.uint32(9)).astype(F) + F(0.5)) * F(2.0**-23)


def uniforms(seed, step, stream, first, count):
    """Uniforms of elements first .. first+count-1, float32 [count]."""
    return uniform_of_words(words(seed, step, stream, first, count))


def horner(coefficients, x):
    """Polynomial with the highest power first; one multiplication and one addition per step, each rounded."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def ln(u):
    """Natural logarithm of float32 u in (0, 1), about 2 ulp."""
    shifted = u.view(np.uint32) + (ONE_BITS - SQRT_HALF_BITS)
    exponent = (shifted >> np.uint32(23)).astype(np.int32) - 127
    mantissa = ((shifted & MANTISSA) + SQRT_HALF_BITS).view(F)
    f = mantissa - F(1)
    s = f / (F(2) + f)
    return (F(2) * s) * horner(LN_SERIES, s * s) + exponent.astype(F) * LN2


def sincos_two_pi(u):
    """(sin, cos) of 2 pi u for float32 u in (0, 1): nearest quarter turn taken off exactly, then Taylor."""
    quarter = np.floor(F(4) * u + F(0.5))
    angle = (u - quarter * F(0.25)) * TWO_PI
    square = angle * angle
    s = angle * horner(SIN_SERIES, square)
    c = horner(COS_SERIES, square)
    quadrant = quarter.astype(np.int32) % 4
    cos = np.choose(quadrant, [c, -s, -c, s])
    sin = np.choose(quadrant, [s, c, -s, -c])
    return sin, cos


def normals_of_blocks(block):
    """Standard normals of uint32 [n, 4] blocks, float32 [n, 4]: words (0, 1) give normals 0 and 1, (2, 3) give 2 and 3."""
    pair = uniform_of_words(block).reshape(-1, 2)
    radius = np.sqrt(F(-2) * ln(np.ascontiguousarray(pair[:, 0])))
    sin, cos = sincos_two_pi(pair[:, 1])
    return np.stack([radius * cos, radius * sin], axis=-1).reshape(-1, 4)


def normals(seed, step, stream, first, count):
    """Standard normals of elements first .. first+count-1, float32 [count]."""
    block, lane = covering_blocks(seed, step, stream, first, count)
    return normals_of_blocks(block).reshape(-1)[lane : lane + count]


def self_test():
    """Random123's known answers, float32 throughout, and the normals against float64 mathematics."""
    zero = np.zeros(1, np.uint64)
    ones = np.full(1, 0xFFFFFFFF, np.uint64)
    hexes = lambda block: " ".join(f"{int(word):08x}" for word in block[0])
    assert hexes(philox4x32([zero] * 4, (0, 0))) == "6627e8d5 e169c58d bc57ac4c 9b00dbd8"
    assert hexes(philox4x32([ones] * 4, (0xFFFFFFFF, 0xFFFFFFFF))) == "408f276d 41c83b0e a20bc7c6 6d5451fd"

    n = 1 << 20
    drawn = normals(7, 3, 5, 0, n)
    assert drawn.dtype == np.float32
    pair = uniforms(7, 3, 5, 0, n).astype(np.float64).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log(pair[:, 0]))
    exact = np.stack([radius * np.cos(2 * np.pi * pair[:, 1]), radius * np.sin(2 * np.pi * pair[:, 1])], -1)
    worst = np.abs(drawn - exact.reshape(-1)).max()
    assert worst < 3e-6, worst
    assert abs(drawn.mean()) < 4e-3 and abs(drawn.std() - 1) < 3e-3

    # any window of a stream is the same as the stream itself, also where the block counter passes 2^32
    for first in (1, 6, 2**34 - 10):
        window = normals(7, 3, 5, first - first % 4, 72)[first % 4 :][:64]
        assert np.array_equal(normals(7, 3, 5, first, 64), window)
    print(f"philox: known answers hold; {n} normals within {worst:.1e} of float64, mean {drawn.mean():+.1e}, std {drawn.std():.5f}")


if __name__ == "__main__":
    self_test()

"""The core's counter-based randomness, written a second time in Python."""

from __future__ import annotations

import math

MASK = (1 << 64) - 1


def finalise(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def mix(a: int, b: int) -> int:
    return finalise(finalise(a) ^ b)


class Stream:
    def __init__(self, key: int) -> None:
        self.state = key

    def uniform(self) -> float:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return ((finalise(self.state) >> 11) + 0.5) * 2.0**-53

    def normal(self) -> float:
        radius = math.sqrt(-2.0 * math.log(self.uniform()))
        return radius * math.cos(6.283185307179586 * self.uniform())

    def gumbel(self) -> float:
        return -math.log(-math.log(self.uniform()))

    def gamma(self, shape: float) -> float:
        if shape < 1.0:
            larger = self.gamma(shape + 1.0)
            return larger * math.pow(self.uniform(), 1.0 / shape)
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            t = 1.0 + c * x
            if t <= 0.0:
                continue
            v = t * t * t
            if math.log(self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v

    def beta(self, a: float, b: float) -> float:
        x, y = self.gamma(a), self.gamma(b)
        return x / (x + y) if x + y > 0.0 else 0.5

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


# The ziggurat of Marsaglia and Tsang (2000), 256 layers.
TAIL, AREA = 3.6541528853610088, 4.92867323399e-3
HEIGHT = [0.0, math.exp(-0.5 * TAIL * TAIL)]
EDGE = [AREA / HEIGHT[1], TAIL]
for _ in range(254):
    HEIGHT.append(HEIGHT[-1] + AREA / EDGE[-1])
    EDGE.append(math.sqrt(-2.0 * math.log(HEIGHT[-1])))
EDGE.append(0.0)
HEIGHT.append(1.0)


class Stream:
    def __init__(self, key: int) -> None:
        self.state = key

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return finalise(self.state)

    @staticmethod
    def unit(bits: int) -> float:
        return ((bits >> 11) + 0.5) * 2.0**-53

    def uniform(self) -> float:
        return self.unit(self.next())

    def normal(self) -> float:
        while True:
            bits = self.next()
            layer = bits & 0xFF
            x = ((bits >> 11) * 2.0**-52 - 1.0) * EDGE[layer]
            if abs(x) < EDGE[layer + 1]:
                return x
            if layer == 0:
                while True:
                    far = -math.log(self.uniform()) / TAIL
                    height = -math.log(self.uniform())
                    if 2.0 * height >= far * far:
                        break
                return -(TAIL + far) if x < 0.0 else TAIL + far
            low, high = HEIGHT[layer], HEIGHT[layer + 1]
            if low + self.uniform() * (high - low) < math.exp(-0.5 * x * x):
                return x

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
            u = self.uniform()
            if u < 1.0 - 0.0331 * (x * x) * (x * x):
                return d * v
            if math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v

    def beta(self, a: float, b: float) -> float:
        x, y = self.gamma(a), self.gamma(b)
        return x / (x + y) if x + y > 0.0 else 0.5

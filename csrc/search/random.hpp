// Counter-based randomness: a draw depends on its key only, never on threads or call order.
#pragma once

#include <cmath>
#include <cstdint>

namespace bdc::search {

inline std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) { return mix(mix(a) ^ b); }

// Strips of equal area under exp(-x^2 / 2), from the widest: edges x and heights y.
inline constexpr double kTail = 3.6541528853610088;
struct Ziggurat {
    double x[257], y[257];
};
inline const Ziggurat& ziggurat() {
    static const Ziggurat table = [] {
        Ziggurat z;
        const double area = 4.92867323399e-3;
        z.x[0] = area / std::exp(-0.5 * kTail * kTail);  // the base strip with its tail, as a box
        z.y[0] = 0.0;
        z.x[1] = kTail;
        z.y[1] = std::exp(-0.5 * kTail * kTail);
        for (int i = 2; i < 256; ++i) {
            z.y[i] = z.y[i - 1] + area / z.x[i - 1];
            z.x[i] = std::sqrt(-2.0 * std::log(z.y[i]));
        }
        z.x[256] = 0.0;
        z.y[256] = 1.0;
        return z;
    }();
    return table;
}

class Stream {
  public:
    explicit Stream(std::uint64_t key) : state_(key) {}

    // In (0, 1): never 0, so that its logarithm is finite.
    static double unit(std::uint64_t bits) { return (double(bits >> 11) + 0.5) * 0x1.0p-53; }
    double uniform() { return unit(next()); }

    double normal() {  // ziggurat of 256 layers (Marsaglia and Tsang 2000)
        const Ziggurat& table = ziggurat();
        for (;;) {
            const std::uint64_t bits = next();
            const std::size_t layer = bits & 0xFF;
            const double x = (double(bits >> 11) * 0x1.0p-52 - 1.0) * table.x[layer];
            if (std::abs(x) < table.x[layer + 1]) return x;
            if (layer == 0) {  // beyond the base strip
                double far, height;
                do {
                    far = -std::log(uniform()) / kTail;
                    height = -std::log(uniform());
                } while (2.0 * height < far * far);
                return x < 0.0 ? -(kTail + far) : kTail + far;
            }
            const double low = table.y[layer], high = table.y[layer + 1];
            if (low + uniform() * (high - low) < std::exp(-0.5 * x * x)) return x;
        }
    }

    double gumbel() { return -std::log(-std::log(uniform())); }

    double gamma(double shape) {  // Marsaglia and Tsang (2000)
        if (shape < 1.0) return gamma(shape + 1.0) * std::pow(uniform(), 1.0 / shape);
        const double d = shape - 1.0 / 3.0;
        const double c = 1.0 / std::sqrt(9.0 * d);
        for (;;) {
            const double x = normal();
            const double t = 1.0 + c * x;
            if (t <= 0.0) continue;
            const double v = t * t * t;
            const double u = uniform();
            if (u < 1.0 - 0.0331 * (x * x) * (x * x)) return d * v;  // nearly always
            if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
        }
    }

    double beta(double a, double b) {
        const double x = gamma(a);
        const double y = gamma(b);
        return x + y > 0.0 ? x / (x + y) : 0.5;
    }

  private:
    std::uint64_t next() {
        state_ += 0x9E3779B97F4A7C15ull;
        return mix(state_);
    }
    std::uint64_t state_;
};

}  // namespace bdc::search

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

class Stream {
  public:
    explicit Stream(std::uint64_t key) : state_(key) {}

    // In (0, 1): never 0, so that its logarithm is finite.
    double uniform() {
        state_ += 0x9E3779B97F4A7C15ull;
        return (double(mix(state_) >> 11) + 0.5) * 0x1.0p-53;
    }

    double normal() {  // Box and Muller, one of the pair
        const double radius = std::sqrt(-2.0 * std::log(uniform()));
        return radius * std::cos(6.283185307179586 * uniform());
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
            if (std::log(uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
        }
    }

    double beta(double a, double b) {
        const double x = gamma(a);
        const double y = gamma(b);
        return x + y > 0.0 ? x / (x + y) : 0.5;
    }

  private:
    std::uint64_t state_;
};

}  // namespace bdc::search

// Draws of Thompson sampling: from the posterior of each lane's returns. The forms for all
// instruction sets give the same draws, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "arena.hpp"
#include "isa.hpp"
#include "lanes.hpp"
#include "random.hpp"

namespace bdc::search {

inline constexpr double kNear = 0.5;  // standard deviations, where Mills' bound is below 1
inline constexpr double kPi = 3.1415926535897932, kRootTwoPi = 2.5066282746310002;
inline constexpr double kLn2 = 0.6931471805599453;
inline constexpr double kBelow = -std::numeric_limits<double>::infinity();

// What log Gamma(x) has beyond (x - 1/2) log x - x + log(2 pi) / 2; between 0 and 1 / (12 x).
inline double beyond_stirling(double x) {
    double more = 0.0;
    for (; x < 8.0; x += 1.0) more += (x + 0.5) * std::log1p(1.0 / x) - 1.0;
    const double part = 1.0 / (x * x);
    return more +
           (1.0 / 12.0 - part * (1.0 / 360.0 - part * (1.0 / 1260.0 - part * (1.0 / 1680.0)))) / x;
}

// Of returns whose number and sum is known.
struct Posterior {
    bool normal;  // else beta, for returns in [0, 1]
    double a, b;  // beta: pseudo-counts; normal: prior mean and scale of the returns

    double hits(double sum) const { return a + std::max(0.0, sum); }
    double misses(double n, double sum) const { return b + std::max(0.0, n - sum); }
    double mean(double n, double sum) const { return (a + sum) / (1.0 + n); }

    double draw(Stream& stream, double n, double sum) const {
        if (!normal) return stream.beta(hits(sum), misses(n, sum));
        return mean(n, sum) + b / std::sqrt(1.0 + n) * stream.normal();
    }

    // A draw if it is above `floor`, else `kBelow`. Where the floor is above the mean, that is
    // decided in two steps: u is below a bound of the probability that it is above, and then a draw
    // from a distribution that lies near the floor is kept with the ratio of the posterior's
    // density and that one's times the bound.
    double draw_above(Stream& stream, double u, double n, double sum, double floor) const {
        return normal ? normal_above(stream, u, n, sum, floor)
                      : beta_above(stream, u, n, sum, floor);
    }

  private:
    // Beyond z of a normal, with Mills' bound e^(-z^2 / 2) / (z sqrt(2 pi)): z + an exponential.
    double normal_above(Stream& stream, double u, double n, double sum, double floor) const {
        const double scale = b / std::sqrt(1.0 + n), z = (floor - mean(n, sum)) / scale;
        if (!(z > kNear)) return draw(stream, n, sum);
        if (-std::log(u) <= 0.5 * z * z + std::log(z * kRootTwoPi)) return kBelow;
        const double over = -std::log(stream.uniform()) / z;
        if (stream.uniform() >= std::exp(-0.5 * over * over)) return kBelow;
        return floor + scale * over;
    }

    // Beyond the floor the logarithm of a beta's density lies below its tangent there, and the
    // density at the floor below what Stirling's formula makes of it: floor + an exponential.
    double beta_above(Stream& stream, double u, double n, double sum, double floor) const {
        const double hit = hits(sum), miss = misses(n, sum), total = hit + miss;
        const double rest = 1.0 - floor;
        const double fall = floor * (miss - 1.0) - rest * std::max(0.0, hit - 1.0);
        if (!(floor * total > hit && fall > 0.0)) return draw(stream, n, sum);
        const double exponent =
            hit * std::log(floor * total / hit) + miss * std::log(rest * total / miss);
        const double height = hit * miss / (2.0 * kPi * total * fall * fall);
        if (std::log(u * u / height) >= 2.0 * exponent) return kBelow;
        if (!(2.0 * exponent < -std::log(height))) return draw(stream, n, sum);
        const double wait = -std::log(stream.uniform()), over = wait * floor * rest / fall;
        if (!(over < rest)) return kBelow;
        const double kept = wait + (hit - 1.0) * std::log1p(over / floor) +
                            (miss - 1.0) * std::log1p(-over / rest) + beyond_stirling(total) -
                            beyond_stirling(hit) - beyond_stirling(miss);
        return std::log(stream.uniform()) < kept ? floor + over : kBelow;
    }
};

// All draws at a node at one moment are told apart by what is drawn for: a child, by its id.
inline std::uint64_t key_at(std::uint64_t moment, std::uint64_t what) { return mix(moment ^ what); }

// In (0, 1), for a lane that may be ruled out: the upper 16 bits are shared out from one key for
// four lanes, those below come from the lane's own stream.
inline double luck(const Family& family, std::uint64_t moment, std::uint32_t lane, Stream& own) {
    const std::uint64_t four = key_at(moment, family.id()[lane & ~3u]);
    return (double(four >> 16 * (lane & 3) & 0xFFFF) + own.uniform()) * 0x1.0p-16;
}

inline double draw_lane(const Posterior& posterior, const Family& family, std::uint64_t moment,
                        std::uint32_t lane) {
    Stream own(key_at(moment, family.id()[lane]));
    return posterior.draw(own, family.n(lane), family.sum()[lane]);
}

// Many lanes are gone through by blocks of so many; the first few are all drawn.
inline constexpr std::uint32_t kBlock = 8, kFirst = 16, kMany = 32;

// Lanes of the block from `at` on, a bit each.
struct Reach {
    std::uint32_t at;
    unsigned lanes;
};

// How lanes are drawn in the form for an instruction set.
struct Drawing {
    // A draw for each of the first `count`; `out` has room for a multiple of eight.
    void (*each)(const Posterior& posterior, Family family, std::uint64_t moment,
                 std::uint32_t count, double* out);
    // The next block, from the one at `from` on, with lanes whose u does not rule out a draw above
    // `floor`: all those, and few others. No lanes: there is none.
    Reach (*in_reach)(const Posterior& posterior, Family family, std::uint64_t moment,
                      std::uint32_t from, double floor);
    Largest largest;
};
Drawing drawing(Isa isa);

// The largest draw among the open lanes, as it is with a draw for every one; of many lanes, those
// that cannot have it are not drawn for.
Leader largest_draw(const Drawing& form, const Posterior& posterior, Family family,
                    std::uint64_t moment);

}  // namespace bdc::search

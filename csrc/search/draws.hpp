// Draws of Thompson sampling: from the posterior of each lane's returns. The forms for all
// instruction sets give the same draws, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "arena.hpp"
#include "isa.hpp"
#include "random.hpp"

namespace bdc::search {

inline constexpr double kNear = 0.5;  // standard deviations, where Mills' bound is below 1
inline constexpr double kRootTwoPi = 2.5066282746310002;
inline constexpr double kBelow = -std::numeric_limits<double>::infinity();

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

    // With Chernoff's bound of two gamma variables' difference: both tilted until the mean of their
    // share is the floor.
    double beta_above(Stream& stream, double u, double n, double sum, double floor) const {
        const double hit = hits(sum), miss = misses(n, sum), share = hit / (hit + miss);
        if (!(floor > share)) return draw(stream, n, sum);
        const double grown = floor / share, shrunk = (1.0 - floor) / (1.0 - share);
        if (-std::log(u) <= -hit * std::log(grown) - miss * std::log(shrunk)) return kBelow;
        const double x = grown * stream.gamma(hit), y = shrunk * stream.gamma(miss);
        const double over = (1.0 - floor) * x - floor * y;
        const double tilt = (floor - share) / (floor * (1.0 - floor));
        if (!(over > 0.0) || stream.uniform() >= std::exp(-tilt * over)) return kBelow;
        return x / (x + y);
    }
};

// All draws at a node at one moment are told apart by what is drawn for: a child, by its id.
inline std::uint64_t key_at(std::uint64_t moment, std::uint64_t what) { return mix(moment ^ what); }

inline double draw_lane(const Posterior& posterior, const Family& family, std::uint64_t moment,
                        std::uint32_t lane) {
    Stream own(key_at(moment, family.id()[lane]));
    return posterior.draw(own, family.n(lane), family.sum()[lane]);
}

// Many lanes are gone through by blocks of so many; the first few are all drawn.
inline constexpr std::uint32_t kBlock = 8, kFirst = 32, kMany = 64;

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
};
Drawing drawing(Isa isa);

// Draws of which the largest among the open lanes is what it is with a draw for every lane: of many
// lanes, those that cannot have it get `kBelow`. `out` has room for a multiple of eight.
void draw_lanes(const Drawing& form, const Posterior& posterior, Family family,
                std::uint64_t moment, double* out);

}  // namespace bdc::search

// Draws of Thompson sampling: from the posterior of each lane's returns. The forms for all
// instruction sets give the same draws, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "arena.hpp"
#include "isa.hpp"
#include "random.hpp"

namespace bdc::search {

// Of returns whose number and sum is known.
struct Posterior {
    bool normal;  // else beta, for returns in [0, 1]
    double a, b;  // beta: pseudo-counts; normal: prior mean and scale of the returns

    double draw(Stream& stream, double n, double sum) const {
        if (!normal) {
            return stream.beta(a + std::max(0.0, sum), b + std::max(0.0, n - sum));
        }
        return (a + sum) / (1.0 + n) + b / std::sqrt(1.0 + n) * stream.normal();
    }
};

// All draws at a node at one moment are told apart by what is drawn for: a child, by its id.
inline Stream stream_at(std::uint64_t moment, std::uint64_t what) {
    return Stream(mix(moment ^ what));
}

inline double draw_lane(const Posterior& posterior, const Family& family, std::uint64_t moment,
                        std::uint32_t lane) {
    Stream own = stream_at(moment, family.id()[lane]);
    return posterior.draw(own, family.n(lane), family.sum()[lane]);
}

// A draw for every lane; `out` has room for a multiple of eight.
using DrawLanes = void (*)(const Posterior& posterior, Family family, std::uint64_t moment,
                           double* out);
DrawLanes draw_lanes(Isa isa);

}  // namespace bdc::search

// The inner loop of selection: which open lane of a family has the largest score
// Q(e) + factor * bonus(e)? The rules differ in the factor, which depends on N(s) only, and in the
// bonus. Portable and AVX-512 forms give the same lane, bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "arena.hpp"

namespace bdc::search {

enum class Bonus {
    kInverseRoot,  // 1 / sqrt(n), infinite at n = 0
    kPrior,        // p / (1 + n)
};

inline constexpr std::uint32_t kTabulated = 1u << 16;

// 1 / sqrt(i) for i < kTabulated, from a table: a division and a root less on the critical path.
const double* inverse_roots();

// Shared by selection, pruning and best-path: of two lanes with equal scores, is `a` to be taken?
// Larger prior, then fewer returns, then the agent whose turn it is (N(s) - 1 modulo the family's
// agents; nobody's without `turns`), then the lower id, which is the lower lane.
bool wins_tie(const Family& family, std::uint32_t a, std::uint32_t b, bool turns);

// An edge without returns has Q = `unvisited`. Some lane must be open.
using Pick = std::uint32_t (*)(const Family& family, double factor, double unvisited);

// The fastest form for this processor.
Pick fastest_pick(Bonus bonus, bool mean);
Pick portable_pick(Bonus bonus, bool mean);

}  // namespace bdc::search

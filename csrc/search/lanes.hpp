// The lanes of a family in one go: which open lane has the largest score Q(e) + factor * bonus(e),
// and how new lanes are filled in. The rules differ in the factor, which depends on N(s) only, and
// in the bonus. The forms for all instruction sets give the same lane, bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "arena.hpp"
#include "factors.hpp"
#include "isa.hpp"

namespace bdc::search {

enum class Bonus {
    kInverseRoot,  // 1 / sqrt(n), infinite at n = 0
    kPrior,        // p / (1 + n)
};

// 1 / sqrt(i) for i < kTabulated, from a table: a division and a root less on the critical path.
const double* inverse_roots();

// The same on processors that gather from it faster than they divide: Intel's, where one tree of
// 10^6 nodes is searched 1.2 times as fast. AMD's gain nothing, and get null.
extern const double* const gathered_roots;

// Shared by selection, pruning and best-path: of two lanes with equal scores, is `a` to be taken?
// Larger prior, then fewer returns, then the agent whose turn it is (N(s) - 1 modulo the family's
// agents; nobody's without `turns`), then the lower id, which is the lower lane.
bool wins_tie(const Family& family, std::uint32_t a, std::uint32_t b, bool turns);

// The best of the lanes that it has met.
struct Leader {
    std::uint32_t lane = kNone;
    double score = -std::numeric_limits<double>::infinity();

    void meet(const Family& family, std::uint32_t other, double its, bool turns = true) {
        if (lane == kNone || its > score ||
            (its == score && wins_tie(family, other, lane, turns))) {
            lane = other;
            score = its;
        }
    }
};

// Of lanes with equal scores, a bit each, the one that wins the tie.
std::uint32_t settle(const Family& family, std::uint64_t tied);

// New lanes from `lane` on: no returns, no children, open, ids from `id` on. Those without `priors`
// get uniform ones, those without `tags` get 0; what is there already stays.
struct NewLanes {
    std::uint32_t lane, count, id;
    bool priors, tags;
};
void fill_lanes(const Family& family, const NewLanes& lanes);

// The open lane with the largest score; there is always one. The scores may be read up to a
// multiple of eight.
using Largest = std::uint32_t (*)(const Family& family, const double* score);

// In the form for an instruction set that the processor has.
Largest find_largest(Isa isa);

template <Bonus kBonus, bool kMean>
struct PortablePick {
    // An edge without returns has Q = `unvisited`. Some lane must be open.
    static std::uint32_t pick(const Family& family, double factor, double unvisited) {
        const Header& head = family.head();
        const double* value = kMean ? family.sum() : family.best();
        const double* prior = family.prior();
        const double* table = kBonus == Bonus::kInverseRoot ? inverse_roots() : nullptr;
        const bool all_open = head.open == head.count;
        Leader best;
        for (std::uint32_t i = 0; i < head.count; ++i) {
            if (!all_open && family.reason()[i] != 0) continue;
            const Tally tally = family.tally()[i];
            const std::uint32_t n = tally.n(), count = tally.count();
            double score = unvisited;
            if (n > 0) score = kMean ? value[i] / double(n) : value[i];
            if constexpr (kBonus == Bonus::kInverseRoot) {
                const double root =
                    count < kTabulated ? table[count] : 1.0 / std::sqrt(double(count));
                score = count > 0 ? score + factor * root : std::numeric_limits<double>::infinity();
            } else {
                score += factor * prior[i] / (1.0 + double(count));
            }
            best.meet(family, i, score);
        }
        return best.lane;
    }
};

}  // namespace bdc::search

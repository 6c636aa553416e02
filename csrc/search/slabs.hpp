// Which slab of a memory a thread gets next. With n threads, every n-th slab is its own: the data
// of two threads do not lie side by side, and in the next forest, which has the same memory, a
// thread finds the lines that it wrote in the last one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace bdc::search {

class Slabs {
  public:
    explicit Slabs(unsigned threads) : next_(threads) { start(0); }

    // The first one that is there to be had.
    void start(std::uint32_t first) {
        for (std::uint32_t i = 0; i < threads(); ++i) next_[(first + i) % threads()] = first + i;
    }

    // The thread's next, or that of the last one where it is too far ahead or none is left below
    // `end`. What it returns lies beyond where nobody has one left.
    std::uint32_t take(unsigned thread, std::uint32_t end) {
        constexpr std::uint32_t kMostAhead = 4;
        std::uint32_t& last = *std::min_element(next_.begin(), next_.end());
        const bool own = next_[thread] < std::min(last + kMostAhead * threads() + 1, end);
        std::uint32_t& next = own ? next_[thread] : last;
        return std::exchange(next, next + threads());
    }

    // How many below `end` nobody has taken.
    std::uint32_t left_below(std::uint32_t end) const {
        return std::accumulate(next_.begin(), next_.end(), 0u, [&](std::uint32_t sum, auto next) {
            return sum + (next < end ? (end - next + threads() - 1) / threads() : 0);
        });
    }

  private:
    std::uint32_t threads() const { return std::uint32_t(next_.size()); }

    std::vector<std::uint32_t> next_;  // by thread
};

}  // namespace bdc::search

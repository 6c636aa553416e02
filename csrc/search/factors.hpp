// The factor of a rule by N(s), from a table as long as the searches so far needed.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "types.hpp"

namespace bdc::search {

inline constexpr std::uint32_t kTabulated = 1u << 16;

class Factors {
  public:
    explicit Factors(const RuleSpec& rule);  // the table that the last forest of this rule left
    ~Factors();                              // leaves it to the next
    Factors(const Factors&) = delete;

    const double* data() const { return table_.data(); }
    std::uint32_t size() const { return std::uint32_t(table_.size()); }
    std::size_t bytes() const { return table_.capacity() * sizeof(double); }

    // The table ends before this N(s). Any thread may say so; it grows between calls.
    void miss(std::uint32_t visits) {
        if (visits < kTabulated) outgrown_.store(true, std::memory_order_relaxed);
    }
    bool outgrown() const { return outgrown_.load(std::memory_order_relaxed); }

    template <class Rule>
    void grow(const Rule& rule) {
        outgrown_.store(false, std::memory_order_relaxed);
        std::uint32_t visits = size();
        table_.resize(std::clamp<std::size_t>(2 * table_.size(), 256, kTabulated));
        for (; visits < size(); ++visits) {
            table_[visits] = visits == 0 ? 0.0 : rule.factor(double(visits));
        }
    }

  private:
    const RuleSpec rule_;
    std::vector<double> table_;
    std::atomic<bool> outgrown_{false};
};

}  // namespace bdc::search

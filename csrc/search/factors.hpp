// The factor of a rule by N(s), from a table as long as the searches so far needed. The table is
// the process's: forests of one rule share it, and the last one is kept for the next.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "types.hpp"

namespace bdc::search {

inline constexpr std::uint32_t kTabulated = 1u << 16;

class Factors {
  public:
    explicit Factors(const RuleSpec& rule) : rule_(rule) { take_kept(1); }
    Factors(const Factors&) = delete;

    const double* data() const { return table_ ? table_->data() : nullptr; }
    std::uint32_t size() const { return table_ ? std::uint32_t(table_->size()) : 0; }

    // The table ends before this N(s). Any thread may say so; it grows between calls.
    void miss(std::uint32_t visits) {
        if (visits < kTabulated) outgrown_.store(true, std::memory_order_relaxed);
    }
    bool outgrown() const { return outgrown_.load(std::memory_order_relaxed); }

    template <class Rule>
    void grow(const Rule& rule) {
        outgrown_.store(false, std::memory_order_relaxed);
        const std::uint32_t wanted = std::clamp(2 * size(), 256u, kTabulated);
        if (take_kept(wanted)) return;
        auto table = std::make_shared<std::vector<double>>(data(), data() + size());
        table->reserve(wanted);
        for (std::uint32_t visits = size(); visits < wanted; ++visits) {
            table->push_back(visits == 0 ? 0.0 : rule.factor(double(visits)));
        }
        keep(std::move(table));
    }

  private:
    using Table = std::shared_ptr<const std::vector<double>>;

    bool take_kept(std::size_t least);  // true: it has so many entries
    void keep(Table table);

    const RuleSpec rule_;
    Table table_;
    std::atomic<bool> outgrown_{false};
};

}  // namespace bdc::search

#include "factors.hpp"

#include <mutex>
#include <utility>

namespace bdc::search {

namespace {

struct Kept {
    std::mutex mutex;
    RuleSpec rule;
    std::shared_ptr<const std::vector<double>> table;
};

Kept& kept() {
    static auto* table = new Kept;  // never freed: forests may outlive statics
    return *table;
}

}  // namespace

bool Factors::take_kept(std::size_t least) {
    const std::lock_guard lock(kept().mutex);
    if (!kept().table || kept().table->size() < least || kept().rule != rule_) return false;
    table_ = kept().table;
    return true;
}

void Factors::keep(Table table) {
    table_ = std::move(table);
    const std::lock_guard lock(kept().mutex);
    kept().rule = rule_;
    kept().table = table_;
}

}  // namespace bdc::search

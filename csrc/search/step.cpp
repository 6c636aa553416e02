// A search's loop in one call: children and returns for the leaves selected last, and the next
// ones.
#include <unordered_set>

#include "forest.hpp"

namespace bdc::search {

void Forest::step(const Selection& from, Ids counts, std::span<const double> returns,
                  std::span<const double> priors, Ids tags, std::int64_t leaves, Selection& into) {
    const Change change(*this);
    const std::size_t rows = from.leaf.size();
    check_one_each("step", "returns", returns.size(), rows);
    check_leaves("step", rows, leaves);
    const Growth growth = plan("step", rows, counts, priors, tags);
    const bool untouched = from.stamp != 0 && from.stamp == change.last;
    if (untouched && leaves > 0 && widest_ + growth.most * last_leaves_ <= kMaxChildren) {
        for (std::size_t i = 0; i < rows; ++i) check_return(i, returns[i]);
        note_width(std::uint32_t(growth.most));
        locations_.extend(growth.total);
        torn_ = true;
        descend_all(std::size_t(leaves), {growth, returns.data(), last_leaves_}, into);
    } else {
        step_by_calls(from, growth, returns, std::size_t(leaves), into);
    }
    into.children = {std::int32_t(growth.first_id), std::int32_t(growth.total)};
}

// The same for some of a selection's rows, or after other calls.
void Forest::step_by_calls(const Selection& from, const Growth& growth,
                           std::span<const double> returns, std::size_t leaves, Selection& into) {
    const std::vector<std::int64_t> nodes(from.leaf.begin(), from.leaf.end());
    claim(nodes, returns, from.ticket, true);
    try {
        add_children(nodes, growth);
    } catch (...) {
        put_back();
        throw;
    }
    torn_ = true;
    std::vector<std::int64_t> trees;
    std::unordered_set<std::uint32_t> seen;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Location at = Location::unpack(locations_[std::size_t(nodes[i])]);
        jobs_[i].block = at.block;
        jobs_[i].lane = at.lane;
        if (seen.insert(at.tree).second) trees.push_back(roots_[at.tree]);
    }
    add_returns();
    share_descents(trees, leaves);
    descend_all(leaves, {}, into);
}

}  // namespace bdc::search

// Reading: rows, best path, sizes, and the invariants that tests and debug runs check.
#include <algorithm>
#include <vector>

#include "forest.hpp"

namespace bdc::search {

std::unique_lock<std::mutex> Forest::look() const {
    std::unique_lock lock(mutex_);
    if (torn_) {
        throw InputFault(
            "this forest ran out of memory in an earlier call and is half changed; load a "
            "snapshot of it, or begin anew");
    }
    return lock;
}

std::size_t Forest::bytes() const {
    const auto lock = look();
    std::size_t total = locations_.bytes() + store_.bytes();
    for (const Tree& tree : trees_) {
        total += sizeof(Tree) + sizeof(std::uint32_t) + bytes_of(tree.flights) +
                 bytes_of(tree.arena.chunks) + bytes_of(tree.arena.free);
    }
    return total;
}

std::vector<std::int32_t> Forest::trees() const {
    const auto lock = look();
    std::vector<std::int32_t> roots;
    for (const std::uint32_t root : roots_) {
        if (root != kNone) roots.push_back(std::int32_t(root));
    }
    return roots;
}

std::uint64_t Forest::in_flight() const {
    const auto lock = look();
    std::uint64_t total = 0;
    for (const Tree& tree : trees_) total += tree.flights.size() - tree.done;
    return total;
}

Row Forest::row(const Location& at) const {
    const Family family = store_.at(at.block);
    const Location above = parent(at);
    const std::uint32_t lane = at.lane, below = family.child()[lane];
    Row row{};
    row.id = std::int32_t(family.id()[lane]);
    row.parent = above.block == kNone ? -1 : std::int32_t(id_at(above));
    row.tree = std::int32_t(roots_[at.tree]);
    row.depth = std::int32_t(family.head().depth);
    row.tag = family.tag()[lane];
    row.children = below == kNone ? 0 : std::int32_t(store_.head(below).count);
    row.n = std::int32_t(family.n(lane));
    row.visits = below == kNone ? 1 : std::int32_t(store_.head(below).tally.n());
    row.pending = std::int32_t(family.pending(lane));
    row.reason = family.reason()[lane];
    row.refined = family.refined()[lane];
    row.prior = family.prior()[lane];
    row.value = family.value(lane, config_.backup);
    row.max = family.value(lane, Backup::kMax);
    row.mean = family.value(lane, Backup::kMean);
    return row;
}

std::vector<Row> Forest::rows(Ids nodes) const {
    const auto lock = look();
    std::vector<Row> rows;
    rows.reserve(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        rows.push_back(row(locate(nodes[i], std::int64_t(i), "nodes")));
    }
    return rows;
}

std::vector<Row> Forest::children(std::int64_t node) const {
    const auto lock = look();
    const Location where = locate(node, 0, "nodes");
    const std::uint32_t block = store_.at(where.block).child()[where.lane];
    std::vector<Row> rows;
    if (block == kNone) return rows;
    for (std::uint32_t lane = 0; lane < store_.head(block).count; ++lane) {
        rows.push_back(row({where.tree, block, lane}));
    }
    return rows;
}

std::vector<Row> Forest::nodes(std::int64_t tree) const {
    const auto lock = look();
    const Location root = locate_root(tree, 0);
    std::vector<Row> rows;
    rows.reserve(trees_[root.tree].nodes);
    std::vector<std::uint32_t> blocks{root.block};
    for (std::size_t next = 0; next < blocks.size(); ++next) {  // breadth first
        const Family family = store_.at(blocks[next]);
        for (std::uint32_t lane = 0; lane < family.head().count; ++lane) {
            rows.push_back(row({root.tree, blocks[next], lane}));
            if (family.child()[lane] != kNone) blocks.push_back(family.child()[lane]);
        }
    }
    return rows;
}

std::vector<std::int32_t> Forest::best_path(std::int64_t tree, By by) const {
    const auto lock = look();
    const Location root = locate_root(tree, 0);
    const auto key = [&](const Family& family, std::uint32_t lane) {
        switch (by) {
            case By::kVisits:
                return double(family.n(lane));
            case By::kMax:
                return family.value(lane, Backup::kMax);
            case By::kMean:
                return family.value(lane, Backup::kMean);
            case By::kValue:
                break;
        }
        return family.value(lane, config_.backup);
    };
    std::vector<std::int32_t> path{std::int32_t(tree)};
    std::uint32_t block = store_.at(root.block).child()[root.lane];
    while (block != kNone) {
        const Family family = store_.at(block);
        Leader best;
        for (std::uint32_t lane = 0; lane < family.head().count; ++lane) {
            if (family.reason()[lane] != 0 || family.n(lane) == 0) continue;
            best.meet(family, lane, key(family, lane), false);
        }
        if (best.lane == kNone) break;
        path.push_back(std::int32_t(family.id()[best.lane]));
        block = family.child()[best.lane];
    }
    return path;
}

namespace {

void hold(bool invariant, const char* what) {
    if (!invariant) throw std::logic_error(std::string("broken invariant: ") + what);
}

}  // namespace

void Forest::check_tree(const Tree& tree, std::uint32_t index) const {
    std::uint64_t lanes = 0, flights = 0;
    std::vector<std::uint32_t> blocks{tree.root_block};
    for (std::size_t next = 0; next < blocks.size(); ++next) {
        const Family family = store_.at(blocks[next]);
        const Header& head = family.head();
        std::uint64_t pending = 0;
        std::uint32_t open = 0;
        bool even = true;
        hold(head.count > 0 && head.count <= head.capacity, "0 < children <= capacity");
        for (std::uint32_t lane = 0; lane < head.count; ++lane) {
            const Location at{index, blocks[next], lane};
            pending += family.pending(lane);
            flights += flights_at(at);
            open += family.reason()[lane] == 0;
            even &=
                family.prior()[lane] == family.prior()[0] && family.tag()[lane] == family.tag()[0];
            hold(
                family.id()[lane] < locations_.size() && locations_[family.id()[lane]] == at.pack(),
                "an id leads to its node");
            const std::uint32_t below = family.child()[lane];
            if (below == kNone) continue;
            const Header& under = store_.head(below);
            hold(under.parent_block == blocks[next] && under.parent_lane == lane &&
                     under.depth == head.depth + 1u,
                 "a family knows its node");
            hold(family.pending(lane) >= under.tally.pending(),
                 "visits in flight below pass through the node");
            blocks.push_back(below);
        }
        lanes += head.count;
        hold(pending == head.tally.pending(),
             "a family's visits in flight are those of its children");
        hold(open == head.open && open > 0, "some child is open");
        hold(even || !head.even, "an even family's children differ in nothing that was given");
    }
    hold(lanes == tree.nodes, "every node is reachable from the root");
    hold(flights == tree.flights.size() - tree.done, "every visit in flight has a ticket");
}

void Forest::check() const {
    const auto lock = look();
    std::uint64_t nodes = 0, located = 0;
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        if (!alive(index)) continue;
        check_tree(trees_[index], index);
        nodes += trees_[index].nodes;
    }
    for (std::size_t id = 0; id < locations_.size(); ++id) located += is_node(id);
    hold(nodes == located, "every id belongs to a tree");
}

}  // namespace bdc::search

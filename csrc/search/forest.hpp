// Many search trees in one structure of arrays. Every call checks all its input first and throws
// InputFault with nothing changed; work is split over trees, one tree on one thread, so that
// results do not depend on the number of threads. Calls on one forest from several threads take
// turns.
#pragma once

#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "arena.hpp"
#include "pool.hpp"
#include "rules.hpp"
#include "types.hpp"

namespace bdc::search {

using Ids = std::span<const std::int64_t>;

// Returns of the children one agent has generated at a node, by their first evaluation.
struct Arm {
    double sum;
    std::uint64_t n;
};

// A selection in flight.
struct Flight {
    std::uint64_t ticket;
    std::uint32_t node;
    enum State : std::uint32_t { kLive, kClaimed, kDone } state;
};

struct Tree {
    Arena arena;
    std::uint32_t root = kNone;  // node id, and the tree's name in every call
    std::uint32_t nodes = 0;
    bool alive = true;
    bool busy = false;  // a walker is on it (within one select)
    std::vector<Arm> arms;
    std::vector<Flight> flights;  // by ticket, the done ones are swept from time to time
    std::size_t done = 0;
};

// Columns of `select`, one row per leaf; `path` holds node ids from the root to the leaf.
struct Selection {
    std::vector<std::int32_t> tree, leaf, depth, agent;
    std::vector<std::int64_t> ticket, offsets;
    std::vector<std::int32_t> path;
};

// One node with the statistics of the edge into it, as users see it.
struct Row {
    std::int32_t id, parent, tree, depth;
    std::int32_t tag;  // agent that proposed it
    std::int32_t children;
    std::int32_t n;        // returns
    std::int32_t visits;   // N
    std::int32_t pending;  // selections in flight through it
    std::int32_t reason;   // 0 open, else why it was pruned
    std::int32_t refined;  // times
    std::int32_t reserved;
    double prior, value, max, mean;
};

class Forest {
  public:
    Forest(const Config& config, unsigned threads);

    const Config& config() const { return config_; }
    unsigned threads() const { return pool_.threads(); }
    std::size_t size() const { return locations_.size(); }
    std::size_t bytes() const;
    std::vector<std::int32_t> trees() const;
    std::uint64_t in_flight() const;

    std::vector<std::int32_t> plant(std::int64_t count);
    Selection select(Ids trees, std::int64_t leaves);

    // counts.size() is nodes.size() or 1; priors empty: uniform; tags empty: 0.
    std::vector<std::int32_t> expand(Ids nodes, Ids counts, std::span<const double> priors,
                                     Ids tags);

    // With tickets (of the node, or of its parent): exactly those are resolved. Without: a node
    // resolves its own oldest ticket, or, if it has none, all of its parent's (a wave evaluates the
    // new children of a selected leaf).
    void backup(Ids nodes, std::span<const double> returns, Ids tickets, bool by_ticket);
    void abandon(Ids nodes, Ids tickets, bool by_ticket);

    std::vector<std::int32_t> prune(Ids nodes, Ids reasons);  // ids that had to reopen
    void reopen(Ids nodes);
    void refine(Ids nodes);
    void drop(Ids trees);
    std::vector<std::int32_t> compact(bool drop_pruned);  // new id by old id, -1 for gone

    std::vector<Row> rows(Ids nodes) const;
    std::vector<Row> children(std::int64_t node) const;
    std::vector<Row> nodes(std::int64_t tree) const;
    enum class By { kValue, kMax, kMean, kVisits };
    std::vector<std::int32_t> best_path(std::int64_t tree, By by) const;
    void check() const;  // throws std::logic_error where an invariant does not hold

    void save(const std::string& path) const;
    static Config peek(const std::string& path);
    static void load(const std::string& path, Forest& into);  // `into` freshly made from peek()

  private:
    friend class Snapshot;

    Location locate(std::int64_t node, std::int64_t index, const char* what) const;
    Location locate_root(std::int64_t tree, std::int64_t index) const;
    Location parent(const Location& of) const;
    std::uint32_t id_at(const Location& at) const {
        return trees_[at.tree].arena.at(at.block).id()[at.lane];
    }
    Row row(const Location& at) const;
    void check_tree(const Tree& tree, std::uint32_t index) const;
    std::uint32_t widen(Tree& tree, std::uint32_t tree_index, std::uint32_t block,
                        std::uint32_t needed);
    void grow(const Location& at, std::uint32_t count, std::uint32_t first_id, const double* priors,
              const std::int64_t* tags);
    void reopen_best(const Family& family, std::vector<std::int32_t>& reopened);

    struct Claims;
    void land(const Location& leaf);
    void add_return(const Location& leaf, double value);
    void sweep(Tree& tree);
    std::uint32_t flights_at(const Location& at) const;

    // Calls work(tree filter) so that item i belongs to exactly one call, in order of i per tree.
    template <class TreeOf, class Work>
    void split(std::size_t items, TreeOf tree_of, Work work);

    Config config_;
    AnyRule rule_;
    std::uint32_t agents_;  // generate arms per node, 0 for most rules
    mutable Pool pool_;
    mutable std::mutex mutex_;
    std::vector<Tree> trees_;
    std::vector<std::uint64_t> locations_;  // by node id, packed
    std::uint64_t next_ticket_ = 0;
};

// Shared by selection and best-path: of two lanes with equal scores, is `a` to be taken?
// Larger prior, then fewer returns, then the agent whose turn it is, then the lower id.
bool wins_tie(const Family& family, std::uint32_t a, std::uint32_t b, std::uint32_t turn,
              std::uint32_t agents);

template <class TreeOf, class Work>
void Forest::split(std::size_t items, TreeOf tree_of, Work work) {
    constexpr std::size_t kWorthAThread = 96;  // fewer items than this cost less than a wake-up
    const auto parts = unsigned(std::min<std::size_t>(pool_.threads(), items / kWorthAThread));
    const auto part = [&](unsigned which, unsigned of) {
        for (std::size_t i = 0; i < items; ++i) {
            if (of == 1 || tree_of(i) % of == which) work(i);
        }
    };
    if (parts <= 1) return part(0, 1);
    pool_.run(parts, [&](unsigned which) { part(which, parts); });
}

}  // namespace bdc::search

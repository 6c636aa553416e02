// Many search trees in one structure of arrays. Every call checks all its input first and throws
// InputFault with nothing changed; work is split over trees, one tree on one thread, so that
// results do not depend on the number of threads. Calls on one forest from several threads take
// turns.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "factors.hpp"
#include "lists.hpp"
#include "pool.hpp"
#include "rules.hpp"
#include "types.hpp"

namespace bdc::search {

using Ids = std::span<const std::int64_t>;

// A selection in flight.
struct Flight {
    std::uint64_t ticket;
    std::uint32_t node;
    enum State : std::uint32_t { kLive, kClaimed, kDone } state;
};

// What the thread that works on a tree changes; the rest is in lists by tree, which all may read.
struct alignas(kLine) Tree {
    explicit Tree(ListMemory& lists) : flights(lists), arena(lists) {}

    List<Flight> flights;  // by ticket; the done ones are swept from time to time
    std::uint32_t done = 0;
    std::uint32_t root_block = kNone;  // a family of one lane
    std::uint32_t nodes = 0;
    bool busy = false;  // a walker is on it (within one select)
    Arena arena;
};

// Consecutive node ids.
struct Range {
    std::int32_t first, count;
};

// Node ids from the root to the leaf, row after row; row i's are those of offsets[i] ..
// offsets[i + 1].
struct Paths {
    std::vector<std::int64_t> offsets;
    std::vector<std::int32_t> ids;
};

// Columns of `select`, one row per leaf.
struct Selection {
    Column<std::int32_t> tree, leaf, depth, agent;
    Column<std::int64_t> ticket;

    // The paths as the threads left them, each on lines of its own: a piece per chunk, in the order
    // of the rows where `places` is empty, else row i's path is at places[i], (piece, position).
    struct alignas(kApart) Piece {
        std::vector<std::int32_t> ids;
    };
    std::vector<Piece> pieces;
    std::vector<std::pair<std::uint32_t, std::size_t>> places;

    // The pieces put together, when first asked for; not by two threads at once.
    const Paths& paths() const;

    // What every call writes, on a line that helpers do not read.
    alignas(kApart) Range children{0, 0};  // that `step` added
    std::uint64_t stamp = 0;               // of the call, where `step` can take it up as a whole
    mutable Paths joined;                  // without offsets: not yet

    // Room for so many rows, to be filled in.
    void resize(std::size_t rows) {
        joined.offsets.clear();
        if (tree.size() == rows) return;
        tree.resize(rows);
        leaf.resize(rows);
        depth.resize(rows);
        agent.resize(rows);
        ticket.resize(rows);
    }
};

// Where every node lies, by id.
class Locations {
  public:
    Locations() : memory_(Reserve::make(std::size_t(kMaxNodes) * sizeof(std::uint64_t))) {}
    ~Locations() { Reserve::keep(std::move(memory_)); }
    Locations(const Locations&) = delete;
    void swap(Locations& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(size_, other.size_);
    }

    std::uint64_t* data() const { return reinterpret_cast<std::uint64_t*>(memory_.data()); }
    std::size_t size() const { return size_; }
    std::uint64_t& operator[](std::size_t id) const { return data()[id]; }
    std::size_t bytes() const { return size_ * sizeof(std::uint64_t); }

    // Room for `count` more, to be filled in.
    void extend(std::size_t count) {
        memory_.commit((size_ + count) * sizeof(std::uint64_t));
        size_ += count;
    }
    bool map(int file, std::size_t offset, std::size_t count) {
        if (!memory_.map(file, offset, count * sizeof(std::uint64_t))) return false;
        size_ = count;
        return true;
    }

  private:
    Reserve memory_;
    alignas(kApart) std::size_t size_ = 0;  // that every call changes
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
    ~Forest();

    const Config& config() const { return config_; }
    unsigned threads() const { return pool_.threads(); }
    std::size_t size() const { return locations_.size(); }
    std::size_t bytes() const;
    std::vector<std::int32_t> trees() const;
    std::uint64_t in_flight() const;

    Range plant(std::int64_t count);
    void select(Ids trees, std::int64_t leaves, Selection& into);

    // counts.size() is nodes.size() or 1; priors empty: uniform; tags empty: 0.
    Range expand(Ids nodes, Ids counts, std::span<const double> priors, Ids tags);

    // With tickets (of the node, or of its parent): exactly those are resolved. Without: a node
    // resolves its own oldest ticket, or, if it has none, all of its parent's (a wave evaluates the
    // new children of a selected leaf).
    void backup(Ids nodes, std::span<const double> returns, Ids tickets, bool by_ticket);
    void abandon(Ids nodes, Ids tickets, bool by_ticket);

    // expand and backup at a selection's leaves, then select in its trees; in one pass over each
    // tree where nothing has changed since. `into` is another selection than `from`.
    void step(const Selection& from, Ids counts, std::span<const double> returns,
              std::span<const double> priors, Ids tags, std::int64_t leaves, Selection& into);

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

    // With `sync` the file is on the disk at the end, else it may be the kernel's still.
    void save(const std::string& path, bool sync = true) const;
    static Config peek(const std::string& path);
    // `into` is freshly made from peek(). Without `verify` the file is mapped, and only its small
    // sections are checked: its author is trusted.
    static void load(const std::string& path, bool verify, Forest& into);

  private:
    friend class Snapshot;

    // Held by a call: another one has not left the forest half changed.
    std::unique_lock<std::mutex> look() const;

    // Held by a call that changes the forest: nothing that the last select left is as it was.
    struct Change {
        explicit Change(Forest& forest)
            : lock(forest.look()), last(std::exchange(forest.last_, 0)) {}
        const std::unique_lock<std::mutex> lock;
        const std::uint64_t last;  // what it was
    };

    bool alive(std::uint32_t tree) const { return roots_[tree] != kNone; }

    // A dropped tree's nodes keep their places; the tree says that they are gone.
    bool is_node(std::size_t id) const {
        return id < locations_.size() && alive(Location::unpack(locations_[id]).tree);
    }
    Location locate(std::int64_t node, std::int64_t index, const char* what) const {
        if (node < 0 || !is_node(std::size_t(node))) refuse_node(node, index, what);
        return Location::unpack(locations_[std::size_t(node)]);
    }
    [[noreturn]] static void refuse_node(std::int64_t node, std::int64_t index, const char* what);
    Location locate_root(std::int64_t tree, std::int64_t index) const;
    Location parent(const Location& of) const;
    std::uint32_t id_at(const Location& at) const { return store_.at(at.block).id()[at.lane]; }
    Row row(const Location& at) const;
    void check_tree(const Tree& tree, std::uint32_t index) const;
    void plant_one(std::uint32_t index, std::uint32_t root);
    std::uint32_t found(Tree& tree, std::uint32_t capacity, std::uint32_t parent_block,
                        std::uint32_t parent_lane, std::uint32_t depth);
    void add_lanes(std::uint32_t tree, std::uint32_t block, std::uint32_t count,
                   std::uint32_t first_id, const double* priors, const std::int64_t* tags);
    void widen(std::uint32_t tree, std::uint32_t& block, std::uint32_t more);
    void note_width(std::uint32_t children);

    // The children of a call, row by row and checked.
    struct Growth {
        Ids counts;                   // one each, or one for all
        const std::uint32_t* firsts;  // of one each: the children of the rows before
        const double* priors;
        const std::int64_t* tags;
        std::size_t total, most;  // in all, and of one row
        std::uint32_t first_id;

        std::size_t count(std::size_t row) const {
            return counts.size() == 1 ? most : std::size_t(counts[row]);
        }
        std::uint32_t first(std::size_t row) const {
            return counts.size() == 1 ? std::uint32_t(row * count(0)) : firsts[row];
        }
    };
    Growth plan(const char* call, std::size_t rows, Ids counts, std::span<const double> priors,
                Ids tags);
    bool may_exceed_width(const Growth& growth) const;
    void check_width(Ids nodes, const Growth& growth) const;
    void prepare_growth(const Location& at) const;
    void grow(const Location& at, std::size_t row, const Growth& growth);
    Range add_children(Ids nodes, const Growth& growth);
    Tree copy_tree(const Tree& tree, std::uint32_t index, bool drop_pruned, Store& into,
                   std::vector<std::pair<std::uint32_t, Location>>& places);
    void reopen_best(const Family& family, std::vector<std::int32_t>& reopened);

    using Claimed = std::pair<Flight*, std::uint32_t>;  // with its tree
    class Claims;
    struct Job;
    void land(const Location& leaf);
    // A return lies within what sums, and the rule's posterior, can hold.
    void check_return(std::size_t i, double value) const {
        if (!(value >= least_return_ && value <= most_return_)) refuse_return(i, value);
    }
    [[noreturn]] static void refuse_return(std::size_t i, double value);
    Job job(Claims& claims, std::size_t i, std::int64_t id, double value,
            const std::int64_t* ticket);
    void claim(Ids nodes, std::span<const double> returns, Ids tickets, bool by_ticket);
    void put_back();
    void add_returns();
    void open_arm(const Job& job);
    bool rise(Job& job);
    std::uint32_t flights_at(const Location& at) const;

    // A call's items in chunks of work, every tree's in one chunk and in their order.
    struct Shares {
        std::vector<std::uint32_t> order;   // items, chunk after chunk; empty: as they are
        std::vector<std::uint32_t> starts;  // of the chunks, and the end
        bool sorted;                        // are the items in the order of their trees?
    };
    // Asks `locate(i)` for the tree of each item, which stands for `weight` pieces of work, and
    // deals the items out.
    template <class Locate>
    void share(std::size_t items, std::size_t weight, const Locate& locate);
    // Every thread's share is cut into pieces, each half of what is left: a descent in long pieces
    // sees ahead, and short ones at the end let all threads end together. Of many items, shares
    // begin at whole lines of the columns.
    struct Parts {
        std::size_t items, threads, pieces;
        std::size_t count() const { return threads * pieces; }
        std::size_t first(std::size_t part) const {
            const std::size_t begin = start(part / pieces), all = start(part / pieces + 1) - begin;
            return begin + all - (all >> part % pieces);
        }

      private:
        std::size_t start(std::size_t thread) const {  // of its share
            const std::size_t begin = items * thread / threads;
            return thread == threads || items < 8 * kApartRows * threads
                       ? begin
                       : begin / kApartRows * kApartRows;
        }
    };
    Parts parts_for(std::size_t items, std::size_t weight) const;
    void deal(const Parts& parts);

    // Calls work(0..chunks-1); of all the InputFaults the one with the lowest index is thrown.
    template <class Work>
    void check_all(std::size_t chunks, const Work& work) const;

    struct Landing;
    static void check_leaves(const char* call, std::size_t trees, std::int64_t leaves);
    void share_descents(Ids trees, std::size_t leaves);
    // Are the items' trees in rising order, so that none comes twice?
    bool rising() const {
        return shares_.sorted &&
               std::adjacent_find(item_tree_.begin(), item_tree_.end()) == item_tree_.end();
    }
    void step_by_calls(const Selection& from, const Growth& growth, std::span<const double> returns,
                       std::size_t leaves, Selection& into);
    void descend_all(std::size_t leaves, const Landing& landing, Selection& into);
    struct Wave;
    template <class Rule, class Form>
    class Descent;
    using Descend = void (*)(const Wave& wave, unsigned chunk);
    template <class Rule, bool kMean>
    static Descend descent_in(Isa isa);
    Descend descent(Isa isa) const;  // for the rule

    // Calls work(item) for all items of a chunk, and prepare(item) a little before.
    template <class Prepare, class Work>
    void each(unsigned chunk, const Prepare& prepare, const Work& work) const;
    std::size_t chunks() const { return shares_.starts.size() - 1; }

    Config config_;
    AnyRule rule_;
    std::uint32_t agents_;  // generate arms per node, 0 for most rules
    double least_return_ = -kLargestNumber, most_return_ = kLargestNumber;
    Descend descend_;
    Largest largest_ = find_largest(machine_isa());
    Factors factors_;
    mutable Pool pool_;
    Store store_;
    ListMemory lists_;
    std::vector<Tree> trees_;
    std::vector<std::uint32_t> roots_;      // by tree: its root's id; kNone once dropped
    std::atomic<std::uint32_t> widest_{0};  // no family has more children
    Locations locations_;                   // packed

    // What every call changes, on a line that helpers do not read.
    alignas(kApart) mutable std::mutex mutex_;
    bool torn_ = false;  // half changed, and so for good where that call ended by an exception
    std::uint64_t next_ticket_ = 0;
    std::uint64_t last_ = 0;       // the last select's stamp; 0: something has changed since
    std::size_t last_leaves_ = 0;  // and its leaves per tree

    // Room that calls use again and again.
    alignas(kApart) Shares shares_;
    std::vector<char> part_sorted_;
    std::vector<std::uint32_t> item_tree_, item_first_;
    Column<Location> item_leaf_;
    std::vector<Job> jobs_;
    std::vector<std::vector<Claimed>> claimed_;  // by chunk
};

// A return on its way up, with the selections in flight that land under way.
struct Forest::Job {
    std::uint32_t block, lane;
    std::uint32_t own;    // that were at the leaf,
    std::uint32_t above;  // and at its parent
    double value;
};

// What `step` brings to the leaves of the last select, row by row.
struct Forest::Landing {
    Growth growth;
    const double* returns;
    std::size_t leaves;  // per tree; 0: nothing comes
};

// A child's first return also counts for the agent that made it.
inline void Forest::open_arm(const Job& job) {
    if (agents_ == 0) return;
    const Family family = store_.bare(job.block);
    if (family.n(job.lane) != 0) return;
    Arm& arm = family.arms()[family.tag()[job.lane]];
    arm.sum += job.value;
    ++arm.n;
}

// Adds a return to one edge and goes up; false: that was the root's.
__attribute__((always_inline)) inline bool Forest::rise(Job& job) {
    const Family family = store_.bare(job.block);
    const Header& head = family.head();
    family.add_return(job.lane, job.value, job.own);
    job.own += job.above;
    job.above = 0;
    job.value *= config_.gamma;
    job.block = head.parent_block;
    job.lane = head.parent_lane;
    return job.block != kNone;
}

template <class Work>
void Forest::check_all(std::size_t chunks, const Work& work) const {
    if (chunks == 1) return work(0);
    std::optional<InputFault> first;
    std::mutex finding;
    pool_.run(unsigned(chunks), [&](unsigned chunk) {
        try {
            work(chunk);
        } catch (const InputFault& fault) {
            const std::lock_guard lock(finding);
            if (!first || fault.index < first->index) first = fault;
        }
    });
    if (first) throw *first;
}

template <class Locate>
void Forest::share(std::size_t items, std::size_t weight, const Locate& locate) {
    item_tree_.resize(items);
    const auto look = [&](std::size_t first, std::size_t end) {
        std::uint32_t last = 0;
        bool sorted = true;
        for (std::size_t i = first; i < end; ++i) {
            const std::uint32_t tree = locate(i);
            sorted &= tree >= last;
            item_tree_[i] = last = tree;
        }
        return sorted;
    };
    const Parts parts = parts_for(items, weight);
    if (parts.count() == 1) {
        shares_.sorted = look(0, items);
        shares_.order.clear();
        shares_.starts.assign({0, std::uint32_t(items)});
        return;
    }
    constexpr std::size_t kManyLooks = 1024;  // that take longer than threads need to agree
    const std::size_t looks = items < kManyLooks ? 1 : parts.count();
    part_sorted_.resize(looks);
    check_all(looks, [&](unsigned part) {
        part_sorted_[part] = look(items * part / looks, items * (part + 1) / looks);
    });
    deal(parts);
}

template <class Prepare, class Work>
void Forest::each(unsigned chunk, const Prepare& prepare, const Work& work) const {
    constexpr std::uint32_t kAhead = 64;
    const auto item = [&](std::uint32_t k) { return shares_.order.empty() ? k : shares_.order[k]; };
    const std::uint32_t end = shares_.starts[chunk + 1];
    for (std::uint32_t k = shares_.starts[chunk]; k < end; k += kAhead) {
        const std::uint32_t until = std::min(end, k + kAhead);
        for (std::uint32_t i = k; i < until; ++i) prepare(item(i));
        for (std::uint32_t i = k; i < until; ++i) work(item(i));
    }
}

}  // namespace bdc::search

// Selection: from the root to a leaf (or to a node to widen), several trees in step so that the
// memory latency of one descent hides behind the work of the others.
#include <algorithm>
#include <cmath>
#include <limits>

#include "forest.hpp"
#include "grow.hpp"
#include "lanes_avx2.hpp"
#include "lanes_avx512.hpp"

// A descent is compiled for each form of its inner loop, which must be inlined into it.
#define BDC_INLINE __attribute__((always_inline)) inline

namespace bdc::search {

// One call of `select`, or the descents of one of `step`.
struct Forest::Wave {
    Forest& forest;
    Selection& into;
    std::size_t leaves;
    std::uint64_t first_ticket;
    Landing landing;  // comes first

    void operator()(unsigned chunk) const { forest.descend_(*this, chunk); }
};

namespace {

constexpr std::size_t kInStep = 16;

// Room for the scores of one family; kept, since a call may select a single leaf.
double* score_room() {
    thread_local std::vector<double> room((kMaxChildren + 7) / 8 * 8);
    return room.data();
}

// Where a descent is.
struct Walker {
    std::uint32_t block, lane;
    std::uint32_t next;  // the block of the children
};

// A group of trees in which one descent each is under way, or one tree with several.
struct Group {
    std::size_t count = 0;      // trees, in the first places
    std::size_t item[kInStep];  // position in the call's list of trees
    std::size_t row[kInStep];   // in the selection
    std::uint32_t tree[kInStep];
    std::int32_t depth[kInStep], agent[kInStep];
    Location leaf[kInStep];
};

// What scoring reads of a block with about so many lanes: all of a small one, else the header, the
// counts and the sums.
BDC_INLINE void prefetch(const std::byte* block, std::size_t lanes) {
    __builtin_prefetch(block);
    __builtin_prefetch(block + 64);
    __builtin_prefetch(block + 128);
    if (lanes <= 4) return;
    const std::size_t bytes =
        sizeof(Header) + (lanes <= 8 ? kLaneBytes * lanes : 16 * std::min<std::size_t>(lanes, 64));
    for (std::size_t at = 192; at < bytes + kGrain; at += 64) __builtin_prefetch(block + at);
}

// How a rule that fills in every lane's score picks one; a factored rule has a form of its own.
struct ByScores {};

}  // namespace

template <class Rule, class Form>
class Forest::Descent {
  public:
    BDC_INLINE explicit Descent(const Wave& wave)
        : wave_(wave),
          forest_(wave.forest),
          rule_(std::get<Rule>(wave.forest.rule_)),
          store_(wave.forest.store_.base(0)),
          factors_(wave.forest.factors_.data()),
          tabulated_(wave.forest.factors_.size()),
          widens_(wave.forest.config_.widening_c != 0.0),
          in_place_(leaves_in_place(wave)) {}

    BDC_INLINE void run(unsigned chunk) const {
        thread_local std::vector<std::int32_t> room(64 * kInStep);  // ids by level and place
        std::vector<std::int32_t>& paths = wave_.into.pieces[chunk].ids;
        paths.clear();
        const Shares& shares = forest_.shares_;
        const std::uint32_t begin = shares.starts[chunk], end = shares.starts[chunk + 1];
        if (shares.starts.size() > 2) look_ahead(begin, end);
        for (std::uint32_t next = begin; next < end;) {
            Group group;
            look_ahead(next + kInStep, end);
            for (; next < end && group.count < kInStep; ++next) {
                const std::size_t item = shares.order.empty() ? next : shares.order[next];
                const std::uint32_t tree = forest_.item_tree_[item];
                // Named again: its next descent must see this one's.
                if (forest_.trees_[tree].busy) break;
                forest_.trees_[tree].busy = true;
                group.item[group.count] = item;
                group.tree[group.count++] = tree;
            }
            if (wave_.landing.leaves > 0) land(group);
            for (std::size_t leaf = 0; leaf < wave_.leaves;) {
                const std::size_t together =
                    group.count == 1 ? std::min(wave_.leaves - leaf, kInStep) : 1;
                for (std::size_t i = 0; i < group.count; ++i) {
                    group.row[i] = group.item[i] * wave_.leaves + leaf;
                }
                if (together > 1) {
                    descend_behind(group, together, room);
                } else {
                    group.count == 1 ? descend_alone(group, room) : descend(group, room);
                }
                finish(group, std::max(group.count, together), chunk, room, paths);
                leaf += together;
            }
            for (std::size_t i = 0; i < group.count; ++i) {
                forest_.trees_[group.tree[i]].busy = false;
            }
        }
    }

  private:
    static constexpr bool kGenerates = requires(Rule rule) { rule.agents; };

    // Are the leaves to land still where `item_leaf_` has them? Not where new ones overwrite those
    // of other trees, or where one of them may have moved the family of another.
    BDC_INLINE static bool leaves_in_place(const Wave& wave) {
        if (wave.landing.leaves == 0 || wave.landing.leaves != wave.leaves) return false;
        const bool inner = wave.forest.config_.widening_c != 0.0 || wave.forest.agents_ > 0;
        return wave.leaves == 1 || !inner;
    }

    BDC_INLINE std::byte* block(std::uint32_t at) const {
        return store_ + std::size_t(at) * kGrain;
    }

    // Asks for the lines of some entries, to be written: the processor itself reads ahead, and
    // across the border between two threads' entries it takes lines from the other thread's cache.
    template <class T>
    BDC_INLINE static void claim(const T* from, std::size_t count) {
        const auto* const bytes = reinterpret_cast<const std::byte*>(from);
        for (std::size_t at = 0; at < count * sizeof(T); at += kLine) {
            __builtin_prefetch(bytes + at, 1);
        }
    }

    // Asks for what the group from item `first` on will touch first.
    BDC_INLINE void look_ahead(std::size_t first, std::size_t end) const {
        if (first >= end || !forest_.shares_.order.empty()) return;
        const std::size_t items = std::min(end - first, kInStep), leaves = wave_.leaves;
        for (std::size_t item = first; item < first + items; ++item) {
            claim(&forest_.trees_[forest_.item_tree_[item]], 1);
            if (in_place_) prefetch(block(forest_.item_leaf_[item * leaves].block), 1);
        }
        const std::size_t row = first * leaves, rows = std::min(items * leaves, kInStep);
        const Selection& into = wave_.into;
        for (const auto* column : {&into.tree, &into.leaf, &into.depth, &into.agent}) {
            claim(column->data() + row, rows);
        }
        claim(into.ticket.data() + row, rows);
        claim(forest_.item_leaf_.data() + row, rows);
        const Growth& growth = wave_.landing.growth;
        if (wave_.landing.leaves == 1 && growth.counts.size() == 1) {
            const std::size_t child = growth.first_id + growth.first(first);
            claim(forest_.locations_.data() + child, items * growth.count(first));
        }
    }

    // A leaf that was selected last.
    BDC_INLINE Location landed(std::size_t item, std::size_t leaf) const {
        const std::size_t leaves = wave_.landing.leaves;
        if (in_place_) return forest_.item_leaf_[item * leaves + leaf];
        const auto& flights = forest_.trees_[forest_.item_tree_[item]].flights;
        const Flight& flight = flights[flights.size() - leaves + leaf];
        return Location::unpack(forest_.locations_[flight.node]);
    }

    // Returns and children for the leaves that the group's trees selected last.
    BDC_INLINE void land(const Group& group) const {
        const Landing& landing = wave_.landing;
        for (std::size_t i = 0; i < group.count; ++i) {
            __builtin_prefetch(block(forest_.trees_[group.tree[i]].arena.next), 1);
        }
        for (std::size_t leaf = 0; leaf < landing.leaves; ++leaf) {
            group.count == 1 ? settle_alone(group, leaf) : settle(group, leaf);
        }
        for (std::size_t i = 0; i < group.count; ++i) {
            for (std::size_t leaf = 0; leaf < landing.leaves; ++leaf) {
                forest_.grow(landed(group.item[i], leaf), group.item[i] * landing.leaves + leaf,
                             landing.growth);
            }
            auto& flights = forest_.trees_[group.tree[i]].flights;
            flights.erase(flights.end() - std::ptrdiff_t(landing.leaves), flights.end());
        }
    }

    BDC_INLINE double landing_return(const Group& group, std::size_t i, std::size_t leaf) const {
        return wave_.landing.returns[group.item[i] * wave_.landing.leaves + leaf];
    }

    BDC_INLINE void settle_alone(const Group& group, std::size_t leaf) const {
        const Location at = landed(group.item[0], leaf);
        Job job{at.block, at.lane, 1, 0, landing_return(group, 0, leaf)};
        forest_.open_arm(job);
        while (forest_.rise(job)) {
        }
    }

    // A leaf's returns on the way up, in step, and its selections landed.
    BDC_INLINE void settle(const Group& group, std::size_t leaf) const {
        struct {
            std::byte* family;
            std::uint32_t lane;
            double value;
        } climbers[kInStep];
        for (std::size_t i = 0; i < group.count; ++i) {
            const Location at = landed(group.item[i], leaf);
            const double value = landing_return(group, i, leaf);
            climbers[i] = {block(at.block), at.lane, value};
            forest_.open_arm({at.block, at.lane, 1, 0, value});
        }
        const double gamma = forest_.config_.gamma;
        for (std::size_t going = group.count; going > 0;) {
            std::size_t left = 0;
            for (std::size_t i = 0; i < going; ++i) {
                const auto [base, lane, value] = climbers[i];
                const Family family(base);
                family.add_return(lane, value, 1);
                const Header& head = family.head();
                if (head.parent_block == kNone) continue;
                std::byte* const above = block(head.parent_block);
                prefetch(above, 1);
                climbers[left++] = {above, head.parent_lane, value * gamma};
            }
            going = left;
        }
    }

    // Onto the root; false: it is the walker's leaf.
    BDC_INLINE bool set_out(Group& group, Walker& walker, std::size_t place,
                            std::int32_t& id) const {
        const std::uint32_t root = forest_.trees_[group.tree[place]].root_block;
        group.agent[place] = -1;
        enter(walker, root, Family(block(root)), 0, id);
        return goes_on(group, walker, place, 0);
    }

    BDC_INLINE void descend_alone(Group& group, std::vector<std::int32_t>& room) const {
        Walker walker;
        bool going = set_out(group, walker, 0, room[0]);
        for (std::int32_t level = 1; going; ++level) {
            const std::size_t at = std::size_t(level) * kInStep;
            if (at == room.size()) room.resize(2 * at);
            going = step(group, walker, 0, level, room[at]);
        }
    }

    BDC_INLINE void descend(Group& group, std::vector<std::int32_t>& room) const {
        Walker walkers[kInStep];
        std::uint8_t under_way[kInStep];
        std::size_t going = 0;
        for (std::size_t i = 0; i < group.count; ++i) {
            under_way[going] = std::uint8_t(i);
            going += set_out(group, walkers[i], i, room[i]);
        }
        for (std::int32_t level = 1; going > 0; ++level) {
            if (std::size_t(level + 1) * kInStep > room.size()) room.resize(2 * room.size());
            std::int32_t* const ids = room.data() + std::size_t(level) * kInStep;
            std::size_t left = 0;
            for (std::size_t i = 0; i < going; ++i) {
                const std::uint8_t place = under_way[i];
                under_way[left] = place;
                left += step(group, walkers[place], place, level, ids[place]);
            }
            going = left;
        }
    }

    // So many in one tree, each a level behind the one before: where it chooses, all of those have
    // chosen, and none that comes later.
    BDC_INLINE void descend_behind(Group& group, std::size_t together,
                                   std::vector<std::int32_t>& room) const {
        Walker walkers[kInStep];
        std::uint8_t under_way[kInStep];
        std::size_t going = 0, gone = 0;
        for (std::size_t now = 0; going > 0 || gone < together; ++now) {
            if ((now + 1) * kInStep > room.size()) room.resize(2 * room.size());
            std::size_t left = 0;
            for (std::size_t i = 0; i < going; ++i) {
                const std::uint8_t place = under_way[i];
                const std::size_t level = now - place;
                under_way[left] = place;
                left += step(group, walkers[place], place, std::int32_t(level),
                             room[level * kInStep + place]);
            }
            going = left;
            if (gone == together) continue;
            group.tree[gone] = group.tree[0];
            group.row[gone] = group.row[0] + gone;
            under_way[going] = std::uint8_t(gone);
            going += set_out(group, walkers[gone], gone, room[gone]);
            ++gone;
        }
    }

    // One level down; false: the walker stands on its leaf.
    BDC_INLINE bool step(Group& group, Walker& walker, std::size_t place, std::int32_t level,
                         std::int32_t& id) const {
        const std::uint32_t next = walker.next;
        const Family family(block(next));
        if (family.blank()) write_blank(family);
        if (widens_ && wants_width(Family(block(walker.block)), walker.lane, family)) {
            return stop(group, walker, place, level - 1);
        }
        const std::uint32_t lane = choose(group, walker, place, family);
        if (kGenerates && group.agent[place] >= 0) return stop(group, walker, place, level - 1);
        enter(walker, next, family, lane, id);
        if (walker.next != kNone) prefetch(block(walker.next), family.capacity());
        return goes_on(group, walker, place, level);
    }

    BDC_INLINE static void enter(Walker& walker, std::uint32_t block, const Family& family,
                                 std::uint32_t lane, std::int32_t& id) {
        family.head().tally.take_off();
        family.tally()[lane].take_off();
        id = std::int32_t(family.id()[lane]);
        walker = {block, lane, family.child()[lane]};
    }

    BDC_INLINE bool goes_on(Group& group, const Walker& walker, std::size_t place,
                            std::int32_t level) const {
        if (walker.next != kNone) return true;
        if constexpr (kGenerates) {
            generate(group, place, Family(block(walker.block)).id()[walker.lane], nullptr);
        }
        return stop(group, walker, place, level);
    }

    BDC_INLINE bool stop(Group& group, const Walker& walker, std::size_t place,
                         std::int32_t level) const {
        group.leaf[place] = {group.tree[place], walker.block, walker.lane};
        group.depth[place] = level;
        return false;
    }

    BDC_INLINE Site site(const Group& group, const Walker& walker, std::size_t place,
                         const Family& family) const {
        const Family above(block(walker.block));
        const Config& config = forest_.config_;
        return {family,
                above.value(walker.lane, config.backup),
                above.head().parent_block == kNone,
                config.backup == Backup::kMean,
                config.virtual_loss,
                config.seed,
                group.tree[place],
                above.id()[walker.lane]};
    }

    BDC_INLINE std::uint32_t choose(Group& group, const Walker& walker, std::size_t place,
                                    const Family& family) const {
        if constexpr (Factored<Rule>) {
            const double factor = factor_of(family.head().tally.count());
            if constexpr (std::is_same_v<Form, ByScores>) {
                double* scores = score_room();
                score_lanes(rule_, site(group, walker, place, family), factor, scores);
                return forest_.largest_(family, scores);
            } else if constexpr (std::is_same_v<Rule, PUCT>) {
                return Form::pick(family, factor,
                                  rule_.unvisited(site(group, walker, place, family)));
            } else {
                return Form::pick(family, factor, 0.0);
            }
        } else if constexpr (kGenerates) {
            const Site here = site(group, walker, place, family);
            const Leader best = rule_.draw(here);
            generate(group, place, here.node, &here, best.score);
            return best.lane;
        } else {
            double* scores = score_room();
            rule_.score(site(group, walker, place, family), scores);
            return forest_.largest_(family, scores);
        }
    }

    BDC_INLINE double factor_of(std::uint32_t visits) const {
        if (visits < tabulated_) return factors_[visits];
        forest_.factors_.miss(visits);
        return rule_.factor(double(visits));
    }

    // Progressive widening: fewer open children than c * N^alpha; a selection in flight that
    // stopped here counts as a child to come.
    bool wants_width(const Family& above, std::uint32_t lane, const Family& family) const {
        const Header& head = family.head();
        const double coming = double(above.pending(lane)) - 1.0 - double(head.tally.pending());
        const double visits = double(head.tally.n()) + double(head.tally.pending()) + coming;
        const Config& config = forest_.config_;
        return double(head.open) + coming <
               config.widening_c * std::pow(visits, config.widening_alpha);
    }

    // Does the rule rather have a new child here, and by which agent?
    BDC_INLINE void generate(Group& group, std::size_t place, std::uint32_t node, const Site* site,
                             double best = -std::numeric_limits<double>::infinity()) const {
        if constexpr (kGenerates) {
            const std::uint32_t visits = site ? site->visits() : 1;
            const std::uint64_t now =
                rule_.moment(forest_.config_.seed, group.tree[place], node, visits);
            for (std::uint32_t agent = 0; agent < rule_.agents; ++agent) {
                Stream stream(key_at(now, (std::uint64_t(1) << 32) + agent));
                const Arm arm = site ? site->family.arms()[agent] : Arm{0.0, 0};
                const double draw = rule_.posterior.draw(stream, double(arm.n), arm.sum);
                if (draw > best) {
                    best = draw;
                    group.agent[place] = std::int32_t(agent);
                }
            }
        }
    }

    BDC_INLINE void finish(const Group& group, std::size_t descents, unsigned chunk,
                           const std::vector<std::int32_t>& room,
                           std::vector<std::int32_t>& paths) const {
        Selection& into = wave_.into;
        std::size_t at = paths.size(), length = 0;
        for (std::size_t i = 0; i < descents; ++i) length += std::size_t(group.depth[i]) + 1;
        if (paths.capacity() < at + length) paths.reserve(2 * (at + length));
        paths.resize(at + length);
        for (std::size_t i = 0; i < descents; ++i) {
            const std::int32_t depth = group.depth[i];
            const std::int32_t* ids = room.data() + i;
            for (std::int32_t level = 0; level <= depth; ++level) {
                paths[at + std::size_t(level)] = ids[std::size_t(level) * kInStep];
            }
            const std::size_t row = group.row[i];
            if (!into.places.empty()) into.places[row] = {chunk, at};
            at += std::size_t(depth) + 1;
            const std::int32_t node = ids[std::size_t(depth) * kInStep];
            const std::uint64_t ticket = wave_.first_ticket + row;
            forest_.item_leaf_[row] = group.leaf[i];
            into.tree[row] = ids[0];
            into.leaf[row] = node;
            into.depth[row] = depth;
            into.agent[row] = group.agent[i];
            into.ticket[row] = std::int64_t(ticket);
            forest_.trees_[group.tree[i]].flights.push_back(
                {ticket, std::uint32_t(node), Flight::kLive});
        }
    }

    const Wave& wave_;
    Forest& forest_;
    const Rule& rule_;
    std::byte* const store_;
    const double* const factors_;
    const std::uint32_t tabulated_;
    const bool widens_;
    const bool in_place_;
};

namespace {

template <class Descent, class Wave>
void descend(const Wave& wave, unsigned chunk) {
    Descent(wave).run(chunk);
}

#if defined(__x86_64__)
template <class Descent, class Wave>
BDC_AVX512 void descend_avx512(const Wave& wave, unsigned chunk) {
    Descent(wave).run(chunk);
}

template <class Descent, class Wave>
BDC_AVX2 void descend_avx2(const Wave& wave, unsigned chunk) {
    Descent(wave).run(chunk);
}
#endif

}  // namespace

template <class Rule, bool kMean>
Forest::Descend Forest::descent_in([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::kAvx512) {
        return descend_avx512<Descent<Rule, Avx512Pick<Rule::kBonus, kMean>>, Wave>;
    }
    if (isa == Isa::kAvx2) {
        return descend_avx2<Descent<Rule, Avx2Pick<Rule::kBonus, kMean>>, Wave>;
    }
#endif
    return descend<Descent<Rule, PortablePick<Rule::kBonus, kMean>>, Wave>;
}

Forest::Descend Forest::descent(Isa isa) const {
    return std::visit(
        [&]<class Rule>(const Rule&) -> Descend {
            if constexpr (Factored<Rule>) {
                if (config_.virtual_loss == 0.0) {
                    return config_.backup == Backup::kMean ? descent_in<Rule, true>(isa)
                                                           : descent_in<Rule, false>(isa);
                }
            }
            return descend<Descent<Rule, ByScores>, Wave>;
        },
        rule_);
}

namespace {

// A descent in pieces of work: a rule that draws or takes logarithms lane by lane costs many times
// a factored one.
std::size_t descent_weight(const AnyRule& rule) {
    return std::visit([]<class Rule>(const Rule&) { return Factored<Rule> ? 1 : 8; }, rule);
}

}  // namespace

void Forest::check_leaves(const char* call, std::size_t trees, std::int64_t leaves) {
    if (leaves < 0 || (leaves > 0 && std::int64_t(trees) > (std::int64_t(1) << 31) / leaves)) {
        throw InputFault(std::string(call) + " got leaves = " + std::to_string(leaves) +
                         "; give a number from 0, with trees * leaves at most 2^31");
    }
}

void Forest::select(Ids trees, std::int64_t leaves, Selection& into) {
    const Change change(*this);
    check_leaves("select", trees.size(), leaves);
    share_descents(trees, std::size_t(leaves));
    descend_all(std::size_t(leaves), {}, into);
}

void Forest::share_descents(Ids trees, std::size_t leaves) {
    share(trees.size(), leaves * descent_weight(rule_),
          [&](std::size_t i) { return locate_root(trees[i], std::int64_t(i)).tree; });
}

// Descends in the trees that are shared out, after `landing`.
void Forest::descend_all(std::size_t leaves, const Landing& landing, Selection& into) {
    const std::size_t trees = item_tree_.size(), rows = trees * leaves;
    into.resize(rows);
    into.pieces.resize(rows == 0 ? 0 : chunks());
    into.places.clear();
    into.children = {0, 0};
    into.stamp = 0;
    if (rows == 0) return;
    if (factors_.outgrown()) {
        std::visit(
            [&]<class Rule>(const Rule& rule) {
                if constexpr (Factored<Rule>) factors_.grow(rule);
            },
            rule_);
    }
    if (!shares_.order.empty() || (leaves > 1 && trees > 1)) into.places.resize(rows);
    const Wave wave{*this, into, leaves, next_ticket_, landing};
    next_ticket_ += rows;
    item_leaf_.resize(rows);
    torn_ = true;
    pool_.run(unsigned(chunks()), wave);
    torn_ = false;
    if (landing.leaves > 0 || rising()) {
        static std::atomic<std::uint64_t> stamps{0};
        into.stamp = last_ = ++stamps;
        last_leaves_ = leaves;
    }
}

const Paths& Selection::paths() const {
    if (!joined.offsets.empty()) return joined;
    const std::size_t rows = leaf.size();
    joined.offsets.resize(rows + 1);
    std::int64_t end = 0;
    for (std::size_t row = 0; row < rows; ++row) {
        joined.offsets[row] = end;
        end += depth[row] + 1;
    }
    joined.offsets[rows] = end;
    joined.ids.clear();
    joined.ids.reserve(std::size_t(end));
    if (places.empty()) {
        for (const Piece& piece : pieces) {
            joined.ids.insert(joined.ids.end(), piece.ids.begin(), piece.ids.end());
        }
    } else {
        for (std::size_t row = 0; row < rows; ++row) {
            const auto [piece, at] = places[row];
            const auto first = pieces[piece].ids.begin() + std::ptrdiff_t(at);
            joined.ids.insert(joined.ids.end(), first, first + depth[row] + 1);
        }
    }
    return joined;
}

}  // namespace bdc::search

// The memory of trees. The unit is a *family*: all children of a node in one block, a header
// followed by one array per field. A node is a lane of its parent's family and also holds the
// statistics of the edge into it. Blocks are named by their place in the store, counted in grains
// of 32 bytes, and never move while they live.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "lists.hpp"
#include "memory.hpp"
#include "slabs.hpp"
#include "types.hpp"

namespace bdc::search {

inline constexpr std::size_t kGrain = 32;
inline constexpr std::size_t kLaneBytes = 44;

// Returns and selections in flight in one word, so that both change at once: n below, pending
// above.
struct Tally {
    std::uint64_t both;

    std::uint32_t n() const { return std::uint32_t(both); }
    std::uint32_t pending() const { return std::uint32_t(both >> 32); }
    std::uint32_t count() const { return n() + pending(); }
    void take_off() { both += std::uint64_t(1) << 32; }
    void land(std::uint32_t flights) { both -= std::uint64_t(flights) << 32; }
    void add_return(std::uint32_t landing) { both += 1 - (std::uint64_t(landing) << 32); }
    void restart() { both &= ~std::uint64_t(0xFFFFFFFFu); }
};

// Most lanes are never looked at: those of a new family are written when somebody first does. Until
// then its first tally holds this: the id of the first lane, and, for more selections in flight
// than there can be, whether priors and tags were given, which are written at once.
struct Blank {
    std::uint32_t id;
    bool priors, tags;

    static bool is(Tally first) { return first.both >= std::uint64_t(kFlag) << 32; }
    static Blank read(Tally first) {
        return {first.n(), (first.pending() & 1) != 0, (first.pending() & 2) != 0};
    }
    Tally tally() const {
        return {id | std::uint64_t(kFlag + (priors ? 1u : 0u) + (tags ? 2u : 0u)) << 32};
    }

  private:
    static constexpr std::uint32_t kFlag = 0xFFFFFFFCu;
};

struct Header {
    std::uint32_t parent_block;  // kNone above a root; in a free block the next free one
    std::uint32_t depth : 31;    // of these children; a root has 0
    std::uint32_t even : 1;      // their priors are all the same, and their tags
    Tally tally;                 // n: N of the node whose children these are, 1 + returns through
                                 // them; pending: selections in flight that went through them
    std::uint16_t parent_lane;
    std::uint16_t count;     // lanes in use; 0 in a free block
    std::uint16_t capacity;  // lanes
    std::uint16_t open;      // lanes that are not pruned
};
static_assert(sizeof(Header) == 24);

// Returns of the children one agent has generated at a node, by their first evaluation.
struct Arm {
    double sum;
    std::uint64_t n;
};

// Bytes from the block's start to its generate arms, which follow the lanes.
inline std::size_t arms_offset(std::size_t capacity) {
    return sizeof(Header) + (kLaneBytes * capacity + 7) / 8 * 8;
}

inline std::uint32_t grains_for(std::uint32_t capacity, std::uint32_t arms) {
    const std::size_t bytes = arms_offset(capacity) + sizeof(Arm) * arms;
    return std::uint32_t((bytes + kGrain - 1) / kGrain);
}

// Typed view of a block.
class Family {
  public:
    explicit Family(std::byte* base) : base_(base), capacity_(head().capacity) {}

    Header& head() const { return *reinterpret_cast<Header*>(base_); }
    std::size_t capacity() const { return capacity_; }
    Tally* tally() const { return field<Tally>(0); }
    double* sum() const { return field<double>(8); }    // of the returns
    double* best() const { return field<double>(16); }  // largest return, 0 without returns
    double* prior() const { return field<double>(24); }
    std::uint32_t* child() const { return field<std::uint32_t>(32); }  // block of the node's family
    std::uint32_t* id() const { return field<std::uint32_t>(36); }
    std::uint16_t* tag() const { return field<std::uint16_t>(40); }
    std::uint8_t* reason() const { return field<std::uint8_t>(42); }   // 0: open, else why pruned
    std::uint8_t* refined() const { return field<std::uint8_t>(43); }  // times, at most 255
    Arm* arms() const { return reinterpret_cast<Arm*>(base_ + arms_offset(capacity_)); }

    std::uint32_t n(std::uint32_t lane) const { return tally()[lane].n(); }  // returns
    std::uint32_t pending(std::uint32_t lane) const { return tally()[lane].pending(); }

    bool blank() const { return Blank::is(*tally()); }

    double value(std::uint32_t lane, Backup backup) const {
        if (backup == Backup::kMax) return best()[lane];
        return n(lane) ? sum()[lane] / double(n(lane)) : 0.0;
    }

    // And lands so many selections in flight.
    void add_return(std::uint32_t lane, double value, std::uint32_t flights) const {
        Tally& edge = tally()[lane];
        double& top = best()[lane];
        top = edge.n() == 0 || value > top ? value : top;
        sum()[lane] += value;
        edge.add_return(flights);
        head().tally.add_return(flights);
    }

    void copy_lane(std::uint32_t to, const Family& other, std::uint32_t from) const {
        tally()[to] = other.tally()[from];
        sum()[to] = other.sum()[from];
        best()[to] = other.best()[from];
        prior()[to] = other.prior()[from];
        child()[to] = other.child()[from];
        id()[to] = other.id()[from];
        tag()[to] = other.tag()[from];
        reason()[to] = other.reason()[from];
        refined()[to] = other.refined()[from];
    }

  private:
    template <class T>
    T* field(std::size_t bytes_before) const {
        return reinterpret_cast<T*>(base_ + sizeof(Header) + bytes_before * capacity_);
    }
    std::byte* base_;
    std::size_t capacity_;
};

// Writes the lanes of a blank family.
void write_blank(const Family& family);

// A run of grains that belongs to one tree.
struct Chunk {
    std::uint32_t first, grains;
};

// All blocks of a forest. Trees take memory from it by the chunk, on several threads.
class Store {
  public:
    explicit Store(unsigned threads)
        : memory_(Reserve::make(std::size_t(kMaxGrains) * kGrain)),
          purses_(threads),
          slabs_(threads) {}
    ~Store() { Reserve::keep(std::move(memory_)); }
    Store(const Store&) = delete;

    std::byte* base(std::uint32_t block) const {
        return memory_.data() + std::size_t(block) * kGrain;
    }
    Header& head(std::uint32_t block) const { return *reinterpret_cast<Header*>(base(block)); }
    Family bare(std::uint32_t block) const { return Family(base(block)); }  // perhaps blank
    Family at(std::uint32_t block) const {                                  // its lanes are written
        const Family family = bare(block);
        if (family.blank()) [[unlikely]]
            write_blank(family);
        return family;
    }
    std::uint32_t used() const { return used_; }  // grains; every chunk lies below
    std::size_t bytes() const;                    // less what nobody has touched

    // A chunk of about `grains`, and of `needed` at least. What was given back is used again for
    // about the same size: never cut up for small trees, it does not get lost to large ones.
    Chunk take(std::uint32_t needed, std::uint32_t grains);
    Chunk append(std::uint32_t grains);  // of any size; not beside other calls
    void give(Chunk chunk);

    // For the loader, before anything is taken: the first `grains` are in use.
    std::byte* fill(std::uint32_t grains);
    bool map(int file, std::size_t offset, std::uint32_t grains);

    void swap(Store& other) noexcept;

  private:
    // What a thread may hand out without asking the others. As soon as helpers take memory, it
    // comes in slabs.
    struct alignas(kApart) Purse {
        Chunk rest{0, 0};
    };
    static constexpr int kClasses = 128;

    static Chunk cut(Chunk& rest, std::uint32_t needed, std::uint32_t grains);
    Chunk refill(Purse& purse, std::uint32_t needed, std::uint32_t grains);
    Chunk first_slabs(std::uint32_t needed);
    Chunk slab();
    void shelve(Chunk chunk);

    Reserve memory_;
    std::uint32_t used_ = 0;
    std::vector<Purse> purses_;  // by the worker's number
    Slabs slabs_;
    bool in_slabs_ = false;              // has a helper taken any?
    std::mutex mutex_;                   // over the rest
    std::vector<Chunk> free_[kClasses];  // by size, four classes to a power of two
};

// One tree's part of the store.
class Arena {
  public:
    explicit Arena(ListMemory& lists) : chunks(lists), free(lists) {}

    // A block for so many lanes and generate arms; it holds anything.
    std::uint32_t allocate(Store& store, std::uint32_t capacity, std::uint32_t arms) {
        if (!free.empty()) {
            if (const std::uint32_t block = reuse(store, capacity); block != kNone) return block;
        }
        const std::uint32_t needed = grains_for(capacity, arms);
        if (end - next < needed) reserve(store, needed);
        next += needed;
        return next - needed;
    }
    void release(Store& store, std::uint32_t block);
    void give_back(Store& store) const;  // all chunks; nothing may be allocated after
    void add(Chunk chunk);               // the next blocks lie in it

    List<Chunk> chunks;
    List<std::pair<std::uint32_t, std::uint32_t>> free;  // first free block by capacity
    std::uint32_t next = 0, end = 0;                     // what is left of the last chunk
    std::uint32_t grains = 0;                            // of all chunks

  private:
    void reserve(Store& store, std::uint32_t needed);
    std::uint32_t* first_free(std::uint32_t capacity);
    std::uint32_t reuse(Store& store, std::uint32_t capacity);  // a free block, or kNone
};

}  // namespace bdc::search

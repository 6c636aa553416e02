#include "snapshot.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <span>
#include <unordered_map>

#include "checksum.hpp"
#include "forest.hpp"

namespace bdc::search {

namespace {

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

// A file being written; until `commit` it is a temporary that disappears again. With `sync` the
// commit waits for the disk.
class Draft {
  public:
    Draft(const std::string& path, bool sync)
        : path_(path), temporary_(path + suffix()), sync_(sync) {
        fd_ = open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd_ < 0) fail("open");
    }
    ~Draft() {
        if (fd_ >= 0) close(fd_);
        if (!temporary_.empty()) unlink(temporary_.c_str());
    }

    // A disk without the room is found out before anything is written.
    void extend(std::size_t bytes) {
#if defined(__linux__)
        if (fallocate(fd_, 0, 0, off_t(bytes)) == 0) return;
        if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) fail("write");
#endif
        if (ftruncate(fd_, off_t(bytes)) != 0) fail("write");
    }

    void write(std::size_t offset, std::span<const std::byte> from) {
        while (!from.empty()) {
            const std::size_t piece = std::min(from.size(), kPiece);
            const ssize_t done = pwrite(fd_, from.data(), piece, off_t(offset));
            if (done < 0 && errno == EINTR) continue;
            if (done <= 0) fail("write");
            start_writeback(offset, std::size_t(done));
            from = from.subspan(std::size_t(done));
            offset += std::size_t(done);
        }
    }

    // Calls look(data) with what has been written.
    template <class Look>
    void read(std::size_t bytes, const Look& look) const {
        void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd_, 0);
        if (mapped == MAP_FAILED) fail("read");
        look(static_cast<const std::byte*>(mapped));
        munmap(mapped, bytes);
    }

    void commit() {
        if (sync_ && fsync(fd_) != 0) fail("fsync");
        if (rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename");
        temporary_.clear();
        if (!sync_) return;
        const auto slash = path_.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
        const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory >= 0) {  // the new name must survive a power cut too
            fsync(directory);
            close(directory);
        }
    }

  private:
    // Nobody else's, on any thread of any process.
    static std::string suffix() {
        static std::atomic<std::uint64_t> drafts{0};
        return ".tmp." + std::to_string(getpid()) + "." + std::to_string(drafts++);
    }

    static constexpr std::size_t kPiece = std::size_t(4) << 20;

    // The disk works while the next piece is copied.
    void start_writeback([[maybe_unused]] std::size_t offset, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
        if (sync_ && bytes == kPiece) {
            sync_file_range(fd_, off64_t(offset), off64_t(bytes), SYNC_FILE_RANGE_WRITE);
        }
#endif
    }

    [[noreturn]] void fail(const char* step) const { throw FileFault(errno, path_, step); }
    std::string path_, temporary_;
    bool sync_;
    int fd_ = -1;
};

// A file mapped for reading, with its table checked and its sections found.
class Source {
  public:
    Source(const std::string& path, bool populate) : path_(path) {
        fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe need have no writer
        if (fd_ < 0) refuse(std::string("cannot be opened (") + std::strerror(errno) + ")");
        try {
            struct stat info;
            const bool regular = fstat(fd_, &info) == 0 && S_ISREG(info.st_mode);
            bytes_ = regular ? std::size_t(info.st_size) : 0;
            if (bytes_ < sizeof(Preamble)) refuse("is no bdc forest snapshot (too short)");
            const int flags = MAP_PRIVATE | (populate ? MAP_POPULATE : 0);
            void* mapped = mmap(nullptr, bytes_, PROT_READ, flags, fd_, 0);
            if (mapped == MAP_FAILED) refuse("cannot be mapped");
            data_ = static_cast<const std::byte*>(mapped);
            read_table();
        } catch (...) {
            end();
            throw;
        }
    }
    Source(const Source&) = delete;
    ~Source() { end(); }

    int file() const { return fd_; }
    std::size_t offset_of(SectionKind kind) const { return sections_[kind].offset; }

    template <class Record>
    std::span<const Record> section(SectionKind kind) const {
        const Section& s = sections_[kind];
        if (s.bytes % sizeof(Record) != 0) refuse("is damaged (a section has a broken size)");
        return {reinterpret_cast<const Record*>(data_ + s.offset), s.bytes / sizeof(Record)};
    }

    void verify(SectionKind kind) const {
        const Section& s = sections_[kind];
        if (checksum(data_ + s.offset, s.bytes) != s.checksum) {
            refuse("is damaged (checksum of section " + std::to_string(kind) + ")");
        }
    }

    [[noreturn]] void refuse(const std::string& why) const {
        throw InputFault("snapshot " + path_ + " " + why + "; save it again");
    }
    void insist(bool holds, const char* why) const {
        if (!holds) refuse(std::string("is damaged (") + why + ")");
    }

  private:
    void end() {
        if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), bytes_);
        close(fd_);
    }

    void read_table() {
        Preamble preamble;
        std::memcpy(&preamble, data_, sizeof preamble);
        if (std::memcmp(preamble.magic, kMagic, sizeof kMagic) != 0) {
            refuse("is no bdc forest snapshot (foreign file)");
        }
        if (preamble.endian != kEndian) refuse("was written on a machine of other byte order");
        if (preamble.version > kVersion) {
            refuse("has format version " + std::to_string(preamble.version) +
                   ", newer than this bdc reads (" + std::to_string(kVersion) + ")");
        }
        if (preamble.version < kOldest) {
            refuse("has format version " + std::to_string(preamble.version) +
                   ", older than this bdc reads (" + std::to_string(kOldest) + ")");
        }
        insist(preamble.file_bytes == bytes_, "truncated or extended");
        insist(bytes_ >= sizeof preamble + sizeof sections_, "truncated");
        std::memcpy(sections_, data_ + sizeof preamble, sizeof sections_);
        insist(checksum(sections_, sizeof sections_) == preamble.checksum, "checksum of the table");
        for (int i = 0; i < kSections; ++i) {
            const Section& s = sections_[i];
            insist(
                s.offset % alignment(i) == 0 && s.offset <= bytes_ && s.bytes <= bytes_ - s.offset,
                "a section lies outside the file");
        }
    }

    std::string path_;
    int fd_ = -1;
    const std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
    Section sections_[kSections];
};

ConfigRecord config_record(const Source& source) {
    source.verify(kConfig);
    const auto records = source.section<ConfigRecord>(kConfig);
    source.insist(records.size() == 1, "configuration");
    return records[0];
}

}  // namespace

// Reads the sections into a forest and checks every reference.
class Snapshot {
  public:
    Snapshot(const Source& source, Forest& forest) : source_(source), forest_(forest) {}

    void read() {
        for (const auto kind : {kTreeTable, kChunks, kFlights, kFree, kLocations, kGrains}) {
            source_.verify(kind);
        }
        const auto locations = source_.section<std::uint64_t>(kLocations);
        const auto grains = source_.section<std::byte>(kGrains);
        check_sizes();
        forest_.locations_.extend(locations.size());
        std::copy(locations.begin(), locations.end(), forest_.locations_.data());
        const auto used = std::uint32_t(grains.size() / kGrain);
        std::byte* const store = forest_.store_.fill(used);
        if (used > 0) std::memcpy(store, grains.data(), grains.size());
        read_trees();
        taken_.assign(used, false);
        owner_.assign(used, kNone);
        for (const auto& [chunk, tree] : owned_) {
            std::fill_n(owner_.begin() + chunk.first, chunk.grains, tree);
        }
        for (std::size_t id = 0; id < locations.size(); ++id) {
            const Location place = Location::unpack(forest_.locations_[id]);
            source_.insist(place.tree < forest_.trees_.size(), "ids");
        }
        std::uint64_t nodes = 0, located = 0;
        for (std::uint32_t index = 0; index < forest_.trees_.size(); ++index) {
            if (forest_.alive(index)) check_blocks(index);
            nodes += forest_.trees_[index].nodes;
        }
        read_free();
        for (std::size_t id = 0; id < locations.size(); ++id) located += forest_.is_node(id);
        source_.insist(nodes == located, "ids");
        read_flights();
        for (std::uint32_t index = 0; index < forest_.trees_.size(); ++index) {
            if (forest_.alive(index)) check_tree(index);
        }
        for (const Tree& tree : forest_.trees_) check_flights(tree);
    }

    // Takes locations and grains as they lie in the file; what is small is checked.
    void map() {
        forest_.widest_ = kMaxChildren;  // unknown
        for (const auto kind : {kTreeTable, kChunks, kFlights, kFree}) source_.verify(kind);
        const std::size_t nodes = source_.section<std::uint64_t>(kLocations).size();
        const std::size_t bytes = source_.section<std::byte>(kGrains).size();
        check_sizes();
        if (!forest_.locations_.map(source_.file(), source_.offset_of(kLocations), nodes) ||
            !forest_.store_.map(source_.file(), source_.offset_of(kGrains),
                                std::uint32_t(bytes / kGrain))) {
            source_.refuse("cannot be mapped on this system, load it with verify=True");
        }
        read_trees();
        read_free();
        read_flights();
    }

  private:
    static constexpr std::uint32_t kMostReturns = 1u << 31;  // users see them as int32

    void check_sizes() {
        const std::size_t bytes = source_.section<std::byte>(kGrains).size();
        source_.insist(bytes % kGrain == 0 && bytes / kGrain <= kMaxGrains,
                       "the size of the store");
        source_.insist(source_.section<std::uint64_t>(kLocations).size() <= kMaxNodes,
                       "too many nodes");
        forest_.next_ticket_ = config_record(source_).next_ticket;
    }

    // Every chunk has one owner, and what has none is free.
    void read_trees() {
        const auto records = source_.section<TreeRecord>(kTreeTable);
        const auto chunks = source_.section<Chunk>(kChunks);
        const std::uint32_t used = forest_.store_.used();
        source_.insist(records.size() < kMaxTrees, "too many trees");
        forest_.trees_.resize(records.size(), Tree(forest_.lists_));
        forest_.roots_.assign(records.size(), kNone);
        std::size_t at = 0;
        for (std::uint32_t index = 0; index < records.size(); ++index) {
            const TreeRecord& record = records[index];
            Tree& tree = forest_.trees_[index];
            source_.insist(record.alive <= 1 && record.chunks <= chunks.size() - at &&
                               (record.alive == 1) == (record.chunks > 0) &&
                               (record.alive == 1 || record.nodes == 0),
                           "tree table");
            if (record.alive == 0) continue;
            source_.insist(record.root != kNone, "tree table");
            forest_.roots_[index] = record.root;
            tree.root_block = record.root_block;
            tree.nodes = record.nodes;
            for (std::uint32_t i = 0; i < record.chunks; ++i) {
                const Chunk& chunk = chunks[at++];
                source_.insist(
                    chunk.first <= used && chunk.grains > 0 && chunk.grains <= used - chunk.first,
                    "a chunk");
                owned_.push_back({chunk, index});
                tree.arena.chunks.push_back(chunk);
                tree.arena.grains += chunk.grains;
            }
            const Chunk& last = tree.arena.chunks.back();
            tree.arena.next = record.next;
            tree.arena.end = last.first + last.grains;
            source_.insist(record.next >= last.first && record.next <= tree.arena.end &&
                               record.root_block < used,
                           "tree table");
        }
        source_.insist(at == chunks.size(), "tree table");
        std::sort(owned_.begin(), owned_.end(),
                  [](const Owned& a, const Owned& b) { return a.chunk.first < b.chunk.first; });
        std::uint32_t end = 0;
        const auto free_until = [&](std::uint32_t first) {
            source_.insist(first >= end, "a chunk");
            if (first > end) forest_.store_.give({end, first - end});
        };
        for (const Owned& owned : owned_) {
            free_until(owned.chunk.first);
            end = owned.chunk.first + owned.chunk.grains;
        }
        free_until(used);
    }

    // A block that nobody has taken yet, in the memory of its tree.
    void take(std::uint32_t index, std::uint32_t block) {
        const Arena& arena = forest_.trees_[index].arena;
        const std::size_t used = taken_.size();
        source_.insist(block < used, "a block");
        const std::uint32_t capacity = forest_.store_.head(block).capacity;
        source_.insist(capacity >= 1 && capacity <= kMaxChildren, "a block header");
        const std::uint32_t grains = grains_for(capacity, forest_.agents_);
        source_.insist(grains <= used - block, "a block header");
        source_.insist(block + grains <= arena.next || block >= arena.end ||
                           block + grains <= arena.chunks.back().first,
                       "a block in free memory");
        for (std::uint32_t grain = block; grain < block + grains; ++grain) {
            source_.insist(!taken_[grain] && owner_[grain] == index, "a block");
            taken_[grain] = true;
        }
    }

    // From the root down every child reference leads to a block of its own that names its parent,
    // so that walks up and down end.
    void check_blocks(std::uint32_t index) {
        const Tree& tree = forest_.trees_[index];
        std::vector<std::uint32_t> blocks{tree.root_block};
        take(index, tree.root_block);
        for (std::size_t next = 0; next < blocks.size(); ++next) {
            check_header(forest_.store_.head(blocks[next]));
            const Family family = forest_.store_.at(blocks[next]);
            check_family(family, next == 0);
            for (std::uint32_t lane = 0; lane < family.head().count; ++lane) {
                const std::uint32_t below = family.child()[lane];
                if (below == kNone) continue;
                take(index, below);
                const Header& head = forest_.store_.head(below);
                source_.insist(head.parent_block == blocks[next] && head.parent_lane == lane &&
                                   head.depth == family.head().depth + 1u && head.depth != 0,
                               "a parent");
                blocks.push_back(below);
            }
        }
        source_.insist(forest_.roots_[index] == forest_.store_.at(tree.root_block).id()[0],
                       "a root");
    }

    void check_header(const Header& head) {
        forest_.note_width(head.count);
        source_.insist(head.count >= 1 && head.count <= head.capacity && head.tally.n() >= 1 &&
                           head.tally.n() < kMostReturns,
                       "a block header");
    }

    void check_family(const Family& family, bool root) {
        const Header& head = family.head();
        if (root) {
            source_.insist(head.parent_block == kNone && head.depth == 0 && head.count == 1 &&
                               family.reason()[0] == 0,
                           "a root");
        }
        constexpr double kLargestSum = kLargestNumber * 0x1p32;  // of all the returns there can be
        const std::uint32_t agents = forest_.agents_;
        for (std::uint32_t agent = 0; agent < agents; ++agent) {
            source_.insist(bounded(family.arms()[agent].sum, kLargestSum), "an arm");
        }
        for (std::uint32_t lane = 0; lane < head.count; ++lane) {
            source_.insist(bounded(family.best()[lane]) &&
                               bounded(family.sum()[lane], kLargestSum) &&
                               family.n(lane) < kMostReturns && bounded(family.prior()[lane]) &&
                               family.prior()[lane] >= 0.0 && family.id()[lane] < kMaxNodes &&
                               (agents == 0 || family.tag()[lane] < agents),
                           "a node");
        }
    }

    void check_tree(std::uint32_t index) {
        const Tree& tree = forest_.trees_[index];
        try {
            forest_.check_tree(tree, index);
        } catch (const std::logic_error& broken) {
            source_.refuse(std::string("is damaged (") + broken.what() + ")");
        }
    }

    // After every tree's check: only then does each id lead to a node.
    void check_flights(const Tree& tree) {
        std::unordered_map<std::uint32_t, std::uint32_t> flying;
        for (const Flight& flight : tree.flights) ++flying[flight.node];
        for (const auto& [node, flights] : flying) {
            const auto leaf = Location::unpack(forest_.locations_[node]);
            source_.insist(forest_.flights_at(leaf) == flights, "a ticket");
        }
    }

    void read_free() {
        for (const FreeRecord& free : source_.section<FreeRecord>(kFree)) {
            source_.insist(free.tree < forest_.trees_.size() && forest_.alive(free.tree) &&
                               free.block < forest_.store_.used(),
                           "a free block");
            forest_.trees_[free.tree].arena.free.emplace_back(free.capacity, free.block);
            if (taken_.empty()) continue;  // its author is trusted
            for (std::uint32_t block = free.block; block != kNone;) {
                take(free.tree, block);
                const Header& head = forest_.store_.head(block);
                source_.insist(head.count == 0 && head.capacity == free.capacity, "a free block");
                block = head.parent_block;
            }
        }
    }

    void read_flights() {
        const auto records = source_.section<FlightRecord>(kFlights);
        for (const FlightRecord& record : records) {
            source_.insist(record.tree < forest_.trees_.size() &&
                               record.node < forest_.locations_.size() &&
                               record.ticket < forest_.next_ticket_,
                           "a ticket");
            Tree& tree = forest_.trees_[record.tree];
            source_.insist(
                forest_.alive(record.tree) &&
                    Location::unpack(forest_.locations_[record.node]).tree == record.tree &&
                    (tree.flights.empty() || tree.flights.back().ticket < record.ticket),
                "a ticket");
            tree.flights.push_back({record.ticket, record.node, Flight::kLive});
        }
    }

    const Source& source_;
    Forest& forest_;
    struct Owned {
        Chunk chunk;
        std::uint32_t tree;
    };
    std::vector<Owned> owned_;          // by place
    std::vector<std::uint32_t> owner_;  // tree by grain; empty for a mapped file
    std::vector<bool> taken_;           // by grain; empty for a mapped file
};

void Forest::save(const std::string& path, bool sync) const {
    const auto lock = look();
    ConfigRecord config{};
    config.rule = config_.rule.kind;
    config.backup = std::uint32_t(config_.backup);
    std::copy(std::begin(config_.rule.parameters), std::end(config_.rule.parameters),
              config.parameters);
    config.gamma = config_.gamma;
    config.virtual_loss = config_.virtual_loss;
    config.widening_c = config_.widening_c;
    config.widening_alpha = config_.widening_alpha;
    config.seed = config_.seed;
    config.next_ticket = next_ticket_;

    std::vector<TreeRecord> records;
    std::vector<Chunk> chunks;
    std::vector<FlightRecord> flights;
    std::vector<FreeRecord> free;
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        const Tree& tree = trees_[index];
        const Arena& arena = tree.arena;
        records.push_back({roots_[index], tree.root_block, tree.nodes, alive(index) ? 1u : 0u,
                           std::uint32_t(arena.chunks.size()), arena.next});
        chunks.insert(chunks.end(), arena.chunks.begin(), arena.chunks.end());
        for (const auto& [capacity, block] : arena.free) {
            if (block != kNone) free.push_back({index, capacity, block});
        }
        for (const Flight& flight : tree.flights) {
            if (flight.state == Flight::kLive) {
                flights.push_back({flight.ticket, flight.node, index});
            }
        }
    }
    using Bytes = std::span<const std::byte>;
    Bytes parts[kSections];
    parts[kConfig] = std::as_bytes(std::span(&config, 1));
    parts[kTreeTable] = std::as_bytes(std::span(records));
    parts[kChunks] = std::as_bytes(std::span(chunks));
    parts[kFlights] = std::as_bytes(std::span(flights));
    parts[kFree] = std::as_bytes(std::span(free));
    parts[kLocations] = std::as_bytes(std::span(locations_.data(), locations_.size()));
    parts[kGrains] = Bytes(store_.base(0), std::size_t(store_.used()) * kGrain);
    Section sections[kSections];
    std::size_t offset = sizeof(Preamble) + sizeof sections;
    for (int i = 0; i < kSections; ++i) {
        offset = rounded(offset, alignment(i));
        sections[i].offset = offset;
        offset += sections[i].bytes = parts[i].size();
    }
    Draft draft(path, sync);
    draft.extend(offset);
    for (int i = kSections; i-- > 0;) {  // the largest first: the disk writes it during the rest
        draft.write(sections[i].offset, parts[i]);
    }
    // Of the file: memory that nobody has written to need not be the same when it is read again.
    draft.read(offset, [&](const std::byte* data) {
        for (Section& s : sections) s.checksum = checksum(data + s.offset, s.bytes);
    });
    Preamble preamble{};
    std::memcpy(preamble.magic, kMagic, sizeof kMagic);
    preamble.version = kVersion;
    preamble.endian = kEndian;
    preamble.file_bytes = offset;
    preamble.checksum = checksum(sections, sizeof sections);
    draft.write(0, std::as_bytes(std::span(&preamble, 1)));
    draft.write(sizeof preamble, std::as_bytes(std::span(sections)));
    draft.commit();
}

Config Forest::peek(const std::string& path) {
    const Source source(path, false);
    const ConfigRecord record = config_record(source);
    Config config;
    config.rule.kind = record.rule;
    std::copy(std::begin(record.parameters), std::end(record.parameters), config.rule.parameters);
    source.insist(record.backup <= 1, "configuration");
    config.backup = Backup(record.backup);
    config.gamma = record.gamma;
    config.virtual_loss = record.virtual_loss;
    config.widening_c = record.widening_c;
    config.widening_alpha = record.widening_alpha;
    config.seed = record.seed;
    return config;
}

void Forest::load(const std::string& path, bool verify, Forest& into) {
    const Source source(path, verify);
    Snapshot snapshot(source, into);
    verify ? snapshot.read() : snapshot.map();
}

}  // namespace bdc::search

#include "snapshot.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_map>

#include "checksum.hpp"
#include "forest.hpp"

namespace bdc::search {

namespace {

std::size_t padded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// A file being written; until `commit` it is a temporary that disappears again.
class Draft {
  public:
    explicit Draft(const std::string& path)
        : path_(path), temporary_(path + ".tmp." + std::to_string(getpid())) {
        fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd_ < 0) fail("open");
    }
    ~Draft() {
        if (fd_ >= 0) close(fd_);
        if (!temporary_.empty()) unlink(temporary_.c_str());
    }

    void write(const void* data, std::size_t bytes) {
        const char* from = static_cast<const char*>(data);
        while (bytes > 0) {
            const ssize_t done = ::write(fd_, from, bytes);
            if (done < 0 && errno == EINTR) continue;
            if (done <= 0) fail("write");
            from += done;
            bytes -= std::size_t(done);
        }
    }

    void pad(std::size_t bytes) {
        const char zeros[64] = {};
        write(zeros, padded(bytes) - bytes);
    }

    void commit() {
        if (fsync(fd_) != 0) fail("fsync");
        if (rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename");
        temporary_.clear();
        const auto slash = path_.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
        const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory >= 0) {  // the new name must survive a power cut too
            fsync(directory);
            close(directory);
        }
    }

  private:
    [[noreturn]] void fail(const char* step) const { throw FileFault(errno, path_, step); }
    std::string path_, temporary_;
    int fd_ = -1;
};

// A file mapped for reading, with its table checked and its sections found.
class Source {
  public:
    Source(const std::string& path, bool populate) : path_(path) {
        const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) refuse(std::string("cannot be opened (") + std::strerror(errno) + ")");
        struct stat info;
        const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
        bytes_ = regular ? std::size_t(info.st_size) : 0;
        if (bytes_ >= sizeof(Preamble)) {
            // Private and writable: a forest that lives in the mapping never changes the file.
            const int flags = MAP_PRIVATE | (populate ? MAP_POPULATE : 0);
            void* mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, fd, 0);
            if (mapped != MAP_FAILED) {
                data_ = static_cast<std::byte*>(mapped);
                mapping_ = {mapped, [bytes = bytes_](void* data) { munmap(data, bytes); }};
            }
        }
        close(fd);
        if (data_ == nullptr) refuse("is no bdc forest snapshot (too short)");
        read_table();
    }
    Source(const Source&) = delete;

    std::byte* bytes_of(SectionKind kind) const { return data_ + sections_[kind].offset; }
    const std::shared_ptr<void>& mapping() const { return mapping_; }

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
        if (preamble.version < kVersion) {
            refuse("has format version " + std::to_string(preamble.version) +
                   ", older than this bdc reads (" + std::to_string(kVersion) + ")");
        }
        insist(preamble.file_bytes == bytes_, "truncated or extended");
        insist(bytes_ >= padded(sizeof preamble + sizeof sections_), "truncated");
        std::memcpy(sections_, data_ + sizeof preamble, sizeof sections_);
        insist(checksum(sections_, sizeof sections_) == preamble.checksum, "checksum of the table");
        for (const Section& s : sections_) {
            insist(s.offset % 64 == 0 && s.offset <= bytes_ && s.bytes <= bytes_ - s.offset,
                   "a section lies outside the file");
        }
    }

    std::string path_;
    std::byte* data_ = nullptr;
    std::shared_ptr<void> mapping_;
    std::size_t bytes_ = 0;
    Section sections_[kSections];
};

ConfigRecord config_record(const Source& source) {
    source.verify(kConfig);
    const auto records = source.section<ConfigRecord>(kConfig);
    source.insist(records.size() == 1, "configuration");
    return records[0];
}

bool finite(double x) { return (std::bit_cast<std::uint64_t>(x) >> 52 & 0x7FF) != 0x7FF; }

}  // namespace

// Reads the sections into a forest and checks every reference.
class Snapshot {
  public:
    static void read(const Source& source, Forest& forest) {
        for (const auto kind : {kTreeTable, kFlights, kFree, kLocations, kGrains}) {
            source.verify(kind);
        }
        const auto locations = source.section<std::uint64_t>(kLocations);
        source.insist(locations.size() <= kMaxNodes, "too many nodes");
        forest.locations_.extend(locations.size(), forest.recycler_);
        std::copy(locations.begin(), locations.end(), forest.locations_.data());
        forest.next_ticket_ = config_record(source).next_ticket;
        read_trees(source, forest, [&](Tree& tree, const TreeRecord& record, std::byte* grains) {
            std::memcpy(tree.arena.make(record.grains, forest.recycler_), grains,
                        record.grains * kGrain);
            check_blocks(source, forest, tree);
            source.insist(tree.root == tree.arena.at(0).id()[0], "a root");
        });
        read_flights(source, forest);
        std::uint64_t nodes = 0, located = 0;
        for (const Tree& tree : forest.trees_) nodes += tree.nodes;
        for (const auto location : locations) located += location != kNowhere;
        source.insist(nodes == located, "ids");
        for (std::uint32_t index = 0; index < forest.trees_.size(); ++index) {
            if (!forest.trees_[index].alive) continue;
            try {
                forest.check_tree(forest.trees_[index], index);
            } catch (const std::logic_error& broken) {
                source.refuse(std::string("is damaged (") + broken.what() + ")");
            }
            std::unordered_map<std::uint32_t, std::uint32_t> flying;
            for (const Flight& flight : forest.trees_[index].flights) ++flying[flight.node];
            for (const auto& [node, flights] : flying) {
                const auto leaf = Location::unpack(forest.locations_[node]);
                source.insist(forest.flights_at(leaf) == flights, "a ticket");
            }
        }
    }

    // Takes locations and grains as they lie in the file.
    static void map(const Source& source, Forest& forest) {
        for (const auto kind : {kTreeTable, kFlights, kFree}) source.verify(kind);
        const std::size_t nodes = source.section<std::uint64_t>(kLocations).size();
        source.insist(nodes <= kMaxNodes, "too many nodes");
        forest.locations_.adopt(source.bytes_of(kLocations), nodes, source.mapping());
        forest.next_ticket_ = config_record(source).next_ticket;
        read_trees(source, forest, [&](Tree& tree, const TreeRecord& record, std::byte* grains) {
            tree.arena.adopt(grains, record.grains, source.mapping());
        });
        read_flights(source, forest);
        for (const FreeRecord& free : source.section<FreeRecord>(kFree)) {
            source.insist(free.tree < forest.trees_.size() &&
                              free.block < forest.trees_[free.tree].arena.used(),
                          "a free block");
            forest.trees_[free.tree].arena.adopt_free(free.capacity, free.block);
        }
    }

  private:
    template <class Fill>
    static void read_trees(const Source& source, Forest& forest, const Fill& fill) {
        const auto records = source.section<TreeRecord>(kTreeTable);
        const std::size_t bytes = source.section<std::byte>(kGrains).size();
        std::size_t at = 0;
        source.insist(records.size() < kMaxTrees, "too many trees");
        forest.trees_.reserve(records.size());
        for (const TreeRecord& record : records) {
            Tree tree;
            tree.alive = record.alive == 1;
            source.insist(record.alive <= 1, "tree table");
            const std::size_t own = std::size_t(record.grains) * kGrain;
            source.insist(own <= bytes - at && record.grains <= kMaxGrains, "tree table");
            if (tree.alive) {
                tree.root = record.root;
                tree.nodes = record.nodes;
                source.insist(own > 0, "a tree without memory");
                fill(tree, record, source.bytes_of(kGrains) + at);
            } else {
                source.insist(own == 0 && record.nodes == 0, "a dead tree");
            }
            at += own;
            forest.trees_.push_back(std::move(tree));
        }
        source.insist(at == bytes, "tree table");
    }

    // Blocks lie end to end; after this every child reference leads to the start of a block that
    // names it as its parent, so that walks up and down end.
    static void check_blocks(const Source& source, const Forest& forest, Tree& tree) {
        const std::uint32_t used = tree.arena.used(), arms = forest.agents_;
        std::vector<bool> starts(used, false);
        for (std::uint32_t block = 0; block < used;) {
            // The header may not reach beyond the memory: a block has a grain at least.
            const Header& head = tree.arena.at(block).head();
            source.insist(head.capacity >= 1 && head.capacity <= kMaxChildren &&
                              head.count <= head.capacity &&
                              grains_for(head.capacity, arms) <= used - block,
                          "a block header");
            starts[block] = true;
            block += grains_for(head.capacity, arms);
        }
        for (std::uint32_t block = 0; block < used;) {
            const std::uint32_t capacity = tree.arena.at(block).head().capacity;
            if (tree.arena.at(block).head().count == 0) {
                source.insist(block != 0, "a root");
                tree.arena.release(block);
            } else {
                check_family(source, forest, tree, block, starts);
            }
            block += grains_for(capacity, arms);
        }
    }

    static void check_family(const Source& source, const Forest& forest, Tree& tree,
                             std::uint32_t block, const std::vector<bool>& starts) {
        const Family family = tree.arena.at(block);
        Header& head = family.head();
        source.insist(head.visits >= 1, "visits");
        if (block == 0) {
            source.insist(head.parent_block == kNone && head.depth == 0 && head.count == 1 &&
                              family.reason()[0] == 0,
                          "a root");
        } else {
            const std::uint32_t up = head.parent_block;
            source.insist(up < starts.size() && starts[up], "a parent");
            const Family above = tree.arena.at(up);
            source.insist(head.parent_lane < above.head().count &&
                              above.child()[head.parent_lane] == block &&
                              head.depth == above.head().depth + 1 && head.depth != 0,
                          "a parent");
        }
        for (std::uint32_t agent = 0; agent < forest.agents_; ++agent) {
            source.insist(finite(family.arms()[agent].sum), "an arm");
        }
        for (std::uint32_t lane = 0; lane < head.count; ++lane) {
            const std::uint32_t below = family.child()[lane];
            source.insist(below == kNone || (below < starts.size() && starts[below] && below != 0 &&
                                             tree.arena.at(below).head().count > 0),
                          "a child");
            source.insist(finite(family.best()[lane]) && finite(family.sum()[lane]) &&
                              finite(family.prior()[lane]) && family.prior()[lane] >= 0.0 &&
                              family.id()[lane] < kMaxNodes,
                          "a node");
            source.insist(forest.agents_ == 0 || family.tag()[lane] < forest.agents_, "a tag");
        }
    }

    static void read_flights(const Source& source, Forest& forest) {
        const auto records = source.section<FlightRecord>(kFlights);
        for (const FlightRecord& record : records) {
            source.insist(record.tree < forest.trees_.size() &&
                              record.node < forest.locations_.size() &&
                              record.ticket < forest.next_ticket_,
                          "a ticket");
            Tree& tree = forest.trees_[record.tree];
            source.insist(
                tree.alive && forest.locations_[record.node] != kNowhere &&
                    Location::unpack(forest.locations_[record.node]).tree == record.tree &&
                    (tree.flights.empty() || tree.flights.back().ticket < record.ticket),
                "a ticket");
            tree.flights.push_back({record.ticket, record.node, Flight::kLive});
        }
    }
};

void Forest::save(const std::string& path) const {
    const std::lock_guard lock(mutex_);
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
    std::vector<FlightRecord> flights;
    std::vector<FreeRecord> free;
    for (std::uint32_t index = 0; index < trees_.size(); ++index) {
        const Tree& tree = trees_[index];
        records.push_back(
            {tree.root, tree.nodes, tree.alive ? tree.arena.used() : 0, tree.alive ? 1u : 0u});
        for (const auto& [capacity, block] : tree.arena.free()) {
            if (block != kNone) free.push_back({index, capacity, block});
        }
        for (const Flight& flight : tree.flights) {
            if (flight.state == Flight::kLive) {
                flights.push_back({flight.ticket, flight.node, index});
            }
        }
    }
    using Piece = std::pair<const void*, std::size_t>;
    std::vector<Piece> parts[kSections];
    parts[kConfig] = {{&config, sizeof config}};
    parts[kTreeTable] = {{records.data(), records.size() * sizeof(TreeRecord)}};
    parts[kFlights] = {{flights.data(), flights.size() * sizeof(FlightRecord)}};
    parts[kFree] = {{free.data(), free.size() * sizeof(FreeRecord)}};
    parts[kLocations] = {{locations_.data(), locations_.size() * sizeof(std::uint64_t)}};
    for (const Tree& tree : trees_) {
        if (tree.alive) {
            parts[kGrains].push_back({tree.arena.data(), tree.arena.used() * kGrain});
        }
    }
    Section sections[kSections];
    std::size_t offset = padded(sizeof(Preamble) + sizeof sections);
    for (int i = 0; i < kSections; ++i) {
        Checksum sum;
        std::size_t total = 0;
        for (const auto& [data, bytes] : parts[i]) {
            sum.add(static_cast<const std::byte*>(data), bytes);
            total += bytes;
        }
        sections[i] = {offset, total, sum.value()};
        offset += padded(total);
    }
    Preamble preamble{};
    std::memcpy(preamble.magic, kMagic, sizeof kMagic);
    preamble.version = kVersion;
    preamble.endian = kEndian;
    preamble.file_bytes = offset;
    preamble.checksum = checksum(sections, sizeof sections);

    Draft draft(path);
    draft.write(&preamble, sizeof preamble);
    draft.write(sections, sizeof sections);
    draft.pad(sizeof preamble + sizeof sections);
    for (int i = 0; i < kSections; ++i) {
        for (const auto& [data, bytes] : parts[i]) draft.write(data, bytes);
        draft.pad(sections[i].bytes);
    }
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
    verify ? Snapshot::read(source, into) : Snapshot::map(source, into);
}

}  // namespace bdc::search

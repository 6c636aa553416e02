// Snapshot files. Layout, little-endian: a Preamble, a table of Sections, then the sections, the
// two large ones each starting on a page. Nothing in a file is trusted: sizes, checksums, and then
// every reference between blocks, ids and tickets are checked before a forest is made of them. A
// caller that knows the file's author may have the two large sections mapped unread instead.
#pragma once

#include <cstdint>

namespace bdc::search {

inline constexpr char kMagic[8] = {'B', 'D', 'C', 'F', 'O', 'R', 'S', 'T'};
inline constexpr std::uint32_t kVersion = 4, kOldest = 3;  // without blank families
inline constexpr std::uint32_t kEndian = 0x01020304u;

enum SectionKind { kConfig, kTreeTable, kChunks, kFlights, kFree, kLocations, kGrains, kSections };

// Where a section may start.
inline std::uint64_t alignment(int section) { return section >= kLocations ? 4096 : 64; }

struct Preamble {
    char magic[8];
    std::uint32_t version, endian;
    std::uint64_t file_bytes;
    std::uint64_t checksum;  // of the section table
};

struct Section {
    std::uint64_t offset, bytes, checksum;
};

struct ConfigRecord {
    std::uint32_t rule, backup;
    double parameters[8];
    double gamma, virtual_loss, widening_c, widening_alpha;
    std::uint64_t seed, next_ticket;
};

// A tree and how many of the chunks are its own; the chunks follow each other in the order of the
// trees. What is left of the last one begins at `next`.
struct TreeRecord {
    std::uint32_t root, root_block, nodes, alive, chunks, next;
};

struct FlightRecord {
    std::uint64_t ticket;
    std::uint32_t node, tree;  // tree by position
};

// The first free block of a capacity in a tree; it names the next one.
struct FreeRecord {
    std::uint32_t tree, capacity, block;
};

}  // namespace bdc::search

// Snapshot files. Layout, little-endian: a Preamble, a table of Sections, then the sections, each
// starting at a multiple of 64 bytes. Nothing in a file is trusted: sizes, checksums, and then
// every reference between blocks, ids and tickets are checked before a forest is made of them. A
// caller that knows the file's author may have the two large sections mapped unread instead.
#pragma once

#include <cstdint>

namespace bdc::search {

inline constexpr char kMagic[8] = {'B', 'D', 'C', 'F', 'O', 'R', 'S', 'T'};
inline constexpr std::uint32_t kVersion = 2;
inline constexpr std::uint32_t kEndian = 0x01020304u;

enum SectionKind { kConfig, kTreeTable, kFlights, kFree, kLocations, kGrains, kSections };

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

struct TreeRecord {
    std::uint32_t root, nodes, grains, alive;
};

struct FlightRecord {
    std::uint64_t ticket;
    std::uint32_t node, tree;  // tree by position
};

// The first free block of a capacity in a tree; it names the next one. Not used when the file is
// checked: then the free blocks are found anew.
struct FreeRecord {
    std::uint32_t tree, capacity, block;
};

}  // namespace bdc::search

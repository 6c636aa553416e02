// Words that every part of the tree core shares.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace bdc::search {

inline constexpr std::uint32_t kNone = 0xFFFFFFFFu;
inline constexpr std::uint32_t kMaxChildren = 4092;  // lanes of one family
inline constexpr std::uint32_t kMaxTrees = 1u << 22;
inline constexpr std::uint32_t kMaxNodes = 1u << 30;
inline constexpr std::uint32_t kMaxGrains = 1u << 30;  // of 32 bytes

// Bad input: nothing has been changed. `index` is the offending position in the argument, or -1.
struct InputFault : std::runtime_error {
    InputFault(std::string message, std::int64_t at = -1)
        : std::runtime_error(std::move(message)), index(at) {}
    std::int64_t index;
};

// A number as messages show it.
inline std::string shown(double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", x);
    return text;
}

// An item of an argument, as messages name it.
inline std::string item(const char* what, std::int64_t index) {
    return std::string(what) + "[" + std::to_string(index) + "]";
}

// Refuses an argument that does not hold one entry per leaf.
inline void check_one_each(const char* call, const char* what, std::size_t given,
                           std::size_t leaves) {
    if (given == leaves) return;
    throw InputFault(std::string(call) + " got " + std::to_string(given) + " " + what + " for " +
                     std::to_string(leaves) + " leaves; give one each");
}

// std::isfinite may be optimised away under fast-math flags; the bits may not.
inline bool finite(double x) { return (std::bit_cast<std::uint64_t>(x) >> 52 & 0x7FF) != 0x7FF; }

// Returns, priors and rule parameters are no larger, so that no sum, product or score of them is
// infinite or not a number, on which the forms for the instruction sets might not agree.
inline constexpr double kLargestNumber = 1e100;
inline bool bounded(double x, double by = kLargestNumber) { return finite(x) && std::abs(x) <= by; }

// A file could not be written: errno, the file, and the step that failed.
struct FileFault : std::runtime_error {
    FileFault(int error, std::string file, const char* step)
        : std::runtime_error("cannot " + std::string(step) + " " + file),
          code(error),
          path(std::move(file)) {}
    int code;
    std::string path;
};

enum class Backup : std::uint32_t { kMax = 0, kMean = 1 };

inline constexpr int kRuleParameters = 8;

// A rule by number (its place in `AnyRule`) and its parameters in the order of its constructor.
struct RuleSpec {
    std::uint32_t kind = 0;
    double parameters[kRuleParameters] = {};

    bool operator==(const RuleSpec&) const = default;
};

struct Config {
    RuleSpec rule;
    Backup backup = Backup::kMax;
    double gamma = 1.0;
    double virtual_loss = 0.0;
    double widening_c = 0.0;  // 0: no progressive widening
    double widening_alpha = 0.5;
    std::uint64_t seed = 0;
};

// Where a node lies: its tree, the block of its family in the store, its lane in the family.
struct Location {
    std::uint32_t tree;
    std::uint32_t block;
    std::uint32_t lane;

    std::uint64_t pack() const {
        return (std::uint64_t(tree) << 42) | (std::uint64_t(block) << 12) | lane;
    }
    static Location unpack(std::uint64_t bits) {
        return {std::uint32_t(bits >> 42), std::uint32_t(bits >> 12) & (kMaxGrains - 1),
                std::uint32_t(bits) & 0xFFFu};
    }
};

}  // namespace bdc::search

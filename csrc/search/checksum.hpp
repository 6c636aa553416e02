// The snapshots' checksum.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace bdc::search {

// Four independent multiply-rotate lanes over 32-byte strides, then the tail byte by byte.
inline std::uint64_t checksum(const void* data, std::size_t bytes) {
    constexpr std::uint64_t kPrime = 0x9E3779B185EBCA87ull, kOther = 0xC2B2AE3D27D4EB4Full;
    const auto* from = static_cast<const unsigned char*>(data);
    std::uint64_t lanes[4] = {kPrime, kOther, ~kPrime, ~kOther}, tail = 0;
    std::size_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        for (int i = 0; i < 4; ++i) {
            std::uint64_t word;
            std::memcpy(&word, from + at + 8 * i, 8);
            lanes[i] = std::rotl(lanes[i] + word * kOther, 31) * kPrime;
        }
    }
    for (; at < bytes; ++at) {
        tail = std::rotl(tail ^ (std::uint64_t(from[at]) * kOther), 11) * kPrime;
    }
    std::uint64_t hash = (bytes * kPrime) ^ tail;
    for (const std::uint64_t lane : lanes) hash = std::rotl(hash ^ lane, 27) * kPrime + kOther;
    hash ^= hash >> 33;
    hash *= kOther;
    return hash ^ (hash >> 29);
}

}  // namespace bdc::search

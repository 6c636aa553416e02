// The snapshots' checksum.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace bdc::search {

inline constexpr std::uint64_t kPrime = 0x9E3779B185EBCA87ull, kOther = 0xC2B2AE3D27D4EB4Full;

// Four independent multiply-rotate lanes over 32-byte strides, then the tail byte by byte. Every
// piece but the last must be a multiple of 32 bytes.
class Checksum {
  public:
    void add(const std::byte* data, std::size_t bytes) {
        std::size_t at = 0;
        for (; at + 32 <= bytes; at += 32) {
            for (int i = 0; i < 4; ++i) {
                std::uint64_t word;
                std::memcpy(&word, data + at + 8 * i, 8);
                lane_[i] = std::rotl(lane_[i] + word * kOther, 31) * kPrime;
            }
        }
        for (; at < bytes; ++at) {
            tail_ = std::rotl(tail_ ^ (std::uint64_t(data[at]) * kOther), 11) * kPrime;
        }
        total_ += bytes;
    }
    std::uint64_t value() const {
        std::uint64_t hash = (total_ * kPrime) ^ tail_;
        for (const std::uint64_t lane : lane_) hash = std::rotl(hash ^ lane, 27) * kPrime + kOther;
        hash ^= hash >> 33;
        hash *= kOther;
        return hash ^ (hash >> 29);
    }

  private:
    std::uint64_t lane_[4] = {kPrime, kOther, ~kPrime, ~kOther};
    std::uint64_t tail_ = 0, total_ = 0;
};

inline std::uint64_t checksum(const void* data, std::size_t bytes) {
    Checksum sum;
    sum.add(static_cast<const std::byte*>(data), bytes);
    return sum.value();
}

}  // namespace bdc::search

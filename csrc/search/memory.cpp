#include "memory.hpp"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace bdc::search {

namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

constexpr std::size_t kKept = 3;                           // ranges, those of one forest,
constexpr std::size_t kKeptBytes = std::size_t(64) << 20;  // with so many pages each at most

std::mutex spare_mutex;
std::vector<Reserve>& spares() {
    static auto* kept = new std::vector<Reserve>;  // never freed: forests may outlive statics
    return *kept;
}

}  // namespace

Reserve Reserve::make(std::size_t bytes) {
    const std::lock_guard lock(spare_mutex);
    for (Reserve& spare : spares()) {
        if (spare.wanted_ != bytes) continue;
        Reserve found = std::move(spare);
        std::swap(spare, spares().back());
        spares().pop_back();
        return found;
    }
    return Reserve(bytes);
}

// What is beyond the kept pages stays, too, until the system needs it for others, or goes at once
// where the kernel has no such offer.
void Reserve::keep(Reserve&& range) {
    if (range.committed_ == 0 || range.maps_file_) return;
    const std::lock_guard lock(spare_mutex);
    if (spares().size() == kKept) return;
    if (range.committed_ > kKeptBytes) {
        std::byte* const from = range.data_ + kKeptBytes;
        const std::size_t bytes = range.committed_ - kKeptBytes;
        if (madvise(from, bytes, MADV_FREE) != 0 && madvise(from, bytes, MADV_DONTNEED) != 0) {
            return;
        }
    }
    spares().push_back(std::move(range));
}

Reserve::Reserve(std::size_t bytes) : wanted_(bytes) {
    rlimit limit;  // of the process's addresses; others need some too
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        bytes = std::min<std::size_t>(bytes, limit.rlim_cur / 8);
    }
    for (reserved_ = rounded(bytes, kHugePage); reserved_ >= kHugePage; reserved_ /= 2) {
        mapped_ = mmap(nullptr, reserved_ + kHugePage, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped_ == MAP_FAILED) continue;
        const auto start = reinterpret_cast<std::uintptr_t>(mapped_);
        data_ = reinterpret_cast<std::byte*>(rounded(start, kHugePage));
        return;
    }
    throw std::bad_alloc();
}

Reserve::~Reserve() {
    if (data_ != nullptr) munmap(mapped_, reserved_ + kHugePage);
}

void Reserve::swap(Reserve& other) noexcept {
    std::swap(wanted_, other.wanted_);
    std::swap(maps_file_, other.maps_file_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(reserved_, other.reserved_);
    std::swap(committed_, other.committed_);
}

// Small forests get small pages, which do not mostly stay empty; descents in large ones touch lines
// all over the place.
void Reserve::extend(std::size_t bytes) {
    if (bytes > reserved_) throw std::bad_alloc();
    const std::size_t unit = bytes < kHugePage ? kHugePage / 16 : 2 * kHugePage;
    const std::size_t wanted = std::min(rounded(bytes + bytes / 8, unit), reserved_);
    std::byte* from = data_ + committed_;
    if (mprotect(from, wanted - committed_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    if (unit > kHugePage) madvise(from, wanted - committed_, MADV_HUGEPAGE);
    committed_ = wanted;
}

bool Reserve::map(int file, std::size_t offset, std::size_t bytes) {
    commit(bytes);
    maps_file_ = true;
    return bytes == 0 || mmap(data_, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file,
                              off_t(offset)) != MAP_FAILED;
}

}  // namespace bdc::search

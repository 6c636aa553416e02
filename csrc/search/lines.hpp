// What one thread writes lies on cache lines that no other thread touches: each would wait for the
// other's. Processors fetch lines in pairs, so that a line's neighbour is as good as touched.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace bdc::search {

inline constexpr std::size_t kLine = 64, kApart = 2 * kLine;  // bytes

template <class T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}

    T* allocate(std::size_t count) {
        const std::size_t bytes = (count * sizeof(T) + kApart - 1) / kApart * kApart;
        return static_cast<T*>(::operator new(bytes, std::align_val_t(kApart)));
    }
    void deallocate(T* array, std::size_t) { ::operator delete(array, std::align_val_t(kApart)); }
    bool operator==(const LineAllocator&) const { return true; }
};

// Of rows that threads fill in: from every 32nd on they lie apart.
template <class T>
using Column = std::vector<T, LineAllocator<T>>;
inline constexpr std::size_t kApartRows = 32;

}  // namespace bdc::search

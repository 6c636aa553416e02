// What one thread writes lies on cache lines that no other thread writes: each would wait for the
// other's.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace bdc::search {

inline constexpr std::size_t kLine = 64;  // bytes

template <class T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}

    T* allocate(std::size_t count) {
        const std::size_t bytes = (count * sizeof(T) + kLine - 1) / kLine * kLine;
        return static_cast<T*>(::operator new(bytes, std::align_val_t(kLine)));
    }
    void deallocate(T* array, std::size_t) { ::operator delete(array, std::align_val_t(kLine)); }
    bool operator==(const LineAllocator&) const { return true; }
};

// Of rows that threads fill in: from every 16th on they are on lines of their own.
template <class T>
using Column = std::vector<T, LineAllocator<T>>;
inline constexpr std::size_t kLineRows = 16;

}  // namespace bdc::search

// What one thread writes lies on cache lines that no other thread writes: each would wait for the
// other's.
#pragma once

#include <cstddef>
#include <new>

namespace bdc::search {

inline constexpr std::size_t kLine = 64;

// Allocates arrays on lines of their own.
template <class T>
struct OwnLines {
    using value_type = T;
    OwnLines() = default;
    template <class U>
    OwnLines(const OwnLines<U>&) {}

    static std::size_t bytes(std::size_t count) {
        return (count * sizeof(T) + kLine - 1) / kLine * kLine;
    }
    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(bytes(count), std::align_val_t(kLine)));
    }
    void deallocate(T* array, std::size_t) { ::operator delete(array, std::align_val_t(kLine)); }
    bool operator==(const OwnLines&) const { return true; }
};

}  // namespace bdc::search

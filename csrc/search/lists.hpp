// Memory for the short lists that every tree of a forest has. A thread takes it from a part of its
// own, on whole lines; all of it goes with the forest, at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "lines.hpp"
#include "memory.hpp"
#include "slabs.hpp"

namespace bdc::search {

class ListMemory {
  public:
    explicit ListMemory(unsigned threads)
        : memory_(Reserve::make(kMost)), parts_(threads), slabs_(threads) {}
    ~ListMemory() { Reserve::keep(std::move(memory_)); }
    ListMemory(const ListMemory&) = delete;

    void* take(std::size_t bytes);
    void give(void* array, std::size_t bytes);  // whoever took it
    void close() { closed_ = true; }            // what is given from here on goes with the rest

    static std::size_t taken_for(std::size_t bytes);  // 0 for 0

  private:
    struct Free {
        Free* next;
    };
    static constexpr std::size_t kMost = std::size_t(4) << 30;
    static constexpr int kClasses = 8;  // 1, 2, 4 .. 128 lines; what is longer, the system keeps
    // Free pieces by size.
    struct Heap {
        Free* first[kClasses] = {};
        void push(int index, Free* piece) {
            piece->next = first[index];
            first[index] = piece;
        }
        Free* pop(int index) {
            Free* const piece = first[index];
            if (piece != nullptr) first[index] = piece->next;
            return piece;
        }
    };
    struct alignas(kApart) Part {
        std::byte *next = nullptr, *end = nullptr;
        Heap free;
        std::uint32_t pieces[kClasses] = {};  // of those
    };
    void* refill(Part& part, int index);

    Reserve memory_;
    std::vector<Part> parts_;  // by the worker's number
    Slabs slabs_;
    Heap spare_;        // what a thread has too much of
    std::mutex mutex_;  // over those two
    bool closed_ = false;
};

template <class T>
struct ListAllocator {
    using value_type = T;
    using propagate_on_container_move_assignment = std::true_type;
    using propagate_on_container_swap = std::true_type;

    ListAllocator(ListMemory& of) : memory(&of) {}
    T* allocate(std::size_t count) { return static_cast<T*>(memory->take(count * sizeof(T))); }
    void deallocate(T* array, std::size_t count) { memory->give(array, count * sizeof(T)); }
    bool operator==(const ListAllocator&) const = default;

    ListMemory* memory;
};

template <class T>
using List = std::vector<T, ListAllocator<T>>;

template <class T>
std::size_t bytes_of(const List<T>& list) {
    return ListMemory::taken_for(list.capacity() * sizeof(T));
}

}  // namespace bdc::search

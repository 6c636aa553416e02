#include "lists.hpp"

#include <bit>
#include <new>

#include "pool.hpp"

namespace bdc::search {

namespace {

constexpr std::size_t kSlab = 32768;  // bytes

int size_class(std::size_t bytes) { return int(std::bit_width((bytes - 1) / kLine)); }

}  // namespace

std::size_t ListMemory::taken_for(std::size_t bytes) {
    return bytes == 0 ? 0 : kLine << size_class(bytes);
}

void* ListMemory::take(std::size_t bytes) {
    const int index = size_class(bytes);
    if (index >= kClasses) return ::operator new(bytes, std::align_val_t(kLine));
    Part& part = parts_[Pool::worker()];
    if (Free* const found = part.free[index]; found != nullptr) {
        part.free[index] = found->next;
        return found;
    }
    const std::size_t size = kLine << index;
    if (std::size_t(part.end - part.next) < size) refill(part);
    return std::exchange(part.next, part.next + size);
}

// What was left is lost.
void ListMemory::refill(Part& part) {
    const std::lock_guard lock(mutex_);
    const std::size_t first = slabs_.take(Pool::worker(), kMost / kSlab) * kSlab;
    memory_.commit(first + kSlab);
    part.next = memory_.data() + first;
    part.end = part.next + kSlab;
}

void ListMemory::give(void* array, std::size_t bytes) {
    const int index = size_class(bytes);
    if (index >= kClasses) return ::operator delete(array, std::align_val_t(kLine));
    if (closed_) return;
    Free*& first = parts_[Pool::worker()].free[index];
    first = new (array) Free{first};
}

}  // namespace bdc::search

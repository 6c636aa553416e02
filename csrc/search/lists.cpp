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
    if (Free* const piece = part.free.pop(index); piece != nullptr) {
        --part.pieces[index];
        return piece;
    }
    const std::size_t size = kLine << index;
    if (std::size_t(part.end - part.next) < size) return refill(part, index);
    return std::exchange(part.next, part.next + size);
}

// A piece that others do not need, or the first one of a new slab; what was left of the old one is
// lost.
void* ListMemory::refill(Part& part, int index) {
    const std::lock_guard lock(mutex_);
    if (Free* const piece = spare_.pop(index); piece != nullptr) return piece;
    const std::size_t first = slabs_.take(Pool::worker(), kMost / kSlab) * kSlab;
    memory_.commit(first + kSlab);
    std::byte* const slab = memory_.data() + first;
    part.next = slab + (kLine << index);
    part.end = slab + kSlab;
    return slab;
}

void ListMemory::give(void* array, std::size_t bytes) {
    const int index = size_class(bytes);
    if (index >= kClasses) return ::operator delete(array, std::align_val_t(kLine));
    if (closed_) return;
    Free* const piece = new (array) Free{nullptr};
    Part& part = parts_[Pool::worker()];
    if (part.pieces[index] < kSlab / kLine >> index) {
        ++part.pieces[index];
        part.free.push(index, piece);
    } else {
        const std::lock_guard lock(mutex_);
        spare_.push(index, piece);
    }
}

}  // namespace bdc::search

// Memory that grows in place: a range of addresses is reserved once, and the system is asked for
// its pages as they come into use, so that what has been handed out never moves. A few ranges are
// kept for the next forest, as malloc keeps memory: fresh pages cost as much as a small search.
#pragma once

#include <cstddef>

namespace bdc::search {

class Reserve {
  public:
    Reserve() = default;
    static Reserve make(std::size_t bytes);  // or as many as the system grants
    static void keep(Reserve&& range);       // for the next `make`, or not
    Reserve(Reserve&& other) noexcept { swap(other); }
    Reserve& operator=(Reserve&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Reserve();

    std::byte* data() const { return data_; }

    // Makes the first `bytes` usable; what is new holds anything, and until it is written to
    // perhaps something else when it is read again. Throws std::bad_alloc.
    void commit(std::size_t bytes) {
        if (bytes > committed_) extend(bytes);
    }

    // Lays a private copy of a file's part over the first `bytes`, read as it is touched. False:
    // the system cannot (its pages are larger than the part's alignment).
    bool map(int file, std::size_t offset, std::size_t bytes);

  private:
    explicit Reserve(std::size_t bytes);
    void extend(std::size_t bytes);
    void swap(Reserve& other) noexcept;

    std::size_t wanted_ = 0;
    bool maps_file_ = false;
    void* mapped_ = nullptr;
    std::byte* data_ = nullptr;  // from the first large page on
    std::size_t reserved_ = 0, committed_ = 0;
};

}  // namespace bdc::search

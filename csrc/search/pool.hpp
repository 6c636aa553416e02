// A few threads that help the caller, and sleep soon after its last call. Work comes in chunks, of
// which everybody has his own; a helper that wakes too late finds nothing to do and delays nobody.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace bdc::search {

class Pool {
  public:
    explicit Pool(unsigned threads) : threads_(std::clamp(threads, 1u, 256u)) {}
    Pool(const Pool&) = delete;
    ~Pool();

    unsigned threads() const { return threads_; }
    static unsigned worker();  // the calling thread's number: 0, or a helper's in its own pool

    // Calls work(0..chunks-1), at most 65535, each once, on the caller's thread and on helpers. An
    // exception, the caller's or else a helper's, is rethrown after all have ended. Every helper
    // calls a copy of `work`.
    template <class Work>
    void run(unsigned chunks, const Work& work) {
        static_assert(std::is_trivially_copyable_v<Work> && sizeof work <= kMostBytes);
        if (chunks <= 1 || threads_ == 1) {
            for (unsigned chunk = 0; chunk < chunks; ++chunk) work(chunk);
            return;
        }
        share(chunks, {&work, sizeof work, [](const void* of, unsigned chunk) {
                           (*static_cast<const Work*>(of))(chunk);
                       }});
    }

    struct Crew;

  private:
    static constexpr std::size_t kMostBytes = 152;  // of work
    using Call = void (*)(const void* of, unsigned chunk);
    struct Task {
        const void* of;
        std::size_t bytes;  // of it
        Call function;
    };
    void gather();
    void share(unsigned chunks, Task task);

    unsigned threads_;
    unsigned owner_ = 0;
    Crew* crew_ = nullptr;
};

}  // namespace bdc::search

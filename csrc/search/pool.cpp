#include "pool.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "lines.hpp"

namespace bdc::search {

namespace {

thread_local unsigned own_number = 0;

}  // namespace

unsigned Pool::worker() { return own_number; }

struct Pool::Crew {
    // All that a helper and the caller say to each other is on one line, and no lock on the way.
    enum State : int { kIdle, kOffered, kTaken, kStop };
    struct alignas(kLine) Seat {
        std::atomic<int> state{kIdle};
        unsigned chunks = 0;
        Task task{};
        std::exception_ptr error;
    };
    // A thread's own chunks, which it puts here when it begins. In the calls of a wave they hold
    // the same trees, which stay in its cache: who has done his own helps one who is far behind,
    // but leaves him the last one, which takes less time than its lines to go from cache to cache
    // and back.
    struct alignas(kLine) Range {
        std::atomic<std::uint64_t> left{0};  // the next one, and above it the end

        void set(unsigned first, unsigned end) {
            left.store(first | std::uint64_t(end) << 32, std::memory_order_relaxed);
        }
        // Calls the task with chunks until so many are left.
        void take(const Task& task, unsigned spared) {
            for (std::uint64_t seen = left.load(std::memory_order_relaxed);
                 unsigned(seen) + spared < unsigned(seen >> 32);) {
                if (!left.compare_exchange_weak(seen, seen + 1, std::memory_order_relaxed))
                    continue;
                task.call(task.of, unsigned(seen++));
            }
        }
    };
    std::vector<Range> ranges;  // the caller's first
    std::vector<Seat> seats;
    std::vector<std::thread> threads;

    // With as many as the system starts.
    explicit Crew(unsigned helpers) : ranges(helpers + 1), seats(helpers) {
        threads.reserve(helpers);
        try {
            for (unsigned i = 0; i < helpers; ++i) threads.emplace_back([this, i] { serve(i); });
        } catch (const std::exception&) {
        }
    }

    ~Crew() {
        for (Seat& seat : seats) {
            seat.state.store(kStop, std::memory_order_release);
            seat.state.notify_one();
        }
        for (auto& thread : threads) thread.join();
    }

    unsigned helpers() const { return unsigned(threads.size()); }

    Range& begin(unsigned self, unsigned chunks) {  // with all of its own
        const unsigned all = helpers() + 1;
        ranges[self].set(chunks * self / all, chunks * (self + 1) / all);
        return ranges[self];
    }

    template <class Work>
    static std::exception_ptr caught(const Work& work) {
        try {
            work();
        } catch (...) {
            return std::current_exception();
        }
        return nullptr;
    }

    // True: the helper has not taken up what it was offered, and will not.
    static bool withdraw(Seat& seat) {
        int seen = kOffered;
        return seat.state.compare_exchange_strong(seen, kIdle, std::memory_order_acq_rel);
    }

    void serve(unsigned index) {
        own_number = index + 1;
        std::atomic<int>& state = seats[index].state;
        for (;;) {
            leave(state, kIdle);
            int seen = kOffered;
            if (state.compare_exchange_strong(seen, kTaken, std::memory_order_acquire)) {
                Seat& seat = seats[index];
                seat.error = caught([&] {
                    const unsigned all = helpers() + 1;
                    begin(index + 1, seat.chunks).take(seat.task, 0);
                    for (unsigned k = 2; k <= all; ++k) {
                        ranges[(index + k) % all].take(seat.task, 1);
                    }
                });
                state.store(kIdle, std::memory_order_release);
                state.notify_one();
            } else if (seen == kStop) {
                return;
            }
        }
    }

    // Returns once `state` is another than `old`. Looks for it at first, for less than it costs to
    // fall asleep and be woken: the calls of a wave follow each other within microseconds, and
    // between waves everybody sleeps.
    static void leave(const std::atomic<int>& state, int old) {
        constexpr auto kPatience = std::chrono::microseconds(30);
        constexpr int kLooks = 16;  // between looks at the clock
        const auto until = std::chrono::steady_clock::now() + kPatience;
        do {
            for (int look = 0; look < kLooks; ++look) {
                if (state.load(std::memory_order_acquire) != old) return;
                pause();
            }
        } while (std::chrono::steady_clock::now() < until);
        state.wait(old, std::memory_order_acquire);
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }
};

namespace {

// The crew of the last pool that went away, for the next of its size: small forests come and go
// faster than threads start.
struct Spare {
    std::mutex mutex;
    std::unique_ptr<Pool::Crew> crew;
    pid_t owner = 0;
};
Spare& spare() {
    static auto* kept = new Spare;  // never freed: forests may outlive statics
    return *kept;
}

}  // namespace

Pool::~Pool() {
    if (crew_ == nullptr || owner_ != getpid()) return;
    std::unique_ptr<Crew> leaving(crew_);
    const std::lock_guard lock(spare().mutex);
    if (spare().owner != owner_) spare().crew.release();  // a parent's, whose threads are not here
    spare().owner = owner_;
    spare().crew.swap(leaving);
}

// Threads do not survive a fork: the child starts a crew of its own and leaves the old one be.
void Pool::gather() {
    owner_ = getpid();
    {
        const std::lock_guard lock(spare().mutex);
        if (spare().owner == owner_ && spare().crew && spare().crew->helpers() == threads_ - 1) {
            crew_ = spare().crew.release();
            return;
        }
    }
    crew_ = new Crew(threads_ - 1);
}

void Pool::share(unsigned chunks, Task task) {
    if (crew_ == nullptr || owner_ != getpid()) gather();
    const std::span<Crew::Seat> seats(crew_->seats.data(), crew_->helpers());
    for (auto& seat : seats) {
        seat.chunks = chunks;
        seat.task = task;
        seat.state.store(Crew::kOffered, std::memory_order_release);
        seat.state.notify_one();
    }
    std::exception_ptr failed = Crew::caught([&] {
        crew_->begin(0, chunks).take(task, 0);
        for (unsigned i = 0; i < crew_->helpers(); ++i) {
            if (Crew::withdraw(seats[i])) {
                crew_->begin(i + 1, chunks).take(task, 0);
            } else {
                crew_->ranges[i + 1].take(task, 1);
            }
        }
    });
    for (auto& seat : seats) {
        if (Crew::withdraw(seat)) continue;
        Crew::leave(seat.state, Crew::kTaken);
        if (!seat.error) continue;
        std::exception_ptr error = std::exchange(seat.error, nullptr);
        if (!failed) failed = error;
    }
    if (!failed) return;
    for (auto& range : crew_->ranges) range.set(0, 0);  // what was left is not the next call's
    std::rethrow_exception(failed);
}

}  // namespace bdc::search

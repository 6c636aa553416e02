#include "pool.hpp"

#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "lines.hpp"

namespace bdc::search {

namespace {

thread_local unsigned own_number = 0;

}  // namespace

unsigned Pool::worker() { return own_number; }

// A line that goes from one thread to another takes up to the time of two or three descents. So
// each is written by one side, and few are waited for one after another: a helper reads its offer,
// which holds a copy of the work, since what lies on the caller's stack has neighbours there that
// change all the time, and takes it up on its desk; in the end the caller reads the desk.
struct Pool::Crew {
    using Number = std::uint32_t;
    static constexpr Number kStop = 0, kNone = 1;  // of no call
    static constexpr std::size_t kWords = kMostBytes / sizeof(std::uint64_t);

    // What the caller says to a helper.
    struct alignas(kApart) Offer {
        std::atomic<Number> call{kNone};
        std::atomic<unsigned> chunks{0};
        std::atomic<Call> function{nullptr};
        std::atomic<std::uint64_t> work[kWords] = {};
    };
    // A helper's copy. One who comes too late may have read parts of two calls, and calls neither.
    using Copy = std::array<std::uint64_t, kWords>;

    // Some chunks of a call: packed, since they are taken one by one by several threads.
    struct alignas(8) Chunks {
        Number call;
        std::uint16_t next, end;
    };
    static_assert(std::atomic<Chunks>::is_always_lock_free);

    // A thread's own chunks. In the calls of a wave they hold the same trees, which stay in its
    // cache: who helps it leaves it the last one, which takes less time than its lines to go from
    // cache to cache and back.
    struct alignas(kApart) Desk {
        std::atomic<Chunks> left{Chunks{kNone, 0, 0}};
        std::atomic<Number> done{kNone};  // the last call that the thread has ended
        std::exception_ptr error;

        bool ended(Number call) const { return done.load(std::memory_order_acquire) == call; }

        // Takes up the chunks of a new call; false: another thread has, for this one or a later.
        bool take_up(const Chunks& own, Chunks& seen) {
            while (std::int32_t(own.call - seen.call) > 0) {
                if (left.compare_exchange_weak(seen, own, std::memory_order_acq_rel)) return true;
            }
            return false;
        }

        // Calls the task with chunks until so many are left.
        void take(const Task& task, Number call, unsigned spared) {
            Chunks seen = left.load(std::memory_order_relaxed);
            while (seen.call == call && seen.next + spared < seen.end) {
                const Chunks after{call, std::uint16_t(seen.next + 1), seen.end};
                if (!left.compare_exchange_weak(seen, after, std::memory_order_relaxed)) continue;
                task.function(task.of, seen.next);
                seen = after;
            }
        }
    };
    // The calls of a wave follow each other within microseconds, and between waves everybody
    // sleeps. A virtual machine's processor may be away for a hundred microseconds at any time: who
    // fell asleep over that would be away as long again until he is woken. Where there are fewer
    // processors than threads, who stays awake keeps another from his work.
    static constexpr std::chrono::microseconds kLate{30}, kAway{250};
    const std::chrono::microseconds patience;
    std::vector<Offer> offers;  // by helper
    std::vector<Desk> desks;    // by thread, the caller's first
    std::vector<std::thread> threads;
    alignas(kApart) Number last = kNone;  // call, which only the caller looks at

    // With as many as the system starts.
    explicit Crew(unsigned helpers)
        : patience(helpers < std::thread::hardware_concurrency() ? kAway : kLate),
          offers(helpers),
          desks(helpers + 1) {
        threads.reserve(helpers);
        try {
            for (unsigned i = 0; i < helpers; ++i) threads.emplace_back([this, i] { serve(i); });
        } catch (const std::exception&) {
        }
    }

    ~Crew() {
        for (Offer& offer : offers) announce(offer.call, kStop);
        for (auto& thread : threads) thread.join();
    }

    unsigned helpers() const { return unsigned(threads.size()); }

    Chunks own(unsigned thread, Number call, unsigned chunks) const {  // all of them
        const unsigned all = helpers() + 1;
        return {call, std::uint16_t(chunks * thread / all),
                std::uint16_t(chunks * (thread + 1) / all)};
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

    // Tells the one thread that waits for it. libstdc++ looks for waiters by a load, which a store
    // that only releases may come after: a waiter that falls asleep then is woken by nobody.
    static void announce(std::atomic<Number>& to, Number number) {
        to.store(number, std::memory_order_seq_cst);
        to.notify_one();
    }

    // A helper that misses it is stood in for, and woken by the next one.
    Number offer(unsigned chunks, const Task& task) {
        if (++last == kStop) last = kNone;
        Copy work{};
        std::memcpy(work.data(), task.of, task.bytes);
        for (Offer& offer : offers) {
            offer.chunks.store(chunks, std::memory_order_relaxed);
            offer.function.store(task.function, std::memory_order_relaxed);
            for (std::size_t i = 0; i < kWords; ++i) {
                offer.work[i].store(work[i], std::memory_order_relaxed);
            }
            offer.call.store(last, std::memory_order_release);
            offer.call.notify_one();
        }
        return last;
    }

    void serve(unsigned index) {
        own_number = index + 1;
        const Offer& offer = offers[index];
        Desk& desk = desks[index + 1];
        Chunks seen = desk.left;
        for (Number call = kNone;;) {
            const auto called = [&] { return offer.call.load(std::memory_order_acquire) != call; };
            if (!soon(called, patience)) {
                offer.call.wait(call, std::memory_order_acquire);
            }
            call = offer.call.load(std::memory_order_acquire);
            if (call == kStop) return;
            Copy work;
            for (std::size_t i = 0; i < kWords; ++i) {
                work[i] = offer.work[i].load(std::memory_order_relaxed);
            }
            const Task task{work.data(), sizeof work,
                            offer.function.load(std::memory_order_relaxed)};
            const Chunks chunks =
                own(index + 1, call, offer.chunks.load(std::memory_order_relaxed));
            if (!desk.take_up(chunks, seen)) continue;
            seen = {call, chunks.end, chunks.end};
            desk.error = caught([&] { do_work(index + 1, call, task); });
            announce(desk.done, call);
        }
    }

    // A thread's own chunks, and then others' where its own took so long that it is worth to look.
    void do_work(unsigned self, Number call, const Task& task) {
        constexpr auto kLong = std::chrono::microseconds(50);
        const auto start = std::chrono::steady_clock::now();
        desks[self].take(task, call, 0);
        if (std::chrono::steady_clock::now() - start >= kLong) help(self, call, task);
    }

    void help(unsigned self, Number call, const Task& task) {
        for (std::size_t k = 1; k < desks.size(); ++k) {
            desks[(self + k) % desks.size()].take(task, call, 1);
        }
    }

    // The caller's part, with the chunks of helpers that are asleep.
    void lead(Number call, unsigned chunks, const Task& task) {
        desks[0].left.store(own(0, call, chunks), std::memory_order_relaxed);
        do_work(0, call, task);
        for (unsigned thread = 1; thread <= helpers(); ++thread) {
            if (stand_in(thread, own(thread, call, chunks))) desks[thread].take(task, call, 0);
        }
        for (unsigned thread = 1; thread <= helpers(); ++thread) {
            if (!soon([&] { return desks[thread].ended(call); }, kLate)) help(0, call, task);
        }
    }

    // True: the helper has not taken these chunks up, and will not.
    bool stand_in(unsigned thread, const Chunks& chunks) {
        Desk& desk = desks[thread];
        Chunks seen = desk.left.load(std::memory_order_relaxed);
        if (!desk.take_up(chunks, seen)) return false;
        desk.done.store(chunks.call, std::memory_order_relaxed);
        return true;
    }

    // Waits for all helpers; their first error.
    std::exception_ptr end(Number call) {
        std::exception_ptr failed;
        for (unsigned thread = 1; thread <= helpers(); ++thread) {
            Desk& desk = desks[thread];
            if (stand_in(thread, {call, 0, 0})) continue;
            soon([&] { return desk.ended(call); }, patience);
            for (Number done; (done = desk.done.load(std::memory_order_acquire)) != call;) {
                desk.done.wait(done, std::memory_order_acquire);
            }
            if (!desk.error) continue;
            std::exception_ptr error = std::exchange(desk.error, nullptr);
            if (!failed) failed = error;
        }
        return failed;
    }

    // Waits for so long at most, awake; false: in vain.
    template <class Met>
    static bool soon(const Met& met, std::chrono::microseconds longest) {
        constexpr int kLooks = 16;  // between looks at the clock
        const auto until = std::chrono::steady_clock::now() + longest;
        do {
            for (int look = 0; look < kLooks; ++look) {
                if (met()) return true;
                pause();
            }
        } while (std::chrono::steady_clock::now() < until);
        return false;
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

// How many forks lie between this process and the first one.
unsigned generation() {
    static std::atomic<unsigned> forks{0};
    [[maybe_unused]] static const int counted =
        pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
    return forks.load(std::memory_order_relaxed);
}

// The crew of the last pool that went away, for the next of its size: small forests come and go
// faster than threads start.
struct Spare {
    std::mutex mutex;
    std::unique_ptr<Pool::Crew> crew;
    unsigned owner = 0;
};
Spare& spare() {
    static auto* kept = new Spare;  // never freed: forests may outlive statics
    return *kept;
}

}  // namespace

Pool::~Pool() {
    if (crew_ == nullptr || owner_ != generation()) return;
    std::unique_ptr<Crew> leaving(crew_);
    const std::lock_guard lock(spare().mutex);
    if (spare().owner != owner_) spare().crew.release();  // a parent's, whose threads are not here
    spare().owner = owner_;
    spare().crew.swap(leaving);
}

// Threads do not survive a fork: the child starts a crew of its own and leaves the old one be.
void Pool::gather() {
    crew_ = nullptr;
    owner_ = generation();
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
    if (crew_ == nullptr || owner_ != generation()) gather();
    const Crew::Number call = crew_->offer(chunks, task);
    std::exception_ptr failed = Crew::caught([&] { crew_->lead(call, chunks, task); });
    const std::exception_ptr others = crew_->end(call);
    if (!failed) failed = others;
    if (failed) std::rethrow_exception(failed);
}

}  // namespace bdc::search

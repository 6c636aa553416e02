#include "pool.hpp"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace bdc::search {

struct Pool::Crew {
    std::mutex mutex;
    std::condition_variable wake, done;
    // A thread's own chunks. In the calls of a wave they hold the same trees, which stay in its
    // cache; who has done his own helps the others.
    struct alignas(64) Range {
        std::atomic<unsigned> next{0};
        unsigned end = 0;
    };
    Task task{};
    std::vector<Range> ranges;
    std::atomic<unsigned long> round{0};
    std::atomic<unsigned> busy{0};  // helpers at work
    bool open = false;              // may helpers still join this round?
    bool stop = false;
    std::exception_ptr error;
    std::vector<std::thread> threads;

    explicit Crew(unsigned helpers) : ranges(helpers + 1) {
        for (unsigned i = 1; i <= helpers; ++i) threads.emplace_back([this, i] { serve(i); });
    }

    void deal(unsigned chunks) {
        const auto all = unsigned(ranges.size());
        for (unsigned i = 0; i < all; ++i) {
            ranges[i].end = chunks * (i + 1) / all;
            ranges[i].next.store(chunks * i / all, std::memory_order_relaxed);
        }
    }

    ~Crew() {
        {
            const std::lock_guard lock(mutex);
            stop = true;
        }
        wake.notify_all();
        for (auto& thread : threads) thread.join();
    }

    std::exception_ptr take_chunks(unsigned self) {
        try {
            for (std::size_t k = 0; k < ranges.size(); ++k) {
                Range& range = ranges[(self + k) % ranges.size()];
                for (unsigned i;
                     (i = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) {
                    task.call(task.of, i);
                }
            }
        } catch (...) {
            return std::current_exception();
        }
        return nullptr;
    }

    void serve(unsigned self) {
        unsigned long seen = 0;
        for (;;) {
            glance([&] { return round.load(std::memory_order_relaxed) != seen; });
            std::unique_lock lock(mutex);
            wake.wait(lock, [&] { return stop || (open && round != seen); });
            if (stop) return;
            seen = round;
            ++busy;
            lock.unlock();
            const std::exception_ptr failed = take_chunks(self);
            lock.lock();
            if (failed && !error) error = failed;
            if (--busy == 0) done.notify_one();
        }
    }

    // Looks for what is about to happen, for less than it costs to fall asleep and be woken. The
    // calls of a wave follow each other within microseconds; between waves everybody sleeps.
    template <class Condition>
    static void glance(const Condition& happened) {
        constexpr auto kPatience = std::chrono::microseconds(30);
        const auto until = std::chrono::steady_clock::now() + kPatience;
        while (!happened() && std::chrono::steady_clock::now() < until) pause();
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }
};

Pool::~Pool() {
    if (crew_ != nullptr && owner_ == getpid()) delete crew_;
}

void Pool::share(unsigned chunks, Task task) {
    // Threads do not survive a fork: the child starts a crew of its own and leaves the old one be.
    if (crew_ == nullptr || owner_ != getpid()) {
        crew_ = new Crew(threads_ - 1);
        owner_ = getpid();
    }
    {
        const std::lock_guard lock(crew_->mutex);
        crew_->task = task;
        crew_->deal(chunks);
        crew_->error = nullptr;
        crew_->open = true;
        ++crew_->round;
    }
    crew_->wake.notify_all();
    const std::exception_ptr failed = crew_->take_chunks(0);
    std::unique_lock lock(crew_->mutex);
    crew_->open = false;
    lock.unlock();
    Crew::glance([&] { return crew_->busy.load(std::memory_order_relaxed) == 0; });
    lock.lock();
    crew_->done.wait(lock, [&] { return crew_->busy == 0; });
    if (failed) std::rethrow_exception(failed);
    if (crew_->error) std::rethrow_exception(crew_->error);
}

}  // namespace bdc::search

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
    Task task{};
    unsigned chunks = 0;
    std::atomic<unsigned> next{0};
    std::atomic<unsigned long> round{0};
    std::atomic<unsigned> busy{0};  // helpers at work
    bool open = false;              // may helpers still join this round?
    bool stop = false;
    std::exception_ptr error;
    std::vector<std::thread> threads;

    explicit Crew(unsigned helpers) {
        for (unsigned i = 0; i < helpers; ++i) threads.emplace_back([this] { serve(); });
    }

    ~Crew() {
        {
            const std::lock_guard lock(mutex);
            stop = true;
        }
        wake.notify_all();
        for (auto& thread : threads) thread.join();
    }

    std::exception_ptr take_chunks() {
        try {
            for (unsigned i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
                task.call(task.of, i);
            }
        } catch (...) {
            return std::current_exception();
        }
        return nullptr;
    }

    void serve() {
        unsigned long seen = 0;
        for (;;) {
            glance([&] { return round.load(std::memory_order_relaxed) != seen; });
            std::unique_lock lock(mutex);
            wake.wait(lock, [&] { return stop || (open && round != seen); });
            if (stop) return;
            seen = round;
            ++busy;
            lock.unlock();
            const std::exception_ptr failed = take_chunks();
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
        crew_->chunks = chunks;
        crew_->next.store(0, std::memory_order_relaxed);
        crew_->error = nullptr;
        crew_->open = true;
        ++crew_->round;
    }
    crew_->wake.notify_all();
    const std::exception_ptr failed = crew_->take_chunks();
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

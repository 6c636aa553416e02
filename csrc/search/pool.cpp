#include "pool.hpp"

#include <unistd.h>

#include <exception>

namespace bdc::search {

struct Pool::Crew {
    std::mutex mutex;
    std::condition_variable wake, done;
    const std::function<void(unsigned)>* work = nullptr;
    unsigned long round = 0;
    unsigned parts = 0, running = 0;
    bool stop = false;
    std::exception_ptr error;
    std::vector<std::thread> threads;

    explicit Crew(unsigned helpers) {
        for (unsigned part = 1; part <= helpers; ++part) {
            threads.emplace_back([this, part] { serve(part); });
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

    void serve(unsigned part) {
        unsigned long seen = 0;
        std::unique_lock lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return stop || round != seen; });
            if (stop) return;
            seen = round;
            if (part >= parts) continue;
            const auto* task = work;
            lock.unlock();
            std::exception_ptr failed;
            try {
                (*task)(part);
            } catch (...) {
                failed = std::current_exception();
            }
            lock.lock();
            if (failed && !error) error = failed;
            if (--running == 0) done.notify_one();
        }
    }
};

Pool::~Pool() {
    if (crew_ != nullptr && owner_ == getpid()) delete crew_;
}

void Pool::run(unsigned parts, const std::function<void(unsigned)>& work) {
    if (parts <= 1) {
        work(0);
        return;
    }
    // Threads do not survive a fork: the child starts a crew of its own and leaves the old one be.
    if (crew_ == nullptr || owner_ != getpid()) {
        crew_ = new Crew(threads_ - 1);
        owner_ = getpid();
    }
    {
        const std::lock_guard lock(crew_->mutex);
        crew_->work = &work;
        crew_->parts = parts;
        crew_->running = parts - 1;
        crew_->error = nullptr;
        ++crew_->round;
    }
    crew_->wake.notify_all();
    std::exception_ptr failed;
    try {
        work(0);
    } catch (...) {
        failed = std::current_exception();
    }
    std::unique_lock lock(crew_->mutex);
    crew_->done.wait(lock, [&] { return crew_->running == 0; });
    if (failed) std::rethrow_exception(failed);
    if (crew_->error) std::rethrow_exception(crew_->error);
}

}  // namespace bdc::search

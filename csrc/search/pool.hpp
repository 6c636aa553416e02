// A few sleeping threads; one call at a time hands each of them a part.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bdc::search {

class Pool {
  public:
    explicit Pool(unsigned threads) : threads_(threads < 1 ? 1 : threads) {}
    ~Pool();

    unsigned threads() const { return threads_; }

    // Calls work(0..parts-1), part 0 on the caller's thread; `parts` at most threads().
    // The first exception of any part is rethrown after all have ended.
    void run(unsigned parts, const std::function<void(unsigned)>& work);

  private:
    struct Crew;
    unsigned threads_;
    pid_t owner_ = 0;
    Crew* crew_ = nullptr;
};

}  // namespace bdc::search

#include "run.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace bdc::lora {
namespace {

// From here on each thread has enough tokens to read A and B by itself.
constexpr std::int64_t kOwnTokens = 128;
// Sums h that a thread makes before it uses them, in its second cache.
constexpr std::int64_t kSumsAtOnce = 1 << 16;

// Kept from call to call: fresh pages would cost more than the product of one token.
class Buffer {
  public:
    void* get(std::size_t bytes) {
        if (bytes > size_) {
            data_.reset();
            data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
            size_ = bytes;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
    };
    std::unique_ptr<std::byte, Free> data_;
    std::size_t size_ = 0;
};

thread_local Buffer scratch_buffer, h_buffer;

float* h_for(const Product& p) {
    return static_cast<float*>(h_buffer.get(std::size_t(p.count * p.rank) * sizeof(float)));
}

// The share of worker i of n in [0, length), in multiples of step.
std::pair<std::int64_t, std::int64_t> share(std::int64_t length, std::int64_t step, int i, int n) {
    const std::int64_t steps = (length + step - 1) / step;
    return {std::min(length, steps * i / n * step), std::min(length, steps * (i + 1) / n * step)};
}

// Worker i of n's part of tokens x length: split along the length first, then along the tokens.
Part part_of(const Product& p, std::int64_t length, std::int64_t step, int i, int n) {
    const auto along = int(std::min<std::int64_t>(n, (length + step - 1) / step));
    const int across = n / along;
    if (i >= along * across) return {0, 0, 0, 0};
    const auto [first, last] = share(length, step, i % along, along);
    const auto [first_token, last_token] = share(p.count, 1, i / along, across);
    return {first_token, last_token, first, last};
}

void run_tokens(const Kernel& kernel, const Product& p, std::int64_t first, std::int64_t last) {
    void* scratch = scratch_buffer.get(kernel.scratch(p));
    const std::int64_t at_once = std::max<std::int64_t>(kSumsAtOnce / p.rank / kBlock, 1) * kBlock;
    for (; first < last; first += at_once) {
        Product block = p;
        block.active += first;
        block.rows += first;
        block.count = std::min(at_once, last - first);
        if (!block.h_of_each) block.h = h_for(block);
        kernel.shrink(block, {0, block.count, 0, p.rank}, scratch);
        kernel.expand(block, {0, block.count, 0, p.out}, scratch);
    }
}

}  // namespace

int max_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

void run(const Kernel& kernel, const Product& given, int threads) {
    Product p = given;
    p.h_of_each = p.h != nullptr;
    p.order = order(p);
    if (threads <= 1 || microseconds(p, p.count) < kParallelMicroseconds)
        return run_tokens(kernel, p, 0, p.count);
#ifdef _OPENMP
    if (p.count >= threads * kOwnTokens) {
#pragma omp parallel num_threads(threads)
        {
            const auto [first, last] =
                share(p.count, 4, omp_get_thread_num(), omp_get_num_threads());
            run_tokens(kernel, p, first, last);
        }
        return;
    }
    if (!p.h_of_each) p.h = h_for(p);
#pragma omp parallel num_threads(threads)
    {
        const int i = omp_get_thread_num(), n = omp_get_num_threads();
        void* scratch = scratch_buffer.get(kernel.scratch(p));
        kernel.shrink(p, part_of(p, p.rank, kernel.rank_step, i, n), scratch);
#pragma omp barrier
        kernel.expand(p, part_of(p, p.out, kernel.out_step, i, n), scratch);
    }
#endif
}

}  // namespace bdc::lora

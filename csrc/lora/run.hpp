// The product on several threads.
#pragma once

#include "product.hpp"

namespace bdc::lora {

// Below this, waking a second thread costs more than it saves.
constexpr double kParallelFlops = 4e5;

inline double flops(const Product& p, std::int64_t tokens) {
    return 2.0 * double(tokens) * double(p.rank) * double(p.in + p.out);
}

// Adds the product to y on at most `threads` threads; the same bits for any number of them.
void run(const Kernel& kernel, const Product& product, int threads);

// Threads that this process gives to one parallel region; torch.set_num_threads sets it where both
// use one OpenMP runtime.
int max_threads();

}  // namespace bdc::lora

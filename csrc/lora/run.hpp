// The product on several threads.
#pragma once

#include "product.hpp"

namespace bdc::lora {

// Adds the product to y on at most `threads` threads; the same bits for any number of them.
void run(const Kernel& kernel, const Product& product, int threads);

// Threads that this process gives to one parallel region; torch.set_num_threads sets it where both
// use one OpenMP runtime.
int max_threads();

}  // namespace bdc::lora

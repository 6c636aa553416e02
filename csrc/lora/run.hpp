// The product on several threads.
#pragma once

#include <algorithm>

#include "product.hpp"

namespace bdc::lora {

// About what one thread does in a microsecond with wide vectors of float32.
constexpr double kPerMicrosecond = 1e5;

// Multiplications and additions of a product of matrices.
inline double operations(std::int64_t m, std::int64_t n, std::int64_t k) {
    return 2 * double(m) * double(n) * double(k);
}

// About what one thread takes: operations, or bytes of A and B.
inline double microseconds(const Product& p, std::int64_t tokens) {
    const double weights = double(p.rank) * (double(p.in) + double(p.out) / double(p.slices));
    const double multiplying =
        2 * double(tokens) * weights / kPerMicrosecond / (p.storage == Storage::kBFloat16 ? 2 : 1);
    return std::max(multiplying, weights * double(expert_bytes(p)) / 8e4);
}

// Below this, letting other Python threads run costs more than it saves.
constexpr double kUnlockedMicroseconds = 5;

// Adds the product to y on at most `threads` threads; the same bits for any number of them.
void run(const Kernel& kernel, const Product& product, int threads);

// out[n][r], or out[r][n], = the sum over t of x[t][n] w[t][r], in float32.
struct TokenSums {
    const float *x, *w;  // [tokens, columns], [tokens, rank]
    float* out;          // [columns, rank], or [rank, columns]
    std::int64_t tokens, columns, rank, x_stride, w_stride;
    bool rank_first;
};
inline double microseconds(const TokenSums& sums) {
    return operations(sums.tokens, sums.rank, sums.columns) / kPerMicrosecond;
}
void sum_over_tokens(const Kernel& kernel, const TokenSums& sums, int threads);

inline double microseconds(const GateGradients& q) { return double(q.tokens * q.rank) / 1.5e3; }
void gate_gradients(const Kernel& kernel, const GateGradients& gradients, int threads);

// Threads that this process gives to one parallel region; torch.set_num_threads sets it where both
// use one OpenMP runtime.
int max_threads();

}  // namespace bdc::lora

// y[t] += s * ((x[t] A^T) * g[row[t]]) B^T on one CPU thread, with sums in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bdc::lora {

enum class Storage { kFloat32 = 0, kBFloat16 = 1 };

// Plain data only: this header is compiled for several instruction sets.
struct Product {
    Storage storage;             // of y, x, a and b
    void* y;                     // [tokens, out], y_stride elements from token to token
    const void* x;               // [tokens, in], x_stride elements from token to token
    const void* a;               // [rank, in]
    const void* b;               // [out, rank]
    const float* g;              // [requests, rank]
    const std::int64_t* active;  // the tokens that have an adapter
    const std::int64_t* rows;    // the row of g of each active token
    std::int64_t count;          // of active tokens
    std::int64_t in, out, rank;
    std::int64_t y_stride, x_stride;
    float scaling;
    float* scratch;  // kBlock * (in + rank) floats
};

constexpr std::int64_t kBlock = 32;  // tokens that share one pass over A and B

void add_portable(const Product& product);
void add_avx2(const Product& product);
void add_avx512(const Product& product);

}  // namespace bdc::lora

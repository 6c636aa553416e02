// One product as the kernels see it, and their launches. Addresses are those of device memory.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "plan.hpp"

namespace bdc::cuda {

enum class Storage : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
constexpr int bytes_of(Storage storage) { return storage == Storage::kFloat32 ? 4 : 2; }

// y[t] += s ((x[t] A^T) * g[row[t]]) B^T; with a base weight, y = x W^T + bias + the same.
struct Product {
    Storage storage;
    void* y;                   // [tokens, d_out]
    const void* x;             // [tokens, d_in]
    const void* a;             // [ranks, d_in]
    const void* b;             // [d_out, slice_ranks]
    const void* w;             // [d_out, d_in]; null: y is added to
    const void* bias;          // [d_out] or null; with w only
    const float* g;            // [requests, ranks]
    const std::int32_t* rows;  // [tokens], -1 for no adapter; null: row t
    std::int64_t y_stride, x_stride, a_stride, b_stride, w_stride;
    std::int64_t g_stride;  // 0 where one row is for all tokens
    int tokens, d_in, d_out, ranks, requests;
    float scaling;
    // Outputs that share x and lie side by side in y, such as q, k and v: slice i ends at column
    // ends[i], has ranks [i * slice_ranks, (i + 1) * slice_ranks) of h, and B with slice_ranks
    // columns. Only the persistent form takes more than one.
    int slices, slice_ranks;
    int ends[kMostSlices];
};

// Memory of one call, on its device.
struct Workspace {
    float* planes;  // sums of the splits
    void* gated;    // [token_tile, padded_ranks] in the storage of x
    // Zero before the call and after it.
    std::uint32_t* counters;
};

// Whether rows start at, and are multiples of, 16 bytes, so that they can be loaded in such pieces.
inline bool in_chunks(const void* data, std::int64_t stride, std::int64_t columns, int bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride * bytes % 16 == 0 &&
           columns * bytes % 16 == 0;
}
inline bool in_chunks(const Product& p) {
    const int bytes = bytes_of(p.storage);
    return in_chunks(p.x, p.x_stride, p.d_in, bytes) && in_chunks(p.a, p.a_stride, p.d_in, bytes) &&
           in_chunks(p.b, p.b_stride, p.slice_ranks, bytes) &&
           (!p.w || in_chunks(p.w, p.w_stride, p.d_in, bytes));
}

class Error : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Processors of the current device; throws Error where there is none, or an older one.
int processors();
// Of the current device for the persistent kernel.
Capacity capacity(Storage storage, int token_tile);
// Both return once the launch is queued, and throw Error where that fails.
void launch_vectors(const Product& p, const VectorPlan& plan, float* planes, void* stream);
void launch_tiles(const Product& p, const TilePlan& plan, const Workspace& work, void* stream);

}  // namespace bdc::cuda

// The product of a few tokens: a pass over A and a pass over B, each element of which is loaded
// once, 16 bytes at a time.
//
// shrink: plane[split][t][r] = the split's part of x[t] A[r], one warp for each rank and split.
// expand: adds the planes in their order, gates them, multiplies B, and adds to y. So the order of
// every sum is fixed by the shapes, and equal inputs give equal bits.
#pragma once

#include "device.cuh"
#include "product.hpp"

namespace bdc::cuda {

// Consecutive elements of a row as they are in memory, so that nothing waits for a load before
// their values are used; zeros past the row's end. Whole chunks are inside or outside.
template <class S, bool kChunks>
struct Lanes {
    Chunk chunk{};

    BDC_DEVICE void load_from(const S* row, int k, int columns) {
        if (k < columns) chunk = load_chunk(row + k);
    }
    BDC_DEVICE void to(float (&out)[kLanes<S>]) const { widen<S>(chunk, out); }
};
template <class S>
struct Lanes<S, false> {
    S elements[kLanes<S>];

    BDC_DEVICE void load_from(const S* row, int k, int columns) {
#pragma unroll
        for (int i = 0; i < kLanes<S>; ++i)
            elements[i] = k + i < columns ? load(row + k + i) : narrow<S>(0);
    }
    BDC_DEVICE void to(float (&out)[kLanes<S>]) const {
#pragma unroll
        for (int i = 0; i < kLanes<S>; ++i) out[i] = widen(elements[i]);
    }
};

template <class S, int kTokens, bool kChunks>
BDC_KERNEL(kThreads, 4)
shrink(const Product p, const VectorPlan plan, float* planes) {
    const int lane = thread_index() % 32, r = block_index().x * kWarps + thread_index() / 32;
    const int split = block_index().y, first_token = block_index().z * kTokens;
    if (r >= p.ranks) return;
    const S* a = static_cast<const S*>(p.a) + r * p.a_stride;
    const S* x[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
        x[t] = static_cast<const S*>(p.x) + least(first_token + t, p.tokens - 1) * p.x_stride;

    float sums[kTokens] = {};
#pragma unroll 2
    for (int step = plan.inputs.first(split); step < plan.inputs.last(split); ++step) {
        const int k = (step * 32 + lane) * kLanes<S>;
        Lanes<S, kChunks> a_lanes, x_lanes[kTokens];
        a_lanes.load_from(a, k, p.d_in);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) x_lanes[t].load_from(x[t], k, p.d_in);
        float from_a[kLanes<S>], from_x[kLanes<S>];
        a_lanes.to(from_a);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            x_lanes[t].to(from_x);
#pragma unroll
            for (int i = 0; i < kLanes<S>; ++i) sums[t] += from_a[i] * from_x[i];
        }
    }
    float mine = 0;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int mask = 16; mask; mask /= 2) sums[t] += shuffle_xor(sums[t], mask);
        if (lane == t) mine = sums[t];
    }
    const int t = first_token + lane;
    if (lane < kTokens && t < p.tokens)
        store(planes + (std::int64_t(split) * p.tokens + t) * p.ranks + r, mine);
}

// The row of g of token t, -1 for none.
BDC_DEVICE int row_of(const Product& p, int t) {
    return t >= p.tokens ? -1 : p.rows ? load(p.rows + t) : t;
}

template <class S, int kTokens, bool kChunks>
BDC_KERNEL(kThreads, 4)
expand(const Product p, const VectorPlan plan, const float* planes) {
    constexpr int kChunkRanks = kLanes<S>, kLoads = kRanksAtOnce / kLanesPerRow / kChunkRanks;
    auto* gated = reinterpret_cast<float (*)[kRanksAtOnce]>(shared_memory());
    const int lane = thread_index() % kLanesPerRow;
    const int n = block_index().x * kRowsPerBlock + thread_index() / kLanesPerRow;
    const int first_token = block_index().z * kTokens;
    const S* b = static_cast<const S*>(p.b) + least(n, p.d_out - 1) * p.b_stride;

    float sums[kTokens] = {};
    for (int first = 0; first < p.ranks; first += kRanksAtOnce) {
        const int ranks = least(kRanksAtOnce, p.ranks - first);
        // B's elements are asked for before the gated sums are made, which takes as long.
        Lanes<S, kChunks> b_lanes[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i)
            b_lanes[i].load_from(b + first, (i * kLanesPerRow + lane) * kChunkRanks, ranks);
        sync_block();
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
            const int r = thread_index(), row = row_of(p, first_token + t);
            float h = 0;
            if (r < ranks && row >= 0) {
                const float* plane = planes + std::int64_t(first_token + t) * p.ranks + first + r;
                for (int split = 0; split < plan.inputs.splits; ++split)
                    h += load(plane + std::int64_t(split) * p.tokens * p.ranks);
                h *= load(p.g + row * p.g_stride + first + r) * p.scaling;
            }
            gated[t][r] = h;
        }
        sync_block();
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int r = (i * kLanesPerRow + lane) * kChunkRanks;
            float from_b[kChunkRanks];
            b_lanes[i].to(from_b);
#pragma unroll
            for (int t = 0; t < kTokens; ++t) {
                float part = 0;
#pragma unroll
                for (int j = 0; j < kChunkRanks; ++j) part += gated[t][r + j] * from_b[j];
                sums[t] += part;
            }
        }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int mask = kLanesPerRow / 2; mask; mask /= 2) sums[t] += shuffle_xor(sums[t], mask);
        // A sum of zero leaves y alone, even where it is -0.
        if (n >= p.d_out || t % kLanesPerRow != lane || sums[t] == 0) continue;
        if (row_of(p, first_token + t) < 0) continue;
        S* y = static_cast<S*>(p.y) + (first_token + t) * p.y_stride + n;
        store(y, narrow<S>(widen(load(y)) + sums[t]));
    }
}

static_assert(kThreads == kRanksAtOnce, "each thread makes one rank's gated sums");

}  // namespace bdc::cuda

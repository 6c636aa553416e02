// The product of up to 64 tokens in one launch of blocks that stay, on the matrix units.
//
// Without a base weight it adds s ((x A^T) * g) B^T to y. With one it computes the layer,
// [x, gated] [W, B]^T, as one sum over d_in and then the ranks: h is made by whoever is free
// first, and is ready by the time its part of the sum comes.
//
// Blocks take shrink's tiles by ticket until none is left, and only then turn to their output
// tiles. So a block that waits for h waits for blocks that run, however few of them the device runs
// at once. The last block to arrive at a tile adds the splits' planes in their order, whoever it
// is: equal inputs give equal bits. Counters are zero again when the launch ends.
#pragma once

#include "device.cuh"
#include "product.hpp"

namespace bdc::cuda {

// A matrix in memory whose rows are loaded in chunks of 16 bytes; zeros outside it.
template <class S>
struct Rows {
    const S* data;
    std::int64_t stride;
    int rows, columns;
};

// Starts the copy of kCount rows from `row` on, of columns [column, column + 64), to a tile.
template <class S, int kCount>
BDC_DEVICE void copy_tile(char* to, const Rows<S>& from, int row, int column) {
    constexpr int kChunks = kRowBytes / 16;
#pragma unroll
    for (int i = thread_index(); i < kCount * kChunks; i += kThreads) {
        const int r = i / kChunks, k = column + i % kChunks * lanes_of(2);
        const bool inside = row + r < from.rows && k < from.columns;
        // An address outside is never given, not even for a copy of nothing.
        const S* place = inside ? from.data + (row + r) * from.stride + k : from.data;
        copy_chunk(to + swizzled(r, i % kChunks), place, inside);
    }
}

// One warp's part of a step: 16 rows of weights from `row` on times all tokens, over the 16 inputs
// of chunks 2 * part and 2 * part + 1.
template <class S, int kTokens>
BDC_DEVICE void multiply_part(float (&sums)[kTokens / 8][4], const char* weights,
                              const char* tokens, int row, int part) {
    const int lane = thread_index() % 32;
    std::uint32_t a[4];
    load_matrices(a, weights + swizzled(row + lane % 16, part * 2 + lane / 16));
#pragma unroll
    for (int pair = 0; pair < kTokens / 16; ++pair) {
        std::uint32_t b[4];
        load_matrices(
            b, tokens + swizzled(pair * 16 + lane % 8 + lane / 16 * 8, part * 2 + lane / 8 % 2));
        multiply<S>(sums[2 * pair], a, b[0], b[1]);
        multiply<S>(sums[2 * pair + 1], a, b[2], b[3]);
    }
}

// All threads learn what thread 0 knows.
BDC_DEVICE std::uint32_t broadcast(std::uint32_t value, std::uint32_t* shared) {
    sync_block();
    if (thread_index() == 0) store(shared, value);
    sync_block();
    return load(shared);
}

// What this block's threads wrote before is seen by whoever sees the count; true for the last.
BDC_DEVICE bool arrive(std::uint32_t* counter, int expected, std::uint32_t* shared) {
    fence();
    sync_block();
    std::uint32_t before = 0;
    if (thread_index() == 0) {
        before = add_one(counter);
        fence();
        if (int(before) == expected - 1) store(counter, 0u);
    }
    return int(broadcast(before, shared)) == expected - 1;
}

// Sum of a tile's planes in their order; `stride` floats from one to the next.
BDC_DEVICE float sum_planes(const float* first, std::int64_t stride, int splits) {
    float sum = 0;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) sum += load_written(first + split * stride);
    return sum;
}

template <class S, int kTokens>
struct TileKernel {
    static constexpr int kSums = kTokens / 8 * 4;    // of a lane, for 16 rows of weights
    static constexpr int kParts = kStepInputs / 16;  // of a step's inputs, one for a warp
    static constexpr int kStageBytes = stage_bytes(kTokens);

    const Product& p;
    const TilePlan& plan;
    const Workspace& work;
    char* shared;         // kStages stages
    std::uint32_t* flag;  // in shared memory
    std::uint32_t *ticket, *ready, *done, *rank_arrivals, *output_arrivals;

    BDC_DEVICE TileKernel(const Product& product, const TilePlan& tile_plan, const Workspace& w)
        : p(product), plan(tile_plan), work(w), shared(shared_memory()) {
        flag = reinterpret_cast<std::uint32_t*>(shared + kStages * kStageBytes);
        ticket = work.counters;
        ready = ticket + 1;
        done = ticket + 2;
        rank_arrivals = ticket + 3;
        output_arrivals = rank_arrivals + plan.rank_tiles;
    }

    BDC_DEVICE Rows<S> x() const {
        return {static_cast<const S*>(p.x), p.x_stride, p.tokens, p.d_in};
    }
    BDC_DEVICE char* weights(int step) const { return shared + step % kStages * kStageBytes; }
    BDC_DEVICE char* tokens(int step) const { return weights(step) + kOutputTile * kRowBytes; }

    BDC_DEVICE std::uint32_t next_ticket() const {
        return broadcast(thread_index() == 0 ? add_one(ticket) : 0, flag);
    }

    BDC_DEVICE int row_of(int t) const {
        return t >= p.tokens ? -1 : p.rows ? load(p.rows + t) : t;
    }

    // One split of one tile of h; the last to arrive gates the tile.
    BDC_DEVICE void shrink(int item) const {
        const int tile = item % plan.rank_tiles, split = item / plan.rank_tiles;
        const int warp = thread_index() / 32, lane = thread_index() % 32;
        const int first = plan.inputs.first(split), last = plan.inputs.last(split);
        const Rows<S> a{static_cast<const S*>(p.a), p.a_stride, p.ranks, p.d_in};
        const auto issue = [&](int step) {
            if (step < last) {
                copy_tile<S, kRankTile>(weights(step), a, tile * kRankTile, step * kStepInputs);
                copy_tile<S, kTokens>(tokens(step), x(), 0, step * kStepInputs);
            }
            copies_commit();
        };
        for (int i = 0; i < kStages - 1; ++i) issue(first + i);
        float sums[kTokens / 8][4] = {};
        for (int step = first; step < last; ++step) {
            copies_wait<kStages - 2>();
            sync_block();
            issue(step + kStages - 1);
            multiply_part<S, kTokens>(sums, weights(step), tokens(step), warp / kParts * 16,
                                      warp % kParts);
        }
        copies_wait<0>();
        sync_block();

        // The warps' sums meet in shared memory; those of kParts warps are of the same ranks.
        auto* meeting = reinterpret_cast<float*>(shared);
#pragma unroll
        for (int i = 0; i < kSums; ++i)
            store(meeting + (warp * kSums + i) * 32 + lane, sums[i / 4][i % 4]);
        sync_block();
        const std::int64_t stride = plan.rank_tile_sums();
        float* plane = work.planes + (std::int64_t(tile) * plan.inputs.splits + split) * stride;
        for (int i = thread_index(); i < kRankTile * kTokens; i += kThreads) {
            const float* first_part =
                meeting + i / (kSums * 32) * kParts * kSums * 32 + i % (kSums * 32);
            float sum = 0;
#pragma unroll
            for (int part = 0; part < kParts; ++part) sum += load(first_part + part * kSums * 32);
            store(plane + i, sum);
        }
        if (!arrive(rank_arrivals + tile, plan.inputs.splits, flag)) return;

        const float* planes = work.planes + std::int64_t(tile) * plan.inputs.splits * stride;
        auto* gated = static_cast<S*>(work.gated);
        for (int i = thread_index(); i < kRankTile * kTokens; i += kThreads) {
            const int of_warp = i % (kSums * 32);
            const int r = tile * kRankTile + i / (kSums * 32) * 16 +
                          fragment_row(of_warp % 32, of_warp / 32 % 4);
            const int t = of_warp / 128 * 8 + fragment_column(of_warp % 32, of_warp / 32 % 4);
            const int row = row_of(t);
            float h = 0;
            if (r < p.ranks && row >= 0)
                h = sum_planes(planes + i, stride, plan.inputs.splits) *
                    (load(p.g + row * p.g_stride + r) * p.scaling);
            store(gated + std::int64_t(t) * plan.padded_ranks() + r, narrow<S>(h));
        }
        fence();
        sync_block();
        if (thread_index() == 0) add_one(ready);
    }

    BDC_DEVICE void wait_for_gated() const {
        if (thread_index() == 0) {
            while (int(load_acquire(ready)) < plan.rank_tiles) pause();
            fence();
        }
        sync_block();
    }

    // Asks for this block's first tile of B before there is an h to multiply it with.
    BDC_DEVICE void prefetch_b(int item) const {
        if (item >= plan.output_items() || thread_index() >= kOutputTile) return;
        const int n = item % plan.output_tiles * kOutputTile + thread_index();
        if (n >= p.d_out) return;
        const S* row = static_cast<const S*>(p.b) + n * p.b_stride;
        for (int r = 0; r < p.slice_ranks; r += kRowBytes / 2) prefetch(row + r);
    }

    // Slices end where tiles end.
    BDC_DEVICE int slice_of(int tile) const {
        int slice = 0;
#pragma unroll
        for (int i = 0; i < kMostSlices - 1; ++i)
            slice += i < p.slices - 1 && tile * kOutputTile >= p.ends[i];
        return slice;
    }

    // One split of one tile of outputs.
    BDC_DEVICE void output(int item) const {
        const int tile = item % plan.output_tiles, split = item / plan.output_tiles;
        const int warp = thread_index() / 32, lane = thread_index() % 32;
        const int first = plan.sums.first(split), last = plan.sums.last(split);
        const Rows<S> w{static_cast<const S*>(p.w), p.w_stride, p.d_out, p.d_in};
        const Rows<S> b{static_cast<const S*>(p.b), p.b_stride, p.d_out, p.slice_ranks};
        const Rows<S> gated{static_cast<const S*>(work.gated) + slice_of(tile) * p.slice_ranks,
                            plan.padded_ranks(), kTokens, p.slice_ranks};
        const auto issue = [&](int step) {
            if (step < last && step < plan.base_steps) {
                copy_tile<S, kOutputTile>(weights(step), w, tile * kOutputTile, step * kStepInputs);
                copy_tile<S, kTokens>(tokens(step), x(), 0, step * kStepInputs);
            } else if (step < last) {
                const int r = (step - plan.base_steps) * kStepInputs;
                copy_tile<S, kOutputTile>(weights(step), b, tile * kOutputTile, r);
                if (step == most(first, plan.base_steps)) wait_for_gated();
                copy_tile<S, kTokens>(tokens(step), gated, 0, r);
            }
            copies_commit();
        };
        for (int i = 0; i < kStages - 1; ++i) issue(first + i);
        // Apart, so that a token without an adapter can leave the experts' part out.
        float base[kTokens / 8][4] = {}, added[kTokens / 8][4] = {};
        for (int step = first; step < last; ++step) {
            copies_wait<kStages - 2>();
            sync_block();
            issue(step + kStages - 1);
#pragma unroll
            for (int part = 0; part < kStepInputs / 16; ++part) {
                if (step < plan.base_steps) {
                    multiply_part<S, kTokens>(base, weights(step), tokens(step), warp * 16, part);
                } else {
                    multiply_part<S, kTokens>(added, weights(step), tokens(step), warp * 16, part);
                }
            }
        }
        copies_wait<0>();
        sync_block();

#pragma unroll
        for (int i = 0; i < kSums; ++i) {
            if (row_of(i / 4 * 8 + fragment_column(lane, i % 4)) >= 0)
                base[i / 4][i % 4] += added[i / 4][i % 4];
        }
        if (plan.sums.splits > 1) {
            const std::int64_t stride = plan.output_tile_sums();
            float* planes = work.planes + plan.rank_planes() +
                            std::int64_t(tile) * plan.sums.splits * stride + thread_index();
#pragma unroll
            for (int i = 0; i < kSums; ++i)
                store(planes + split * stride + i * kThreads, base[i / 4][i % 4]);
            if (!arrive(output_arrivals + tile, plan.sums.splits, flag)) return;
#pragma unroll
            for (int i = 0; i < kSums; ++i) base[i / 4][i % 4] = 0;
            for (int other = 0; other < plan.sums.splits; ++other) {
#pragma unroll
                for (int i = 0; i < kSums; ++i)
                    base[i / 4][i % 4] += load_written(planes + other * stride + i * kThreads);
            }
        }
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
            const int n = tile * kOutputTile + warp * 16 + fragment_row(lane, i % 4);
            const int t = i / 4 * 8 + fragment_column(lane, i % 4);
            if (n < p.d_out && t < p.tokens) write(t, n, base[i / 4][i % 4]);
        }
    }

    BDC_DEVICE void write(int t, int n, float sum) const {
        S* y = static_cast<S*>(p.y) + t * p.y_stride + n;
        if (p.w) {
            if (p.bias) sum += widen(load(static_cast<const S*>(p.bias) + n));
            store(y, narrow<S>(sum));
        } else if (sum != 0 && row_of(t) >= 0) {
            // A sum of zero leaves y alone, even where it is -0.
            store(y, narrow<S>(widen(load(y)) + sum));
        }
    }

    BDC_DEVICE void run() const {
        const int block = block_index().x;
        if (!p.w) prefetch_b(block);
        for (;;) {
            const auto item = int(next_ticket());
            if (item >= plan.shrink_items()) break;
            shrink(item);
        }
        for (int item = block; item < plan.output_items(); item += grid_blocks()) output(item);
        sync_block();
        if (thread_index() != 0 || int(add_one(done)) != grid_blocks() - 1) return;
        // All other blocks are past their last look at these.
        store(ticket, 0u);
        store(ready, 0u);
        store(done, 0u);
    }
};

template <class S, int kTokens>
BDC_KERNEL(2)
product_of_tiles(const Product p, const TilePlan plan, const Workspace work) {
    TileKernel<S, kTokens>(p, plan, work).run();
}

}  // namespace bdc::cuda

// How a product is divided among blocks: plain arithmetic, the same on the host and in the kernels.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define BDC_BOTH __host__ __device__
#else
#define BDC_BOTH
#endif

namespace bdc::cuda {

BDC_BOTH constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }
BDC_BOTH constexpr int least(int a, int b) { return a < b ? a : b; }
BDC_BOTH constexpr int most(int a, int b) { return a > b ? a : b; }

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxSplits = 16;

// A sum of `steps` steps as `splits` runs of `per_split` of them; none is empty.
struct Split {
    int steps, per_split, splits;

    BDC_BOTH constexpr int first(int split) const { return split * per_split; }
    BDC_BOTH constexpr int last(int split) const { return least(steps, (split + 1) * per_split); }
};

BDC_BOTH constexpr Split split_evenly(int steps, int wanted) {
    const int per_split = divide_up(steps, most(1, least(wanted, steps)));
    return {steps, per_split, divide_up(steps, per_split)};
}

// --- The form for a few tokens: every warp multiplies vectors ------------------------------------

constexpr int kMostVectorTokens = 8;  // at once; more tokens are more blocks
constexpr int kRanksAtOnce = 128;     // of the expand kernel's inner loop
constexpr int kLanesPerRow = 4;       // lanes that share a row of B
constexpr int kRowsPerBlock = kThreads / kLanesPerRow;

// Elements of one 16-byte load.
BDC_BOTH constexpr int lanes_of(int bytes) { return 16 / bytes; }

struct VectorPlan {
    int tokens_at_once;  // 1, 2, 4 or 8
    int token_tiles;
    int rank_blocks;  // one rank a warp
    Split inputs;     // in steps of 32 loads of 16 bytes
    int output_blocks;

    BDC_BOTH constexpr std::int64_t planes(int tokens, int ranks) const {
        return std::int64_t(inputs.splits) * tokens * ranks;
    }
    // The odd shapes' kernel has room for the most tokens.
    BDC_BOTH constexpr int expand_shared_bytes() const {
        return kMostVectorTokens * kRanksAtOnce * 4;
    }
};

// Enough splits to give every processor two blocks, but few enough that expand, which adds the
// planes in every block, reads little more of them than of B.
BDC_BOTH constexpr VectorPlan vector_plan(int tokens, int d_in, int d_out, int ranks, int bytes,
                                          int processors) {
    VectorPlan plan{};
    plan.tokens_at_once = tokens <= 1 ? 1 : tokens <= 2 ? 2 : tokens <= 4 ? 4 : kMostVectorTokens;
    plan.token_tiles = divide_up(tokens, plan.tokens_at_once);
    plan.rank_blocks = divide_up(ranks, kWarps);
    const int wanted = least(divide_up(2 * processors, plan.rank_blocks * plan.token_tiles),
                             least(kMaxSplits, 32 / plan.tokens_at_once));
    plan.inputs = split_evenly(divide_up(d_in, 32 * lanes_of(bytes)), wanted);
    plan.output_blocks = divide_up(d_out, kRowsPerBlock);
    return plan;
}

// --- The persistent form: tiles on the matrix units ----------------------------------------------

constexpr int kStepInputs = 64;  // elements of a row that a pipeline stage holds: 128 bytes
constexpr int kStages = 4;       // of the pipeline
constexpr int kOutputTile = 64;  // outputs of a tile: 16 for each warp
constexpr int kRankTile = kOutputTile / 4;  // four warps share a sum over the inputs
constexpr int kMostTileTokens = 64;
constexpr int kRowBytes = 128;  // of a tile in shared memory

// Where 16-byte chunk `chunk` of row `row` of a tile lies: the exclusive or keeps eight rows of one
// chunk, which one instruction reads, in different banks.
BDC_BOTH constexpr int swizzled(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Row and column of the i-th of a lane's four sums of a 16 x 8 tile.
BDC_BOTH constexpr int fragment_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
BDC_BOTH constexpr int fragment_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

BDC_BOTH constexpr int stage_bytes(int token_tile) {
    return (kOutputTile + token_tile) * kRowBytes;
}

struct TilePlan {
    int token_tile;  // 16, 32 or 64, not below the tokens
    int rank_tiles;
    Split inputs;  // of shrink
    int output_tiles;
    int base_steps;  // of the sum over d_in, where the base weight is multiplied too
    Split sums;      // of an output tile: base_steps, then the ranks
    int blocks;

    BDC_BOTH constexpr int shrink_items() const { return rank_tiles * inputs.splits; }
    BDC_BOTH constexpr int output_items() const { return output_tiles * sums.splits; }
    // The stages, and a word that the threads tell each other.
    BDC_BOTH constexpr int shared_bytes() const { return kStages * stage_bytes(token_tile) + 16; }
    // Sums of one tile, as the threads hold them.
    BDC_BOTH constexpr int rank_tile_sums() const { return kRankTile * token_tile; }
    BDC_BOTH constexpr int output_tile_sums() const { return kOutputTile * token_tile; }
    // Floats of both kinds of planes; the second follows the first.
    BDC_BOTH constexpr std::int64_t rank_planes() const {
        return std::int64_t(shrink_items()) * rank_tile_sums();
    }
    BDC_BOTH constexpr std::int64_t output_planes() const {
        return sums.splits > 1 ? std::int64_t(output_items()) * output_tile_sums() : 0;
    }
    BDC_BOTH constexpr int padded_ranks() const { return rank_tiles * kRankTile; }
    // Ticket, tiles of h that are ready, blocks that are done; then arrivals at each tile.
    BDC_BOTH constexpr int counters() const { return 3 + rank_tiles + output_tiles; }
};

// Rounds of the blocks times the steps of a round, with two steps' worth of filling the pipeline.
BDC_BOTH constexpr std::int64_t rounds(int tiles, const Split& split, int blocks) {
    return std::int64_t(divide_up(tiles * split.splits, blocks)) * (split.per_split + 2);
}

// `slice_ranks` of the ranks are for each output.
BDC_BOTH constexpr TilePlan tile_plan(int tokens, int d_in, int d_out, int ranks, int slice_ranks,
                                      bool base, int blocks) {
    TilePlan plan{};
    plan.token_tile = tokens <= 16 ? 16 : tokens <= 32 ? 32 : kMostTileTokens;
    plan.rank_tiles = divide_up(ranks, kRankTile);
    plan.inputs = split_evenly(divide_up(d_in, kStepInputs),
                               least(kMaxSplits, divide_up(blocks, plan.rank_tiles)));
    plan.output_tiles = divide_up(d_out, kOutputTile);
    plan.base_steps = base ? divide_up(d_in, kStepInputs) : 0;
    const int steps = plan.base_steps + divide_up(slice_ranks, kStepInputs);
    plan.sums = split_evenly(steps, 1);
    for (int wanted = 2; wanted <= kMaxSplits && wanted * 4 <= steps; ++wanted) {
        const Split candidate = split_evenly(steps, wanted);
        if (rounds(plan.output_tiles, candidate, blocks) <
            rounds(plan.output_tiles, plan.sums, blocks))
            plan.sums = candidate;
    }
    plan.blocks = most(1, least(blocks, most(plan.shrink_items(), plan.output_items())));
    return plan;
}

}  // namespace bdc::cuda

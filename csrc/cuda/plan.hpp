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

constexpr int kLoaders = 128;      // threads that load
constexpr int kMultipliers = 256;  // and that multiply
constexpr int kTileThreads = kLoaders + kMultipliers;
constexpr int kTileWarps = kMultipliers / 32;
constexpr int kStepInputs = 128;  // elements of a row that a pipeline stage holds
constexpr int kRowBytes = 2 * kStepInputs;
constexpr int kMostStages =
    3;  // of the pipeline: more only delay h, which waits behind them in memory
constexpr int kMostRankSplits = 32;
constexpr int kMostBlocks = 256;
constexpr int kOutputTile = 128;  // outputs of a tile
constexpr int kRankTile = 32;     // ranks of a tile
constexpr int kMostTileTokens = 64;
constexpr int kMostSlices = 4;

// Where 16-byte chunk `chunk` of row `row` of a tile lies: the exclusive or keeps eight rows of one
// chunk, which one instruction reads, in different banks.
BDC_BOTH constexpr int swizzled(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Row and column of the i-th of a lane's four sums of a 16 x 8 tile.
BDC_BOTH constexpr int fragment_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
BDC_BOTH constexpr int fragment_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

BDC_BOTH constexpr int token_tile_of(int tokens) {
    return tokens <= 16 ? 16 : tokens <= 32 ? 32 : kMostTileTokens;
}
BDC_BOTH constexpr int stage_bytes(int token_tile) {
    return (kOutputTile + token_tile) * kRowBytes;
}
// Beside the stages: what the threads of a block tell each other, the tokens' rows of g, and which
// blocks left planes of a tile.
constexpr int kNoteWords = 16 + kMostTileTokens + kMostBlocks;
BDC_BOTH constexpr int shared_bytes(int token_tile, int stages) {
    return stages * stage_bytes(token_tile) + kNoteWords * 4;
}
// As deep a pipeline as a block's shared memory allows; below two there is none.
BDC_BOTH constexpr int stages_for(int token_tile, int shared_limit) {
    return least(kMostStages, (shared_limit - shared_bytes(0, 0)) / stage_bytes(token_tile));
}

// Blocks that a device runs at once, each with so many stages.
struct Capacity {
    int blocks, stages;
};

// Every output tile is a row of units: steps of the sum over d_in where the base weight is
// multiplied too, then steps of the sum over the ranks. The units of all tiles, one tile after
// the other, are dealt out evenly, so a block may begin or end inside a tile; what it has summed of
// a tile that another block ends it leaves in a plane.
struct TilePlan {
    int token_tile;  // 16, 32 or 64, not below the tokens
    int stages;
    int blocks;
    int rank_tiles;
    Split inputs;                 // of shrink
    int slices;                   // outputs side by side
    int first_tile[kMostSlices];  // of each slice
    int output_tiles;
    int base_steps, rank_steps;  // units of a tile

    BDC_BOTH constexpr int shrink_items() const { return rank_tiles * inputs.splits; }
    BDC_BOTH constexpr int steps() const { return base_steps + rank_steps; }
    // What a tile of h costs its block, in units of outputs that others have to take over.
    BDC_BOTH constexpr int units_of_shrink() const {
        return shrink_items() <= blocks && output_tiles * steps() >= 4 * blocks ? 1 : 0;
    }
    // The first unit of a block's share, of all units. The steps over the ranks stay together.
    BDC_BOTH constexpr int first_unit(int block) const {
        const int extra = units_of_shrink() * shrink_items();
        const auto all = unsigned(output_tiles * steps() + extra);
        const int unit = int(all * unsigned(block) / unsigned(blocks)) -
                         units_of_shrink() * least(block, shrink_items());
        const int inside = unit % steps();
        return inside > base_steps ? unit - inside + steps() : unit;
    }
    BDC_BOTH constexpr int shared_bytes() const { return cuda::shared_bytes(token_tile, stages); }
    // Sums of one tile.
    BDC_BOTH constexpr int rank_tile_sums() const { return kRankTile * token_tile; }
    BDC_BOTH constexpr int output_tile_sums() const { return kOutputTile * token_tile; }
    // Floats of both kinds of planes; the second follows the first. A block leaves at most two.
    BDC_BOTH constexpr std::int64_t rank_planes() const {
        return std::int64_t(shrink_items()) * rank_tile_sums();
    }
    BDC_BOTH constexpr std::int64_t output_planes() const {
        return base_steps ? std::int64_t(blocks) * 2 * output_tile_sums() : 0;
    }
    BDC_BOTH constexpr int padded_ranks() const { return rank_tiles * kRankTile; }
    // Blocks that began, tickets for shrink, tiles of h that are ready, blocks that are done; then
    // arrivals at each tile.
    BDC_BOTH constexpr int counters() const { return 4 + rank_tiles + output_tiles; }
};

// Slice i of the outputs ends at column ends[i]; each has its part of the ranks.
constexpr TilePlan tile_plan(int tokens, int d_in, int ranks, const int* ends, int slices,
                             bool base, Capacity capacity) {
    TilePlan plan{};
    plan.token_tile = token_tile_of(tokens);
    plan.stages = capacity.stages;
    plan.rank_tiles = divide_up(ranks, kRankTile);
    plan.inputs = split_evenly(divide_up(d_in, kStepInputs),
                               least(kMostRankSplits, capacity.blocks / plan.rank_tiles));
    plan.slices = slices;
    for (int i = 0; i < slices; ++i) {
        const int width = ends[i] - (i ? ends[i - 1] : 0);
        plan.first_tile[i] = plan.output_tiles;
        plan.output_tiles += divide_up(width, kOutputTile);
    }
    plan.base_steps = base ? divide_up(d_in, kStepInputs) : 0;
    plan.rank_steps = divide_up(ranks / slices, kStepInputs);
    const int units = plan.output_tiles * plan.steps();
    plan.blocks =
        most(1, least(least(capacity.blocks, kMostBlocks), most(plan.shrink_items(), units)));
    return plan;
}

}  // namespace bdc::cuda

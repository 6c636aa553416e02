// The warps of the persistent kernel that multiply what is loaded, and write sums.
#pragma once

#include "items.cuh"

namespace bdc::cuda {

// kRows tiles of 16 rows of weights from `row` on, times kPairs tiles of 16 tokens from `token` on,
// over the 16 inputs of chunks 2 * part and 2 * part + 1.
template <class S, int kRows, int kPairs>
BDC_DEVICE void multiply_part(float (&sums)[2 * kRows * kPairs][4], const char* weights,
                              const char* tokens, int row, int token, int part) {
    const int lane = thread_index() % 32;
    std::uint32_t a[kRows][4];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        load_matrices(a[r], weights + swizzled(row + r * 16 + lane % 16, part * 2 + lane / 16));
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
        std::uint32_t b[4];
        load_matrices(b, tokens + swizzled(token + pair * 16 + lane % 8 + lane / 16 * 8,
                                           part * 2 + lane / 8 % 2));
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            multiply<S>(sums[(r * kPairs + pair) * 2], a[r], b[0], b[1]);
            multiply<S>(sums[(r * kPairs + pair) * 2 + 1], a[r], b[2], b[3]);
        }
    }
}

template <class S, int kTokens>
struct Multiplier {
    // The warps share a tile of outputs as a grid; a warp has kRows x kPairs tiles of 16 x 16.
    static constexpr int kTokenGroups = kTokens == 64 ? 2 : 1;
    static constexpr int kRows = kOutputTile / 16 * kTokenGroups / kTileWarps;
    static constexpr int kPairs = kTokens / 16 / kTokenGroups;
    // And a tile of h: groups of 16 ranks, each by kQuarters of the inputs.
    static constexpr int kQuarters = kTileWarps / (kRankTile / 16);
    static constexpr int kGroupSums = 16 * kTokens;
    static constexpr int kParts = kStepInputs / 16;
    static constexpr int kUnrolled =
        kTokens == 64 ? 1 : kParts;                    // the registers have no room for more
    static constexpr int kQuads = 2 * kRows * kPairs;  // of four sums of a lane
    static_assert(kQuads == kTokens / 8, "a tile of h takes the registers of a tile of outputs");
    static constexpr int kSums = 4 * kQuads;

    using Sums = float[kQuads][4];

    const Product& p;
    const TilePlan& plan;
    const Workspace& work;
    const Share& share;
    const Counters& counters;
    char* stages;
    Notes notes;

    BDC_DEVICE void meet() const { sync_some(kOfMultipliers, kMultipliers); }
    BDC_DEVICE bool leads() const { return thread_index() == 0; }

    BDC_DEVICE int row_of(int t) const { return load(notes.rows() + t); }

    // One split of a tile of h: the warps' sums meet in `meeting`, a stage that was multiplied.
    // Whose plane is the tile's last is known later: see gate.
    BDC_DEVICE void end_shrink(const Item& item, const Sums& sums, float* meeting) const {
        const int warp = thread_index() / 32, lane = thread_index() % 32;
        meet();
#pragma unroll
        for (int i = 0; i < kSums; ++i)
            store(meeting + (warp * kSums + i) * 32 + lane, sums[i / 4][i % 4]);
        meet();
        float* plane = rank_planes(item.tile) + item.code / plan.rank_tiles * plan.rank_tile_sums();
        for (int i = thread_index(); i < kRankTile * kTokens; i += kMultipliers) {
            const float* parts = meeting + i / kGroupSums * kQuarters * kGroupSums + i % kGroupSums;
            float sum = 0;
#pragma unroll
            for (int q = 0; q < kQuarters; ++q) sum += load(parts + q * kGroupSums);
            store(plane + i, sum);
        }
        meet();
        // The others go on meanwhile.
        if (leads())
            store(notes.of_multipliers(), add_one_in_order(counters.rank_arrivals + item.tile));
    }

    BDC_DEVICE float* rank_planes(int tile) const {
        return work.planes + std::int64_t(tile) * plan.inputs.splits * plan.rank_tile_sums();
    }

    // The block whose plane of a tile of h was the last adds them all and gates the sum.
    BDC_DEVICE void gate(int tile) const {
        if (int(load(notes.of_multipliers())) != plan.inputs.splits - 1) return;
        if (leads()) store(counters.rank_arrivals + tile, 0u);
        const float* planes = rank_planes(tile);
        auto* gated = static_cast<S*>(work.gated);
        constexpr int kChunks = divide_up(kRankTile * kTokens, 4 * kMultipliers);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            // Four tokens of one rank.
            const int i = (c * kMultipliers + thread_index()) * 4, j = i % kGroupSums;
            if (i >= kRankTile * kTokens) break;
            const int r = tile * kRankTile + i / kGroupSums * 16 + fragment_row(j % 32, j / 32 % 4);
            const int first_token = j / 128 * 8 + fragment_column(j % 32, j / 32 % 4);
            float gates[4], h[4] = {};
            bool active[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = row_of(first_token + 2 * e);
                active[e] = row >= 0 && r < p.ranks;
                gates[e] = active[e] ? load(p.g + row * p.g_stride + r) * p.scaling : 0;
            }
#pragma unroll 8
            for (int split = 0; split < plan.inputs.splits; ++split) {
                float part[4];
                widen<float>(load_written_chunk(planes + i + split * plan.rank_tile_sums()), part);
#pragma unroll
                for (int e = 0; e < 4; ++e) h[e] += part[e];
            }
#pragma unroll
            for (int e = 0; e < 4; ++e)
                store(gated + std::int64_t(first_token + 2 * e) * plan.padded_ranks() + r,
                      narrow<S>(active[e] ? h[e] * gates[e] : 0.0f));
        }
        meet();
        if (leads()) add_one_in_order(counters.ready);
    }

    BDC_DEVICE bool next_is_of_gated(int code) const {
        return !share.is_shrink(code) && code < share.end_code() &&
               share.item_of(code).unit >= plan.base_steps;
    }

    // The plane of a block's sums of a tile: the first for one that it found begun.
    BDC_DEVICE float* plane_of(int whose, bool found_begun) const {
        return work.planes + plan.rank_planes() +
               (std::int64_t(whose) * 2 + (found_begun ? 0 : 1)) * plan.output_tile_sums() +
               thread_index();
    }

    BDC_DEVICE void leave_plane(const Item& item, const Sums& sums) const {
        float* plane = plane_of(share.block, item.first > 0);
#pragma unroll
        for (int i = 0; i < kSums; ++i) store(plane + i * kMultipliers, sums[i / 4][i % 4]);
        meet();
        if (leads()) add_one_in_order(counters.output_arrivals + item.tile);
    }

    // Of the tile that this block ends and others began: found out while there is nothing to
    // multiply yet.
    BDC_DEVICE void find_planes() const {
        const int begin = share.first_tile * plan.steps(), end = begin + plan.base_steps;
        for (int i = thread_index(); i <= share.block - share.lowest; i += kMultipliers) {
            const int first = most(begin, plan.first_unit(share.lowest + i));
            const int last = least(end, plan.first_unit(share.lowest + i + 1));
            store(notes.left() + i, std::uint32_t(first < last));
        }
    }

    // Adds the planes that this block and those before it left of its first tile.
    BDC_DEVICE void take_planes(Sums& sums) const {
        const int count = share.block - share.lowest + 1;
        std::uint32_t* arrivals = counters.output_arrivals + share.first_tile;
        if (leads()) {
            int expected = 0;
            for (int i = 0; i < count; ++i) expected += int(load(notes.left() + i));
            while (int(load_acquire(arrivals)) < expected) pause();
            store(arrivals, 0u);
        }
        meet();
        constexpr int kAtOnce =
            kTokens == 64 ? 1 : 4;  // planes whose loads do not wait for each other
        for (int first = 0; first < count; first += kAtOnce) {
            float parts[kAtOnce][kSums];
#pragma unroll
            for (int a = 0; a < kAtOnce; ++a) {
                const bool left = first + a < count && load(notes.left() + first + a);
                const float* plane = plane_of(share.lowest + first + a, first + a > 0);
#pragma unroll
                for (int i = 0; i < kSums; ++i)
                    parts[a][i] = left ? load_written(plane + i * kMultipliers) : 0.0f;
            }
#pragma unroll
            for (int a = 0; a < kAtOnce; ++a) {
#pragma unroll
                for (int i = 0; i < kSums; ++i) sums[i / 4][i % 4] += parts[a][i];
            }
        }
    }

    // A tile of outputs is whole.
    BDC_DEVICE void end_output(int tile, const Sums& base, const Sums& added) const {
        const int warp = thread_index() / 32, lane = thread_index() % 32;
        const Place at = share.place_of(tile);
        const int row = at.row + warp / kTokenGroups * kRows * 16;
        const int token = warp % kTokenGroups * kPairs * 16;
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
            const int quad = i / 4;
            const int n = row + quad / (2 * kPairs) * 16 + fragment_row(lane, i % 4);
            const int t = token + quad % (2 * kPairs) * 8 + fragment_column(lane, i % 4);
            if (n >= at.end || t >= p.tokens) continue;
            const bool active = row_of(t) >= 0;
            S* y = static_cast<S*>(p.y) + t * p.y_stride + n;
            if (p.w) {
                // Apart, so that a token without an adapter leaves the experts' part out.
                float sum = base[quad][i % 4] + (active ? added[quad][i % 4] : 0.0f);
                if (p.bias) sum += widen(load(static_cast<const S*>(p.bias) + n));
                store(y, narrow<S>(sum));
            } else if (active && added[quad][i % 4] != 0) {
                // A sum of zero leaves y alone, even where it is -0.
                store(y, narrow<S>(widen(load(y)) + added[quad][i % 4]));
            }
        }
    }

    BDC_DEVICE void run() const {
        const int warp = thread_index() / 32;
        const int row = warp / kTokenGroups * kRows * 16, token = warp % kTokenGroups * kPairs * 16;
        if (share.deferred) find_planes();
        Item item{};
        Sums base, added;
        int ungated =
            -1;  // the tile of h that this block ended last, until it is known who gates it
        for (int stage = 0, taken = 0;; stage = stage + 1 == plan.stages ? 0 : stage + 1) {
            sync_some(kLoaded + stage, kTileThreads);
            if (ungated >= 0) gate(ungated);
            ungated = -1;
            if (item.empty()) {
                const int code = int(load(notes.code(taken++)));
                if (code >= share.end_code()) return;
                item = share.item_of(code);
#pragma unroll
                for (int i = 0; i < kSums; ++i) base[i / 4][i % 4] = added[i / 4][i % 4] = 0;
            }
            char *weights = stages + stage * stage_bytes(kTokens),
                 *tokens = weights + kOutputTile * kRowBytes;
            const bool is_shrink = share.is_shrink(item.code);
            if (is_shrink) {
#pragma unroll
                for (int i = 0; i < kParts / kQuarters; ++i)
                    multiply_part<S, 1, kTokens / 16>(base, weights, tokens, warp / kQuarters * 16,
                                                      0,
                                                      warp % kQuarters * (kParts / kQuarters) + i);
            } else if (item.unit < plan.base_steps) {
#pragma unroll(kUnrolled)
                for (int part = 0; part < kParts; ++part)
                    multiply_part<S, kRows, kPairs>(base, weights, tokens, row, token, part);
            } else {
#pragma unroll(kUnrolled)
                for (int part = 0; part < kParts; ++part)
                    multiply_part<S, kRows, kPairs>(added, weights, tokens, row, token, part);
            }
            const bool ends = ++item.unit == item.last;
            if (ends && is_shrink) {
                end_shrink(item, base, reinterpret_cast<float*>(weights));
                ungated = item.tile;
                // No unit comes that does not wait for h.
                if (next_is_of_gated(int(load(notes.code(taken))))) {
                    meet();
                    gate(ungated);
                    ungated = -1;
                }
            }
            arrive_some(kMultiplied + stage, kTileThreads);
            if (!ends || is_shrink) continue;
            if (item.last < plan.steps()) {
                leave_plane(item, base);
            } else {
                if (item.first == plan.base_steps && p.w) take_planes(base);
                end_output(item.tile, base, added);
            }
        }
    }
};

}  // namespace bdc::cuda

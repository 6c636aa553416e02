// The product of up to 64 tokens in one launch of blocks that stay, on the matrix units.
//
// Without a base weight it adds s ((x A^T) * g) B^T to y. With one it computes the layer,
// [x, gated] [W, B]^T, as one sum over d_in and then the ranks: h is made by whoever is free
// first, and is ready by the time its part of the sum comes.
//
// A block's loads never stop: its pipeline runs on from one item to the next. Its items are tiles
// of h, taken by ticket until none is left, and then the tiles of outputs in its share of the
// units (plan.hpp). Blocks are numbered as they begin, and a block waits only for tiles of h, which
// running blocks took, and for sums of blocks before it: so none waits for one that has not begun,
// however few of them the device runs at once. Planes are added in their order: equal inputs give
// equal bits. Counters are zero again when the launch ends.
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

// Starts the copy of kCount rows from `row` on, of columns [column, column + kStepInputs).
template <class S, int kCount>
BDC_DEVICE void copy_tile(char* to, const Rows<S>& from, int row, int column) {
    constexpr int kChunks = kRowBytes / 16, kRowsAtOnce = kTileThreads / kChunks;
    const int chunk = thread_index() % kChunks, first = thread_index() / kChunks;
    const int k = column + chunk * lanes_of(2);
    const S* place = from.data + (row + first) * from.stride + k;
#pragma unroll
    for (int i = 0; i < kCount; i += kRowsAtOnce) {
        const bool inside = row + first + i < from.rows && k < from.columns;
        // An address outside is never given, not even for a copy of nothing.
        copy_chunk(to + swizzled(first + i, chunk), inside ? place : from.data, inside);
        place += kRowsAtOnce * from.stride;
    }
}

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

// Waits for all but the latest `groups` groups of copies, at most kMostStages - 2.
BDC_DEVICE void copies_wait(int groups) {
    static_assert(kMostStages == 6);
    if (groups == 4) return copies_wait<4>();
    if (groups == 3) return copies_wait<3>();
    if (groups == 2) return copies_wait<2>();
    if (groups == 1) return copies_wait<1>();
    copies_wait<0>();
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

// Part of one tile: units [unit, last). Codes below shrink_items() are tiles of h, split by split;
// those from there on the block's segments of output tiles, in order.
struct Item {
    int code, tile, first, unit, last;

    BDC_DEVICE bool empty() const { return unit == last; }
};

template <class S, int kTokens>
struct TileKernel {
    // The warps share a tile of outputs as a grid; a warp has kRows x kPairs tiles of 16 x 16.
    static constexpr int kTokenGroups = kTokens == 64 ? 2 : 1;
    static constexpr int kRows = kOutputTile / 16 * kTokenGroups / kTileWarps;
    static constexpr int kPairs = kTokens / 16 / kTokenGroups;
    // And a tile of h: kRankGroups of 16 ranks, each by kQuarters of the inputs.
    static constexpr int kRankGroups = kRankTile / 16;
    static constexpr int kQuarters = kTileWarps / kRankGroups;
    static constexpr int kParts = kStepInputs / 16;
    static constexpr int kUnrolled =
        kTokens == 64 ? 2 : kParts;                    // more would not fit the registers
    static constexpr int kQuads = 2 * kRows * kPairs;  // of four sums of a lane
    static_assert(kQuads == kTokens / 8, "a tile of h takes the registers of a tile of outputs");
    static constexpr int kSums = 4 * kQuads;
    static constexpr int kStageBytes = stage_bytes(kTokens);
    static constexpr int kCodes = 8;  // that are known at once, at most

    const Product& p;
    const TilePlan& plan;
    const Workspace& work;
    char* shared;                 // the stages
    std::uint32_t *flag, *codes;  // in shared memory
    std::uint32_t *begun, *ticket, *ready, *done, *rank_arrivals, *output_arrivals;
    // This block's number, share of the units, and segments.
    int block = 0, first_tile = 0, first_step = 0, end_unit = 0, touched = 0;
    bool deferred = false;
    // What is loaded next, and where; how many codes were told and taken.
    Item loading{};
    int load_stage = 0, told = 0, taken = 0;
    bool gated_is_ready = false;
    // Tiles of h that this block still has to end, and units whose loads have to wait for that.
    int own_shrinks = 0, held_back = 0;

    BDC_DEVICE TileKernel(const Product& product, const TilePlan& tile_plan, const Workspace& w)
        : p(product), plan(tile_plan), work(w), shared(shared_memory()) {
        flag = reinterpret_cast<std::uint32_t*>(shared + plan.stages * kStageBytes);
        codes = flag + 2;
        begun = work.counters;
        ticket = begun + 1;
        ready = begun + 2;
        done = begun + 3;
        rank_arrivals = begun + 4;
        output_arrivals = rank_arrivals + plan.rank_tiles;
    }

    BDC_DEVICE int row_of(int t) const {
        return t >= p.tokens ? -1 : p.rows ? load(p.rows + t) : t;
    }

    // --- What this block does, and in which order ---

    BDC_DEVICE int end_code() const { return plan.shrink_items() + touched + (deferred ? 1 : 0); }

    // A block that ends a tile which others began leaves its own part in a plane too, and comes
    // back for the rest when its other segments are done, and so are those of the others.
    BDC_DEVICE void take_share() {
        const int first_unit = plan.first_unit(block);
        end_unit = plan.first_unit(block + 1);
        first_tile = first_unit / plan.steps();
        first_step = first_unit % plan.steps();
        touched = end_unit > first_unit ? (end_unit - 1) / plan.steps() - first_tile + 1 : 0;
        deferred = first_step > 0 && end_unit >= (first_tile + 1) * plan.steps();
    }

    BDC_DEVICE Item item_of(int code) const {
        if (code < plan.shrink_items()) {
            const int split = code / plan.rank_tiles, first = plan.inputs.first(split);
            return {code, code % plan.rank_tiles, first, first, plan.inputs.last(split)};
        }
        const int segment = code - plan.shrink_items();
        if (segment == touched)
            return {code, first_tile, plan.base_steps, plan.base_steps, plan.steps()};
        const int tile = first_tile + segment, first = segment == 0 ? first_step : 0;
        const int last = segment == 0 && deferred
                             ? plan.base_steps
                             : least(plan.steps(), end_unit - tile * plan.steps());
        return {code, tile, first, first, last};
    }

    // Begins to load the next item, and tells the code to who multiplies.
    BDC_DEVICE void load_next(int code) {
        const int items = plan.shrink_items();
        if (code >= items && code < end_code() && item_of(code).empty()) ++code;
        if (thread_index() == 0) store(codes + told % kCodes, std::uint32_t(code));
        ++told;
        own_shrinks += code < items;
        loading = code < end_code() ? item_of(code) : Item{code, 0, 0, 0, 0};
    }

    // --- Loads ---

    BDC_DEVICE char* weights(int stage) const { return shared + stage * kStageBytes; }
    BDC_DEVICE char* tokens(int stage) const { return weights(stage) + kOutputTile * kRowBytes; }

    struct Place {
        int slice, row, end;  // the first output of a tile, and the end of its slice
    };
    BDC_DEVICE Place place_of(int tile) const {
        Place at{0, tile * kOutputTile, p.ends[0]};
#pragma unroll
        for (int i = 1; i < kMostSlices; ++i) {
            if (i < plan.slices && tile >= plan.first_tile[i])
                at = {i, p.ends[i - 1] + (tile - plan.first_tile[i]) * kOutputTile, p.ends[i]};
        }
        return at;
    }

    BDC_DEVICE void wait_for_gated() {
        if (gated_is_ready) return;
        if (thread_index() == 0) {
            while (int(load_acquire(ready)) < plan.rank_tiles) pause();
            fence();
        }
        sync_block();
        gated_is_ready = true;
    }

    // Starts the loads of one unit, if one is left; a group of copies in any case. Who waited for h
    // before ending its own tiles of it would wait for itself.
    BDC_DEVICE void issue() {
        const bool of_gated =
            loading.code >= plan.shrink_items() && loading.unit >= plan.base_steps;
        if (!loading.empty() && of_gated && own_shrinks) {
            ++held_back;
        } else if (!loading.empty()) {
            char *to = weights(load_stage), *beside = tokens(load_stage);
            const Rows<S> x{static_cast<const S*>(p.x), p.x_stride, p.tokens, p.d_in};
            const int k = loading.unit * kStepInputs;
            if (loading.code < plan.shrink_items()) {
                const Rows<S> a{static_cast<const S*>(p.a), p.a_stride, p.ranks, p.d_in};
                copy_tile<S, kRankTile>(to, a, loading.tile * kRankTile, k);
                copy_tile<S, kTokens>(beside, x, 0, k);
            } else if (loading.unit < plan.base_steps) {
                const Place at = place_of(loading.tile);
                const Rows<S> w{static_cast<const S*>(p.w), p.w_stride, at.end, p.d_in};
                copy_tile<S, kOutputTile>(to, w, at.row, k);
                copy_tile<S, kTokens>(beside, x, 0, k);
            } else {
                const Place at = place_of(loading.tile);
                const int r = (loading.unit - plan.base_steps) * kStepInputs;
                const Rows<S> b{static_cast<const S*>(p.b), p.b_stride, at.end, p.slice_ranks};
                const Rows<S> gated{static_cast<const S*>(work.gated) + at.slice * p.slice_ranks,
                                    plan.padded_ranks(), kTokens, p.slice_ranks};
                copy_tile<S, kOutputTile>(to, b, at.row, r);
                wait_for_gated();
                copy_tile<S, kTokens>(beside, gated, 0, r);
            }
            load_stage = load_stage + 1 == plan.stages ? 0 : load_stage + 1;
            if (++loading.unit == loading.last) {
                int next = loading.code + 1;
                if (loading.code < plan.shrink_items())
                    next = least(next_ticket(), plan.shrink_items());
                load_next(next);
            }
        }
        copies_commit();
    }

    BDC_DEVICE int next_ticket() const {
        return int(broadcast(thread_index() == 0 ? add_one(ticket) : 0, flag));
    }

    // Asks for this block's first tile of B before there is an h to multiply it with.
    BDC_DEVICE void prefetch_b() const {
        if (!touched) return;
        const Place at = place_of(first_tile);
        const int n = at.row + thread_index() / 2;
        if (thread_index() >= 2 * kOutputTile || n >= at.end) return;
        const S* row = static_cast<const S*>(p.b) + n * p.b_stride;
        for (int r = thread_index() % 2 * 64; r < p.slice_ranks; r += 128) prefetch(row + r);
    }

    // --- Ends of items ---

    // A tile of h: the warps' sums meet in `meeting`, a stage that was multiplied; the last block
    // to arrive at the tile gates it.
    BDC_DEVICE void end_shrink(const Item& item, const float (&sums)[kQuads][4],
                               float* meeting) const {
        const int warp = thread_index() / 32, lane = thread_index() % 32;
        constexpr int kGroupSums = 16 * kTokens;  // of 16 ranks
        sync_block();
#pragma unroll
        for (int i = 0; i < kSums; ++i)
            store(meeting + (warp * kSums + i) * 32 + lane, sums[i / 4][i % 4]);
        sync_block();
        const std::int64_t stride = plan.rank_tile_sums();
        float* planes = work.planes + std::int64_t(item.tile) * plan.inputs.splits * stride;
        float* plane = planes + item.code / plan.rank_tiles * stride;
        for (int i = thread_index(); i < kRankTile * kTokens; i += kTileThreads) {
            const float* parts = meeting + i / kGroupSums * kQuarters * kGroupSums + i % kGroupSums;
            float sum = 0;
#pragma unroll
            for (int q = 0; q < kQuarters; ++q) sum += load(parts + q * kGroupSums);
            store(plane + i, sum);
        }
        // The gates are asked for before it is known who needs them: four of one rank in each
        // chunk.
        constexpr int kChunks = divide_up(kRankTile * kTokens, 4 * kTileThreads);
        float gates[kChunks][4];
        unsigned missing = 0;  // bits of those that are zero, whatever h is
        int ranks[kChunks], first_tokens[kChunks];
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            const int i = (c * kTileThreads + thread_index()) * 4, j = i % kGroupSums;
            ranks[c] =
                item.tile * kRankTile + i / kGroupSums * 16 + fragment_row(j % 32, j / 32 % 4);
            first_tokens[c] = j / 128 * 8 + fragment_column(j % 32, j / 32 % 4);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = row_of(first_tokens[c] + 2 * e);
                gates[c][e] = 0;
                if (row >= 0 && ranks[c] < p.ranks)
                    gates[c][e] = load(p.g + row * p.g_stride + ranks[c]) * p.scaling;
                if (row < 0 || ranks[c] >= p.ranks) missing |= 1u << (c * 4 + e);
            }
        }
        if (!arrive(rank_arrivals + item.tile, plan.inputs.splits, flag)) return;

        auto* gated = static_cast<S*>(work.gated);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            const int i = (c * kTileThreads + thread_index()) * 4;
            if (i >= kRankTile * kTokens) break;
            float h[4] = {};
#pragma unroll 8
            for (int split = 0; split < plan.inputs.splits; ++split) {
                float part[4];
                widen<float>(load_written_chunk(planes + i + split * stride), part);
#pragma unroll
                for (int e = 0; e < 4; ++e) h[e] += part[e];
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int t = first_tokens[c] + 2 * e;
                const float value = (missing >> (c * 4 + e) & 1) ? 0.0f : h[e] * gates[c][e];
                store(gated + std::int64_t(t) * plan.padded_ranks() + ranks[c], narrow<S>(value));
            }
        }
        fence();
        sync_block();
        if (thread_index() == 0) add_one(ready);
    }

    // The plane of a block's sums of a tile: the first for one that it found begun.
    BDC_DEVICE float* plane_of(int whose, int tile) const {
        const bool found_begun = plan.first_unit(whose) > tile * plan.steps();
        return work.planes + plan.rank_planes() +
               (std::int64_t(whose) * 2 + (found_begun ? 0 : 1)) * plan.output_tile_sums() +
               thread_index();
    }
    // Whether a block left a plane of a tile that another one ends.
    BDC_DEVICE bool left_plane(int whose, int tile) const {
        const int begin = most(plan.first_unit(whose), tile * plan.steps());
        return begin < least(plan.first_unit(whose + 1), tile * plan.steps() + plan.base_steps);
    }

    BDC_DEVICE void leave_plane(const Item& item, const float (&sums)[kQuads][4]) const {
        float* plane = plane_of(block, item.tile);
#pragma unroll
        for (int i = 0; i < kSums; ++i) store(plane + i * kTileThreads, sums[i / 4][i % 4]);
        fence();
        sync_block();
        if (thread_index() == 0) add_one(output_arrivals + item.tile);
    }

    // The sums of a tile's planes.
    BDC_DEVICE void take_planes(int tile, float (&sums)[kQuads][4]) const {
        int lowest = block, expected = 0;
        while (plan.first_unit(lowest) > tile * plan.steps()) --lowest;
        for (int whose = lowest; whose <= block; ++whose) expected += left_plane(whose, tile);
        if (thread_index() == 0) {
            while (int(load_acquire(output_arrivals + tile)) < expected) pause();
            fence();
            store(output_arrivals + tile, 0u);
        }
        sync_block();
        constexpr int kAtOnce =
            kTokens == 64 ? 1 : 64 / kTokens;  // planes whose loads do not wait for each other
        for (int first = lowest; first <= block; first += kAtOnce) {
            float parts[kAtOnce][kSums];
#pragma unroll
            for (int a = 0; a < kAtOnce; ++a) {
                const bool left = first + a <= block && left_plane(first + a, tile);
                const float* plane = plane_of(left ? first + a : block, tile);
#pragma unroll
                for (int i = 0; i < kSums; ++i)
                    parts[a][i] = left ? load_written(plane + i * kTileThreads) : 0.0f;
            }
#pragma unroll
            for (int a = 0; a < kAtOnce; ++a) {
#pragma unroll
                for (int i = 0; i < kSums; ++i) sums[i / 4][i % 4] += parts[a][i];
            }
        }
    }

    // A tile of outputs is whole.
    BDC_DEVICE void end_output(int tile, const float (&base)[kQuads][4],
                               const float (&added)[kQuads][4]) const {
        const int warp = thread_index() / 32, lane = thread_index() % 32;
        const Place at = place_of(tile);
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

    BDC_DEVICE void run() {
        std::uint32_t number = 0, first_ticket = 0;
        if (thread_index() == 0) {
            number = add_one(begun);
            first_ticket = add_one(ticket);
        }
        block = int(broadcast(number, flag));
        take_share();
        load_next(least(int(broadcast(first_ticket, flag)), plan.shrink_items()));
        if (!p.w) prefetch_b();
        for (int i = 0; i < plan.stages - 1; ++i) issue();

        const int warp = thread_index() / 32;
        const int row = warp / kTokenGroups * kRows * 16, token = warp % kTokenGroups * kPairs * 16;
        Item item{};
        float base[kQuads][4], added[kQuads][4];
        for (int stage = 0;; stage = stage + 1 == plan.stages ? 0 : stage + 1) {
            copies_wait(plan.stages - 2);
            sync_block();
            if (item.empty()) {
                const int code = int(load(codes + taken++ % kCodes));
                if (code >= end_code()) break;
                item = item_of(code);
#pragma unroll
                for (int i = 0; i < kSums; ++i) base[i / 4][i % 4] = added[i / 4][i % 4] = 0;
            }
            issue();
            if (item.code < plan.shrink_items()) {
#pragma unroll
                for (int i = 0; i < kParts / kQuarters; ++i)
                    multiply_part<S, 1, kTokens / 16>(base, weights(stage), tokens(stage),
                                                      warp / kQuarters * 16, 0,
                                                      warp % kQuarters * (kParts / kQuarters) + i);
            } else if (item.unit < plan.base_steps) {
#pragma unroll(kUnrolled)
                for (int part = 0; part < kParts; ++part)
                    multiply_part<S, kRows, kPairs>(base, weights(stage), tokens(stage), row, token,
                                                    part);
            } else {
#pragma unroll(kUnrolled)
                for (int part = 0; part < kParts; ++part)
                    multiply_part<S, kRows, kPairs>(added, weights(stage), tokens(stage), row,
                                                    token, part);
            }
            if (++item.unit < item.last) continue;
            if (item.code < plan.shrink_items()) {
                end_shrink(item, base, reinterpret_cast<float*>(weights(stage)));
                if (--own_shrinks == 0) {
                    for (; held_back; --held_back) issue();
                }
            } else if (item.last < plan.steps()) {
                leave_plane(item, base);
            } else {
                if (item.first == plan.base_steps && p.w) take_planes(item.tile, base);
                end_output(item.tile, base, added);
            }
        }
        copies_wait<0>();
        sync_block();
        if (thread_index() != 0 || int(add_one(done)) != grid_blocks() - 1) return;
        // All other blocks are past their last look at these.
        for (int i = 0; i < 4; ++i) store(begun + i, 0u);
    }
};

template <class S, int kTokens>
BDC_KERNEL(kTileThreads, 1)
product_of_tiles(const Product p, const TilePlan plan, const Workspace work) {
    TileKernel<S, kTokens>(p, plan, work).run();
}

}  // namespace bdc::cuda

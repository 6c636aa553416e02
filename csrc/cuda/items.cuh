// What a block of the persistent kernel does, in which order, and how its warps tell each other.
#pragma once

#include "device.cuh"
#include "product.hpp"

namespace bdc::cuda {

// Named barriers: of a stage that is loaded, of one that is multiplied, of the multipliers, of the
// loaders. Threads below kMultipliers multiply, the others load.
constexpr int kLoaded = 1, kMultiplied = kLoaded + kMostStages, kOfMultipliers = 13,
              kOfLoaders = 14;
static_assert(kMultiplied + kMostStages <= kOfMultipliers);

// Part of one tile: units [unit, last). Codes below shrink_items() are tiles of h, split by split;
// those from there on the block's segments of output tiles, in order.
struct Item {
    int code, tile, first, unit, last;

    BDC_DEVICE bool empty() const { return unit == last; }
};

// Where a tile of outputs lies: its first output, and the end of its slice.
struct Place {
    int slice, row, end;
};

// Counts of the launch, zero before and after it.
struct Counters {
    std::uint32_t *begun, *ticket, *ready, *done;    // blocks, shrink items, tiles of h, blocks
    std::uint32_t *rank_arrivals, *output_arrivals;  // at each tile

    BDC_DEVICE Counters(std::uint32_t* words, const TilePlan& plan)
        : begun(words),
          ticket(words + 1),
          ready(words + 2),
          done(words + 3),
          rank_arrivals(words + 4),
          output_arrivals(rank_arrivals + plan.rank_tiles) {}
};

// Words of shared memory in which one thread tells others.
struct Notes {
    static constexpr int kCodes = 8;  // items that are loaded or next, at most

    std::uint32_t* words;

    BDC_DEVICE std::uint32_t* code(int i) const { return words + i % kCodes; }
    BDC_DEVICE std::uint32_t* of_multipliers() const { return words + kCodes; }
    BDC_DEVICE std::uint32_t* of_loaders() const { return words + kCodes + 1; }
    // The row of g of each token, -1 for none.
    BDC_DEVICE std::int32_t* rows() const { return reinterpret_cast<std::int32_t*>(words + 16); }
    // Whether a block left a plane of a tile that this one ends.
    BDC_DEVICE std::uint32_t* left() const { return words + 16 + kMostTileTokens; }
};
static_assert(Notes::kCodes + 2 <= 16 && Notes::kCodes > kMostStages);

// A block's share of the units, as segments: one for each tile that it touches. A block that ends a
// tile which others began leaves its own part in a plane too, and comes back for the rest when its
// other segments are done, and so are those of the others.
struct Share {
    const Product& p;
    const TilePlan& plan;
    int block, first_tile, first_step, end_unit, touched;
    int lowest;  // block that has units of the first tile
    bool deferred;

    BDC_DEVICE Share(const Product& product, const TilePlan& tile_plan, int number)
        : p(product), plan(tile_plan), block(number) {
        const int first_unit = plan.first_unit(block);
        end_unit = plan.first_unit(block + 1);
        first_tile = first_unit / plan.steps();
        first_step = first_unit % plan.steps();
        touched = end_unit > first_unit ? (end_unit - 1) / plan.steps() - first_tile + 1 : 0;
        lowest = block;
        while (plan.first_unit(lowest) > first_tile * plan.steps()) --lowest;
        deferred = first_step > 0 && end_unit >= (first_tile + 1) * plan.steps();
    }

    BDC_DEVICE bool is_shrink(int code) const { return code < plan.shrink_items(); }
    BDC_DEVICE int end_code() const { return plan.shrink_items() + touched + (deferred ? 1 : 0); }

    BDC_DEVICE Item item_of(int code) const {
        if (is_shrink(code)) {
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

    BDC_DEVICE Place place_of(int tile) const {
        Place at{0, tile * kOutputTile, p.ends[0]};
#pragma unroll
        for (int i = 1; i < kMostSlices; ++i) {
            if (i < plan.slices && tile >= plan.first_tile[i])
                at = {i, p.ends[i - 1] + (tile - plan.first_tile[i]) * kOutputTile, p.ends[i]};
        }
        return at;
    }
};

}  // namespace bdc::cuda

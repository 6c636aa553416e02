// The warps of the persistent kernel that load: unit after unit, into stage after stage.
#pragma once

#include "items.cuh"

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
    constexpr int kChunks = kRowBytes / 16, kRowsAtOnce = kLoaders / kChunks;
    const int loader = thread_index() - kMultipliers;
    const int chunk = loader % kChunks, first = loader / kChunks;
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

// Waits for all but the latest `groups` groups of copies, at most kMostStages - 2.
BDC_DEVICE void copies_wait(int groups) {
    static_assert(kMostStages == 3);
    if (groups == 1) return copies_wait<1>();
    copies_wait<0>();
}

template <class S, int kTokens>
struct Loader {
    const Product& p;
    const TilePlan& plan;
    const Workspace& work;
    const Share& share;
    const Counters& counters;
    char* stages;
    Notes notes;
    int told = 0, unit = 0, loaded = 0;  // codes; units whose loads began; those handed over
    bool gated_is_ready = false;

    BDC_DEVICE bool leads() const { return thread_index() == kMultipliers; }

    // The next code after one whose loads have begun.
    BDC_DEVICE int code_after(int code) const {
        if (!share.is_shrink(code)) return code + 1;
        sync_some(kOfLoaders, kLoaders);
        if (leads()) store(notes.of_loaders(), add_one(counters.ticket));
        sync_some(kOfLoaders, kLoaders);
        return first_code(int(load(notes.of_loaders())));
    }
    // Without tickets left, the first segment that is not empty.
    BDC_DEVICE int first_code(int ticket) const {
        const int code = least(ticket, plan.shrink_items());
        return !share.is_shrink(code) && code < share.end_code() && share.item_of(code).empty()
                   ? code + 1
                   : code;
    }

    BDC_DEVICE void tell(int code) {
        if (leads()) store(notes.code(told), std::uint32_t(code));
        ++told;
    }

    // All units whose loads have begun are given to the multipliers, but for the latest `but`.
    BDC_DEVICE void hand_over(int but) {
        copies_wait(but);
        for (; loaded < unit - but; ++loaded)
            arrive_some(kLoaded + loaded % plan.stages, kTileThreads);
    }

    BDC_DEVICE bool is_gated() const {
        return int(load_acquire(counters.ready)) >= plan.rank_tiles;
    }

    // What one thread read of other blocks' counts, all may rely on after they met.
    BDC_DEVICE void wait_for_gated() {
        if (gated_is_ready) return;
        sync_some(kOfLoaders, kLoaders);
        if (leads()) store(notes.of_loaders(), std::uint32_t(is_gated()));
        sync_some(kOfLoaders, kLoaders);
        if (!load(notes.of_loaders())) {
            // This block's own tiles of h may be among what is loaded.
            hand_over(0);
            if (leads()) {
                while (!is_gated()) pause();
            }
            sync_some(kOfLoaders, kLoaders);
        }
        gated_is_ready = true;
    }

    BDC_DEVICE void load_unit(char* weights, const Item& item) {
        char* tokens = weights + kOutputTile * kRowBytes;
        const Rows<S> x{static_cast<const S*>(p.x), p.x_stride, p.tokens, p.d_in};
        const int k = item.unit * kStepInputs;
        if (share.is_shrink(item.code)) {
            const Rows<S> a{static_cast<const S*>(p.a), p.a_stride, p.ranks, p.d_in};
            copy_tile<S, kRankTile>(weights, a, item.tile * kRankTile, k);
            copy_tile<S, kTokens>(tokens, x, 0, k);
        } else if (item.unit < plan.base_steps) {
            const Place at = share.place_of(item.tile);
            const Rows<S> w{static_cast<const S*>(p.w), p.w_stride, at.end, p.d_in};
            copy_tile<S, kOutputTile>(weights, w, at.row, k);
            copy_tile<S, kTokens>(tokens, x, 0, k);
        } else {
            const Place at = share.place_of(item.tile);
            const int r = (item.unit - plan.base_steps) * kStepInputs;
            const Rows<S> b{static_cast<const S*>(p.b), p.b_stride, at.end, p.slice_ranks};
            const Rows<S> gated{static_cast<const S*>(work.gated) + at.slice * p.slice_ranks,
                                plan.padded_ranks(), kTokens, p.slice_ranks};
            copy_tile<S, kOutputTile>(weights, b, at.row, r);
            wait_for_gated();
            copy_tile<S, kTokens>(tokens, gated, 0, r);
        }
    }

    // `ticket` is this block's first.
    BDC_DEVICE void run(int ticket) {
        int code = first_code(ticket);
        tell(code);
        Item item = code < share.end_code() ? share.item_of(code) : Item{};
        while (code < share.end_code()) {
            const int stage = unit % plan.stages;
            if (unit >= plan.stages) sync_some(kMultiplied + stage, kTileThreads);
            load_unit(stages + stage * stage_bytes(kTokens), item);
            copies_commit();
            ++unit;
            if (++item.unit == item.last) {
                code = code_after(code);
                tell(code);
                if (code < share.end_code()) item = share.item_of(code);
            }
            if (unit - loaded > plan.stages - 2) hand_over(plan.stages - 2);
        }
        hand_over(0);
        // One stage more says that no item is left.
        if (unit >= plan.stages) sync_some(kMultiplied + unit % plan.stages, kTileThreads);
        arrive_some(kLoaded + unit % plan.stages, kTileThreads);
        // What the multipliers tell of the last stages is told to nobody.
        for (int last = most(0, unit + 1 - plan.stages); last < unit; ++last)
            sync_some(kMultiplied + last % plan.stages, kTileThreads);
    }
};

}  // namespace bdc::cuda

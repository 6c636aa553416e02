// The product of up to 64 tokens in one launch of blocks that stay, on the matrix units.
//
// Without a base weight it adds s ((x A^T) * g) B^T to y. With one it computes the layer,
// [x, gated] [W, B]^T, as one sum over d_in and then the ranks: h is made by whoever is free
// first, and is ready by the time its part of the sum comes.
//
// Some warps of a block load and the others multiply, so that the loads never stop: not between
// items, and not for what is told to other blocks, which waits for all that a warp asked for. The
// items are tiles of h, taken by ticket until none is left, and then the tiles of outputs in the
// block's share of the units (plan.hpp). Blocks are numbered as they begin, and a block waits only
// for tiles of h, which running blocks took, and for sums of blocks before it: so none waits for
// one that has not begun, however few of them the device runs at once. Planes are added in their
// order: equal inputs give equal bits. Counters are zero again when the launch ends.
#pragma once

#include "loader.cuh"
#include "multiplier.cuh"

namespace bdc::cuda {

template <class S, int kTokens>
BDC_KERNEL(kTileThreads, 1)
product_of_tiles(const Product p, const TilePlan plan, const Workspace work) {
    char* stages = shared_memory();
    const Counters counters(work.counters, plan);
    const Notes notes{
        reinterpret_cast<std::uint32_t*>(stages + plan.stages * stage_bytes(kTokens))};
    if (thread_index() == 0) store(notes.of_multipliers(), add_one(counters.begun));
    if (thread_index() == kMultipliers) store(notes.of_loaders(), add_one(counters.ticket));
    for (int t = thread_index(); t < kTokens; t += kTileThreads)
        store(notes.rows() + t, t >= p.tokens ? -1 : p.rows ? load(p.rows + t) : t);
    sync_block();
    const Share share(p, plan, int(load(notes.of_multipliers())));
    const int ticket = int(load(notes.of_loaders()));
    sync_block();
    if (thread_index() < kMultipliers) {
        Multiplier<S, kTokens>{p, plan, work, share, counters, stages, notes}.run();
    } else {
        Loader<S, kTokens>{p, plan, work, share, counters, stages, notes}.run(ticket);
    }
    sync_block();
    if (thread_index() != 0 || int(add_one(counters.done)) != grid_blocks() - 1) return;
    // All other blocks are past their last look at these.
    for (int i = 0; i < 4; ++i) store(counters.begun + i, 0u);
}

}  // namespace bdc::cuda

// The kernels' instances: which one a product needs. Both launchers, the GPU's and the emulator's,
// choose here.
#pragma once

#include "tiles.cuh"
#include "vectors.cuh"

namespace bdc::cuda {

using VectorShrink = void (*)(Product, VectorPlan, float*);
using VectorExpand = void (*)(Product, VectorPlan, const float*);
using TileProduct = void (*)(Product, TilePlan, Workspace);

struct VectorKernels {
    VectorShrink shrink;
    VectorExpand expand;
};

template <class S>
VectorKernels vector_kernels(int tokens_at_once, bool chunks) {
    // Odd shapes are rare: one kernel takes any number of tokens.
    if (!chunks) return {shrink<S, 8, false>, expand<S, 8, false>};
    switch (tokens_at_once) {
        case 1:
            return {shrink<S, 1, true>, expand<S, 1, true>};
        case 2:
            return {shrink<S, 2, true>, expand<S, 2, true>};
        case 4:
            return {shrink<S, 4, true>, expand<S, 4, true>};
        default:
            return {shrink<S, 8, true>, expand<S, 8, true>};
    }
}

inline VectorKernels vector_kernels(Storage storage, int tokens_at_once, bool chunks) {
    if (storage == Storage::kBFloat16) return vector_kernels<BFloat16>(tokens_at_once, chunks);
    if (storage == Storage::kFloat16) return vector_kernels<Float16>(tokens_at_once, chunks);
    return vector_kernels<float>(tokens_at_once, chunks);
}

template <class S>
TileProduct tile_kernel(int token_tile) {
    if (token_tile == 16) return product_of_tiles<S, 16>;
    if (token_tile == 32) return product_of_tiles<S, 32>;
    return product_of_tiles<S, 64>;
}

inline TileProduct tile_kernel(Storage storage, int token_tile) {
    return storage == Storage::kBFloat16 ? tile_kernel<BFloat16>(token_tile)
                                         : tile_kernel<Float16>(token_tile);
}

}  // namespace bdc::cuda

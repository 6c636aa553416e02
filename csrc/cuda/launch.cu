// Launches on a GPU; every call of the runtime is checked.
#include <cuda_runtime.h>

#include <string>

#include "instances.hpp"

namespace bdc::cuda {
namespace {

void check(cudaError_t status, const char* doing) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // so that the next call does not report this one again
    throw Error(std::string(doing) + " failed: " + cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "asking the CUDA device");
    return value;
}

int device() {
    int current = 0;
    check(cudaGetDevice(&current), "asking for the CUDA device");
    return current;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void* stream,
            const char* doing, Arguments&&... arguments) {
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(unsigned(threads)),
                           addresses, std::size_t(shared_bytes), static_cast<cudaStream_t>(stream)),
          doing);
}

}  // namespace

int processors() {
    const int current = device();
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, current);
    if (major < 8)
        throw Error("the CUDA kernels need a GPU of compute capability 8.0 or newer, this is " +
                    std::to_string(major) + "." +
                    std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, current)));
    return attribute(cudaDevAttrMultiProcessorCount, current);
}

Capacity capacity(Storage storage, int token_tile) {
    const auto kernel = reinterpret_cast<const void*>(tile_kernel(storage, token_tile));
    const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device());
    const int stages = stages_for(token_tile, limit), bytes = shared_bytes(token_tile, stages);
    if (stages < 2)
        throw Error("the CUDA kernel for 9 tokens and more needs " +
                    std::to_string(shared_bytes(token_tile, 2)) +
                    " bytes of shared memory in a block, this GPU has " + std::to_string(limit));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "reserving shared memory");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kTileThreads,
                                                        std::size_t(bytes)),
          "asking for the CUDA kernel's occupancy");
    return {blocks * processors(), stages};
}

void launch_vectors(const Product& p, const VectorPlan& plan, float* planes, void* stream) {
    const auto kernels = vector_kernels(p.storage, plan.tokens_at_once, in_chunks(p));
    const auto tiles = unsigned(plan.token_tiles);
    launch(kernels.shrink, {unsigned(plan.rank_blocks), unsigned(plan.inputs.splits), tiles},
           kThreads, 0, stream, "launching shrink", p, plan, planes);
    const float* written = planes;
    launch(kernels.expand, {unsigned(plan.output_blocks), 1, tiles}, kThreads,
           plan.expand_shared_bytes(), stream, "launching expand", p, plan, written);
}

void launch_tiles(const Product& p, const TilePlan& plan, const Workspace& work, void* stream) {
    launch(tile_kernel(p.storage, plan.token_tile), dim3(unsigned(plan.blocks)), kTileThreads,
           plan.shared_bytes(), stream, "launching the persistent kernel", p, plan, work);
}

}  // namespace bdc::cuda

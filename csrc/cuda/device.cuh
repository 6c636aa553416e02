// What the kernels ask of the machine. Compiled by nvcc these are instructions; without it, those
// of emulator.hpp, which let the same kernels run on a CPU.
#pragma once

#include <cstdint>

#include "plan.hpp"

namespace bdc::cuda {

struct alignas(16) Chunk {
    std::uint32_t words[4];
};

}  // namespace bdc::cuda

#ifndef __CUDACC__
#include "emulator.hpp"
#else

#define BDC_DEVICE __device__ __forceinline__
#define BDC_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace bdc::cuda {

struct Index {
    int x, y, z;
};

BDC_DEVICE int thread_index() { return int(threadIdx.x); }
BDC_DEVICE Index block_index() { return {int(blockIdx.x), int(blockIdx.y), int(blockIdx.z)}; }
BDC_DEVICE int grid_blocks() { return int(gridDim.x); }
BDC_DEVICE void sync_block() { __syncthreads(); }
// Barriers of some of a block's warps, numbered from 1: `threads` of them meet, some without
// waiting.
BDC_DEVICE void sync_some(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
BDC_DEVICE void arrive_some(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
BDC_DEVICE float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
BDC_DEVICE char* shared_memory() {
    extern __shared__ __align__(128) char bdc_shared[];
    return bdc_shared;
}

template <class T>
BDC_DEVICE T load(const T* p) {
    return *p;
}
template <class T>
BDC_DEVICE void store(T* p, T value) {
    *p = value;
}
// Of memory that nothing writes while the kernel runs.
BDC_DEVICE Chunk load_chunk(const void* p) {
    Chunk c;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(c.words[0]), "=r"(c.words[1]), "=r"(c.words[2]), "=r"(c.words[3])
        : "l"(p));
    return c;
}
// Of memory that other blocks wrote: past the first-level cache, which does not see their writes.
BDC_DEVICE float load_written(const float* p) { return __ldcg(p); }
BDC_DEVICE Chunk load_written_chunk(const float* p) {
    const uint4 c = __ldcg(reinterpret_cast<const uint4*>(p));
    return {{c.x, c.y, c.z, c.w}};
}

BDC_DEVICE std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
// 16 bytes into shared memory, zeros where `valid` is false; done after copies_wait.
BDC_DEVICE void copy_chunk(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
BDC_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the latest kGroups groups of this thread.
template <int kGroups>
BDC_DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
BDC_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
BDC_DEVICE void load_matrices(std::uint32_t (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row))
                 : "memory");
}

BDC_DEVICE std::uint32_t add_one(std::uint32_t* p) { return atomicAdd(p, 1u); }
// Whoever reads the count sees what this thread, and those that it met before, wrote before.
BDC_DEVICE std::uint32_t add_one_in_order(std::uint32_t* p) {
    std::uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(p) : "memory");
    return before;
}
BDC_DEVICE std::uint32_t load_acquire(const std::uint32_t* p) {
    std::uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}
BDC_DEVICE void pause() { __nanosleep(20); }

}  // namespace bdc::cuda
#endif

#include "storage.cuh"

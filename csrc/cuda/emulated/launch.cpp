// The launches of product.hpp on the emulated GPU, for tests: built by them, and in no package.
#include <cstdlib>

#include "instances.hpp"

namespace bdc::cuda {
namespace {

using emulator::Machine;

int setting(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

void allow(Machine& m, const void* data, std::int64_t bytes, bool writable = false) {
    const auto first = reinterpret_cast<std::uintptr_t>(data);
    if (data && bytes > 0) m.ranges.push_back({first, first + std::uintptr_t(bytes), writable});
}

void allow_matrix(Machine& m, const void* data, std::int64_t rows, std::int64_t stride, int columns,
                  int bytes, bool writable = false) {
    if (rows && columns) allow(m, data, ((rows - 1) * stride + columns) * bytes, writable);
}

Machine machine_for(const Product& p) {
    Machine m;
    m.random.seed(std::uint32_t(setting("BDC_EMULATOR_SEED", 0)));
    const int bytes = bytes_of(p.storage);
    allow_matrix(m, p.y, p.tokens, p.y_stride, p.d_out, bytes, true);
    allow_matrix(m, p.x, p.tokens, p.x_stride, p.d_in, bytes);
    allow_matrix(m, p.a, p.ranks, p.a_stride, p.d_in, bytes);
    allow_matrix(m, p.b, p.d_out, p.b_stride, p.slice_ranks, bytes);
    allow_matrix(m, p.w, p.d_out, p.w_stride, p.d_in, bytes);
    allow_matrix(m, p.g, p.requests, p.g_stride, p.ranks, 4);
    allow(m, p.bias, std::int64_t(p.d_out) * bytes);
    allow(m, p.rows, std::int64_t(p.tokens) * 4);
    return m;
}

}  // namespace

int processors() { return setting("BDC_EMULATOR_PROCESSORS", 4); }
Capacity capacity(Storage, int token_tile) {
    return {processors(), stages_for(token_tile, setting("BDC_EMULATOR_SHARED_BYTES", 227 << 10))};
}

void launch_vectors(const Product& p, const VectorPlan& plan, float* planes, void*) {
    const auto kernels = vector_kernels(p.storage, plan.tokens_at_once, in_chunks(p));
    Machine m = machine_for(p);
    allow(m, planes, plan.planes(p.tokens, p.ranks) * 4, true);
    emulator::launch(m, {plan.rank_blocks, plan.inputs.splits, plan.token_tiles}, kThreads, 0, 2,
                     [&] { kernels.shrink(p, plan, planes); });
    emulator::launch(m, {plan.output_blocks, 1, plan.token_tiles}, kThreads,
                     plan.expand_shared_bytes(), 2, [&] { kernels.expand(p, plan, planes); });
}

void launch_tiles(const Product& p, const TilePlan& plan, const Workspace& work, void*) {
    Machine m = machine_for(p);
    allow(m, work.planes, (plan.rank_planes() + plan.output_planes()) * 4, true);
    allow(m, work.gated, std::int64_t(plan.token_tile) * plan.padded_ranks() * 2, true);
    allow(m, work.counters, plan.counters() * 4, true);
    // Fewer blocks at once than there are must not matter: none may wait for one that has not
    // begun.
    emulator::launch(m, {plan.blocks, 1, 1}, kTileThreads, plan.shared_bytes(),
                     setting("BDC_EMULATOR_AT_ONCE", plan.blocks),
                     [&] { tile_kernel(p.storage, plan.token_tile)(p, plan, work); });
}

}  // namespace bdc::cuda

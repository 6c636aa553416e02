// Python face of the CUDA kernels; no libtorch, and no CUDA header.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "product.hpp"

#ifndef BDC_MODULE
#define BDC_MODULE _lora_cuda
#define BDC_DEVICE_TYPE "cuda"
#endif

namespace py = pybind11;
using namespace bdc::cuda;

namespace {

using Addresses = std::array<std::uintptr_t, 8>;  // y, x, a, b, w, bias, g, rows
using Strides = std::array<std::int64_t, 6>;      // y, x, a, b, w, g
using Sizes = std::array<int, 5>;                 // tokens, d_in, d_out, ranks, requests
using Ends = std::vector<int>;                    // of the slices' columns of y

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Product product(int storage, const Addresses& at, const Strides& strides, const Sizes& sizes,
                float scaling, const Ends& ends) {
    Product p{static_cast<Storage>(storage),
              pointer<void>(at[0]),
              pointer<const void>(at[1]),
              pointer<const void>(at[2]),
              pointer<const void>(at[3]),
              pointer<const void>(at[4]),
              pointer<const void>(at[5]),
              pointer<const float>(at[6]),
              pointer<const std::int32_t>(at[7]),
              strides[0],
              strides[1],
              strides[2],
              strides[3],
              strides[4],
              strides[5],
              sizes[0],
              sizes[1],
              sizes[2],
              sizes[3],
              sizes[4],
              scaling,
              int(ends.size()),
              sizes[3] / int(ends.size()),
              {}};
    std::copy(ends.begin(), ends.end(), p.ends);
    return p;
}

// Slices that the persistent kernel has room for.
void check(const Ends& ends, const Sizes& sizes) {
    bool fit = !ends.empty() && ends.size() <= kMostSlices && ends.back() == sizes[2] &&
               sizes[3] % int(ends.size()) == 0;
    for (std::size_t i = 0; fit && i < ends.size(); ++i) fit = ends[i] > (i ? ends[i - 1] : 0);
    if (!fit) throw std::invalid_argument("at most 4 slices, each beyond the one before");
}

VectorPlan vectors_for(int storage, const Sizes& s, int processors) {
    return vector_plan(s[0], s[1], s[2], s[3], bytes_of(static_cast<Storage>(storage)), processors);
}

using BlocksAndStages = std::array<int, 2>;

TilePlan tiles_for(const Sizes& s, const Ends& ends, bool base, const BlocksAndStages& at) {
    check(ends, s);
    return tile_plan(s[0], s[1], s[3], ends.data(), int(ends.size()), base, {at[0], at[1]});
}

}  // namespace

PYBIND11_MODULE(BDC_MODULE, m) {
    m.doc() = "The CUDA kernels of bdc.ops. Loads without a GPU; what fails raises RuntimeError.";
    m.attr("device_type") = BDC_DEVICE_TYPE;
    m.def("processors", &processors);
    // Of the persistent kernel for so many tokens: blocks at once, and stages of each.
    m.def("capacity", [](int storage, int tokens) {
        const Capacity found = capacity(static_cast<Storage>(storage), token_tile_of(tokens));
        return BlocksAndStages{found.blocks, found.stages};
    });
    // Floats of the planes.
    m.def("vectors_workspace", [](int storage, const Sizes& sizes, int processors) {
        return vectors_for(storage, sizes, processors).planes(sizes[0], sizes[3]);
    });
    // Floats of the planes, elements of the gated sums, and counters.
    m.def("tiles_workspace", [](const Sizes& sizes, const Ends& ends, bool base,
                                const BlocksAndStages& at) {
        const TilePlan plan = tiles_for(sizes, ends, base, at);
        return py::make_tuple(plan.rank_planes() + plan.output_planes(),
                              std::int64_t(plan.token_tile) * plan.padded_ranks(), plan.counters());
    });
    m.def("vectors",
          [](int storage, const Addresses& at, const Strides& strides, const Sizes& sizes,
             float scaling, int processors, std::uintptr_t planes, std::uintptr_t stream) {
              const py::gil_scoped_release release;
              launch_vectors(product(storage, at, strides, sizes, scaling, {sizes[2]}),
                             vectors_for(storage, sizes, processors), pointer<float>(planes),
                             pointer<void>(stream));
          });
    m.def(
        "tiles", [](int storage, const Addresses& addresses, const Strides& strides,
                    const Sizes& sizes, float scaling, const Ends& ends, const BlocksAndStages& at,
                    const std::array<std::uintptr_t, 3>& work, std::uintptr_t stream) {
            const py::gil_scoped_release release;
            launch_tiles(
                product(storage, addresses, strides, sizes, scaling, ends),
                tiles_for(sizes, ends, addresses[4] != 0, at),
                {pointer<float>(work[0]), pointer<void>(work[1]), pointer<std::uint32_t>(work[2])},
                pointer<void>(stream));
        });
}

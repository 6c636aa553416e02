// Python face of the CPU product: addresses and sizes in, checked by bdc.ops before; no libtorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "run.hpp"

namespace py = pybind11;
using namespace bdc::lora;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void add(const Kernel& kernel, int storage, const std::array<std::uintptr_t, 5>& addresses,
         std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
         const std::array<std::int64_t, 2>& strides, float scaling) {
    const auto [y, x, a, b, g] = addresses;
    const auto [tokens, in, out, rank, requests] = sizes;
    const auto* weights = pointer<const float>(g);
    const auto* given = pointer<const std::int32_t>(token_to_row);
    std::vector<std::int64_t> active, rows;
    active.reserve(std::size_t(tokens));
    rows.reserve(std::size_t(tokens));
    for (std::int64_t t = 0; t < tokens; ++t) {
        const std::int64_t row = given ? given[t] : requests == 1 ? 0 : t;
        if (row < -1 || row >= requests) throw std::out_of_range("token_to_row is out of range");
        if (row < 0) continue;
        const float* first = weights + row * rank;
        // A gate of zeros adds nothing: y keeps its bits, even those of -0.
        if (std::all_of(first, first + rank, [](float w) { return w == 0; })) continue;
        active.push_back(t);
        rows.push_back(row);
    }
    const auto count = std::int64_t(active.size());
    if (!count) return;
    run(kernel,
        {static_cast<Storage>(storage), pointer<void>(y), pointer<const void>(x),
         pointer<const void>(a), pointer<const void>(b), weights, strides[0], strides[1], in, rank,
         rank, active.data(), rows.data(), count, in, out, rank, scaling},
        max_threads());
}

}  // namespace

PYBIND11_MODULE(_lora, m) {
    m.doc() = "The CPU kernel of bdc.ops.";
    const Kernel& kernel = choose();
    m.def("threads", max_threads);
    m.def("isa", [&kernel] { return std::string(kernel.name); });
    m.def("add", [&kernel](int storage, const std::array<std::uintptr_t, 5>& addresses,
                           std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
                           const std::array<std::int64_t, 2>& strides, float scaling) {
        const py::gil_scoped_release release;
        add(kernel, storage, addresses, token_to_row, sizes, strides, scaling);
    });
}

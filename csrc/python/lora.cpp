// Python face of the CPU product; no libtorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "dlpack.hpp"
#include "run.hpp"

namespace py = pybind11;
using namespace bdc;
using namespace bdc::lora;

namespace {

const dlpack::ExchangeApi* tensors = nullptr;  // set once, by connect

// The tokens that have an adapter, and the row of g of each.
struct Tokens {
    std::vector<std::int64_t> active, rows;

    // False where a row is neither -1 nor one of g; nothing was written then.
    template <class Row>
    bool find(const Product& p, std::int64_t tokens, std::int64_t requests, const Row& row_of) {
        active.reserve(std::size_t(tokens));
        rows.reserve(std::size_t(tokens));
        for (std::int64_t t = 0; t < tokens; ++t) {
            const std::int64_t row = row_of(t);
            if (row < -1 || row >= requests) return false;
            if (row < 0) continue;
            const float* first = p.g + row * p.g_stride;
            // A gate of zeros adds nothing: y keeps its bits, even those of -0.
            if (!p.h && std::all_of(first, first + p.rank, [](float w) { return w == 0; }))
                continue;
            active.push_back(t);
            rows.push_back(row);
        }
        return true;
    }

    void run(const Kernel& kernel, Product p) const {
        p.active = active.data();
        p.rows = rows.data();
        p.count = std::int64_t(active.size());
        if (p.count) lora::run(kernel, p, max_threads());
    }
};

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// The product on addresses whose tensors were checked before.
void add(const Kernel& kernel, int storage, const std::array<std::uintptr_t, 5>& addresses,
         std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
         const std::array<std::int64_t, 2>& strides, float scaling) {
    const auto [y, x, a, b, g] = addresses;
    const std::int64_t tokens = sizes[0], in = sizes[1], out = sizes[2], rank = sizes[3],
                       requests = sizes[4];
    const auto* given = pointer<const std::int32_t>(token_to_row);
    const Product p{static_cast<Storage>(storage),
                    pointer<void>(y),
                    pointer<const void>(x),
                    pointer<const void>(a),
                    pointer<const void>(b),
                    pointer<const float>(g),
                    strides[0],
                    strides[1],
                    in,
                    rank,
                    rank,
                    nullptr,
                    nullptr,
                    0,
                    in,
                    out,
                    rank,
                    scaling,
                    nullptr};
    Tokens chosen;
    const bool fit = chosen.find(p, tokens, requests, [&](std::int64_t t) -> std::int64_t {
        return given ? given[t] : requests == 1 ? 0 : t;
    });
    if (!fit) throw std::out_of_range("token_to_row is out of range");
    chosen.run(kernel, p);
}

std::optional<Storage> storage_of(const dlpack::Matrix& m) {
    if (m.code == dlpack::kFloat && m.bits == 32) return Storage::kFloat32;
    if (m.code == dlpack::kBFloat && m.bits == 16) return Storage::kBFloat16;
    if (m.code == dlpack::kFloat && m.bits == 16) return Storage::kFloat16;
    return std::nullopt;
}

// Whether this kernel is wanted where nothing but speed decides.
bool wanted(const Kernel& kernel) {
    const char* forced = std::getenv("BDC_OPS_BACKEND");
    if (forced && *forced) return std::string_view(forced) == "cpp";
    return &kernel != &kPortable;
}

// The product on tensors as they are; false, with nothing written, where anything about them needs
// a closer look: bdc.ops then checks, copies, refuses or takes another backend.
bool try_add(const Kernel& kernel, py::handle y_, py::handle x_, py::handle a_, py::handle b_,
             py::handle g_, py::handle rows_, double scaling, py::handle h_) {
    if (!tensors || !wanted(kernel) || !std::isfinite(scaling)) return false;
    const auto y = matrix(*tensors, y_), x = matrix(*tensors, x_), a = matrix(*tensors, a_),
               b = matrix(*tensors, b_), g = matrix(*tensors, g_);
    if (!y || !x || !a || !b || !g) return false;
    const auto storage = storage_of(*x);
    if (!storage || storage_of(*y) != storage || storage_of(*a) != storage ||
        storage_of(*b) != storage || storage_of(*g) != Storage::kFloat32)
        return false;
    if (a->ndim != 2 || b->ndim != 2 || g->ndim != 2 || y->ndim != x->ndim) return false;
    if (a->columns != x->columns || b->columns != a->rows || g->columns != a->rows ||
        y->rows != x->rows || y->columns != b->rows)
        return false;
    if (y->rows > 1 && y->stride < y->columns) return false;
    if (!y->apart_from(*x) || !y->apart_from(*a) || !y->apart_from(*b) || !y->apart_from(*g))
        return false;

    const std::int64_t tokens = x->rows, requests = g->rows;
    float* h = nullptr;
    if (!h_.is_none()) {
        const auto to = matrix(*tensors, h_);
        if (!to || storage_of(*to) != Storage::kFloat32 || to->rows != tokens ||
            to->columns != a->rows || (tokens > 1 && to->stride != to->columns))
            return false;
        h = reinterpret_cast<float*>(to->data);
    }
    std::optional<dlpack::Matrix> rows;
    if (rows_.is_none()) {
        if (requests != 1 && requests != tokens) return false;
    } else {
        rows = matrix(*tensors, rows_);
        if (!rows || rows->ndim != 1 || rows->columns != tokens || rows->code != dlpack::kInt ||
            (rows->bits != 32 && rows->bits != 64) || !y->apart_from(*rows))
            return false;
    }

    const Product p{*storage,   y->data,   x->data,
                    a->data,    b->data,   reinterpret_cast<const float*>(g->data),
                    y->stride,  x->stride, a->stride,
                    b->stride,  g->stride, nullptr,
                    nullptr,    0,         x->columns,
                    y->columns, a->rows,   float(scaling),
                    h};
    const py::gil_scoped_release release;
    Tokens chosen;
    const bool fit = chosen.find(p, tokens, requests, [&](std::int64_t t) -> std::int64_t {
        if (!rows) return requests == 1 ? 0 : t;
        return rows->bits == 32 ? reinterpret_cast<const std::int32_t*>(rows->data)[t]
                                : reinterpret_cast<const std::int64_t*>(rows->data)[t];
    });
    if (fit) chosen.run(kernel, p);
    return fit;
}

}  // namespace

PYBIND11_MODULE(_lora, m) {
    m.doc() = "The CPU kernel of bdc.ops.";
    const Kernel& kernel = choose();
    m.def("threads", max_threads);
    m.def("isa", [&kernel] { return std::string(kernel.name); });
    // Takes a tensor type's __dlpack_c_exchange_api__; False where try_add can't use it.
    m.def("connect", [](const py::object& capsule) {
        tensors = dlpack::exchange(capsule);
        return tensors != nullptr;
    });
    m.def("try_add", [&kernel](py::handle y, py::handle x, py::handle a, py::handle b, py::handle g,
                               py::handle rows, double scaling, py::handle h) {
        return try_add(kernel, y, x, a, b, g, rows, scaling, h);
    });
    m.def("add", [&kernel](int storage, const std::array<std::uintptr_t, 5>& addresses,
                           std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
                           const std::array<std::int64_t, 2>& strides, float scaling) {
        const py::gil_scoped_release release;
        add(kernel, storage, addresses, token_to_row, sizes, strides, scaling);
    });
}

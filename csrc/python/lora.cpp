// Python face of the CPU product; no libtorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
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
        active.clear();
        rows.clear();
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

    void run(const Kernel& kernel, Product p, std::int64_t tokens) const {
        p.active = active.data();
        p.rows = rows.data();
        p.count = std::int64_t(active.size());
        if (p.fresh && p.count < tokens) clear_others(p, tokens);
        if (p.count) lora::run(kernel, p, max_threads());
    }

    // Zeros where a new y, and h, have no product to hold.
    void clear_others(const Product& p, std::int64_t tokens) const {
        const std::size_t size = p.storage == Storage::kFloat32 ? 4 : 2;
        auto next = active.begin();
        for (std::int64_t t = 0; t < tokens; ++t) {
            if (next != active.end() && *next == t) {
                ++next;
                continue;
            }
            std::memset(static_cast<char*>(p.y) + std::size_t(t * p.y_stride) * size, 0,
                        std::size_t(p.out) * size);
            if (p.h) std::memset(p.h + t * p.rank, 0, std::size_t(p.rank) * sizeof(float));
        }
    }
};

// Kept from call to call, as fresh memory would cost more than a small product.
thread_local Tokens chosen;

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
    Product p{};
    p.storage = static_cast<Storage>(storage);
    p.y = pointer<void>(y);
    p.x = pointer<const void>(x), p.a = pointer<const void>(a), p.b = pointer<const void>(b);
    p.g = pointer<const float>(g);
    p.y_stride = strides[0], p.x_stride = strides[1], p.a_stride = in;
    p.b_stride = p.g_stride = rank;
    p.in = in, p.out = out, p.rank = rank;
    p.scaling = scaling;
    const bool fit = chosen.find(p, tokens, requests, [&](std::int64_t t) -> std::int64_t {
        return given ? given[t] : requests == 1 ? 0 : t;
    });
    if (!fit) throw std::out_of_range("token_to_row is out of range");
    chosen.run(kernel, p, tokens);
}

// Of a matrix of floats.
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
             py::handle g_, py::handle rows_, double scaling, py::handle h_, bool fresh) {
    if (!tensors || !wanted(kernel) || !std::isfinite(scaling)) return false;
    dlpack::Matrix y, x, a, b, g;
    if (!y.read(*tensors, y_) || !x.read(*tensors, x_) || !a.read(*tensors, a_) ||
        !b.read(*tensors, b_) || !g.read(*tensors, g_))
        return false;
    const auto storage = storage_of(x);
    if (!storage || storage_of(y) != storage || storage_of(a) != storage ||
        storage_of(b) != storage || storage_of(g) != Storage::kFloat32)
        return false;
    if (a.ndim != 2 || b.ndim != 2 || g.ndim != 2 || y.ndim != x.ndim) return false;
    if (a.columns != x.columns || b.columns != a.rows || g.columns != a.rows || y.rows != x.rows ||
        y.columns != b.rows)
        return false;
    if (y.rows > 1 && y.stride < y.columns) return false;
    if (!y.apart_from(x) || !y.apart_from(a) || !y.apart_from(b) || !y.apart_from(g)) return false;

    const std::int64_t tokens = x.rows, requests = g.rows;
    float* h = nullptr;
    if (!h_.is_none()) {
        dlpack::Matrix to;
        if (!to.read(*tensors, h_) || storage_of(to) != Storage::kFloat32 || to.rows != tokens ||
            to.columns != a.rows || (tokens > 1 && to.stride != to.columns))
            return false;
        h = reinterpret_cast<float*>(to.data);
    }
    dlpack::Matrix rows;
    const bool given = !rows_.is_none();
    if (!given) {
        if (requests != 1 && requests != tokens) return false;
    } else if (!rows.read(*tensors, rows_) || rows.ndim != 1 || rows.columns != tokens ||
               rows.code != dlpack::kInt || (rows.bits != 32 && rows.bits != 64) ||
               !y.apart_from(rows)) {
        return false;
    }

    Product p{};
    p.storage = *storage;
    p.y = y.data, p.x = x.data, p.a = a.data, p.b = b.data;
    p.g = reinterpret_cast<const float*>(g.data);
    p.y_stride = y.stride, p.x_stride = x.stride, p.a_stride = a.stride, p.b_stride = b.stride;
    p.g_stride = g.stride;
    p.in = x.columns, p.out = y.columns, p.rank = a.rows;
    p.scaling = float(scaling);
    p.h = h;
    p.fresh = fresh;
    const auto add = [&] {
        const bool fit = chosen.find(p, tokens, requests, [&](std::int64_t t) -> std::int64_t {
            if (!given) return requests == 1 ? 0 : t;
            return rows.bits == 32 ? reinterpret_cast<const std::int32_t*>(rows.data)[t]
                                   : reinterpret_cast<const std::int64_t*>(rows.data)[t];
        });
        if (fit) chosen.run(kernel, p, tokens);
        return fit;
    };
    // Giving up the interpreter lock costs as much as a tiny product.
    if (microseconds(p, tokens) < kUnlockedMicroseconds) return add();
    const py::gil_scoped_release release;
    return add();
}

const Kernel* kernel = nullptr;  // set once, when the module is loaded

// A plain function of CPython: pybind11's own call costs twice as much.
PyObject* call_try_add(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count != 7 && count != 9) {
        PyErr_Format(PyExc_TypeError, "try_add takes 7 or 9 arguments, got %zd", count);
        return nullptr;
    }
    const double scaling = PyFloat_AsDouble(arguments[6]);
    if (scaling == -1 && PyErr_Occurred()) return nullptr;
    try {
        const py::handle y = arguments[0], x = arguments[1], a = arguments[2], b = arguments[3],
                         g = arguments[4], rows = arguments[5],
                         h = count > 7 ? arguments[7] : Py_None;
        const bool fresh = count > 8 && arguments[8] == Py_True;
        const bool done = try_add(*kernel, y, x, a, b, g, rows, scaling, h, fresh);
        return PyBool_FromLong(done);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

PyMethodDef try_add_method = {
    "try_add",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_try_add)),
    METH_FASTCALL,
    "try_add(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling, h=None, fresh=False) -> "
    "bool",
};

}  // namespace

PYBIND11_MODULE(_lora, m) {
    m.doc() = "The CPU kernel of bdc.ops.";
    kernel = &choose();
    m.def("threads", max_threads);
    m.def("isa", [] { return std::string(kernel->name); });
    // Takes a tensor type's __dlpack_c_exchange_api__; False where try_add can't use it.
    m.def("connect", [](const py::object& capsule) {
        tensors = dlpack::exchange(capsule);
        return tensors != nullptr;
    });
    m.attr("try_add") =
        py::reinterpret_steal<py::object>(PyCFunction_New(&try_add_method, nullptr));
    m.def("add", [](int storage, const std::array<std::uintptr_t, 5>& addresses,
                    std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
                    const std::array<std::int64_t, 2>& strides, float scaling) {
        const py::gil_scoped_release release;
        add(*kernel, storage, addresses, token_to_row, sizes, strides, scaling);
    });
}

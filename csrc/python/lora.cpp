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

// What bdc.ops knows of torch, set once, by connect.
struct Torch {
    const dlpack::ExchangeApi* tensors = nullptr;
    PyObject* plain = nullptr;     // a tuple of the types whose memory is what they hold
    PyObject* watchers = nullptr;  // a tuple of functions: does somebody see operators only?
    PyObject* levels = nullptr;    // the names of torch's module of forward-mode differentiation
    PyObject* threads = nullptr;   // torch.get_num_threads
};
Torch torch;

bool is_plain(py::handle tensor) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch.plain); ++i)
        if (reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr())) == PyTuple_GET_ITEM(torch.plain, i))
            return true;
    return false;
}

// Is a mode, a tracer or a level of forward-mode differentiation active?
bool watched() {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch.watchers); ++i) {
        const auto found = py::reinterpret_steal<py::object>(
            PyObject_CallNoArgs(PyTuple_GET_ITEM(torch.watchers, i)));
        if (!found) throw py::error_already_set();
        if (PyObject_IsTrue(found.ptr())) return true;
    }
    static PyObject* const name = PyUnicode_InternFromString("_current_level");
    PyObject* const level = PyDict_GetItem(torch.levels, name);
    return level && PyLong_AsLong(level) >= 0;
}

// Torch tells OpenMP its number of threads in each of Python's threads when that first asks for it.
void follow_threads() {
    thread_local bool followed = false;
    if (followed || !torch.threads) return;
    followed = true;
    py::handle(torch.threads)();
}

// The tokens that have an adapter, those of one pool of experts after those of another, and the row
// of g of each.
struct Tokens {
    std::vector<std::int64_t> active, rows;
    std::vector<std::int64_t> pools, places, sorted;  // places: where each pool's tokens end

    // False where a row is neither -1 nor one of g; nothing was written then.
    template <class Row, class Pool>
    bool find(const Product& p, std::int64_t tokens, std::int64_t requests, std::int64_t pool_count,
              const Row& row_of, const Pool& pool_of) {
        active.clear();
        rows.clear();
        pools.clear();
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
            if (pool_count > 1) pools.push_back(pool_of(row));
        }
        return true;
    }

    // The product of every pool; the A, and the B, of the pools lie one behind the other.
    void run(const Kernel& kernel, Product p, std::int64_t tokens, std::int64_t pool_count) {
        if (p.fresh && std::int64_t(active.size()) < tokens) clear_others(p, tokens);
        if (pool_count > 1) sort(pool_count);
        const std::size_t size = expert_bytes(p);
        std::int64_t first = 0;
        for (std::int64_t pool = 0; pool < pool_count; ++pool) {
            const std::int64_t end =
                pool_count > 1 ? places[std::size_t(pool)] : std::int64_t(active.size());
            p.active = active.data() + first;
            p.rows = rows.data() + first;
            p.count = end - first;
            if (p.count) lora::run(kernel, p, max_threads());
            p.a = static_cast<const char*>(p.a) + std::size_t(p.rank * p.a_stride) * size;
            p.b = static_cast<const char*>(p.b) + std::size_t(p.out * p.b_stride) * size;
            first = end;
        }
    }

  private:
    // By pool; tokens of one keep their order.
    void sort(std::int64_t pool_count) {
        places.assign(std::size_t(pool_count), 0);
        for (const auto pool : pools)
            if (pool + 1 < pool_count) ++places[std::size_t(pool + 1)];
        for (std::size_t i = 1; i < places.size(); ++i) places[i] += places[i - 1];
        sorted.resize(2 * active.size());
        for (std::size_t i = 0; i < active.size(); ++i) {
            const auto place = std::size_t(places[std::size_t(pools[i])]++);
            sorted[place] = active[i];
            sorted[active.size() + place] = rows[i];
        }
        const auto middle = sorted.begin() + std::ptrdiff_t(active.size());
        std::copy(sorted.begin(), middle, active.begin());
        std::copy(middle, sorted.end(), rows.begin());
    }

    // Zeros where a new y, and h, have no product to hold.
    void clear_others(const Product& p, std::int64_t tokens) const {
        const std::size_t size = input_bytes(p);
        auto next = active.begin();
        for (std::int64_t t = 0; t < tokens; ++t) {
            if (next != active.end() && *next == t) {
                ++next;
                continue;
            }
            if (p.out)
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
void add(const Kernel& kernel, int storage, bool int8_experts,
         const std::array<std::uintptr_t, 5>& addresses, std::uintptr_t token_to_row,
         const std::array<std::int64_t, 5>& sizes, const std::array<std::int64_t, 2>& strides,
         float scaling) {
    const auto [y, x, a, b, g] = addresses;
    const std::int64_t tokens = sizes[0], in = sizes[1], out = sizes[2], rank = sizes[3],
                       requests = sizes[4];
    const auto* given = pointer<const std::int32_t>(token_to_row);
    Product p{};
    p.storage = static_cast<Storage>(storage);
    p.experts = int8_experts ? Experts::kInt8 : Experts::kAsInputs;
    p.y = pointer<void>(y);
    p.x = pointer<const void>(x), p.a = pointer<const void>(a), p.b = pointer<const void>(b);
    p.g = pointer<const float>(g);
    p.y_stride = strides[0], p.x_stride = strides[1], p.a_stride = in;
    p.b_stride = p.g_stride = rank;
    p.in = in, p.out = out, p.rank = rank, p.slices = 1;
    p.scaling = scaling;
    const bool fit = chosen.find(
        p, tokens, requests, 1,
        [&](std::int64_t t) -> std::int64_t { return given           ? given[t]
                                                     : requests == 1 ? 0
                                                                     : t; },
        [](std::int64_t) { return 0; });
    if (!fit) throw std::out_of_range("token_to_row is out of range");
    chosen.run(kernel, p, tokens, 1);
}

// What the gradients need of u, h, g, dp, gated and dg, whose addresses are null where they are not
// wanted; returns whether a token has no row.
bool gate_gradients(const Kernel& kernel, bool bfloat16,
                    const std::array<std::uintptr_t, 6>& addresses, std::uintptr_t token_to_row,
                    const std::array<std::int64_t, 3>& sizes, float scaling) {
    const auto [u, h, g, dp, gated, dg] = addresses;
    const auto [tokens, rank, requests] = sizes;
    const auto* given = pointer<const std::int64_t>(token_to_row);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(tokens));
    bool absent = false;
    for (std::int64_t t = 0; t < tokens; ++t) {
        const std::int64_t row = given ? given[t] : requests == 1 ? 0 : t;
        if (row >= requests) throw std::out_of_range("token_to_row is out of range");
        rows[std::size_t(t)] = row;
        absent = absent || row < 0;
    }
    GateGradients q{};
    q.storage = bfloat16 ? Storage::kBFloat16 : Storage::kFloat32;
    q.u = pointer<const float>(u), q.h = pointer<const float>(h), q.g = pointer<const float>(g);
    q.rows = rows.data();
    q.tokens = tokens, q.requests = requests, q.rank = rank;
    q.scaling = scaling;
    q.dp = pointer<void>(dp), q.gated = pointer<void>(gated), q.dg = pointer<float>(dg);
    lora::gate_gradients(kernel, q, max_threads());
    return absent;
}

bool is_int8(const dlpack::Matrix& m) { return m.code == dlpack::kInt && m.bits == 8; }

// Of a matrix of floats.
std::optional<Storage> storage_of(const dlpack::Matrix& m) {
    if (m.code == dlpack::kFloat && m.bits == 32) return Storage::kFloat32;
    if (m.code == dlpack::kBFloat && m.bits == 16) return Storage::kBFloat16;
    if (m.code == dlpack::kFloat && m.bits == 16) return Storage::kFloat16;
    return std::nullopt;
}

// The ends of the slices from a tuple of rising numbers up to `out`; null where it is none.
const std::vector<std::int64_t>* ends_of(py::handle tuple, std::int64_t out) {
    thread_local std::vector<std::int64_t> ends;
    if (!PyTuple_CheckExact(tuple.ptr())) return nullptr;
    ends.clear();
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple.ptr()); ++i) {
        const long long end = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
        if (end == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            return nullptr;
        }
        if (end <= (ends.empty() ? 0 : ends.back())) return nullptr;
        ends.push_back(end);
    }
    return !ends.empty() && ends.back() == out ? &ends : nullptr;
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
             py::handle g_, py::handle rows_, double scaling, py::handle h_, bool fresh,
             py::handle pools_, py::handle ends_, bool turned) {
    if (!torch.tensors || !wanted(kernel) || !std::isfinite(float(scaling)) || watched())
        return false;
    const auto read = [](py::handle tensor, dlpack::Matrix& to) {
        return is_plain(tensor) && to.read(*torch.tensors, tensor);
    };
    dlpack::Matrix y, x, a, b, g;
    if (!read(y_, y) || !read(x_, x) || !read(a_, a) || !read(b_, b) || !read(g_, g)) return false;
    const auto storage = storage_of(x);
    const bool int8_experts = is_int8(a) && is_int8(b);
    if (!storage || storage_of(y) != storage || storage_of(g) != Storage::kFloat32 ||
        (!int8_experts && (storage_of(a) != storage || storage_of(b) != storage)))
        return false;
    const bool pooled = !pools_.is_none();
    if (a.ndim != 2 + pooled || b.ndim != a.ndim || g.ndim != 2 || y.ndim != x.ndim) return false;
    const std::int64_t pool_count = pooled ? a.first : 1;
    if (pool_count < 1 || (pooled && b.first != pool_count)) return false;
    if (turned && (int8_experts || pooled || !ends_.is_none())) return false;
    // The experts that x meets first, and then.
    const dlpack::Matrix &first = turned ? b : a, &second = turned ? a : b;
    const std::int64_t in = turned ? first.rows : first.columns,
                       rank = turned ? first.columns : first.rows / pool_count,
                       all_out = turned ? second.columns : second.rows / pool_count,
                       part = turned ? second.rows : second.columns;
    const bool only_h = y.columns == 0 && !h_.is_none();
    const std::int64_t out = only_h ? 0 : all_out;
    const std::vector<std::int64_t>* ends = nullptr;
    if (!ends_.is_none() && (pooled || !(ends = ends_of(ends_, out)))) return false;
    const std::int64_t slices = ends ? std::int64_t(ends->size()) : 1;
    if (in != x.columns || part * slices != rank || g.columns != rank || y.rows != x.rows ||
        y.columns != out)
        return false;
    // Nothing to multiply; or single columns, which may be torch's negated views.
    if (x.columns <= 1 || all_out <= 1 || part <= 1) return false;
    if (y.rows > 1 && y.stride < y.columns) return false;
    if (!y.apart_from(x) || !y.apart_from(a) || !y.apart_from(b) || !y.apart_from(g)) return false;

    const std::int64_t tokens = x.rows, requests = g.rows;
    float* h = nullptr;
    if (!h_.is_none()) {
        dlpack::Matrix to;
        if (!read(h_, to) || storage_of(to) != Storage::kFloat32 || to.rows != tokens ||
            to.columns != rank || (tokens > 1 && to.stride != to.columns))
            return false;
        h = reinterpret_cast<float*>(to.data);
    }
    dlpack::Matrix rows, pools;
    const bool given = !rows_.is_none();
    const auto is_index = [&](const dlpack::Matrix& m, std::int64_t length) {
        return m.ndim == 1 && m.columns == length && m.code == dlpack::kInt &&
               (m.bits == 32 || m.bits == 64) && y.apart_from(m);
    };
    if (!given) {
        if (requests != 1 && requests != tokens) return false;
    } else if (!read(rows_, rows) || !is_index(rows, tokens)) {
        return false;
    }
    if (pooled && (!read(pools_, pools) || !is_index(pools, requests))) return false;

    Product p{};
    p.storage = *storage;
    p.experts = int8_experts ? Experts::kInt8 : Experts::kAsInputs;
    p.y = y.data, p.x = x.data, p.a = first.data, p.b = second.data;
    p.g = reinterpret_cast<const float*>(g.data);
    p.y_stride = y.stride, p.x_stride = x.stride;
    p.a_stride = first.stride, p.b_stride = second.stride;
    p.g_stride = g.stride;
    p.in = in, p.out = out, p.rank = rank;
    p.slices = slices, p.ends = ends ? ends->data() : nullptr;
    p.scaling = float(scaling);
    p.h = h;
    p.fresh = fresh;
    p.turned = turned;
    const auto index = [](const dlpack::Matrix& m, std::int64_t i) -> std::int64_t {
        return m.bits == 32 ? reinterpret_cast<const std::int32_t*>(m.data)[i]
                            : reinterpret_cast<const std::int64_t*>(m.data)[i];
    };
    for (std::int64_t i = 0; pooled && i < requests; ++i)
        if (index(pools, i) < 0 || index(pools, i) >= pool_count) return false;
    const auto add = [&] {
        const bool fit = chosen.find(
            p, tokens, requests, pool_count,
            [&](std::int64_t t) -> std::int64_t {
                return given ? index(rows, t) : requests == 1 ? 0 : t;
            },
            [&](std::int64_t row) -> std::int64_t { return pooled ? index(pools, row) : 0; });
        if (fit) chosen.run(kernel, p, tokens, pool_count);
        return fit;
    };
    // Giving up the interpreter lock costs as much as a tiny product.
    if (microseconds(p, tokens) < kUnlockedMicroseconds) return add();
    const py::gil_scoped_release release;
    return add();
}

// Whether a kernel may be called directly: plain tensors, and nobody watches.
PyObject* call_unwatched(PyObject*, PyObject* const* tensors, Py_ssize_t count) {
    if (!torch.plain) Py_RETURN_FALSE;
    try {
        for (Py_ssize_t i = 0; i < count; ++i)
            if (tensors[i] != Py_None && !is_plain(tensors[i])) Py_RETURN_FALSE;
        return PyBool_FromLong(!watched());
    } catch (py::error_already_set& error) {
        error.restore();
        return nullptr;
    }
}

const Kernel* kernel = nullptr;  // set once, when the module is loaded

// A plain function of CPython: pybind11's own call costs twice as much.
PyObject* call_try_add(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count < 7 || count > 12) {
        PyErr_Format(PyExc_TypeError, "try_add takes 7 to 12 arguments, got %zd", count);
        return nullptr;
    }
    const double scaling = PyFloat_AsDouble(arguments[6]);
    if (scaling == -1 && PyErr_Occurred()) return nullptr;
    try {
        follow_threads();
        const py::handle y = arguments[0], x = arguments[1], a = arguments[2], b = arguments[3],
                         g = arguments[4], rows = arguments[5],
                         h = count > 7 ? arguments[7] : Py_None,
                         pools = count > 9 ? arguments[9] : Py_None,
                         ends = count > 10 ? arguments[10] : Py_None;
        const bool fresh = count > 8 && arguments[8] == Py_True;
        const bool turned = count > 11 && arguments[11] == Py_True;
        const bool done =
            try_add(*kernel, y, x, a, b, g, rows, scaling, h, fresh, pools, ends, turned);
        return PyBool_FromLong(done);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef unwatched_method = {"unwatched", fast(call_unwatched), METH_FASTCALL,
                                "unwatched(*tensors) -> bool"};
PyMethodDef try_add_method = {
    "try_add",
    fast(call_try_add),
    METH_FASTCALL,
    "try_add(y, x, lora_a, lora_b, rank_weights, token_to_row, scaling, h=None, fresh=False, "
    "row_to_pool=None, ends=None, turned=False) -> bool",
};

}  // namespace

PYBIND11_MODULE(_lora, m) {
    m.doc() = "The CPU kernel of bdc.ops.";
    kernel = &choose();
    m.def("threads", [] {
        follow_threads();
        return max_threads();
    });
    m.def("isa", [] { return std::string(kernel->name); });
    // Takes a tensor type's __dlpack_c_exchange_api__, or None, and what else Torch holds; False
    // where try_add can't use it.
    m.def("connect",
          [](const py::object& capsule, const py::tuple& plain, const py::tuple& watchers,
             const py::dict& levels, const py::function& threads) {
              torch.plain = plain.inc_ref().ptr();
              torch.watchers = watchers.inc_ref().ptr();
              torch.levels = levels.inc_ref().ptr();
              torch.threads = threads.inc_ref().ptr();
              torch.tensors = capsule.is_none() ? nullptr : dlpack::exchange(capsule);
              return torch.tensors != nullptr;
          });
    for (PyMethodDef* method : {&unwatched_method, &try_add_method})
        m.attr(method->ml_name) =
            py::reinterpret_steal<py::object>(PyCFunction_New(method, nullptr));
    m.def("sums_pay", [] { return sums_pay(*kernel); });
    m.def("sum_over_tokens", [](const std::array<std::uintptr_t, 3>& addresses,
                                const std::array<std::int64_t, 3>& sizes,
                                const std::array<std::int64_t, 2>& strides, bool rank_first) {
        follow_threads();
        const auto [x, w, out] = addresses;
        const TokenSums sums{pointer<const float>(x),
                             pointer<const float>(w),
                             pointer<float>(out),
                             sizes[0],
                             sizes[1],
                             sizes[2],
                             strides[0],
                             strides[1],
                             rank_first};
        const py::gil_scoped_release release;
        sum_over_tokens(*kernel, sums, max_threads());
    });
    m.def("gate_gradients",
          [](bool bfloat16, const std::array<std::uintptr_t, 6>& addresses,
             std::uintptr_t token_to_row, const std::array<std::int64_t, 3>& sizes, float scaling) {
              follow_threads();
              const py::gil_scoped_release release;
              return gate_gradients(*kernel, bfloat16, addresses, token_to_row, sizes, scaling);
          });
    m.def("add", [](int storage, bool int8_experts, const std::array<std::uintptr_t, 5>& addresses,
                    std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
                    const std::array<std::int64_t, 2>& strides, float scaling) {
        follow_threads();
        const py::gil_scoped_release release;
        add(*kernel, storage, int8_experts, addresses, token_to_row, sizes, strides, scaling);
    });
}

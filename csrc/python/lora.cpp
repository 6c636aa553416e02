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

template <class T, class Address>
T* pointer(Address address) {
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

bool is_int8(const dlpack::Matrix& m) { return m.code == dlpack::kInt && m.bits == 8; }

// Of a matrix of floats.
std::optional<Storage> storage_of(const dlpack::Matrix& m) {
    if (m.code == dlpack::kFloat && m.bits == 32) return Storage::kFloat32;
    if (m.code == dlpack::kBFloat && m.bits == 16) return Storage::kBFloat16;
    if (m.code == dlpack::kFloat && m.bits == 16) return Storage::kFloat16;
    return std::nullopt;
}

// Of int32 or int64.
std::int64_t index_at(const dlpack::Matrix& m, std::int64_t i) {
    return m.bits == 32 ? reinterpret_cast<const std::int32_t*>(m.data)[i]
                        : reinterpret_cast<const std::int64_t*>(m.data)[i];
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

// run(), while other Python threads may run, too, where it takes so long that this pays.
template <class Run>
void unlocked(double time, const Run& run) {
    if (time < kUnlockedMicroseconds) return run();
    const py::gil_scoped_release release;
    run();
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
    for (std::int64_t i = 0; pooled && i < requests; ++i)
        if (index_at(pools, i) < 0 || index_at(pools, i) >= pool_count) return false;
    const auto add = [&] {
        const bool fit = chosen.find(
            p, tokens, requests, pool_count,
            [&](std::int64_t t) -> std::int64_t {
                return given ? index_at(rows, t) : requests == 1 ? 0 : t;
            },
            [&](std::int64_t row) -> std::int64_t { return pooled ? index_at(pools, row) : 0; });
        if (fit) chosen.run(kernel, p, tokens, pool_count);
        return fit;
    };
    bool fit = false;
    unlocked(microseconds(p, tokens), [&] { fit = add(); });
    return fit;
}

// A matrix whose rows lie one behind the other.
bool read_whole(py::handle tensor, dlpack::Matrix& to) {
    return is_plain(tensor) && to.read(*torch.tensors, tensor) && to.ndim == 2 &&
           (to.rows <= 1 || to.stride == to.columns);
}

// What the gradients need between the products, of tensors as they are: u, dp, gated and dg may be
// None. Nothing is written and nothing returned where anything about them needs a closer look; else
// whether a token has no row.
std::optional<bool> try_gate(const Kernel& kernel, py::handle u_, py::handle h_, py::handle g_,
                             py::handle rows_, double scaling, py::handle dp_, py::handle gated_,
                             py::handle dg_) {
    if (!torch.tensors || !wanted(kernel) || watched()) return std::nullopt;
    dlpack::Matrix h, g, rows;
    if (!read_whole(h_, h) || !read_whole(g_, g) || g.columns != h.columns) return std::nullopt;
    if (storage_of(h) != Storage::kFloat32 || storage_of(g) != Storage::kFloat32)
        return std::nullopt;
    const std::int64_t tokens = h.rows, requests = g.rows;
    GateGradients q{};
    q.storage = Storage::kFloat32;
    q.h = pointer<const float>(h.data), q.g = pointer<const float>(g.data);
    q.tokens = tokens, q.requests = requests, q.rank = h.columns;
    q.scaling = float(scaling);
    // Null for None.
    const auto read = [&](py::handle tensor, std::int64_t count, void*& to, bool narrow) {
        if (tensor.is_none()) return true;
        dlpack::Matrix m;
        if (!read_whole(tensor, m) || m.rows != count || m.columns != h.columns) return false;
        const auto storage = storage_of(m);
        if (narrow && storage == Storage::kBFloat16)
            q.storage = *storage;
        else if (storage != Storage::kFloat32 || q.storage != Storage::kFloat32)
            return false;
        to = m.data;
        return true;
    };
    void *u = nullptr, *dg = nullptr;
    if (!read(u_, tokens, u, false) || !read(dg_, requests, dg, false) ||
        !read(dp_, tokens, q.dp, true) || !read(gated_, tokens, q.gated, true))
        return std::nullopt;
    q.u = static_cast<const float*>(u), q.dg = static_cast<float*>(dg);
    if (!u && (q.dp || q.dg)) return std::nullopt;
    const bool given = !rows_.is_none();
    if (given && (!is_plain(rows_) || !rows.read(*torch.tensors, rows_) || rows.ndim != 1 ||
                  rows.columns != tokens || rows.code != dlpack::kInt || rows.bits < 32))
        return std::nullopt;
    if (!given && requests != 1 && requests != tokens) return std::nullopt;
    thread_local std::vector<std::int64_t> places;
    places.resize(std::size_t(tokens));
    bool absent = false;
    for (std::int64_t t = 0; t < tokens; ++t) {
        const std::int64_t row = given ? index_at(rows, t) : requests == 1 ? 0 : t;
        if (row < -1 || row >= requests) return std::nullopt;
        places[std::size_t(t)] = row;
        absent = absent || row < 0;
    }
    q.rows = places.data();
    unlocked(microseconds(q), [&] { gate_gradients(kernel, q, max_threads()); });
    return absent;
}

// x^T w into a new tensor, or its transpose, which has the ranks first; false where anything needs
// a closer look, or torch is faster.
bool try_sum(const Kernel& kernel, py::handle x_, py::handle w_, py::handle out_, bool rank_first) {
    if (!torch.tensors || !sums_pay(kernel) || !wanted(kernel) || watched()) return false;
    dlpack::Matrix x, w, out;
    const auto read = [](py::handle tensor, dlpack::Matrix& to) {
        return is_plain(tensor) && to.read(*torch.tensors, tensor) && to.ndim == 2 &&
               storage_of(to) == Storage::kFloat32;
    };
    if (!read(x_, x) || !read(w_, w) || !read_whole(out_, out)) return false;
    if (storage_of(out) != Storage::kFloat32 || w.rows != x.rows ||
        out.rows != (rank_first ? w.columns : x.columns) ||
        out.columns != (rank_first ? x.columns : w.columns))
        return false;
    // Single columns may be torch's negated views.
    if (x.rows < 1 || x.columns <= 1 || w.columns <= 1) return false;
    const TokenSums sums{pointer<const float>(x.data),
                         pointer<const float>(w.data),
                         pointer<float>(out.data),
                         x.rows,
                         x.columns,
                         w.columns,
                         x.stride,
                         w.stride,
                         rank_first};
    unlocked(microseconds(sums), [&] { sum_over_tokens(kernel, sums, max_threads()); });
    return true;
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

// What `run` returns, which may be an exception of C++.
template <class Run>
PyObject* guarded(const Run& run) {
    try {
        follow_threads();
        return run();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// A plain function of CPython: pybind11's own call costs twice as much.
PyObject* call_try_add(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count < 7 || count > 12) {
        PyErr_Format(PyExc_TypeError, "try_add takes 7 to 12 arguments, got %zd", count);
        return nullptr;
    }
    const double scaling = PyFloat_AsDouble(arguments[6]);
    if (scaling == -1 && PyErr_Occurred()) return nullptr;
    return guarded([&] {
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
    });
}

PyObject* call_try_gate(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count != 8) {
        PyErr_Format(PyExc_TypeError, "try_gate takes 8 arguments, got %zd", count);
        return nullptr;
    }
    const double scaling = PyFloat_AsDouble(arguments[4]);
    if (scaling == -1 && PyErr_Occurred()) return nullptr;
    return guarded([&]() -> PyObject* {
        const auto absent =
            try_gate(*kernel, arguments[0], arguments[1], arguments[2], arguments[3], scaling,
                     arguments[5], arguments[6], arguments[7]);
        if (!absent) Py_RETURN_NONE;
        return PyBool_FromLong(*absent);
    });
}

PyObject* call_try_sum(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "try_sum takes 4 arguments, got %zd", count);
        return nullptr;
    }
    return guarded([&] {
        const bool done =
            try_sum(*kernel, arguments[0], arguments[1], arguments[2], arguments[3] == Py_True);
        return PyBool_FromLong(done);
    });
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
PyMethodDef try_gate_method = {
    "try_gate", fast(call_try_gate), METH_FASTCALL,
    "try_gate(u, h, rank_weights, token_to_row, scaling, dp, gated, dg) -> bool | None"};
PyMethodDef try_sum_method = {"try_sum", fast(call_try_sum), METH_FASTCALL,
                              "try_sum(x, w, out, rank_first) -> bool"};

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
    for (PyMethodDef* method :
         {&unwatched_method, &try_add_method, &try_gate_method, &try_sum_method})
        m.attr(method->ml_name) =
            py::reinterpret_steal<py::object>(PyCFunction_New(method, nullptr));
    m.def("add", [](int storage, bool int8_experts, const std::array<std::uintptr_t, 5>& addresses,
                    std::uintptr_t token_to_row, const std::array<std::int64_t, 5>& sizes,
                    const std::array<std::int64_t, 2>& strides, float scaling) {
        follow_threads();
        const py::gil_scoped_release release;
        add(*kernel, storage, int8_experts, addresses, token_to_row, sizes, strides, scaling);
    });
}

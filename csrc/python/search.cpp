// Python face of the tree core: numpy in and out, the GIL released while the core works.
#include <cxxabi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <numeric>
#include <string_view>
#include <type_traits>

#include "forest.hpp"

namespace py = pybind11;
using namespace bdc::search;

namespace {

py::array as_array(const py::object& from) {
    if (py::isinstance<py::array>(from)) return py::reinterpret_borrow<py::array>(from);
    return py::array::ensure(from);
}

// Can its elements be read where they are?
template <class T>
bool holds(const py::array& array) {
    const py::dtype type = array.dtype();
    return type.kind() == (std::is_floating_point_v<T> ? 'f' : 'i') &&
           type.itemsize() == py::ssize_t(sizeof(T)) && type.byteorder() == '=' &&
           (array.flags() & py::array::c_style) != 0;
}

// Any array, sequence or number of integers as a span of int64, without a copy where it fits.
class IdArgument {
  public:
    IdArgument(const py::object& from, const char* what) {
        if (from.is_none()) return;
        if (PyLong_CheckExact(from.ptr()) && take_number(from)) return;
        py::array array = as_array(from);
        if (!array) {
            PyErr_Clear();
            throw InputFault(std::string(what) + " must be integers");
        }
        const char kind = array.dtype().kind();
        if (kind != 'i' && kind != 'u' && array.size() > 0) {
            throw InputFault(std::string(what) + " must be integers, got dtype " +
                             std::string(py::str(array.dtype())));
        }
        if (holds<std::int64_t>(array)) {
            span_ = {static_cast<const std::int64_t*>(array.data()), std::size_t(array.size())};
            array_ = std::move(array);
            return;
        }
        if (holds<std::int32_t>(array)) {
            const auto* ids = static_cast<const std::int32_t*>(array.data());
            copy_.reserve(std::size_t(array.size()) + 1);  // a given but empty span is not null
            copy_.assign(ids, ids + array.size());
            span_ = {copy_.data(), copy_.size()};
            return;
        }
        auto cast =
            py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
        if (!cast) throw py::error_already_set();
        span_ = {cast.data(), std::size_t(cast.size())};
        array_ = std::move(cast);
    }
    IdArgument(const IdArgument&) = delete;
    operator Ids() const { return span_; }

  private:
    bool take_number(const py::object& from) {
        const long long number = PyLong_AsLongLong(from.ptr());
        if (number == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            return false;
        }
        copy_.assign(1, number);
        span_ = {copy_.data(), 1};
        return true;
    }

    std::vector<std::int64_t> copy_;
    py::object array_;
    Ids span_;
};

class RealArgument {
  public:
    RealArgument(const py::object& from, const char* what) {
        if (from.is_none()) return;
        const py::array array = as_array(from);
        if (array && holds<double>(array)) {
            take(py::reinterpret_borrow<Reals>(array));
            return;
        }
        const char kind = array ? array.dtype().kind() : 'O';
        if (kind != 'f' && kind != 'i' && kind != 'u') {
            PyErr_Clear();
            throw InputFault(std::string(what) + " must be numbers");
        }
        auto cast = Reals::ensure(array);
        if (!cast) throw py::error_already_set();
        take(std::move(cast));
    }
    RealArgument(const RealArgument&) = delete;
    operator std::span<const double>() const { return span_; }

  private:
    using Reals = py::array_t<double, py::array::c_style | py::array::forcecast>;

    void take(Reals array) {
        span_ = {array.data(), std::size_t(array.size())};
        array_ = std::move(array);
    }

    py::object array_;
    std::span<const double> span_;
};

template <class T>
py::array_t<T> to_numpy(std::vector<T>&& values) {
    if (values.size() * sizeof(T) < 4096)
        return py::array_t<T>(py::ssize_t(values.size()), values.data());
    auto* kept = new std::vector<T>(std::move(values));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(py::ssize_t(kept->size()), kept->data(), owner);
}

py::array_t<std::int32_t> to_numpy(const Range& range) {
    py::array_t<std::int32_t> ids(range.count);
    std::iota(ids.mutable_data(), ids.mutable_data() + range.count, range.first);
    return ids;
}

// Some of a result that lives as long as the array, which is read-only: the core goes by it.
template <class T>
py::array_t<T> view(const T* from, std::int64_t count, const py::object& owner) {
    py::array_t<T> array(py::ssize_t(count), from, owner);
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return array;
}

template <class T, class Allocator>
py::array_t<T> view(const std::vector<T, Allocator>& column, const py::object& owner) {
    return view(column.data(), std::int64_t(column.size()), owner);
}

// Selections that Python has let go of, with the room of their columns; the GIL guards them.
struct Recycle {
    static std::vector<std::unique_ptr<Selection>>& kept() {
        static auto* selections = new std::vector<std::unique_ptr<Selection>>;
        return *selections;
    }
    void operator()(Selection* selection) const {
        std::unique_ptr<Selection> owned(selection);
        std::size_t ids = owned->joined.ids.capacity();
        for (const Selection::Piece& piece : owned->pieces) ids += piece.ids.capacity();
        const bool small = ids <= (std::size_t(1) << 20);
        if (small && kept().size() < 4) kept().push_back(std::move(owned));
    }
};
using SelectionHandle = std::unique_ptr<Selection, Recycle>;

SelectionHandle new_selection() {
    if (Recycle::kept().empty()) return SelectionHandle(new Selection);
    SelectionHandle found(Recycle::kept().back().release());
    Recycle::kept().pop_back();
    return found;
}

Selection take(const Selection& from, Ids rows) {
    Selection taken;
    const Paths& paths = from.paths();
    std::vector<std::int32_t>& ids = taken.pieces.emplace_back().ids;
    for (const std::int64_t index : rows) {
        const auto row = std::size_t(index);
        taken.tree.push_back(from.tree[row]);
        taken.leaf.push_back(from.leaf[row]);
        taken.depth.push_back(from.depth[row]);
        taken.ticket.push_back(from.ticket[row]);
        taken.agent.push_back(from.agent[row]);
        ids.insert(ids.end(), paths.ids.begin() + paths.offsets[row],
                   paths.ids.begin() + paths.offsets[row + 1]);
    }
    return taken;
}

void refuse_tickets(const py::object& tickets) {
    if (tickets.is_none()) return;
    throw InputFault("tickets belong to node ids; a Selection brings its own");
}

// The GIL, given back for a while. Once the interpreter has ended, Python before 3.14 ends a thread
// that asks for it, on its way through frames that let nothing pass; it waits for the process's end
// here, as later ones do.
class Released {
  public:
    Released() : state_(PyEval_SaveThread()) {}
    Released(const Released&) = delete;
    ~Released() {
        try {
            PyEval_RestoreThread(state_);
        } catch (abi::__forced_unwind&) {
            for (;;) pause();
        }
    }

  private:
    PyThreadState* state_;
};

template <class Call>
auto released(Call call) {
    const Released gil;
    return call();
}

// A path as the system takes it.
std::string file_name(const py::str& path) {
    const auto name = py::reinterpret_steal<py::bytes>(PyUnicode_EncodeFSDefault(path.ptr()));
    const auto refuse = [&](const char* why) {
        PyErr_Clear();
        throw InputFault("path is " + std::string(py::repr(path)) + why);
    };
    if (!name) refuse(", which the file system's encoding cannot hold");
    std::string bytes(name);
    if (bytes.find('\0') != std::string::npos) refuse("; a path has no NUL character");
    return bytes;
}

Config make_config(std::uint32_t kind, const std::vector<double>& parameters, bool mean,
                   double gamma, double virtual_loss, double widening_c, double widening_alpha,
                   std::uint64_t seed) {
    Config config;
    if (parameters.size() > kRuleParameters) throw InputFault("a rule has at most 8 parameters");
    config.rule.kind = kind;
    std::copy(parameters.begin(), parameters.end(), config.rule.parameters);
    config.backup = mean ? Backup::kMean : Backup::kMax;
    config.gamma = gamma;
    config.virtual_loss = virtual_loss;
    config.widening_c = widening_c;
    config.widening_alpha = widening_alpha;
    config.seed = seed;
    return config;
}

py::handle error_class;  // set by raise_as, kept for the life of the process

void translate(std::exception_ptr thrown) {
    try {
        if (thrown) std::rethrow_exception(thrown);
    } catch (const InputFault& fault) {
        const py::handle type = error_class ? error_class : py::handle(PyExc_ValueError);
        const py::object index = fault.index < 0 ? py::object(py::none()) : py::int_(fault.index);
        const std::string_view text(fault.what());  // may name a file, in any bytes
        const auto message = py::reinterpret_steal<py::object>(
            PyUnicode_DecodeUTF8(text.data(), py::ssize_t(text.size()), "surrogateescape"));
        PyErr_SetObject(type.ptr(), py::make_tuple(message, index).ptr());
    } catch (const FileFault& fault) {
        errno = fault.code;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, fault.path.c_str());
    }
}

}  // namespace

PYBIND11_MODULE(_search, m) {
    m.doc() = "The tree core of bdc.search.";
    py::register_local_exception_translator(translate);
    m.def("raise_as", [](py::object type) { error_class = type.release(); });
    PYBIND11_NUMPY_DTYPE(Row, id, parent, tree, depth, tag, children, n, visits, pending, reason,
                         refined, reserved, prior, value, max, mean);

    const auto column = [](auto of) {
        return [of](const py::object& self) {
            return view(std::invoke(of, self.cast<const Selection&>()), self);
        };
    };
    const auto path_column = [column](auto member) {
        return column([member](const Selection& of) -> auto& { return of.paths().*member; });
    };
    py::class_<Selection, SelectionHandle> selection(
        m, "Selection", py::is_final(), py::custom_type_setup([](PyHeapTypeObject* type) {
            type->ht_type.tp_flags |= Py_TPFLAGS_DISALLOW_INSTANTIATION;  // by `__new__`, too
        }),
        "What `Forest.select` and `Forest.step` return: selected leaves, one row each (k rows, "
        "`trees` major, `leaves` minor). Pass it, or some of its rows (`selection[mask]`), to "
        "`Forest.backup` or `Forest.abandon`. Its arrays are read-only views, made when asked "
        "for.");
    selection.attr("__module__") = "bdc.search";
    selection
        .def_property_readonly("tree", column(&Selection::tree),
                               "[k] int32, root id of the leaf's tree.")
        .def_property_readonly("leaf", column(&Selection::leaf),
                               "[k] int32, node id: without children, or to be given more.")
        .def_property_readonly(
            "distinct_leaves",
            [](const Selection& self) {
                std::vector<std::int32_t> leaves(self.leaf.begin(), self.leaf.end());
                std::sort(leaves.begin(), leaves.end());
                leaves.erase(std::unique(leaves.begin(), leaves.end()), leaves.end());
                return to_numpy(std::move(leaves));
            },
            "[at most k] int32, rising: the leaves, each once. With several leaves per tree two "
            "selections may meet in one, which is expanded once.")
        .def_property_readonly("depth", column(&Selection::depth),
                               "[k] int32, edges from the root.")
        .def_property_readonly("ticket", column(&Selection::ticket),
                               "[k] int64, resolved exactly once, by backup or abandon.")
        .def_property_readonly(
            "path_offsets", path_column(&Paths::offsets),
            "[k + 1] int64; row i's path is `path[path_offsets[i] : path_offsets[i + 1]]`.")
        .def_property_readonly("path", path_column(&Paths::ids),
                               "int32 node ids from root to leaf, all rows end to end.")
        .def_property_readonly("agent", column(&Selection::agent),
                               "[k] int32, who shall add a child (Thompson), else -1.")
        .def_property_readonly(
            "children", [](const Selection& self) { return to_numpy(self.children); },
            "int32 ids that `Forest.step` added before it selected, in the order of the rows it "
            "was "
            "given; none by `select`.")
        .def("__len__", [](const Selection& self) { return self.leaf.size(); })
        .def(
            "path_of",
            [](const py::object& self, std::int64_t row) {
                const auto& from = self.cast<const Selection&>();
                const auto rows = std::int64_t(from.leaf.size());
                if (row < -rows || row >= rows) {
                    throw py::index_error("row " + std::to_string(row) + " of a selection of " +
                                          std::to_string(rows));
                }
                const auto at = std::size_t(row < 0 ? row + rows : row);
                const auto& [offsets, ids] = from.paths();
                return view(ids.data() + offsets[at], offsets[at + 1] - offsets[at], self);
            },
            py::arg("row"), "int32 node ids from the root to leaf `row`.")
        .def(
            "__getitem__",
            [](const Selection& self, const py::object& rows) {
                const auto all = py::module_::import("numpy").attr("arange")(self.leaf.size());
                const py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> some(
                    all[rows]);
                return take(self, {some.data(), std::size_t(some.size())});
            },
            py::arg("rows"), "The rows that an index, slice, index array or mask picks.");

    using Self = Forest&;
    py::class_<Forest>(m, "Forest")
        .def(py::init([](std::uint32_t kind, const std::vector<double>& parameters, bool mean,
                         double gamma, double virtual_loss, double widening_c,
                         double widening_alpha, std::uint64_t seed, unsigned threads) {
            return std::make_unique<Forest>(make_config(kind, parameters, mean, gamma, virtual_loss,
                                                        widening_c, widening_alpha, seed),
                                            threads);
        }))
        .def_static("load",
                    [](const py::str& path, unsigned threads, bool verify) {
                        const std::string name = file_name(path);
                        return released([&] {
                            auto forest = std::make_unique<Forest>(Forest::peek(name), threads);
                            Forest::load(name, verify, *forest);
                            return forest;
                        });
                    })
        .def_property_readonly(
            "config",
            [](Self self) {
                const Config& c = self.config();
                return py::make_tuple(
                    c.rule.kind,
                    std::vector<double>(std::begin(c.rule.parameters), std::end(c.rule.parameters)),
                    c.backup == Backup::kMean, c.gamma, c.virtual_loss, c.widening_c,
                    c.widening_alpha, c.seed);
            })
        .def_property_readonly("size", &Forest::size)
        .def_property_readonly("bytes", &Forest::bytes)
        .def_property_readonly("in_flight", &Forest::in_flight)
        .def_property_readonly("threads", &Forest::threads)
        .def("trees", [](Self self) { return to_numpy(self.trees()); })
        .def("plant",
             [](Self self, std::int64_t count) {
                 return to_numpy(released([&] { return self.plant(count); }));
             })
        .def("select",
             [](Self self, const py::object& trees, std::int64_t leaves) {
                 const IdArgument ids(trees, "trees");
                 SelectionHandle selection = new_selection();
                 released([&] { self.select(ids, leaves, *selection); });
                 return selection;
             })
        .def("expand",
             [](Self self, const py::object& nodes, const py::object& counts,
                const py::object& priors, const py::object& tags) {
                 const IdArgument ids(nodes, "nodes"), many(counts, "counts"), marks(tags, "tags");
                 const RealArgument p(priors, "priors");
                 return to_numpy(released([&] { return self.expand(ids, many, p, marks); }));
             })
        .def("step",
             [](Self self, const Selection& from, const py::object& counts,
                const py::object& returns, const py::object& priors, const py::object& tags,
                std::int64_t leaves) {
                 const IdArgument many(counts, "counts"), marks(tags, "tags");
                 const RealArgument values(returns, "returns"), p(priors, "priors");
                 SelectionHandle next = new_selection();
                 released([&] { self.step(from, many, values, p, marks, leaves, *next); });
                 return next;
             })
        .def("backup",
             [](Self self, const Selection& selection, const py::object& returns,
                const py::object& tickets) {
                 refuse_tickets(tickets);
                 const RealArgument values(returns, "returns");
                 const std::vector<std::int64_t> leaves(selection.leaf.begin(),
                                                        selection.leaf.end());
                 released([&] { self.backup(leaves, values, selection.ticket, true); });
             })
        .def("abandon",
             [](Self self, const Selection& selection, const py::object& tickets) {
                 refuse_tickets(tickets);
                 const std::vector<std::int64_t> leaves(selection.leaf.begin(),
                                                        selection.leaf.end());
                 released([&] { self.abandon(leaves, selection.ticket, true); });
             })
        .def("backup",
             [](Self self, const py::object& leaves, const py::object& returns,
                const py::object& tickets) {
                 const IdArgument ids(leaves, "leaves"), claimed(tickets, "tickets");
                 const RealArgument values(returns, "returns");
                 released([&] { self.backup(ids, values, claimed, !tickets.is_none()); });
             })
        .def("abandon",
             [](Self self, const py::object& leaves, const py::object& tickets) {
                 const IdArgument ids(leaves, "leaves"), claimed(tickets, "tickets");
                 released([&] { self.abandon(ids, claimed, !tickets.is_none()); });
             })
        .def("prune",
             [](Self self, const py::object& nodes, const py::object& reasons) {
                 const IdArgument ids(nodes, "nodes"), why(reasons, "reasons");
                 return to_numpy(released([&] { return self.prune(ids, why); }));
             })
        .def("reopen",
             [](Self self, const py::object& nodes) {
                 const IdArgument ids(nodes, "nodes");
                 released([&] { self.reopen(ids); });
             })
        .def("refine",
             [](Self self, const py::object& nodes) {
                 const IdArgument ids(nodes, "nodes");
                 released([&] { self.refine(ids); });
             })
        .def("drop",
             [](Self self, const py::object& trees) {
                 const IdArgument ids(trees, "trees");
                 released([&] { self.drop(ids); });
             })
        .def("compact",
             [](Self self, bool drop_pruned) {
                 return to_numpy(released([&] { return self.compact(drop_pruned); }));
             })
        .def("rows",
             [](Self self, const py::object& nodes) {
                 const IdArgument ids(nodes, "nodes");
                 return to_numpy(released([&] { return self.rows(ids); }));
             })
        .def("children",
             [](Self self, std::int64_t node) {
                 return to_numpy(released([&] { return self.children(node); }));
             })
        .def("nodes",
             [](Self self, std::int64_t tree) {
                 return to_numpy(released([&] { return self.nodes(tree); }));
             })
        .def("best_path",
             [](Self self, std::int64_t tree, int by) {
                 return to_numpy(released([&] { return self.best_path(tree, Forest::By(by)); }));
             })
        .def("check", [](Self self) { released([&] { self.check(); }); })
        .def("save", [](Self self, const py::str& path, bool sync) {
            const std::string name = file_name(path);
            released([&] { self.save(name, sync); });
        });
}

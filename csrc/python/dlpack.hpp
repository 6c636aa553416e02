// Tensors of torch read without its headers: the C exchange of DLPack 1.x, by its ABI.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace bdc::dlpack {

struct Tensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

struct ExchangeApi {
    std::uint32_t major, minor;
    ExchangeApi* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*tensor_from_object)(void* object, Tensor* out);
    void* current_stream;
};

constexpr std::int32_t kCpu = 1;
enum Code : std::uint8_t { kInt = 0, kFloat = 2, kBFloat = 4 };

// The exchange of the objects' type, from its capsule; null where it lacks what is needed here.
inline const ExchangeApi* exchange(const pybind11::object& capsule) {
    auto* api = static_cast<ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr())));
    if (!api) throw pybind11::error_already_set();
    while (api && api->major != 1) api = api->previous;
    return api && api->tensor_from_object ? api : nullptr;
}

// A matrix (or vector) with contiguous rows; leading dimensions that lie in one stride count as
// one.
struct Matrix {
    char* data;
    std::uint8_t code, bits;
    int ndim;
    std::int64_t first, rows, columns, stride;  // first: the leading dimension

    // The first byte and the one past the last.
    const char* begin() const { return data; }
    const char* end() const {
        return rows && columns ? data + ((rows - 1) * stride + columns) * (bits / 8) : data;
    }
    bool apart_from(const Matrix& other) const {
        return end() <= other.begin() || other.end() <= begin();
    }

    // False where the object is no tensor of this kind in CPU memory; the slow path says why.
    bool read(const ExchangeApi& api, pybind11::handle object) {
        Tensor t;
        if (api.tensor_from_object(object.ptr(), &t)) {
            PyErr_Clear();
            return false;
        }
        if (t.device_type != kCpu || t.lanes != 1 || t.ndim < 1 || t.bits % 8) return false;
        const int last = t.ndim - 1;
        data = static_cast<char*>(t.data) + t.byte_offset;
        code = t.code, bits = t.bits, ndim = t.ndim, first = t.shape[0];
        rows = 1, columns = stride = t.shape[last];
        if (t.strides && columns > 1 && t.strides[last] != 1) return false;
        for (int d = last - 1; d >= 0; --d) {
            if (t.shape[d] == 0) rows = 0;
            if (t.shape[d] <= 1) continue;
            const std::int64_t step = t.strides ? t.strides[d] : stride * rows;
            if (rows == 1) {
                stride = step;
            } else if (step != stride * rows) {
                return false;
            }
            rows *= t.shape[d];
        }
        // An address this low is an offset into memory that was released.
        constexpr std::uintptr_t kLowest = 1 << 22;
        const bool held = reinterpret_cast<std::uintptr_t>(data) >= kLowest;
        return stride >= 0 && (held || !rows || !columns);
    }
};

}  // namespace bdc::dlpack

// y[t] += s * ((x[t] A^T) * g[row[t]]) B^T on a CPU, with sums in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bdc::lora {

enum class Storage { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Plain data only: this header is compiled for several instruction sets. Strides are in elements,
// from row to row; a row is contiguous.
struct Product {
    Storage storage;  // of y, x, a and b
    void* y;          // [tokens, out]
    const void* x;    // [tokens, in]
    const void* a;    // [rank, in]
    const void* b;    // [out, rank]
    const float* g;   // [requests, rank]
    std::int64_t y_stride, x_stride, a_stride, b_stride, g_stride;
    const std::int64_t* active;  // the tokens that have an adapter
    const std::int64_t* rows;    // the row of g of each active token
    std::int64_t count;          // of active tokens
    std::int64_t in, out, rank;
    float scaling;
    float* h;    // [tokens, rank]: takes h before the gate, for gradients; or null
    bool fresh;  // y is written, not added to
    bool few;    // few enough tokens to multiply B as it lies, without packing it
};

// Whether packing B would cost more than it saves; by the tokens of a whole call, so that the order
// of a sum does not depend on how the call is cut up.
inline bool few(const Product& p) {
    return p.count <= 2 || p.count * (p.storage == Storage::kBFloat16 ? 20 : 14) <= p.rank;
}

// A half-open range of active tokens, and of ranks (shrink) or outputs (expand).
struct Part {
    std::int64_t first_token, last_token, first, last;
};

// The two halves for one instruction set. `gated` holds 4 * rank bytes for each active token, in a
// form of the kernel's own: s * h * g. Parts of one half can run at the same time; they write to
// different places, and each value is summed in an order that only depends on in and rank.
struct Kernel {
    const char* name;
    std::int64_t rank_step, out_step;        // a part is best a multiple of these
    std::size_t (*scratch)(const Product&);  // bytes that either half needs
    void (*shrink)(const Product&, const Part&, void* gated, void* scratch);
    void (*expand)(const Product&, const Part&, const void* gated, void* scratch);
};

extern const Kernel kPortable;
#ifdef BDC_X86
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kAvx512BFloat16;
#endif

// Tokens that share one pass over A, at least and at most.
constexpr std::int64_t kBlock = 16, kMostTokens = 128;

}  // namespace bdc::lora

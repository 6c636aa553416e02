// y[t] += s * ((x[t] A^T) * g[row[t]]) B^T on a CPU, with sums in float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bdc::lora {

enum class Storage { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// How shrink reads A: with some tokens at a time in long passes along d_in or in short ones, row by
// row for one to three tokens, or turned once for all; only panels add one element after the other.
enum class Reading { kTiles, kShortTiles, kRows, kPanels };

// In which order expand adds the products of a sum over the ranks.
enum class Order { kDots, kEvenAndOdd, kUnits, kAbreast };

// Of the experts: as y and x, or integers whose scales are folded into g.
enum class Experts { kAsInputs, kInt8 };

// Plain data only: this header is compiled for several instruction sets. Strides are in elements,
// from row to row; a row is contiguous.
struct Product {
    Storage storage;  // of y and x
    Experts experts;  // a and b
    void* y;          // [tokens, out]
    const void* x;    // [tokens, in]
    const void* a;    // [rank, in]
    const void* b;    // [out, rank / slices]
    const float* g;   // [requests, rank]
    std::int64_t y_stride, x_stride, a_stride, b_stride, g_stride;
    const std::int64_t* active;  // the tokens that have an adapter
    const std::int64_t* rows;    // the row of g of each active token
    std::int64_t count;          // of active tokens
    std::int64_t in, out, rank;
    // Outputs that share x lie side by side in y: the s-th ends before column ends[s], and has the
    // s-th of as many parts of the ranks.
    std::int64_t slices;
    const std::int64_t* ends;
    float scaling;
    float* h;  // takes h = x A^T, rows of h_stride
    std::int64_t h_stride;
    const std::int64_t* h_rows;  // which row of h an active token has; null: one after the other
    bool fresh;                  // y is written, not added to
    bool turned;                 // a is [in, rank] and b [rank, out], for the gradients
    Order order;
    std::int64_t abreast;  // of kAbreast: the tokens in a vector, 2, 8 or 16
    Reading reading;
};

// Bytes of an element of y and x, and of a and b.
static inline std::size_t input_bytes(const Product& p) {
    return p.storage == Storage::kFloat32 ? 4 : 2;
}
static inline std::size_t expert_bytes(const Product& p) {
    return p.experts == Experts::kInt8 ? 1 : input_bytes(p);
}

// h of active token i.
static inline float* h_of(const Product& p, std::int64_t i) {
    return p.h + (p.h_rows ? p.h_rows[i] : i) * p.h_stride;
}

// A half-open range of active tokens, and of ranks (shrink) or outputs (expand).
struct Part {
    std::int64_t first_token, last_token, first, last;
};

// A matrix that is written with its columns as rows. Strides are in elements.
struct Turning {
    const void* from;  // [rows, columns]
    void* to;          // [columns, rows]
    std::int64_t rows, columns, stride, to_stride;
    std::size_t bytes;  // of an element: 2 or 4
};

// out[t] += the sum over i of w[t][i] m[i], of rows of float32, or of bfloat16 where a kernel
// multiplies that as it is.
struct WeightedRows {
    Storage storage;  // of m and w
    bool narrow;      // out has it, too; else float32
    const void* m;    // [count, columns]
    std::int64_t count, stride;
    const void* w;  // [tokens, count], w_step from weight to weight
    std::int64_t w_stride, w_step;
    void* out;  // [tokens, columns]
    std::int64_t out_stride;
    // The row of w, and of out, of each token; null: one after the other.
    const std::int64_t *w_rows, *out_rows;
    std::int64_t tokens;  // of the whole call, however it is cut up
    bool fresh;           // out is written, not added to
};

// Do several passes over the matrix pay for cutting it up?
static inline bool shares_passes(const WeightedRows& q) { return q.tokens > 8 && q.count > 8; }

// A call is cut up at multiples of so many columns, those of its widest tile or of any, so that
// each sum keeps its order.
constexpr std::int64_t kWidestTile = 256;
static inline std::int64_t column_step(const WeightedRows& q) {
    return shares_passes(q) ? 32 : kWidestTile;
}

// With h = x A^T and u = dy B: dp = s g u, gated = s g h, and dg, the sum of s h u over the tokens
// of each row of g. All are contiguous, and each but g may be null.
struct GateGradients {
    Storage storage;  // of dp and gated: float32 or bfloat16
    const float *u, *h, *g;
    const std::int64_t* rows;  // of g, of each token; -1: none
    std::int64_t tokens, requests, rank;
    float scaling;
    void *dp, *gated;  // [tokens, rank], zero for tokens without a row
    float* dg;         // [requests, rank]
};

// The two halves for one instruction set: shrink writes h, expand reads it. Parts of one half can
// run at the same time; they write to different places, and each value is summed in an order that
// only depends on in, out and rank.
struct Kernel {
    const char* name;
    int lanes;                               // floats in a vector
    std::int64_t rank_step, out_step;        // a part is best a multiple of these
    std::int64_t panel;                      // rows of A that are turned together; 0: none are
    std::int64_t fewest_at_once;             // tokens whose h is made before it is used
    std::size_t (*scratch)(const Product&);  // bytes that either half needs
    void (*shrink)(const Product&, const Part&, void* scratch);
    void (*expand)(const Product&, const Part&, void* scratch);
    void (*turn)(const Turning&, std::int64_t first, std::int64_t last);  // a range of rows
    void (*weigh_rows)(const WeightedRows&, const Part&);                 // the range is of columns
    void (*gate)(const Product&, void* to);  // s * g * h, [count, rank] of float32 or bfloat16
    void (*gate_gradients)(const GateGradients&, std::int64_t first,
                           std::int64_t last);  // of ranks
};

extern const Kernel kPortable;
#ifdef BDC_X86
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kAvx512BFloat16;
#endif
#ifdef BDC_AMX
extern const Kernel kAmxBFloat16;  // for products of numbers of 16 bits alone
#endif

// Tokens that share one pass over A, at least and at most.
constexpr std::int64_t kBlock = 16, kMostTokens = 128;

}  // namespace bdc::lora

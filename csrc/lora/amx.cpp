// The kernel for numbers of 16 bits on CPUs with a matrix unit for bfloat16. Of x and A, and of h
// and B, the rows of one are turned, whichever that costs less for.
#define BDC_LANES 16
#include "edges.inc"
#include "gradients.inc"
#include "products.inc"
#include "turned.inc"
#include "weighted.inc"

namespace bdc::lora {
namespace {

// Rows of A or B, evenly spaced.
template <class T>
struct Rows {
    static constexpr bool kTokens = false, kPadded = false;  // with zeros to whole tiles
    const T* first;
    int64_t stride, count;

    const T* row(int64_t n) const { return first + n * stride; }
    bool lies_even(int64_t) const { return true; }
    // Rows after these, where they are short.
    int64_t ahead() const {
        constexpr int64_t kLineOf = kLine / sizeof(T), kShort = 32 * kLineOf;
        return stride <= kShort ? 4 * kShort : 2 * kLineOf;
    }
};

// Inputs of active tokens.
template <class T>
struct Inputs {
    static constexpr bool kTokens = true, kPadded = false;
    const Product& p;
    int64_t first, count;

    const T* row(int64_t n) const {
        return static_cast<const T*>(p.x) + p.active[first + n] * p.x_stride;
    }
    bool lies_even(int64_t n) const {
        return p.active[first + n + kTileRows - 1] - p.active[first + n] == kTileRows - 1;
    }
    int64_t ahead() const { return 2 * kLine / sizeof(T); }
};

// Rows of a matrix as one side of a product.
template <class Kind, class Source>
struct Side {
    static constexpr bool kTokens = Source::kTokens, kExact = Kind::kExact;
    static constexpr int kPlanes = Kind::kPlanes;
    const Source& source;
    int64_t count = source.count;

    using Number = typename Kind::Number;

    RowsOfTile<Number> rows(int64_t n) const {
        RowsOfTile<Number> found{{}, rows_from(n), source.ahead()};
        for (int64_t i = 0; i < found.count; ++i) found.rows[i] = source.row(n + i);
        return found;
    }
    // Of up to `part` elements of each from the k-th on.
    void turn(const RowsOfTile<Number>& rows, int64_t k, int64_t part, char* to) const {
        put_tiles<Kind, true>(rows, k, part, to);
    }
    void copy(const RowsOfTile<Number>& rows, int64_t k, int64_t part, char* to) const {
        put_tiles<Kind, false>(rows, k, part, to);
    }
    // Does the matrix unit read `length` elements of them as they lie?
    bool lies(int64_t n, int64_t length) const {
        const bool whole = Source::kPadded || length % kDepth == 0;
        return Kind::kLies && rows_from(n) == kTileRows && whole && source.lies_even(n);
    }
    Strip strip(int64_t n, int64_t k) const {
        const auto* at = source.row(n);
        const int64_t stride = source.row(n + 1) - at;
        return {reinterpret_cast<const char*>(at + k), int64_t(sizeof *at) * stride, 0, kTileRow,
                kNoRing};
    }

  private:
    int64_t rows_from(int64_t n) const { return count - n < kTileRows ? count - n : kTileRows; }
};

// put(token, column, low, high, count) takes the sums of `tokens` x `columns`, up to 32 of a
// token's at a time.
template <bool kTokensTurned, class Put>
struct HandOut {
    int64_t tokens, columns;
    const Put& put;

    int64_t parts(const Block& block) const { return kTokensTurned ? block.N : block.M; }
    // Not part of multiply, as put_tiles is not.
    [[gnu::noinline]] void operator()(const Block& block, int64_t part) const {
        const auto [l, M, t, N, sums] = block;
        if constexpr (kTokensTurned) {
            Floats low[kLanes], high[kLanes];
            take(sums + part * kTileSums, low);
            if (M == 2) take(sums + (N + part) * kTileSums, high);
            rows(t + part * kTileRows, l, low, high);
        } else {
            const auto* low = reinterpret_cast<const Floats*>(sums + part * N * kTileSums);
            rows(l + part * kTileRows, t, low, low + (N - 1) * kLanes);
        }
    }

  private:
    static void take(const float* sums, Floats* to) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) to[i] = load(sums + i * kLanes);
        turn(to);
    }
    void rows(int64_t token, int64_t column, const Floats* low, const Floats* high) const {
        const int64_t left = tokens - token, count = left < kTileRows ? left : kTileRows;
        const int64_t width = columns - column;
        const Put own = put;  // which no store to y can change
        for (int64_t i = 0; i < count; ++i) own(token + i, column, low[i], high[i], width);
    }
};

template <class T>
inline void store_both(const Floats& low, const Floats& high, T* to) {
    store(low, to);
    store(high, to + kLanes);
}
inline void store_both(const Floats& low, const Floats& high, BFloat16* to) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    memcpy(to, &both, sizeof both);
}

// y[0 .. count) += low, high, or = where y is new, for count of at most 2 * kLanes.
template <class T>
inline void add_both(bool fresh, T* y, const Floats& low, const Floats& high, int64_t count) {
    if (count >= 2 * kLanes) {
        store_both(fresh ? low : load(y) + low, fresh ? high : load(y + kLanes) + high, y);
    } else {
        add_to(fresh, y, low, count);
        add_to(fresh, y + kLanes, high, count - kLanes);
    }
}

// How a product's numbers are multiplied.
template <class T, class OfWeights, class OfInputs, class OfHidden>
struct Numbers {
    using Number = T;  // of x and y
    using Weights = OfWeights;
    using Inputs = OfInputs;
    using Hidden = OfHidden;  // the gated h
};

template <class Run>
void with_numbers(const Product& p, const Run& run) {
    using Plain = OnePlane<Pairs>;
    const bool integers = p.experts == Experts::kInt8;
    if (p.storage == Storage::kBFloat16)
        integers ? run(Numbers<BFloat16, OnePlane<PairsInt8>, Plain, Plain>{})
                 : run(Numbers<BFloat16, Plain, Plain, Plain>{});
    else
        integers ? run(Numbers<Float16, SplitInt8, SplitFloat16, SplitFloat32>{})
                 : run(Numbers<Float16, SplitFloat16, SplitFloat16, SplitFloat32>{});
}

// At most, of any matrix.
int64_t planes_in(const Product& p) { return p.storage == Storage::kBFloat16 ? 1 : 2; }

// Elements of x and A that one pass multiplies: long rows, whose strips or whose turned side the
// second cache holds; or short ones, whose few turned tokens the nearest one does, where A comes
// from the second, too. Not for integers, whose short rows come slowly from memory.
int64_t pass_length(const Product& p) {
    const bool near = p.rank * p.in * int64_t(expert_bytes(p)) <= 3 << 18;
    return p.experts == Experts::kAsInputs && planes_in(p) == 1 && p.count <= 2 * kTileRows && near
               ? 256
               : 2048;
}
// Tokens that share weights that are turned, where there are so many.
constexpr int64_t kFewestTokens = 1024;
// Tokens that shrink turns at once.
constexpr int64_t kTurnedTokens = 128;

// Does it cost less to turn the tokens than so many rows of weights?
bool turn_tokens(int64_t tokens, int64_t rows) { return tokens <= rows; }

// The products of `tokens` with `weights`, whose rows are `length` elements.
template <class Weights, class Tokens, class Put>
void multiply_all(bool tokens_turned, const Weights& weights, const Tokens& tokens, int64_t length,
                  int64_t pass, const Room& room, const Put& put) {
    if (tokens_turned) {
        const HandOut<true, Put> done{tokens.count, weights.count, put};
        all_products(weights, tokens, length, pass, room, done);
    } else {
        const HandOut<false, Put> done{tokens.count, weights.count, put};
        all_products(tokens, weights, length, pass, room, done);
    }
}

// Rows of B that are turned at once: in the second cache, and many, so that each token's outputs
// are written in long rows.
int64_t outputs_at_once(const Product& p) {
    const int64_t fit = (1 << 19) / (steps_for(p.rank) * planes_in(p) * kTileBytes);
    return (fit < 2 ? 2 : fit) * kTileRows;
}

struct Sizes {
    int64_t gated, turned, copies, sums;  // bytes
};

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

Sizes sizes_for(const Product& p) {
    const int64_t tokens = tiles_for(p.count), ranks = tiles_for(p.rank);
    const int64_t pass = pass_length(p), deep = steps_for(p.rank);
    const int64_t steps = steps_for(p.in < pass ? p.in : pass);
    const int64_t turned = kTurnedTokens / kTileRows, fewer = tokens < ranks ? tokens : ranks;
    const int64_t planes = planes_in(p), bytes = planes * kTileBytes;
    return {p.count * deep * planes * kTileRow,
            larger(larger(turned, fewer) * steps,
                   larger(fewer, outputs_at_once(p) / kTileRows) * deep) *
                bytes,
            kMostStrips * larger(steps, deep) * bytes,
            larger(2 * kBlockTiles, p.in > pass ? tokens * ranks : 0) * kTileBytes};
}

std::size_t scratch_bytes(const Product& p) {
    const Sizes sizes = sizes_for(p);
    return std::size_t(sizes.gated + sizes.turned + sizes.copies + sizes.sums);
}

Room room_in(const Product& p, void* scratch) {  // behind the gated h
    const Sizes sizes = sizes_for(p);
    char* const at = static_cast<char*>(scratch) + sizes.gated;
    return {at, at + sizes.turned, reinterpret_cast<float*>(at + sizes.turned + sizes.copies)};
}

template <class Kinds>
void shrink(const Product& p, const Part& part, void* scratch) {
    using Weight = typename Kinds::Weights::Number;
    using Tokens = Inputs<typename Kinds::Number>;
    const Room room = room_in(p, scratch);
    const int64_t ranks = part.last - part.first, all = part.last_token - part.first_token;
    const auto* a = static_cast<const Weight*>(p.a) + part.first * p.a_stride;
    const Rows<Weight> rows{a, p.a_stride, ranks};
    const bool turned = turn_tokens(all, ranks);
    const int64_t most = turned ? kTurnedTokens : all;
    for (int64_t i = part.first_token; i < part.last_token; i += most) {
        const int64_t left = part.last_token - i;
        const Tokens inputs{p, i, left < most ? left : most};
        const auto put = [&](int64_t t, int64_t r, const Floats& low, const Floats& high,
                             int64_t count) {
            float* const h = h_of(p, i + t) + part.first + r;
            add_to(true, h, low, count);
            add_to(true, h + kLanes, high, count - kLanes);
        };
        multiply_all(turned, Side<typename Kinds::Weights, Rows<Weight>>{rows},
                     Side<typename Kinds::Inputs, Tokens>{inputs}, p.in, pass_length(p), room, put);
    }
}

// Gated h of tokens, as T.
template <class T>
struct Gated {
    static constexpr bool kTokens = true, kPadded = true;
    T* values;
    int64_t stride, count;

    Gated(const Product& p, int64_t first, int64_t last, void* room)
        : values(static_cast<T*>(room)), stride(steps_for(p.rank) * kDepth), count(last - first) {
        for (int64_t t = 0; t < count; ++t) {
            T* const to = values + t * stride;
            for (int64_t r = 0; r < stride; r += kLanes)
                store(r < p.rank ? gated_h(p, first + t, r) : Floats{}, to + r);
        }
    }
    const T* row(int64_t n) const { return values + n * stride; }
    bool lies_even(int64_t) const { return true; }
    int64_t ahead() const { return 0; }
};

template <class Kinds>
void expand(const Product& p, const Part& part, void* scratch) {
    using Number = typename Kinds::Number;
    using Weight = typename Kinds::Weights::Number;
    using Tokens = Gated<typename Kinds::Hidden::Number>;
    const Room room = room_in(p, scratch);
    const Tokens gated(p, part.first_token, part.last_token, scratch);
    const auto* b = static_cast<const Weight*>(p.b);
    const bool turned = turn_tokens(gated.count, p.rank);
    const int64_t most = turned ? part.last - part.first : outputs_at_once(p);
    for (int64_t o = part.first; o < part.last; o += most) {
        const int64_t left = part.last - o;
        const Rows<Weight> rows{b + o * p.b_stride, p.b_stride, left < most ? left : most};
        const auto put = [y = static_cast<Number*>(p.y) + o, stride = p.y_stride, fresh = p.fresh,
                          active = p.active + part.first_token](int64_t t, int64_t n,
                                                                const Floats& low,
                                                                const Floats& high, int64_t count) {
            Number* const to = y + active[t] * stride + n;
            __builtin_prefetch(to + 2 * kLanes, 1);
            add_both(fresh, to, low, high, count);
        };
        multiply_all(turned, Side<typename Kinds::Weights, Rows<Weight>>{rows},
                     Side<typename Kinds::Hidden, Tokens>{gated}, p.rank, p.rank, room, put);
    }
}

void shrink_any(const Product& p, const Part& part, void* scratch) {
    const Tiles tiles;
    with_numbers(p, [&](auto kinds) { shrink<decltype(kinds)>(p, part, scratch); });
}

void expand_any(const Product& p, const Part& part, void* scratch) {
    const Tiles tiles;
    with_numbers(p, [&](auto kinds) { expand<decltype(kinds)>(p, part, scratch); });
}

}  // namespace

const Kernel kAmxBFloat16 = {
    "amx_bf16", kLanes,     kTileRows, 2 * kTileRows, 0,        kFewestTokens,     scratch_bytes,
    shrink_any, expand_any, turn_any,  weigh_rows,    gate_any, gate_gradients_any};

}  // namespace bdc::lora

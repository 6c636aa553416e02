// The kernel for bfloat16 on CPUs with a matrix unit. Of x and A, and of h and B, the rows of one
// are turned, whichever that costs less for.
#define BDC_LANES 16
#include "edges.inc"
#include "tiles.inc"

namespace bdc::lora {
namespace {

// Rows of A or B, evenly spaced.
template <class Kind>
struct Rows {
    static constexpr bool kPadded = false;  // with zeros to whole tiles
    const typename Kind::Weight* first;
    int64_t stride, count;

    const typename Kind::Weight* row(int64_t n) const { return first + n * stride; }
    bool lies_even(int64_t) const { return true; }
};

// Inputs of active tokens.
struct Inputs {
    static constexpr bool kPadded = false;
    const Product& p;
    int64_t first, count;

    const BFloat16* row(int64_t n) const {
        return static_cast<const BFloat16*>(p.x) + p.active[first + n] * p.x_stride;
    }
    bool lies_even(int64_t n) const {
        return p.active[first + n + kTileRows - 1] - p.active[first + n] == kTileRows - 1;
    }
};

// Rows of a matrix as one side of a product.
template <class Kind, class Source>
struct Side {
    const Source& source;
    int64_t count = source.count;

    void turn(int64_t n, int64_t k, int64_t length, char* to) const {
        put_strip<Kind, true>([&](int64_t i) { return source.row(n + i) + k; }, rows_from(n),
                              length, to);
    }
    // Copied where they do not lie as the matrix unit reads them.
    Strip strip(int64_t n, int64_t k, int64_t length, char* room) const {
        const int64_t rows = rows_from(n);
        if constexpr (sizeof(*source.row(0)) == 2) {
            const bool whole = Source::kPadded || length % kDepth == 0;
            if (rows == kTileRows && whole && source.lies_even(n)) {
                const auto* at = source.row(n);
                return {reinterpret_cast<const char*>(at + k), 2 * (source.row(n + 1) - at)};
            }
        }
        put_strip<Kind, false>([&](int64_t i) { return source.row(n + i) + k; }, rows, length,
                               room);
        return {room, steps_for(length) * kTileRow};
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
    void operator()(const Block& block, int64_t part) const {
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

// y[0 .. count) += low, high, or = where y is new, for count of at most 2 * kLanes.
inline void add_both(bool fresh, BFloat16* y, const Floats& low, const Floats& high,
                     int64_t count) {
    if (count >= 2 * kLanes) {
        const Floats a = fresh ? low : load(y) + low, b = fresh ? high : load(y + kLanes) + high;
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
        memcpy(y, &both, sizeof both);
    } else {
        add_to(fresh, y, low, count);
        add_to(fresh, y + kLanes, high, count - kLanes);
    }
}

// Elements of x and A that one pass multiplies: long rows, whose strips or whose turned side the
// second cache holds.
constexpr int64_t kPass = 2048;
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
    const int64_t fit = (1 << 19) / (steps_for(p.rank) * kTileBytes);
    return (fit < 2 ? 2 : fit) * kTileRows;
}

struct Sizes {
    int64_t gated, turned, copies, sums;  // bytes
};

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

Sizes sizes_for(const Product& p) {
    const int64_t tokens = tiles_for(p.count), ranks = tiles_for(p.rank);
    const int64_t steps = steps_for(p.in < kPass ? p.in : kPass), deep = steps_for(p.rank);
    const int64_t turned = kTurnedTokens / kTileRows, fewer = tokens < ranks ? tokens : ranks;
    return {p.count * deep * kTileRow,
            larger(larger(turned, fewer) * steps,
                   larger(fewer, outputs_at_once(p) / kTileRows) * deep) *
                kTileBytes,
            kMostStrips * larger(steps, deep) * kTileBytes,
            larger(2 * kBlockTiles, p.in > kPass ? tokens * ranks : 0) * kTileBytes};
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

template <class Kind>
void shrink(const Product& p, const Part& part, void* scratch) {
    const Room room = room_in(p, scratch);
    const int64_t ranks = part.last - part.first, all = part.last_token - part.first_token;
    const auto* a = static_cast<const typename Kind::Weight*>(p.a) + part.first * p.a_stride;
    const Rows<Kind> rows{a, p.a_stride, ranks};
    const bool turned = turn_tokens(all, ranks);
    const int64_t most = turned ? kTurnedTokens : all;
    for (int64_t i = part.first_token; i < part.last_token; i += most) {
        const int64_t left = part.last_token - i;
        const Inputs inputs{p, i, left < most ? left : most};
        const auto put = [&](int64_t t, int64_t r, const Floats& low, const Floats& high,
                             int64_t count) {
            float* const h = h_of(p, i + t) + part.first + r;
            add_to(true, h, low, count);
            add_to(true, h + kLanes, high, count - kLanes);
        };
        multiply_all(turned, Side<Kind, Rows<Kind>>{rows}, Side<Pairs, Inputs>{inputs}, p.in, kPass,
                     room, put);
    }
}

// Gated h of tokens, rounded.
struct Gated {
    static constexpr bool kPadded = true;
    BFloat16* values;
    int64_t stride, count;

    Gated(const Product& p, int64_t first, int64_t last, void* room)
        : values(static_cast<BFloat16*>(room)),
          stride(steps_for(p.rank) * kDepth),
          count(last - first) {
        for (int64_t t = 0; t < count; ++t) {
            BFloat16* const to = values + t * stride;
            for (int64_t r = 0; r < stride; r += kLanes)
                store(r < p.rank ? gated_h(p, first + t, r) : Floats{}, to + r);
        }
    }
    const BFloat16* row(int64_t n) const { return values + n * stride; }
    bool lies_even(int64_t) const { return true; }
};

template <class Kind>
void expand(const Product& p, const Part& part, void* scratch) {
    const Room room = room_in(p, scratch);
    const Gated gated(p, part.first_token, part.last_token, scratch);
    const auto* b = static_cast<const typename Kind::Weight*>(p.b);
    const bool turned = turn_tokens(gated.count, p.rank);
    const int64_t most = turned ? part.last - part.first : outputs_at_once(p);
    for (int64_t o = part.first; o < part.last; o += most) {
        const int64_t left = part.last - o;
        const Rows<Kind> rows{b + o * p.b_stride, p.b_stride, left < most ? left : most};
        const auto put = [y = static_cast<BFloat16*>(p.y) + o, stride = p.y_stride, fresh = p.fresh,
                          active = p.active + part.first_token](int64_t t, int64_t n,
                                                                const Floats& low,
                                                                const Floats& high, int64_t count) {
            BFloat16* const to = y + active[t] * stride + n;
            __builtin_prefetch(to + 2 * kLanes, 1);
            add_both(fresh, to, low, high, count);
        };
        multiply_all(turned, Side<Kind, Rows<Kind>>{rows}, Side<Pairs, Gated>{gated}, p.rank,
                     p.rank, room, put);
    }
}

void shrink_any(const Product& p, const Part& part, void* scratch) {
    const Tiles tiles;
    p.experts == Experts::kInt8 ? shrink<PairsInt8>(p, part, scratch)
                                : shrink<Pairs>(p, part, scratch);
}

void expand_any(const Product& p, const Part& part, void* scratch) {
    const Tiles tiles;
    p.experts == Experts::kInt8 ? expand<PairsInt8>(p, part, scratch)
                                : expand<Pairs>(p, part, scratch);
}

}  // namespace

const Kernel kAmxBFloat16 = {"amx_bf16",    kLanes,        kTileRows,  2 * kTileRows, 0,
                             kFewestTokens, scratch_bytes, shrink_any, expand_any};

}  // namespace bdc::lora

#include "run.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "dispatch.hpp"

namespace bdc::lora {
namespace {

// Microseconds that the other threads must save to be worth waking: little while they spin for
// work, as OpenMP lets them by default, and more where it was told to let them sleep.
[[maybe_unused]] double waking() {
    static const bool asleep = [] {
        const char* const policy = std::getenv("OMP_WAIT_POLICY");
        return policy && (policy[0] == 'p' || policy[0] == 'P');
    }();
    return asleep ? 150 : 20;
}

// The threads for work that takes one so long: all of them, or one.
int threads_for([[maybe_unused]] double microseconds, [[maybe_unused]] int threads) {
#ifdef _OPENMP
    return microseconds - microseconds / threads >= waking() ? threads : 1;
#else
    return 1;
#endif
}

// From here on each thread has enough tokens to read A and B by itself.
constexpr std::int64_t kOwnTokens = 128;
// Bytes of a matrix that a thread turns in a microsecond.
constexpr double kTurned = 25e3;
// Sums h that a thread makes before it uses them, in its second cache.
constexpr std::int64_t kSumsAtOnce = 1 << 16;

// Kept from call to call: fresh pages would cost more than the product of one token.
class Buffer {
  public:
    void* get(std::size_t bytes) {
        if (bytes > size_) {
            data_.reset();
            data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
            size_ = bytes;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
    };
    std::unique_ptr<std::byte, Free> data_;
    std::size_t size_ = 0;
};

thread_local Buffer scratch_buffer, h_buffer, a_buffer, b_buffer;

float* h_for(const Product& p) {
    return static_cast<float*>(h_buffer.get(std::size_t(p.count * p.rank) * sizeof(float)));
}

// One of the outputs of p, as a product with an h that is there.
Product slice_of(const Product& p, std::int64_t s) {
    Product q = p;
    const std::int64_t first = s > 0 ? p.ends[s - 1] : 0;
    q.rank = p.rank / p.slices;
    q.out = p.ends[s] - first;
    q.y = static_cast<char*>(p.y) + std::size_t(first) * input_bytes(p);
    q.b = static_cast<const char*>(p.b) + std::size_t(first * p.b_stride) * expert_bytes(p);
    q.g += s * q.rank;
    q.h += s * q.rank;
    q.slices = 1;
    return q;
}

void* scratch_for(const Kernel& kernel, const Product& p) {
    std::size_t bytes = kernel.scratch(p);
    if (p.slices > 1) bytes = std::max(bytes, kernel.scratch(slice_of(p, 0)));
    return scratch_buffer.get(bytes);
}

// Tokens with an adapter whose part for this output is zero keep their bits in it.
struct Kept {
    std::vector<std::int64_t> active, rows, h_rows;
};
thread_local Kept kept;

void expand_slice(const Kernel& kernel, Product q, Part part, void* scratch) {
    const auto idle = [&](std::int64_t i) {
        const float* g = q.g + q.rows[i] * q.g_stride;
        return std::all_of(g, g + q.rank, [](float w) { return w == 0; });
    };
    std::int64_t i = part.first_token;
    while (i < part.last_token && !idle(i)) ++i;
    if (i == part.last_token) return kernel.expand(q, part, scratch);
    kept.active.clear(), kept.rows.clear(), kept.h_rows.clear();
    const std::size_t size = input_bytes(q);
    for (i = part.first_token; i < part.last_token; ++i) {
        if (!idle(i)) {
            kept.active.push_back(q.active[i]);
            kept.rows.push_back(q.rows[i]);
            kept.h_rows.push_back(q.h_rows ? q.h_rows[i] : i);
        } else if (q.fresh && part.last > part.first) {
            std::memset(
                static_cast<char*>(q.y) + std::size_t(q.active[i] * q.y_stride + part.first) * size,
                0, std::size_t(part.last - part.first) * size);
        }
    }
    q.active = kept.active.data(), q.rows = kept.rows.data(), q.h_rows = kept.h_rows.data();
    part.first_token = 0;
    part.last_token = q.count = std::int64_t(kept.active.size());
    if (q.count) kernel.expand(q, part, scratch);
}

// The part of the outputs that `part_of_length` gives this thread, of one output after the other.
template <class PartOf>
void expand(const Kernel& kernel, const Product& p, const PartOf& part_of_length, void* scratch) {
    if (p.out == 0) return;  // h alone is wanted
    if (p.slices == 1) return kernel.expand(p, part_of_length(p), scratch);
    for (std::int64_t s = 0; s < p.slices; ++s) {
        const Product q = slice_of(p, s);
        expand_slice(kernel, q, part_of_length(q), scratch);
    }
}

// The share of worker i of n in [0, length), in multiples of step.
std::pair<std::int64_t, std::int64_t> share(std::int64_t length, std::int64_t step, int i, int n) {
    const std::int64_t steps = (length + step - 1) / step;
    return {std::min(length, steps * i / n * step), std::min(length, steps * (i + 1) / n * step)};
}

// run(first, last) on each thread, for its share.
template <class Run>
void in_shares(std::int64_t length, [[maybe_unused]] std::int64_t step, int threads,
               const Run& run) {
    if (threads <= 1) return run(0, length);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
        const auto [first, last] = share(length, step, omp_get_thread_num(), omp_get_num_threads());
        if (first < last) run(first, last);
    }
#else
    run(0, length);
#endif
}

// Worker i of n's part of tokens x length: split along the length first, into `most` at most, then
// along the tokens.
[[maybe_unused]] Part part_of(const Product& p, std::int64_t length, std::int64_t step,
                              std::int64_t most, int i, int n) {
    const auto along = int(std::min({std::int64_t(n), most, (length + step - 1) / step}));
    const int across = n / along;
    if (i >= along * across) return {0, 0, 0, 0};
    const auto [first, last] = share(length, step, i % along, along);
    const auto [first_token, last_token] = share(p.count, 1, i / along, across);
    return {first_token, last_token, first, last};
}

// Turns `rows` x `columns` elements into this buffer; matrix and stride become those of the result.
void turn(const Kernel& kernel, const void*& matrix, std::int64_t& stride, std::int64_t rows,
          std::int64_t columns, std::size_t bytes, Buffer& buffer, int threads) {
    // Rows whole pages apart would share the sets of the nearest cache.
    constexpr std::size_t kPage = 4096, kLine = 64;
    const bool apart = std::size_t(rows) * bytes % kPage == 0;
    const std::int64_t to_stride = rows + (apart ? std::int64_t(kLine / bytes) : 0);
    const std::size_t size = std::size_t(columns * to_stride) * bytes;
    const Turning t{matrix, buffer.get(size), rows, columns, stride, to_stride, bytes};
    matrix = t.to, stride = to_stride;
    constexpr std::int64_t kStep = 32;  // rows of a square, at most
    in_shares(rows, kStep, threads_for(double(size) / kTurned, threads),
              [&](std::int64_t first, std::int64_t last) { kernel.turn(t, first, last); });
}

void run_tokens(const Kernel& kernel, const Product& p, std::int64_t first, std::int64_t last) {
    const std::int64_t at_once =
        std::max(kSumsAtOnce / p.rank / kBlock * kBlock, kernel.fewest_at_once);
    for (; first < last; first += at_once) {
        Product block = p;
        block.active += first;
        block.rows += first;
        block.count = std::min(at_once, last - first);
        if (block.h_rows)
            block.h_rows += first;
        else
            block.h = h_for(block);
        void* scratch = scratch_for(kernel, block);
        kernel.shrink(block, {0, block.count, 0, p.rank}, scratch);
        const auto all = [&](const Product& q) { return Part{0, block.count, 0, q.out}; };
        expand(kernel, block, all, scratch);
    }
}

// A and B as a product has them, in memory that is kept from call to call.
void turn_experts(const Kernel& kernel, Product& p, int threads) {
    const std::size_t bytes = expert_bytes(p);
    turn(kernel, p.a, p.a_stride, p.in, p.rank, bytes, a_buffer, threads);
    if (p.out) turn(kernel, p.b, p.b_stride, p.rank, p.out, bytes, b_buffer, threads);
}

// The product with turned experts as they lie.
void run_as_they_lie(const Kernel& kernel, Product p, int threads) {
    const bool pairs = p.storage == Storage::kBFloat16;
    const auto weigh = [&](const WeightedRows& q, std::int64_t columns) {
        const double time = operations(p.count, q.count, columns) / kPerMicrosecond;
        in_shares(columns, column_step(q), threads_for(pairs ? time / 2 : time, threads),
                  [&](std::int64_t first, std::int64_t last) {
                      kernel.weigh_rows(q, {0, p.count, first, last});
                  });
    };
    if (!p.h) p.h = h_for(p);
    WeightedRows q{};
    q.storage = p.storage;
    q.m = p.a, q.count = p.in, q.stride = p.a_stride;
    q.w = p.x, q.w_stride = p.x_stride, q.w_step = 1, q.w_rows = p.active;
    q.out = p.h, q.out_stride = p.h_stride, q.out_rows = p.h_rows;
    q.tokens = p.count, q.fresh = true;
    weigh(q, p.rank);
    if (!p.out) return;
    void* const gated = scratch_buffer.get(std::size_t(p.count * p.rank) * input_bytes(p));
    kernel.gate(p, gated);
    q.m = p.b, q.count = p.rank, q.stride = p.b_stride;
    q.w = gated, q.w_stride = p.rank, q.w_rows = nullptr;
    q.out = p.y, q.out_stride = p.y_stride, q.out_rows = p.active;
    q.narrow = pairs, q.fresh = p.fresh;
    weigh(q, p.out);
}

}  // namespace

int max_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

void sum_over_tokens(const Kernel& kernel, const TokenSums& sums, int threads) {
    constexpr std::int64_t kTokens = 64, kStep = kWidestTile;
    const std::int64_t most = std::max(kStep, kSumsAtOnce / sums.rank / kStep * kStep);
    const auto add_block = [&](std::int64_t n, std::int64_t columns) {
        for (std::int64_t t = 0; t < sums.tokens; t += kTokens) {
            const std::int64_t count = std::min(kTokens, sums.tokens - t);
            const float* const x = sums.x + t * sums.x_stride + n;
            const float* const w = sums.w + t * sums.w_stride;
            WeightedRows q{};
            q.count = count, q.fresh = t == 0, q.w_stride = 1;
            if (sums.rank_first) {
                q.m = x, q.stride = sums.x_stride, q.w = w, q.w_step = sums.w_stride;
                q.out = sums.out + n, q.out_stride = sums.columns, q.tokens = sums.rank;
                kernel.weigh_rows(q, {0, sums.rank, 0, columns});
            } else {
                q.m = w, q.stride = sums.w_stride, q.w = x, q.w_step = sums.x_stride;
                q.out = sums.out + n * sums.rank, q.out_stride = sums.rank;
                q.tokens = sums.columns;
                kernel.weigh_rows(q, {0, columns, 0, sums.rank});
            }
        }
    };
    in_shares(sums.columns, kStep, threads_for(microseconds(sums), threads),
              [&](std::int64_t first, std::int64_t last) {
                  for (; first < last; first += most)
                      add_block(first, std::min(most, last - first));
              });
}

void gate_gradients(const Kernel& kernel, const GateGradients& q, int threads) {
    in_shares(
        q.rank, kernel.lanes, threads_for(microseconds(q), threads),
        [&](std::int64_t first, std::int64_t last) { kernel.gate_gradients(q, first, last); });
}

void run(const Kernel& chosen, const Product& given, int threads) {
    Product p = given;
    const Kernel& kernel = kernel_for(chosen, p);
    p.h_rows = p.h ? p.active : nullptr;
    p.h_stride = p.rank;
    if (p.turned) {
        if (as_they_lie(kernel, p)) return run_as_they_lie(kernel, p, threads);
        turn_experts(kernel, p, threads);
    }
    p.order = order(kernel, p);
    p.abreast = std::int64_t(std::bit_ceil(std::uint64_t(std::max<std::int64_t>(p.count, 2))));
    p.reading = reading(kernel, p);
    threads = threads_for(microseconds(p, p.count), threads);
    if (threads == 1) return run_tokens(kernel, p, 0, p.count);
    if (p.count >= threads * kOwnTokens)
        return in_shares(p.count, 4, threads, [&](std::int64_t first, std::int64_t last) {
            run_tokens(kernel, p, first, last);
        });
#ifdef _OPENMP
    if (!p.h_rows) p.h = h_for(p);
#pragma omp parallel num_threads(threads)
    {
        const int i = omp_get_thread_num(), n = omp_get_num_threads();
        void* scratch = scratch_for(kernel, p);
        const bool panels = p.reading == Reading::kPanels;
        // Threads with few ranks each would write to the same lines of h over and over.
        const std::int64_t most =
            panels || p.count < 4 * n ? n : std::max<std::int64_t>(1, p.rank / 32);
        const std::int64_t step = panels ? kernel.panel : kernel.rank_step;
        kernel.shrink(p, part_of(p, p.rank, step, most, i, n), scratch);
#pragma omp barrier
        const auto own = [&](const Product& q) {
            return part_of(q, q.out, kernel.out_step, n, i, n);
        };
        expand(kernel, p, own, scratch);
    }
#endif
}

}  // namespace bdc::lora

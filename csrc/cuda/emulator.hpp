// A GPU for tests, on the CPU: runs a kernel's threads as coroutines, in an order drawn from a
// seed.
//
// It is stricter than the real one. Shared memory starts as NaN; an asynchronous copy lands only
// when it is waited for; global memory may only be touched where the launch said it may; threads
// that never meet are reported instead of hanging. It says nothing of speed, of fences, or of what
// the compiler makes of a kernel.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "plan.hpp"

#define BDC_DEVICE inline
#define BDC_KERNEL(threads, blocks) void

namespace bdc::cuda {

struct Index {
    int x, y, z;
};

namespace emulator {

struct Copy {
    void* to;
    Chunk value;
};

struct Fiber;

// Fibers that wait until `expected` of them have come.
struct Meeting {
    int arrived = 0;
    std::vector<Fiber*> waiting;
};

struct Warp {
    Meeting meeting;
    alignas(16) char slots[2][32][32];
};

struct Block {
    Index index;
    std::vector<Chunk> shared;
    Meeting meetings[16];
    int alive = 0;
    Warp warps[kTileThreads / 32];
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Block* block = nullptr;
    int thread = 0;
    unsigned exchanges = 0;
    std::vector<Copy> pending;
    std::deque<std::vector<Copy>> groups;
};

struct Range {
    std::uintptr_t first, last;
    bool writable;
};

struct Machine {
    std::vector<Range> ranges;
    std::mt19937 random{0};
    ucontext_t main;
    Fiber* current = nullptr;
    std::vector<Fiber*> ready;
    std::function<void()> kernel;
    int blocks = 0, threads = 0;  // of the grid, of a block
    bool finished = false;        // the current fiber
    const char* fault = nullptr;
};

inline Machine* machine = nullptr;

constexpr std::size_t kStack = 64 << 10;
constexpr std::int64_t kMostSwitches = 100'000'000;

inline void switch_out() {
    Fiber* self = machine->current;
    swapcontext(&self->context, &machine->main);
}

// Remembers the first fault; the launch throws it once control is back.
inline void fail(const char* message) {
    if (!machine->fault) machine->fault = message;
    for (;;) switch_out();
}

// Whether all have come, and those that waited go on.
inline bool arrive(Meeting& meeting, int expected) {
    if (++meeting.arrived < expected) return false;
    meeting.arrived = 0;
    for (Fiber* fiber : meeting.waiting) machine->ready.push_back(fiber);
    meeting.waiting.clear();
    return true;
}

inline void meet(Meeting& meeting, int expected) {
    meeting.waiting.push_back(machine->current);
    if (arrive(meeting, expected)) {
        machine->ready.pop_back();  // this one, which runs on
        return;
    }
    switch_out();
}

// Gives every lane of the warp what each of them brought; valid until the lane's next but one.
template <class T>
const char (*exchange(const T& mine))[32] {
    static_assert(sizeof(T) <= 32);
    Fiber* self = machine->current;
    Warp& warp = self->block->warps[self->thread / 32];
    auto& slots = warp.slots[self->exchanges++ % 2];
    std::memcpy(slots[self->thread % 32], &mine, sizeof mine);
    meet(warp.meeting, 32);
    return slots;
}

template <class T>
T from_lane(const char (*slots)[32], int lane) {
    T value;
    std::memcpy(&value, slots[lane], sizeof value);
    return value;
}

inline void check(const void* p, std::size_t bytes, bool write) {
    const auto first = reinterpret_cast<std::uintptr_t>(p);
    if (first % (bytes > 16 ? 16 : bytes)) fail("a misaligned access");
    for (const Range& range : machine->ranges)
        if (range.first <= first && first + bytes <= range.last && (range.writable || !write))
            return;
    const auto& shared = machine->current->block->shared;
    const auto base = reinterpret_cast<std::uintptr_t>(shared.data());
    if (base <= first && first + bytes <= base + shared.size() * sizeof(Chunk)) return;
    fail(write ? "a write outside the output and the workspace" : "a read outside the arguments");
}

// The warp's matrix product, by the fragments' published layout: a's element e of register i of
// lane l is row l/4 + 8 (i%2), column l%4*2 + e + 8 (i/2); b's is row l%4*2 + e + 8 i, column l/4.
template <class S, class Widen>
void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
              Widen widen) {
    struct Fragments {
        std::uint32_t a[4], b[2];
    };
    Fragments mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const auto slots = exchange(mine);
    const int lane = machine->current->thread % 32;
    const auto element = [&](std::uint32_t word, int e) {
        return widen(std::uint16_t(e ? word >> 16 : word & 0xffff));
    };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const auto from_a = from_lane<Fragments>(slots, row % 8 * 4 + k % 8 / 2);
            const auto from_b = from_lane<Fragments>(slots, column * 4 + k % 8 / 2);
            sum += element(from_a.a[row / 8 + k / 8 * 2], k % 2) * element(from_b.b[k / 8], k % 2);
        }
        c[i] = sum;
    }
}

inline void enter() {
    machine->kernel();
    machine->finished = true;
    for (;;) switch_out();
}

inline void start(Fiber& fiber, Block& block, int thread) {
    fiber.block = &block;
    fiber.thread = thread;
    fiber.exchanges = 0;
    fiber.pending.clear();
    fiber.groups.clear();
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    machine->ready.push_back(&fiber);
}

// Runs `kernel` on every thread of the grid, with `at_once` blocks at a time.
inline void launch(Machine& m, Index grid, int threads, int shared_bytes, int at_once,
                   std::function<void()> kernel) {
    machine = &m;
    m.threads = threads;
    m.kernel = std::move(kernel);
    m.blocks = grid.x;
    m.ready.clear();
    m.fault = nullptr;
    const int total = grid.x * grid.y * grid.z, places = least(total, at_once);
    std::vector<Block> blocks(places);
    std::vector<Fiber> fibers(std::size_t(places) * threads);
    int next = 0, running = 0;
    const auto begin = [&](int place) {
        Block& block = blocks[place];
        block.index = {next % grid.x, next / grid.x % grid.y, next / grid.x / grid.y};
        block.shared.assign(shared_bytes / sizeof(Chunk) + 1,
                            {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}});
        block.alive = threads;
        ++next, ++running;
        for (int t = 0; t < threads; ++t) start(fibers[place * threads + t], block, t);
    };
    for (int place = 0; place < places; ++place) begin(place);
    std::int64_t switches = 0;
    while (running) {
        if (m.ready.empty()) throw std::runtime_error("threads wait for others that never come");
        if (++switches > kMostSwitches) throw std::runtime_error("the kernel does not end");
        std::swap(m.ready[m.random() % m.ready.size()], m.ready.back());
        m.current = m.ready.back();
        m.ready.pop_back();
        m.finished = false;
        swapcontext(&m.main, &m.current->context);
        if (m.fault) throw std::runtime_error(m.fault);
        if (!m.finished) continue;
        Block& block = *m.current->block;
        if (!m.current->groups.empty() || !m.current->pending.empty())
            throw std::runtime_error("a thread ended with copies it did not wait for");
        if (--block.alive) continue;
        --running;
        if (next < total) begin(int(&block - blocks.data()));
    }
    machine = nullptr;
}

}  // namespace emulator

inline int thread_index() { return emulator::machine->current->thread; }
inline Index block_index() { return emulator::machine->current->block->index; }
inline int grid_blocks() { return emulator::machine->blocks; }
inline void sync_some(int barrier, int threads) {
    emulator::meet(emulator::machine->current->block->meetings[barrier], threads);
}
inline void arrive_some(int barrier, int threads) {
    emulator::arrive(emulator::machine->current->block->meetings[barrier], threads);
}
inline void sync_block() { sync_some(0, emulator::machine->threads); }
inline float shuffle_xor(float value, int mask) {
    const auto slots = emulator::exchange(value);
    return emulator::from_lane<float>(slots, thread_index() % 32 ^ mask);
}
inline char* shared_memory() {
    return reinterpret_cast<char*>(emulator::machine->current->block->shared.data());
}

template <class T>
T load(const T* p) {
    emulator::check(p, sizeof(T), false);
    return *p;
}
template <class T>
void store(T* p, T value) {
    emulator::check(p, sizeof(T), true);
    *p = value;
}
inline Chunk load_chunk(const void* p) { return load(static_cast<const Chunk*>(p)); }
inline float load_written(const float* p) { return load(p); }
inline Chunk load_written_chunk(const float* p) { return load_chunk(p); }

inline void copy_chunk(void* to, const void* from, bool valid) {
    // The engine reads what it is given when it gets to it: here, at the latest moment for the
    // target and the earliest for the source, which nothing may change meanwhile.
    emulator::check(to, sizeof(Chunk), true);
    emulator::machine->current->pending.push_back({to, valid ? load_chunk(from) : Chunk{}});
}
inline void copies_commit() {
    auto* self = emulator::machine->current;
    self->groups.push_back(std::move(self->pending));
    self->pending.clear();
}
template <int kGroups>
void copies_wait() {
    auto& groups = emulator::machine->current->groups;
    for (; groups.size() > kGroups; groups.pop_front())
        for (const auto& copy : groups.front()) std::memcpy(copy.to, &copy.value, sizeof(Chunk));
}
inline void prefetch(const void* p) { emulator::check(p, 1, false); }

inline void load_matrices(std::uint32_t (&m)[4], const void* row) {
    const auto slots = emulator::exchange(row);
    const int lane = thread_index() % 32;
    for (int i = 0; i < 4; ++i) {
        const auto* from =
            static_cast<const char*>(emulator::from_lane<const void*>(slots, i * 8 + lane / 4));
        emulator::check(from, sizeof(Chunk), false);
        std::memcpy(&m[i], from + lane % 4 * 4, 4);
    }
}

inline std::uint32_t add_one(std::uint32_t* p) {
    const std::uint32_t before = load(p);
    store(p, before + 1);
    return before;
}
inline std::uint32_t add_one_in_order(std::uint32_t* p) { return add_one(p); }
inline std::uint32_t load_acquire(const std::uint32_t* p) { return load(p); }
inline void pause() {
    auto* m = emulator::machine;
    m->ready.push_back(m->current);
    emulator::switch_out();
}

}  // namespace bdc::cuda

// The portable and the AVX-512 forms of the inner loops on random families: the same lane, the same
// bytes. Usage: forms TRIALS. Prints "ok", or "no AVX-512".
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../draws.hpp"
#include "../lanes.hpp"

using namespace bdc::search;

#if defined(__x86_64__)

namespace {

using Block = std::vector<std::uint64_t>;

Family view(Block& block) { return Family(reinterpret_cast<std::byte*>(block.data())); }

Block random_family(std::mt19937& random, std::uint32_t count) {
    const std::uint32_t capacity = count + random() % 4;
    Block block(arms_offset(capacity) / 8 + 1);
    auto& head = *reinterpret_cast<Header*>(block.data());
    head.capacity = std::uint16_t(capacity);
    head.count = std::uint16_t(count);
    const Family family = view(block);
    const bool fresh = random() % 2, plain = random() % 2;
    for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint64_t n = fresh ? random() % 3 : 1 + random() % 4, pending = random() % 2;
        family.tally()[i].both = n | pending << 32;
        family.sum()[i] = double(random() % 3) * 0.5 * double(n);
        family.best()[i] = double(random() % 3) * 0.5;
        family.prior()[i] = plain ? 0.25 : double(random() % 3) * 0.1;
        family.tag()[i] = plain ? 0 : std::uint16_t(random() % 3);
        family.reason()[i] = random() % 4 == 0;
        family.id()[i] = std::uint32_t(random());
        head.tally.both += n | pending << 32;
    }
    family.reason()[random() % count] = 0;
    if (random() % 2) std::fill_n(family.reason(), count, std::uint8_t(0));
    for (std::uint32_t i = 0; i < count; ++i) {
        head.open = std::uint16_t(head.open + (family.reason()[i] == 0));
    }
    return block;
}

template <Bonus kBonus, bool kMean>
bool same_pick(const Family& family, double factor, double unvisited) {
    return PortablePick<kBonus, kMean>::pick(family, factor, unvisited) ==
           Avx512Pick<kBonus, kMean>::pick(family, factor, unvisited);
}

bool same_fill(std::mt19937& random, std::uint32_t count) {
    const std::uint32_t before = random() % 5;
    Block one((arms_offset(count + before) + 7) / 8 + 1, 0x5555555555555555u);
    auto& head = *reinterpret_cast<Header*>(one.data());
    head = Header{};
    head.capacity = std::uint16_t(count + before);
    Block two = one;
    std::vector<double> priors(count, 0.5);
    std::vector<std::int64_t> tags(count, std::int64_t(random() % 65536));
    std::vector<std::uint64_t> here(count + 1, 7), there(count + 1, 7);
    const bool given = random() % 2;
    NewLanes lanes{before,
                   count,
                   std::uint32_t(random() % 1000),
                   given ? priors.data() : nullptr,
                   given ? tags.data() : nullptr,
                   random(),
                   here.data()};
    portable_fill()(view(one), lanes);
    lanes.places = there.data();
    fastest_fill()(view(two), lanes);
    return one == two && here == there;
}

bool same_draws(std::mt19937& random, const Family& family) {
    const double shapes[] = {0.3, 0.5, 1.0, 2.0};
    const Posterior posterior{random() % 2 == 0, shapes[random() % 4], shapes[random() % 4]};
    const std::uint64_t moment = std::uint64_t(random()) << 32 | random();
    std::vector<double> one(80), two(80);
    portable_draws()(posterior, family, moment, one.data());
    fastest_draws()(posterior, family, moment, two.data());
    const std::uint32_t count = family.head().count;
    std::fill(one.begin() + count, one.end(), 0.0);
    std::fill(two.begin() + count, two.end(), 0.0);
    const std::uint32_t first = portable_largest()(family, one.data());
    if (one != two || fastest_largest()(family, two.data()) != first) return false;
    for (double& score : one) score = double(random() % 3);  // and with ties
    return portable_largest()(family, one.data()) == fastest_largest()(family, one.data());
}

}  // namespace

int main(int argc, char** argv) {
    if (!has_avx512()) return std::puts("no AVX-512") < 0;
    std::mt19937 random(1);
    for (int trial = 0; trial < (argc > 1 ? std::atoi(argv[1]) : 1000); ++trial) {
        const std::uint32_t count = 1 + random() % 70;
        Block block = random_family(random, count);
        const Family family = view(block);
        const double factor = 0.5 * double(random() % 4), unvisited = 0.5 * double(random() % 2);
        if (!same_pick<Bonus::kInverseRoot, true>(family, factor, 0.0) ||
            !same_pick<Bonus::kInverseRoot, false>(family, factor, 0.0) ||
            !same_pick<Bonus::kPrior, true>(family, factor, unvisited) ||
            !same_pick<Bonus::kPrior, false>(family, factor, unvisited) ||
            !same_draws(random, family) || !same_fill(random, count)) {
            std::printf("trial %d differs, %u lanes\n", trial, count);
            return 1;
        }
    }
    std::puts("ok");
}

#else

int main() { std::puts("no AVX-512"); }

#endif

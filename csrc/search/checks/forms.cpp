// The inner loops on random families, in the form for an instruction set and in the portable one:
// the same lane, the same draws. And how the lanes of a new family are written. Usage: forms
// avx2|avx512 TRIALS. Prints "ok", or "not here" where the processor does not have it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../draws.hpp"
#include "../lanes_avx2.hpp"
#include "../lanes_avx512.hpp"

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
    const bool visited = random() % 4 == 0;  // often enough to lie on both sides of a table's end
    head.even = plain && random() % 2;
    for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint64_t n = visited ? kTabulated - 2 - i % 2 + random() % 4
                                : fresh ? random() % 3
                                        : 1 + random() % 4;
        const std::uint64_t pending = random() % 2;
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
bool same_pick(Isa isa, const Family& family, double factor, double unvisited) {
    const auto pick =
        isa == Isa::kAvx2 ? Avx2Pick<kBonus, kMean>::pick : Avx512Pick<kBonus, kMean>::pick;
    return PortablePick<kBonus, kMean>::pick(family, factor, unvisited) ==
           pick(family, factor, unvisited);
}

bool same_picks(Isa isa, const Family& family, double factor, double unvisited) {
    return same_pick<Bonus::kInverseRoot, true>(isa, family, factor, 0.0) &&
           same_pick<Bonus::kInverseRoot, false>(isa, family, factor, 0.0) &&
           same_pick<Bonus::kPrior, true>(isa, family, factor, unvisited) &&
           same_pick<Bonus::kPrior, false>(isa, family, factor, unvisited);
}

// The largest numbers that there can be, of both signs.
void enlarge(std::mt19937& random, const Family& family) {
    for (std::uint32_t i = 0; i < family.head().count; ++i) {
        const double size = random() % 2 == 0 ? kLargestNumber : -kLargestNumber;
        family.sum()[i] *= size;
        family.best()[i] *= size;
        family.prior()[i] *= kLargestNumber;
    }
}

// A blank family is written as lanes are one by one, and nothing behind it.
bool same_blank(std::mt19937& random, std::uint32_t count) {
    Block one(arms_offset(count) / 8 + 2, 0x5555555555555555u);
    auto& head = *reinterpret_cast<Header*>(one.data());
    head = Header{};
    head.capacity = head.count = std::uint16_t(count);
    const Blank blank{std::uint32_t(random()), random() % 2 == 0, random() % 2 == 0};
    *view(one).tally() = blank.tally();
    Block two = one;
    fill_lanes(view(one), {0, count, blank.id, blank.priors, blank.tags});
    write_blank(view(two));
    return !view(two).blank() && one == two;
}

bool same_draws(Isa isa, std::mt19937& random, const Family& family) {
    const double shapes[] = {0.3, 0.5, 1.0, 2.0};
    const Posterior posterior{random() % 2 == 0, shapes[random() % 4], shapes[random() % 4]};
    const std::uint64_t moment = std::uint64_t(random()) << 32 | random();
    const Drawing plain = drawing(Isa::kPortable), form = drawing(isa);
    const Leader best = largest_draw(plain, posterior, family, moment);
    const Leader other = largest_draw(form, posterior, family, moment);
    if (other.lane != best.lane || other.score != best.score) return false;
    std::vector<double> one(144), two(144);
    const std::uint32_t count = family.head().count;
    plain.each(posterior, family, moment, count, one.data());
    form.each(posterior, family, moment, count, two.data());
    if (!std::equal(one.begin(), one.begin() + count, two.begin())) return false;
    if (plain.largest(family, one.data()) != form.largest(family, one.data())) return false;
    for (double& score : one) score = double(random() % 3);  // and with ties
    return plain.largest(family, one.data()) == form.largest(family, one.data());
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const Isa isa = std::strcmp(argv[1], "avx2") == 0 ? Isa::kAvx2 : Isa::kAvx512;
    if (machine_isa() < isa) return std::puts("not here") < 0;
    std::mt19937 random(1);
    for (int trial = 0; trial < std::atoi(argv[2]); ++trial) {
        const std::uint32_t count = 1 + random() % 140;
        Block block = random_family(random, count);
        const Family family = view(block);
        const double factor = 0.5 * double(random() % 4), unvisited = 0.5 * double(random() % 2);
        bool same = same_picks(isa, family, factor, unvisited) && same_draws(isa, random, family) &&
                    same_blank(random, count);
        enlarge(random, family);
        same &= same_picks(isa, family, factor * 0x1p32 * kLargestNumber,
                           -unvisited * 0x1p32 * kLargestNumber);
        if (!same) {
            std::printf("trial %d differs, %u lanes\n", trial, count);
            return 1;
        }
    }
    std::puts("ok");
}

#else

int main() { std::puts("not here"); }

#endif

// Selection rules. A rule is a small struct: `score` fills in the score of every lane of a family,
// or it is `Factored`, or `draw` finds the lane. The descent takes the largest score among the open
// lanes. To add one: write the struct, append it to `AnyRule`, and give it a dataclass in
// bdc/search/rules.py with the same parameters in the same order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <variant>
#include <vector>

#include "arena.hpp"
#include "draws.hpp"
#include "lanes.hpp"
#include "random.hpp"

namespace bdc::search {

// What a rule sees of node s whose children it scores.
struct Site {
    Family family;
    double value;  // Q of the edge into s
    bool root;     // s is a root
    bool mean;     // Q is the mean of the returns, else their maximum
    double virtual_loss;
    std::uint64_t seed;
    std::uint32_t tree;
    std::uint32_t node;  // id of s

    // N(s) with the visits in flight: they enter exploration, never the value.
    std::uint32_t visits() const { return family.head().tally.n() + family.head().tally.pending(); }

    // Q(e) as selection sees it: each visit in flight pulls it down by its share of virtual_loss.
    double q(std::uint32_t lane, double unvisited = 0.0) const {
        const std::uint32_t n = family.n(lane);
        double q = unvisited;
        if (n > 0) q = mean ? family.sum()[lane] / double(n) : family.best()[lane];
        const std::uint32_t flying = family.pending(lane);
        if (virtual_loss != 0.0 && flying > 0) {
            q -= virtual_loss * double(flying) / (double(n) + double(flying));
        }
        return q;
    }

    double count(std::uint32_t lane) const {  // n(e), with the visits in flight
        return double(family.n(lane)) + double(family.pending(lane));
    }
};

// UCB1 on trees (Kocsis and Szepesvari 2006): Q + c * sqrt(ln N(s)) / sqrt(n), unvisited edges
// first.
struct UCT {
    static constexpr Bonus kBonus = Bonus::kInverseRoot;
    double c;
    explicit UCT(const double* p) : c(p[0]) {}

    double factor(double visits) const { return c * std::sqrt(std::log(visits)); }
    double unvisited(const Site&) const { return 0.0; }
};

// AlphaZero: Q + (ln((N(s) + c_base + 1) / c_base) + c_init) * sqrt(N(s)) * p / (1 + n). An edge
// without returns has Q = fpu, or with a reduction r >= 0 (lc0) Q(s) - r * sqrt(visited priors).
struct PUCT {
    static constexpr Bonus kBonus = Bonus::kPrior;
    double c_base, c_init, fpu, reduction;
    explicit PUCT(const double* p) : c_base(p[0]), c_init(p[1]), fpu(p[2]), reduction(p[3]) {}

    double factor(double visits) const {
        return (std::log((visits + c_base + 1.0) / c_base) + c_init) * std::sqrt(visits);
    }
    double unvisited(const Site& site) const {
        if (reduction < 0.0) return fpu;
        double mass = 0.0;
        for (std::uint32_t i = 0; i < site.family.head().count; ++i) {
            if (site.family.n(i) > 0) mass += site.family.prior()[i];
        }
        return site.value - reduction * std::sqrt(mass);
    }
};

// P-UCB (PG-TD, arXiv 2303.05510; BDC): Q + beta(s) * sqrt(ln(1 + N(s))) * p / (1 + n) with
// beta(s) = ln((N(s) + c_base + 1) / c_base) + c.
struct PUCB {
    static constexpr Bonus kBonus = Bonus::kPrior;
    double c_base, c;
    explicit PUCB(const double* p) : c_base(p[0]), c(p[1]) {}

    double factor(double visits) const {
        return (std::log((visits + c_base + 1.0) / c_base) + c) * std::sqrt(std::log(1.0 + visits));
    }
    double unvisited(const Site&) const { return 0.0; }
};

// A rule of the form Q + factor(N) * bonus(e): its factors are tabulated, its lanes are scored by
// `lanes.hpp`.
template <class Rule>
concept Factored = requires { Rule::kBonus; };

// Scores of a factored rule one by one, for what the fast loops do not know: virtual loss.
template <Factored Rule>
void score_lanes(const Rule& rule, const Site& site, double factor, double* out) {
    const double unvisited = rule.unvisited(site);
    for (std::uint32_t i = 0; i < site.family.head().count; ++i) {
        const double count = site.count(i), q = site.q(i, unvisited);
        if constexpr (Rule::kBonus == Bonus::kInverseRoot) {
            out[i] = count > 0.0 ? q + factor * (1.0 / std::sqrt(count))
                                 : std::numeric_limits<double>::infinity();
        } else {
            out[i] = q + factor * site.family.prior()[i] / (1.0 + count);
        }
    }
}

// Gumbel MuZero (Danihelka et al., ICLR 2022): at a root sequential halving over the top
// `considered` of gumbel + logit + sigma(Q); below, the lane whose share of visits lags most behind
// the improved policy softmax(logit + sigma(completed Q)). Logits are ln p, returns lie in [0, 1].
struct GumbelRoot {
    std::uint32_t simulations, considered;
    double c_visit, c_scale;
    std::vector<std::vector<std::uint32_t>> schedule;  // [m][i]: visits of whom simulation i takes

    explicit GumbelRoot(const double* p)
        : simulations(std::uint32_t(p[0])),
          considered(std::uint32_t(p[1])),
          c_visit(p[2]),
          c_scale(p[3]) {
        for (std::uint32_t m = 0; m <= considered; ++m) schedule.push_back(halving(m));
    }

    void score(const Site& site, double* out) const {
        improved_logits(site, out);
        site.root ? at_root(site, out) : below(site, out);
    }

  private:
    std::vector<std::uint32_t> halving(std::uint32_t m) const {
        std::vector<std::uint32_t> wanted, visits(std::max(m, 1u), 0);
        const double rounds = m > 1 ? std::ceil(std::log2(double(m))) : 1.0;
        std::uint32_t alive = std::max(m, 1u);
        while (wanted.size() < simulations) {
            const auto each =
                std::max(1u, std::uint32_t(double(simulations) / (rounds * double(alive))));
            for (std::uint32_t repeat = 0; repeat < each; ++repeat) {
                for (std::uint32_t i = 0; i < alive; ++i) wanted.push_back(visits[i]++);
            }
            if (m > 1) alive = std::max(2u, alive / 2);
        }
        wanted.resize(simulations);
        return wanted;
    }

    static double logit(double prior) { return prior > 0.0 ? std::log(prior) : -1e9; }

    // logit + sigma(completed Q); unvisited edges take the mixed value of the paper's appendix.
    void improved_logits(const Site& site, double* out) const {
        const std::uint32_t count = site.family.head().count;
        const double* prior = site.family.prior();
        double visits = 0.0, most = 0.0, mass = 0.0, weighted = 0.0;
        for (std::uint32_t i = 0; i < count; ++i) {
            visits += site.count(i);
            most = std::max(most, site.count(i));
            if (site.family.n(i) > 0) {
                mass += prior[i];
                weighted += prior[i] * site.q(i);
            }
        }
        const double seen = mass > 0.0 ? weighted / mass : 0.0;
        const double mixed = (site.value + visits * seen) / (1.0 + visits);
        const double scale = (c_visit + most) * c_scale;
        for (std::uint32_t i = 0; i < count; ++i) {
            out[i] = logit(prior[i]) + scale * site.q(i, mixed);
        }
    }

    void at_root(const Site& site, double* out) const {
        const Header& head = site.family.head();
        const std::uint32_t done = site.visits() - 1;
        const auto& wanted = schedule[std::min<std::uint32_t>(considered, head.open)];
        const double target = done < wanted.size() ? wanted[done] : double(kNone);
        // Exactly the wanted visits; when nobody has them (prunes, waves), the most below.
        double nearest = -1.0;
        for (std::uint32_t i = 0; i < head.count; ++i) {
            const double n = site.count(i);
            if (site.family.reason()[i] == 0 && n <= target) nearest = std::max(nearest, n);
        }
        for (std::uint32_t i = 0; i < head.count; ++i) {
            if (nearest >= 0.0 && site.count(i) != nearest) {
                out[i] = -std::numeric_limits<double>::infinity();
                continue;
            }
            const std::uint64_t lane_key = mix(site.tree, site.family.id()[i]);
            out[i] += Stream(mix(site.seed, lane_key)).gumbel();
        }
    }

    void below(const Site& site, double* out) const {
        const Header& head = site.family.head();
        double largest = -std::numeric_limits<double>::infinity();
        double visits = 0.0, total = 0.0;
        for (std::uint32_t i = 0; i < head.count; ++i) {
            visits += site.count(i);
            if (site.family.reason()[i] == 0) largest = std::max(largest, out[i]);
        }
        for (std::uint32_t i = 0; i < head.count; ++i) {
            out[i] = site.family.reason()[i] == 0 ? std::exp(out[i] - largest) : 0.0;
            total += out[i];
        }
        for (std::uint32_t i = 0; i < head.count; ++i) {
            out[i] = out[i] / total - site.count(i) / (1.0 + visits);
        }
    }
};

// Adaptive branching as in AB-MCTS-A (arXiv 2503.04412): one draw per child from the posterior of
// its returns, and one per agent for "generate another child" from the posterior of the first
// returns of the children it generated here. Statistics are sums, so an update is O(1).
struct Thompson {
    std::uint32_t agents;  // generate arms per node
    Posterior posterior;
    Drawing form = drawing(machine_isa());

    explicit Thompson(const double* p)
        : agents(std::uint32_t(p[0])), posterior{p[1] != 0.0, p[2], p[3]} {}

    static std::uint64_t moment(std::uint64_t seed, std::uint32_t tree, std::uint32_t node,
                                std::uint32_t visits) {
        return mix(seed, mix(tree, mix(node, visits)));
    }

    Leader draw(const Site& site) const {
        const std::uint64_t now = moment(site.seed, site.tree, site.node, site.visits());
        return largest_draw(form, posterior, site.family, now);
    }
};

using AnyRule = std::variant<UCT, PUCT, PUCB, GumbelRoot, Thompson>;

AnyRule make_rule(const RuleSpec& spec);  // throws InputFault for an unknown kind or parameters

}  // namespace bdc::search

// The arithmetic of Adam's relatives over AdamW's moments: luma_core/rules/adam_family.py.
#pragma once

#include "pairs.h"

namespace luma {
namespace {

// The numbers of AdamFamilyRule: those of AdamWNumbers, and behind them the shares.
struct FamilyNumbers : AdamWNumbers {
  float moment_share, grad_share, root_share, square_share, coupled_decay;
  bool mixes_grad, mixes_square, couples, bounds;

  explicit FamilyNumbers(const Step& s)
      : AdamWNumbers(s),
        moment_share(static_cast<float>(s.scalars[9])),
        grad_share(static_cast<float>(s.scalars[10])),
        root_share(static_cast<float>(s.scalars[11])),
        square_share(static_cast<float>(s.scalars[12])),
        coupled_decay(static_cast<float>(s.scalars[13])),
        mixes_grad(s.scalars[10] != 0.0),
        mixes_square(s.scalars[12] != 0.0),
        couples(s.scalars[13] != 0.0),
        bounds(s.scalars[8] < kFloatMax) {}

  static constexpr double kFloatMax = 3.4028234663852886e38;
};

// A pair whose moments are AdamW's and whose update is not. `direction` of the new moments is what
// is taken off the parameter, in units of the rate.
template <class Pair>
class FamilyPair {
 public:
  static constexpr bool kPadded = Pair::kPadded;
  static constexpr bool kRounds = Pair::kRounds;
  using Scales = typename Pair::Scales;
  using Seen = typename Pair::Seen;

  explicit FamilyPair(const Step& s) : numbers_(s), pair_(ascending(s)) {}

  static Seen merge(const Seen& a, const Seen& b) { return Pair::merge(a, b); }
  static Largest largest(const Seen& seen) { return Pair::largest(seen); }
  static Seen seen(Largest largest) { return Pair::seen(largest); }

  Scales stored(int64_t block) const { return pair_.stored(block); }
  void store(int64_t block, Scales scales) const { pair_.store(block, scales); }
  Scales fit(const Seen& seen, Scales old) const { return pair_.fit(seen, old); }

  bool couples() const { return numbers_.couples; }

  Seen update(const Run& run, const float* grad, const float* param, Scales old, NewMoments to) {
    const float* own = gradients(run, grad, param);
    const Seen seen = pair_.update(run, own, old, to);
    direct(numbers_, own, to.first, to.root, run.length, to.direction);
    return seen;
  }

  Seen see(const Run& run, const float* grad, const float* param, Scales old,
           NewMoments scratch) {
    return pair_.see(run, gradients(run, grad, param), old, scratch);
  }

  template <bool Param>
  void write(const Run& run, NewMoments from, const uint32_t* draws, Scales scales,
             float* param) const {
    pair_.template write<false>(run, from, draws, scales, nullptr);
    if (Param) step(numbers_, from.direction, run.length, param);
  }

 private:
  // The pair's own step, whose gradients are negated already where they are to be.
  static Step ascending(Step s) {
    s.maximize = 0;
    return s;
  }

  const float* gradients(const Run& run, const float* __restrict grad,
                         const float* __restrict param) {
    if (!numbers_.couples && !numbers_.flip) return grad;
    const FamilyNumbers numbers = numbers_;
    if (numbers.couples) {
      for (int64_t i = 0; i < run.length; ++i) {
        grad_[i] = numbers.gradient(grad[i]) + param[i] * numbers.coupled_decay;
      }
    } else {
      for (int64_t i = 0; i < run.length; ++i) grad_[i] = numbers.gradient(grad[i]);
    }
    for (int64_t i = run.length; i < run.padded; ++i) grad_[i] = 0.0f;
    return grad_;
  }

  static void direct(const FamilyNumbers numbers, const float* __restrict grad,
                     const float* __restrict first, const float* __restrict root, int64_t n,
                     float* __restrict direction) {
    if (numbers.mixes_square) {
      for (int64_t i = 0; i < n; ++i) {
        const float own = (grad[i] * grad[i]) * numbers.square_share;
        const float mixed = __builtin_sqrtf((root[i] * root[i]) * numbers.root_share + own);
        direction[i] = mixed * numbers.inverse_root_correction2 + numbers.eps;
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        direction[i] = root[i] * numbers.inverse_root_correction2 + numbers.eps;
      }
    }
    if (numbers.mixes_grad) {
      for (int64_t i = 0; i < n; ++i) {
        const float mixed = first[i] * numbers.moment_share + grad[i] * numbers.grad_share;
        direction[i] = mixed / direction[i];
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        direction[i] = (first[i] * numbers.moment_share) / direction[i];
      }
    }
    if (!numbers.bounds) return;
    for (int64_t i = 0; i < n; ++i) {
      float update = direction[i];
      update = update < -numbers.limit ? -numbers.limit : update;
      direction[i] = update > numbers.limit ? numbers.limit : update;
    }
  }

  static void step(const FamilyNumbers numbers, const float* __restrict direction, int64_t n,
                   float* __restrict param) {
    for (int64_t i = 0; i < n; ++i) {
      param[i] = param[i] * numbers.decay - direction[i] * numbers.rate;
    }
  }

  const FamilyNumbers numbers_;
  Pair pair_;
  alignas(64) float grad_[kChunk];
};

// Whether the parameter has a part in a pair's new moments.
template <class Pair>
constexpr bool kTakesParam = false;
template <class Pair>
constexpr bool kTakesParam<FamilyPair<Pair>> = true;

}  // namespace
}  // namespace luma

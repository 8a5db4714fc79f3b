// The arithmetic of one Lion step (Chen et al., 2023), and how its one moment is stored.
#pragma once

#include "pairs.h"

namespace luma {
namespace {

// The numbers of LionRule, in the order in which `scalars` has them.
struct LionNumbers {
  float lerp;
  bool from_grad;
  float update_lerp;
  bool update_from_grad;
  float decay, rate;
  int32_t flip;

  explicit LionNumbers(const Step& s)
      : lerp(static_cast<float>(s.scalars[0])),
        from_grad(s.scalars[1] != 0.0),
        update_lerp(static_cast<float>(s.scalars[2])),
        update_from_grad(s.scalars[3] != 0.0),
        decay(static_cast<float>(s.scalars[4])),
        rate(static_cast<float>(s.scalars[5])),
        flip(s.maximize ? ~kMagnitude : 0) {}

  inline float gradient(float grad) const { return as_float(as_bits(grad) ^ flip); }
  inline float first(float old, float grad) const {
    return (from_grad ? grad : old) + lerp * (grad - old);
  }
  inline float direction(float old, float grad) const {
    return (update_from_grad ? grad : old) + update_lerp * (grad - old);
  }
  // The sign of NaN is 0, as PyTorch has it.
  inline float param(float old, float direction) const {
    const float sign = (direction > 0.0f ? 1.0f : 0.0f) - (direction < 0.0f ? 1.0f : 0.0f);
    return old * decay - sign * rate;
  }
};

// In place of a pair: `root` holds the direction, whose sign is the update.
template <class First>
class LionMoment {
 public:
  static constexpr bool kPadded = First::kPadded;
  static constexpr bool kRounds = First::kRounds;
  using Scales = typename First::Scale;
  using Seen = typename First::Seen;

  explicit LionMoment(const Step& s) : numbers_(s), first_(s.first) {}

  static Seen merge(const Seen& a, const Seen& b) { return luma::merge(a, b); }
  static Largest largest(const Seen& seen) { return {seen.largest, 0}; }
  static Seen seen(Largest largest) { return {largest.first}; }

  Scales stored(int64_t block) const { return first_.stored(block); }
  void store(int64_t block, Scales scale) const { first_.store(block, scale); }
  Scales fit(const Seen& seen, Scales old) const { return first_.fit(seen, &old); }

  Seen update(const Run& run, const float* grad, Scales old, NewMoments to) {
    const int64_t n = run.padded;
    moments(numbers_, grad, first_.read(run, old, old_), n, to.first, to.root);
    return first_.see(to.first, n);
  }

  Seen see(const Run& run, const float* grad, Scales old, NewMoments scratch) {
    return update(run, grad, old, scratch);
  }

  template <bool Param>
  void write(const Run& run, NewMoments from, const uint32_t* draws, Scales scale,
             float* param) const {
    first_.write(run, from.first, from.root, draws, scale);
    if (Param) step(numbers_, from.root, run.length, param);
  }

 private:
  static void moments(const LionNumbers numbers, const float* __restrict grad,
                      const float* __restrict old, int64_t n, float* __restrict first,
                      float* __restrict direction) {
    for (int64_t i = 0; i < n; ++i) {
      const float g = numbers.gradient(grad[i]);
      direction[i] = numbers.direction(old[i], g);
      first[i] = numbers.first(old[i], g);
    }
  }

  static void step(const LionNumbers numbers, const float* __restrict direction, int64_t n,
                   float* __restrict param) {
    for (int64_t i = 0; i < n; ++i) param[i] = numbers.param(param[i], direction[i]);
  }

  const LionNumbers numbers_;
  First first_;
  alignas(64) float old_[kChunk];
};

}  // namespace
}  // namespace luma

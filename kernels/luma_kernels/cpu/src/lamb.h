// A step of LAMB over ranges of blocks: first moments and squares of norms, then parameters.
#pragma once

#include "stepping.h"

namespace luma {
namespace {

// What stands in place of the sums of a block that is left as it was.
constexpr double kLeft = -1.0;

// LAMBRule.update: before it is scaled to the parameter's norm. With Bounded, the limit holds; NaN
// passes it.
template <bool Bounded>
void lamb_update(const Step& s, const float* __restrict first, const float* __restrict second,
                 const float* __restrict param, int64_t n, float* __restrict update) {
  const AdamWNumbers rule(s);
  const float inverse = static_cast<float>(s.scalars[kInverseCorrection1]);
  const float weight_decay = static_cast<float>(s.scalars[kWeightDecay]);
  for (int64_t i = 0; i < n; ++i) {
    const float denominator = __builtin_sqrtf(second[i]) * rule.inverse_root_correction2 + rule.eps;
    float adam = first[i] / denominator;
    if (Bounded) adam = adam < -rule.limit ? -rule.limit : adam > rule.limit ? rule.limit : adam;
    update[i] = adam * inverse + weight_decay * param[i];
  }
}

// Squares that are not finite do not count. The order of additions is the same everywhere.
double square_sum(const float* x, int64_t n) {
  constexpr int64_t lanes = 8;
  double sums[lanes] = {};
  const auto add = [&](double& sum, float value) {
    const float square = value * value;
    sum += static_cast<double>((as_bits(square) & kMagnitude) < kInfinityBits ? square : 0.0f);
  };
  const int64_t full = n / lanes * lanes;
  for (int64_t i = 0; i < full; i += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) add(sums[lane], x[i + lane]);
  }
  for (int64_t i = full; i < n; ++i) add(sums[i - full], x[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

template <class Pair>
int64_t lamb_moments_of(const Step& s, double* sums, int64_t begin, int64_t end) {
  Stepper<Pair> stepper(s);
  alignas(64) float update[kChunk];
  int64_t bad = 0;
  each_block(s.layout, begin, end, Pair::kPadded, [&](const Run& block) {
    double* here = sums + 2 * block.block;
    here[0] = here[1] = 0.0;
    const bool left = step_block<Pair, false>(stepper, s.skip_nonfinite != 0, block);
    bad += left;
    if (left && s.skip_nonfinite) {
      here[0] = here[1] = kLeft;
      return;
    }
    if (s.scalars[kAdapt] == 0.0) return;
    const typename Pair::Scales scales = stepper.pair().stored(block.block);
    each_run(block, [&](const Run& run) {
      const Moments now = stepper.moments(run, scales);
      const float* param = stepper.param(run);
      lamb_update<Pair::kCoarse>(s, now.first, now.second, param, run.length, update);
      here[0] += square_sum(param, run.length);
      here[1] += square_sum(update, run.length);
    });
  });
  return bad;
}

template <class Pair>
void lamb_params_of(const Step& s, const double* sums, float rate, int64_t begin, int64_t end) {
  Stepper<Pair> stepper(s);
  alignas(64) float update[kChunk];
  each_block(s.layout, begin, end, Pair::kPadded, [&](const Run& block) {
    if (sums[2 * block.block] == kLeft) return;
    const typename Pair::Scales scales = stepper.pair().stored(block.block);
    each_run(block, [&](const Run& run) {
      const Moments now = stepper.moments(run, scales);
      float* param = stepper.param(run);
      lamb_update<Pair::kCoarse>(s, now.first, now.second, param, run.length, update);
      for (int64_t i = 0; i < run.length; ++i) param[i] = param[i] - update[i] * rate;
      stepper.draw(run.start, run.length, run.padded);
      stepper.store_param(run, 0);
    });
  });
}

int64_t lamb_moments(const Step& s, double* sums, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...) \
  case instance(RULE, FIRST, SECOND): return lamb_moments_of<__VA_ARGS__>(s, sums, begin, end);
    LUMA_LAMB(LUMA_CASE)
#undef LUMA_CASE
  }
  return 0;
}

void lamb_params(const Step& s, const double* sums, float rate, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...)                                 \
  case instance(RULE, FIRST, SECOND):                                       \
    return lamb_params_of<__VA_ARGS__>(s, sums, rate, begin, end);
    LUMA_LAMB(LUMA_CASE)
#undef LUMA_CASE
  }
}

}  // namespace
}  // namespace luma

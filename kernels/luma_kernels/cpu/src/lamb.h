// A step of LAMB over ranges of blocks: first moments and squares of norms, then parameters.
#pragma once

#include "stepping.h"

namespace luma {
namespace {

// What stands in place of the sums of a block that is left as it was.
constexpr double kLeft = -1.0;

// LAMBRule.update: before it is scaled to the parameter's norm.
void lamb_update(const Step& s, const float* __restrict first, const float* __restrict second,
                 const float* __restrict param, int64_t n, float* __restrict update) {
  const float inverse_root = s.inverse_root_correction2;
  const float inverse = s.inverse_correction1;
  const float eps = s.eps;
  const float weight_decay = s.weight_decay;
  for (int64_t i = 0; i < n; ++i) {
    const float denominator = __builtin_sqrtf(second[i]) * inverse_root + eps;
    update[i] = first[i] / denominator * inverse + weight_decay * param[i];
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
    if (!s.adapt) return;
    const typename Pair::Scales scales = stepper.pair().stored(block.block);
    each_run(block, [&](const Run& run) {
      const Moments now = stepper.moments(run, scales);
      const float* param = stepper.param(run);
      lamb_update(s, now.first, now.second, param, run.length, update);
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
      lamb_update(s, now.first, now.second, param, run.length, update);
      for (int64_t i = 0; i < run.length; ++i) param[i] = param[i] - update[i] * rate;
      stepper.draw(run.start, run.length, run.padded);
      stepper.store_param(run, 0);
    });
  });
}

int64_t lamb_moments(const Step& s, double* sums, int64_t begin, int64_t end) {
  switch (s.first.kind) {
    case kLogSigned: return lamb_moments_of<LogGridPair>(s, sums, begin, end);
    case kBFloat: return lamb_moments_of<BFloatPair>(s, sums, begin, end);
    default: return lamb_moments_of<PlainPair>(s, sums, begin, end);
  }
}

void lamb_params(const Step& s, const double* sums, float rate, int64_t begin, int64_t end) {
  switch (s.first.kind) {
    case kLogSigned: return lamb_params_of<LogGridPair>(s, sums, rate, begin, end);
    case kBFloat: return lamb_params_of<BFloatPair>(s, sums, rate, begin, end);
    default: return lamb_params_of<PlainPair>(s, sums, rate, begin, end);
  }
}

}  // namespace
}  // namespace luma

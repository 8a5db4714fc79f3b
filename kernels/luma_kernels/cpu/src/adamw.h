// The arithmetic of one AdamW step: loops over elements of one block.
#pragma once

#include "elements.h"

namespace luma {
namespace {

// New moments of a run of elements, in `root` the square roots of the second, and in `direction`
// the update of rules that make it while they see the gradient.
struct Work {
  alignas(64) float first[kChunk];
  alignas(64) float second[kChunk];
  alignas(64) float root[kChunk];
  alignas(64) float grad[kChunk];
  alignas(64) float param[kChunk];
  alignas(64) uint32_t bits[kChunk];
  alignas(64) float direction[kChunk];
};

// The numbers of AdamWRule, in the order in which `scalars` has them; LAMB's begin with the same.
// They are copied out of the step: stores then cannot seem to change them.
struct AdamWNumbers {
  // The first moment is base + lerp * (grad - moment), with base the gradient or the old moment.
  float lerp;
  bool from_grad;
  float beta2, one_minus_beta2, inverse_root_correction2, eps, decay, rate;
  // Bound on the first moment over the divisor, where a moment is stored coarsely.
  float limit;
  int32_t flip;

  explicit AdamWNumbers(const Step& s)
      : lerp(static_cast<float>(s.scalars[0])),
        from_grad(s.scalars[1] != 0.0),
        beta2(static_cast<float>(s.scalars[2])),
        one_minus_beta2(static_cast<float>(s.scalars[3])),
        inverse_root_correction2(static_cast<float>(s.scalars[4])),
        eps(static_cast<float>(s.scalars[5])),
        decay(static_cast<float>(s.scalars[6])),
        rate(static_cast<float>(s.scalars[7])),
        limit(static_cast<float>(s.scalars[8])),
        flip(s.maximize ? ~kMagnitude : 0) {}

  inline float gradient(float grad) const { return as_float(as_bits(grad) ^ flip); }
  inline float first(float old, float grad) const {
    return (from_grad ? grad : old) + lerp * (grad - old);
  }
  inline float second(float old, float grad) const {
    return old * beta2 + (one_minus_beta2 * grad) * grad;
  }
  // With Bounded, the limit holds; NaN passes it.
  template <bool Bounded>
  inline float param(float old, float first, float root) const {
    float update = first / (root * inverse_root_correction2 + eps);
    if (Bounded) {
      update = update < -limit ? -limit : update;
      update = update > limit ? limit : update;
    }
    return old * decay - update * rate;
  }
};

void decode_log_grid(const Moment& moment, int64_t start, int64_t n, uint8_t exponent,
                     float* __restrict to) {
  const Grid grid(moment, exponent);
  const int16_t* __restrict from = codes(moment) + start;
  if (moment.kind == kLogRoot) {
    for (int64_t i = 0; i < n; ++i) {
      const float root = grid.decode(static_cast<uint16_t>(from[i]));
      to[i] = root * root;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = grid.decode_signed(from[i]);
  }
}

// What the log-grid kernels read, from the first of their elements.
struct LogSource {
  const float* grad;
  const int16_t* first;
  const int16_t* second;
  Grid grid1;
  Grid grid2;
};

// N is the length where it is known when compiling, else 0.
template <int N>
Largest log_moments(const AdamWNumbers rule, const LogSource source, int64_t length,
                    float* __restrict new_first, float* __restrict new_root) {
  const int64_t n = N ? N : length;
  const float* __restrict grad = source.grad;
  const int16_t* __restrict first = source.first;
  const int16_t* __restrict second = source.second;
  const Grid grid1 = source.grid1;
  const Grid grid2 = source.grid2;
  int32_t largest1 = 0;
  uint32_t largest2 = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float g = rule.gradient(grad[i]);
    const float m = rule.first(grid1.decode_signed(first[i]), g);
    const float old_root = grid2.decode(static_cast<uint16_t>(second[i]));
    const float root = __builtin_sqrtf(rule.second(old_root * old_root, g));
    largest1 = larger(largest1, as_bits(m) & kMagnitude);
    // Unsigned: a root is not negative, but a NaN can have either sign.
    largest2 = larger(largest2, static_cast<uint32_t>(as_bits(root)));
    new_first[i] = m;
    new_root[i] = root;
  }
  return {largest1, static_cast<int32_t>(largest2 & kMagnitude)};
}

// The result of log_moments alone; the root of the largest is the largest root.
Largest log_largest(const AdamWNumbers rule, const LogSource source, int64_t n) {
  const float* __restrict grad = source.grad;
  const Grid grid1 = source.grid1;
  const Grid grid2 = source.grid2;
  int32_t largest1 = 0;
  int32_t largest2 = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float g = rule.gradient(grad[i]);
    const float m = rule.first(grid1.decode_signed(source.first[i]), g);
    const float old_root = grid2.decode(static_cast<uint16_t>(source.second[i]));
    const float v = rule.second(old_root * old_root, g);
    largest1 = larger(largest1, as_bits(m) & kMagnitude);
    largest2 = larger(largest2, as_bits(v) & kMagnitude);
  }
  const float root = __builtin_sqrtf(as_float(largest2));
  return {largest1, as_bits(root) & kMagnitude};
}

template <int N>
void plain_moments(const AdamWNumbers rule, const float* __restrict grad, const float* __restrict first,
                   const float* __restrict second, int64_t length, float* __restrict new_first,
                   float* __restrict new_second, float* __restrict new_root) {
  const int64_t n = N ? N : length;
  for (int64_t i = 0; i < n; ++i) {
    const float g = rule.gradient(grad[i]);
    const float v = rule.second(second[i], g);
    new_first[i] = rule.first(first[i], g);
    new_second[i] = v;
    new_root[i] = __builtin_sqrtf(v);
  }
}

// What the last stage of a log-grid step reads and writes, from the first of its elements.
struct LogTarget {
  const float* new_first;
  const float* new_root;
  const uint32_t* bits;
  int16_t* first;
  int16_t* second;
  float* param;
  Grid grid1;
  Grid grid2;
};

// Codes the new moments and, with Param, updates the parameter: one loop, in which the division of
// one overlaps with the integer operations of the other.
template <int N, bool Clamp, bool Param>
void log_finish(const AdamWNumbers rule, const LogTarget target, int64_t length) {
  const int64_t n = N ? N : length;
  const float* __restrict new_first = target.new_first;
  const float* __restrict new_root = target.new_root;
  const uint32_t* __restrict random = target.bits;
  int16_t* __restrict first = target.first;
  int16_t* __restrict second = target.second;
  float* __restrict param = target.param;
  const Grid grid1 = target.grid1;
  const Grid grid2 = target.grid2;
  const int32_t shift1 = 16 - grid1.cut;
  const int32_t shift2 = 32 - grid2.cut;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = random[i];
    const float m = new_first[i];
    const float root = new_root[i];
    if (Param) param[i] = rule.param<false>(param[i], m, root);
    first[i] = grid1.encode_signed<Clamp>(m, static_cast<int32_t>((bits & 0xffff) >> shift1));
    second[i] = grid2.round_root<Clamp>(root, static_cast<int32_t>(bits >> shift2));
  }
  grid2.raise_roots(new_root, n, second);
}

template <int N, bool Bounded>
void update_param(const AdamWNumbers rule, const float* __restrict first, const float* __restrict root,
                  int64_t length, float* __restrict param) {
  const int64_t n = N ? N : length;
  for (int64_t i = 0; i < n; ++i) {
    param[i] = rule.param<Bounded>(param[i], first[i], root[i]);
  }
}

}  // namespace
}  // namespace luma

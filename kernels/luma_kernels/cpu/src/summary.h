// What statistics add up: histograms, sums and the largest of magnitudes, and how often codes occur.
#pragma once

#include <cstring>

#include "native.h"

namespace luma {

// Values of one tile, or the updates of two, to add to a histogram, to sums of squares and to the
// largest magnitude. An octave of magnitudes has its first slot, and the next one from its edge on.
struct Summary {
  const float* first;
  const float* second;  // null to summarize `first` itself
  int64_t count;
  double correction1;
  double correction2;
  double eps;
  const int32_t* first_slot;
  const void* edges;  // bits of float32 magnitudes; of float64 ones for updates
  int64_t* slots;
  double* lanes;
  double* largest;
};

namespace {

constexpr int64_t kSlots = 84;
constexpr int64_t kLanes = 32;

template <class Float>
struct BitsOf;

template <>
struct BitsOf<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr Int kMagnitudeBits = 0x7fffffff;
  static constexpr Int kInfinity = 0x7f800000;
};

template <>
struct BitsOf<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr Int kMagnitudeBits = 0x7fffffffffffffff;
  static constexpr Int kInfinity = 0x7ff0000000000000;
};

template <class Float>
typename BitsOf<Float>::Int size_bits(Float x) {
  typename BitsOf<Float>::Int bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & BitsOf<Float>::kMagnitudeBits;
}

// Neighbours often fall into the same slot; with a table for each of four, increments need not wait
// for one another.
template <class Float>
void count_slots(const Float* __restrict x, int64_t n, const int32_t* __restrict first_slot,
                 const void* edges, int64_t* __restrict slots) {
  using Int = typename BitsOf<Float>::Int;
  const Int* __restrict edge = static_cast<const Int*>(edges);
  uint32_t counts[4][kSlots] = {};
  for (int64_t i = 0; i < n; ++i) {
    const Int size = size_bits(x[i]);
    const Int octave = size >> BitsOf<Float>::kMantissa;
    ++counts[i & 3][first_slot[octave] + (size >= edge[octave])];
  }
  for (int32_t i = 0; i < kSlots; ++i) {
    slots[i] += int64_t{counts[0][i]} + counts[1][i] + counts[2][i] + counts[3][i];
  }
}

// Sums in lanes of a fixed number, so that every instruction set adds in the same order.
template <class Float>
void add_squares(const Float* __restrict x, int64_t n, double* __restrict lanes) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t width = n - i < kLanes ? n - i : kLanes;
    const Float* __restrict from = x + i;
    if (width == kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const double value = size_bits(from[j]) < BitsOf<Float>::kInfinity ? from[j] : 0.0;
        lanes[j] += value * value;
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        const double value = size_bits(from[j]) < BitsOf<Float>::kInfinity ? from[j] : 0.0;
        lanes[j] += value * value;
      }
    }
  }
}

template <class Float>
double largest_finite(const Float* __restrict x, int64_t n) {
  typename BitsOf<Float>::Int largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto size = size_bits(x[i]);
    const auto finite = size < BitsOf<Float>::kInfinity ? size : 0;
    largest = finite > largest ? finite : largest;
  }
  Float value;
  std::memcpy(&value, &largest, sizeof value);
  return value;
}

template <class Float>
void add_run(const Summary& s, const Float* x, int64_t n) {
  count_slots(x, n, s.first_slot, s.edges, s.slots);
  add_squares(x, n, s.lanes);
  const double largest = largest_finite(x, n);
  if (largest > *s.largest) *s.largest = largest;
}

void summarize(const Summary& s) {
  alignas(64) double updates[kChunk];
  for (int64_t start = 0; start < s.count; start += kChunk) {
    const int64_t n = s.count - start < kChunk ? s.count - start : kChunk;
    const float* __restrict first = s.first + start;
    if (!s.second) {
      add_run(s, first, n);
      continue;
    }
    const float* __restrict second = s.second + start;
    for (int64_t i = 0; i < n; ++i) {
      const double root = __builtin_sqrt(second[i] / s.correction2);
      updates[i] = first[i] / s.correction1 / (root + s.eps);
    }
    add_run(s, updates, n);
  }
}

void count_codes(const uint16_t* codes, int64_t n, uint32_t* counts) {
  for (int64_t i = 0; i < n; ++i) ++counts[codes[i]];
}

}  // namespace
}  // namespace luma

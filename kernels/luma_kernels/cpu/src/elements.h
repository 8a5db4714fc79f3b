// What every kernel does to single elements: 16-bit floats, noise, the logarithmic grid.
#pragma once

#include <cstring>

#include "native.h"

namespace luma {
namespace {

constexpr int32_t kOne = 127 << 23;
constexpr int32_t kMagnitude = 0x7fffffff;
constexpr float kLargest = 0x1.ff8p127f;     // luma16_m.LARGEST
constexpr float kLargestRoot = 0x1.ff8p63f;  // luma16_v.LARGEST_ROOT
constexpr float kSmallestRoot = 0x1p-74f;    // luma16_v.SMALLEST_ROOT
constexpr int32_t kSmallestCode = 512;       // luma16_v.SMALLEST_CODE
constexpr float kLargestFp8 = 0x1.ep127f;    // fp8_e4m3._LARGEST
constexpr int kBlock = 128;                  // the usual block size gets loops of fixed length

inline float as_float(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int32_t as_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

// ---- 16-bit floats, by integer operations: not every instruction set converts them ----

inline float from_bfloat16(uint16_t half) {
  return as_float(static_cast<int32_t>(static_cast<uint32_t>(half) << 16));
}

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = static_cast<uint32_t>(as_bits(value));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}

inline uint16_t to_bfloat16(float value, uint32_t draw) {
  const uint32_t bits = static_cast<uint32_t>(as_bits(value));
  const bool finite = (as_bits(value) & kMagnitude) < kInfinityBits;
  return finite ? static_cast<uint16_t>((bits + draw) >> 16) : to_bfloat16(value);
}

inline float from_float16(uint16_t half) {
  const int32_t magnitude = (half & 0x7fff) << 13;
  const int32_t normal = magnitude + (112 << 23);
  const float subnormal = as_float(magnitude + (113 << 23)) - as_float(113 << 23);
  const int32_t special = normal + (112 << 23);
  const int32_t exponent = half & 0x7c00;
  const int32_t size =
      exponent == 0 ? as_bits(subnormal) : exponent == 0x7c00 ? special : normal;
  return as_float(size | static_cast<int32_t>(static_cast<uint32_t>(half & 0x8000) << 16));
}

inline uint16_t to_float16(float value) {
  const int32_t bits = as_bits(value);
  const int32_t magnitude = bits & kMagnitude;
  // Adding 0.5 leaves, below it, exactly the bits that a subnormal of float16 keeps.
  const int32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
  const int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const int32_t finite = magnitude < (113 << 23) ? subnormal : normal;
  const int32_t special = magnitude > kInfinityBits ? 0x7e00 : 0x7c00;
  const int32_t size = magnitude >= 0x477ff000 ? special : finite;
  return static_cast<uint16_t>(size | ((bits >> 16) & 0x8000));
}

// Returns `n` elements from `start` as float32: in place, or converted into `scratch`.
inline float* load(void* base, int32_t dtype, int64_t start, int64_t n, float* scratch) {
  if (dtype == kFloat32) return static_cast<float*>(base) + start;
  const uint16_t* __restrict from = static_cast<const uint16_t*>(base) + start;
  float* __restrict to = scratch;
  if (dtype == kBFloat16) {
    for (int64_t i = 0; i < n; ++i) to[i] = from_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = from_float16(from[i]);
  }
  return scratch;
}

// ---- noise: luma_core/rounding.py ----

struct Noise {
  uint32_t k0;
  uint32_t k1;

  void fill_within_period(uint32_t* __restrict bits, uint64_t start, int64_t n) const {
    const uint32_t low = static_cast<uint32_t>(start) + k0;
    const uint32_t high = k1 ^ (static_cast<uint32_t>(start >> 32) * 0x9e3779b9u);
    for (int64_t i = 0; i < n; ++i) {
      uint32_t x = low + static_cast<uint32_t>(i);
      x = (x ^ (x >> 16)) * 0x7feb352du;
      x = (x ^ (x >> 15) ^ high) * 0x846ca68bu;
      bits[i] = x ^ (x >> 16);
    }
  }

  void fill(uint32_t* bits, uint64_t start, int64_t n) const {
    const uint64_t left = (uint64_t{1} << 32) - (start & 0xffffffffu);
    const int64_t head = left < static_cast<uint64_t>(n) ? static_cast<int64_t>(left) : n;
    fill_within_period(bits, start, head);
    if (head < n) fill_within_period(bits + head, start + head, n - head);
  }
};

inline uint32_t third_draw(uint32_t bits) { return (bits * 0x9e3779b1u) >> 16; }

// ---- the logarithmic grid: luma_core/codecs/loggrid.py ----

struct Grid {
  float unit;
  float per_unit;
  int32_t cut;
  int32_t top;
  // Whether codes can neither pass the top nor come from values that are not finite.
  bool fits;

  Grid(const Moment& moment, uint8_t exponent)
      : unit(as_float(static_cast<int32_t>((exponent + 1u) << 23))),
        per_unit(as_float(exponent < 253 ? (253 - exponent) << 23 : 0)),
        cut(23 - moment.mantissa_bits),
        top((moment.octaves + 1) << moment.mantissa_bits),
        fits(exponent + moment.octaves - 126 < (moment.kind == kLogRoot ? 64 : 128)) {}

  // y and max(y / 2, 1), both assembled from their bits.
  inline float decode(int32_t code) const {
    const int32_t bits = code << cut;
    return (as_float(bits + kOne) - as_float(larger(bits + (kOne - (1 << 23)), kOne))) * unit;
  }

  inline float decode_signed(int16_t stored) const {
    const int32_t code = stored;
    return as_float(as_bits(decode(code & 0x7fff)) | (code & ~kMagnitude));
  }

  // `below` is added under the last kept bit: random bits, or half of it. Comparing bits as
  // integers orders non-negative floats. Clamp is needed unless `fits`.
  template <bool Clamp>
  inline int32_t encode(float x, int32_t below) const {
    const float units = x * per_unit;
    const float y = units + as_float(larger(as_bits(units), kOne));
    if (!Clamp) return ((as_bits(y) + below) >> cut) - (kOne >> cut);
    const int32_t code = (as_bits(y) - kOne + below) >> cut;
    return code < 0 ? 0 : code > top ? top : code;
  }

  template <bool Clamp>
  inline int16_t encode_signed(float x, int32_t below) const {
    const float size = as_float(as_bits(x) & kMagnitude);
    const int32_t code = encode<Clamp>(Clamp && size > kLargest ? kLargest : size, below);
    return static_cast<int16_t>(x < 0.0f ? code - 32768 : code);
  }

  // LogGrid.round_down_below: a root that is not 0 or more changes nothing.
  void round_down_below(float* __restrict x, const float* __restrict roots, int64_t n) const {
    const float steps = static_cast<float>(1 << (23 - cut));
    const float whole = 1.0f / steps;
    for (int64_t i = 0; i < n; ++i) {
      const float size = as_float(as_bits(x[i]) & kMagnitude);
      const bool below = roots[i] >= 0.0f && roots[i] < unit && size < 2.0f * unit;
      const float inside = below ? x[i] : 0.0f;
      const float rounded =
          static_cast<float>(static_cast<int32_t>(inside * per_unit * steps)) * whole * unit;
      x[i] = below ? rounded : x[i];
    }
  }

  // The code of a root by rounding alone, which may be below `lowest_root`.
  template <bool Clamp>
  inline int16_t round_root(float root, int32_t below) const {
    const float x = Clamp && root > kLargestRoot ? kLargestRoot : root;
    return static_cast<int16_t>(encode<Clamp>(x, below));
  }

  // The lowest code of a root above 0: Luma16V.lowest_code.
  inline int32_t lowest_root() const {
    return larger(encode<true>(kSmallestRoot, 0), kSmallestCode);
  }

  // Raises the codes of roots above 0 to the lowest. Few runs have any to raise, and to find the
  // smallest code takes less than to raise each.
  inline void raise_roots(const float* __restrict roots, int64_t n, int16_t* __restrict to) const {
    const int32_t lowest = lowest_root();
    uint16_t smallest = 0xffff;
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t code = static_cast<uint16_t>(to[i]);
      smallest = code < smallest ? code : smallest;
    }
    if (smallest >= lowest) return;
    for (int64_t i = 0; i < n; ++i) to[i] = raise_root(to[i], roots[i], lowest);
  }

  static inline int16_t raise_root(int16_t rounded, float root, int32_t lowest) {
    const int32_t code = static_cast<uint16_t>(rounded);
    // As a number, the bits of a root above 0 are larger than any code; those of 0 are 0.
    return static_cast<int16_t>(larger(code, smaller(as_bits(root), lowest)));
  }
};

inline int16_t* codes(const Moment& moment) { return static_cast<int16_t*>(moment.values); }
inline float* values(const Moment& moment) { return static_cast<float*>(moment.values); }

}  // namespace
}  // namespace luma

// Codes of a few bits, packed into bytes, and the three codecs that use them: the values of a run
// of elements from and to their codes, and what a block's elements say of its scale.
#pragma once

#include "elements.h"

namespace luma {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed codes are read as whole words");

// Up to these sizes of a code, going through all levels is faster than looking one up.
constexpr int kDecodedByCounting = 3;
constexpr int kEncodedByCounting = 4;

constexpr uint64_t repeat(uint64_t pattern, int width) {
  return width == 64 ? pattern : repeat(pattern | pattern << width, 2 * width);
}

constexpr uint64_t ones(int bits) { return (uint64_t{1} << bits) - 1; }

// Eight codes, one after another, become one in each byte: in halves, quarters and eighths.
template <int Bits>
inline uint64_t spread(uint64_t x) {
  constexpr uint64_t pair = ones(2 * Bits);
  constexpr uint64_t one = ones(Bits);
  x = (x & ones(4 * Bits)) | (x >> (4 * Bits) << 32);
  x = (x & repeat(pair, 32)) | ((x & repeat(pair << (2 * Bits), 32)) << (16 - 2 * Bits));
  return (x & repeat(one, 16)) | ((x & repeat(one << Bits, 16)) << (8 - Bits));
}

// Undoes `spread`.
template <int Bits>
inline uint64_t gather(uint64_t x) {
  constexpr uint64_t pair = ones(2 * Bits);
  constexpr uint64_t one = ones(Bits);
  x = (x & repeat(one, 16)) | ((x >> (8 - Bits)) & repeat(one << Bits, 16));
  x = (x & repeat(pair, 32)) | ((x >> (16 - 2 * Bits)) & repeat(pair << (2 * Bits), 32));
  return (x & ones(4 * Bits)) | (x >> 32 << (4 * Bits));
}

template <class Word>
inline uint64_t load_as(const uint8_t* from) {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

// The first `Bytes` bytes as one word; not by way of memory, which would have to wait for them.
template <int Bytes>
inline uint64_t load_bytes(const uint8_t* from) {
  if constexpr (Bytes == 1) {
    return *from;
  } else if constexpr (Bytes == 2) {
    return load_as<uint16_t>(from);
  } else if constexpr (Bytes == 4) {
    return load_as<uint32_t>(from);
  } else if constexpr (Bytes == 8) {
    return load_as<uint64_t>(from);
  } else {
    constexpr int head = Bytes < 4 ? 2 : 4;
    return load_bytes<head>(from) | load_bytes<Bytes - head>(from + head) << (8 * head);
  }
}

// The codes of a run, one in each byte. Its length is a multiple of 8, as that of a block is.
struct Codes {
  alignas(64) uint64_t words[kChunk / 8];

  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(words); }
};

template <int Bits, int N>
void unpack(const uint8_t* __restrict from, int64_t length, Codes& codes) {
  const int64_t n = (N ? N : length) / 8;
  uint64_t* __restrict words = codes.words;
  for (int64_t i = 0; i < n; ++i) words[i] = load_bytes<Bits>(from + i * Bits);
  for (int64_t i = 0; i < n; ++i) words[i] = spread<Bits>(words[i]);
}

template <int Bits, int N>
void pack(Codes& codes, int64_t length, uint8_t* __restrict to) {
  const int64_t n = (N ? N : length) / 8;
  uint64_t* __restrict words = codes.words;
  for (int64_t i = 0; i < n; ++i) words[i] = gather<Bits>(words[i]);
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * Bits, words + i, Bits);
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Calls body with the number of bits as a type.
template <class Body>
inline void with_bits(int32_t bits, const Body& body) {
  switch (bits) {
    case 2: return body(Constant<2>());
    case 3: return body(Constant<3>());
    case 4: return body(Constant<4>());
    case 5: return body(Constant<5>());
    case 6: return body(Constant<6>());
    default: return body(Constant<8>());
  }
}

// Calls body with the length where it is the usual one, and with 0 where it is not, as a type.
template <class Body>
inline auto with_length(int64_t length, const Body& body) {
  return length == kBlock ? body(Constant<kBlock>()) : body(Constant<0>());
}

// The bits of the largest magnitude.
template <int N>
int32_t largest_size(const float* __restrict x, int64_t length) {
  const int64_t n = N ? N : length;
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = larger(largest, as_bits(x[i]) & kMagnitude);
  return largest;
}

// ---- luma_core/codecs/table_m.py ----

// The largest value, and the bits of the smallest where one is negative: as integers, the bits of
// negative floats are the largest of all without a sign.
struct Extremes {
  int32_t high = 0;
  uint32_t low = 0;

  bool nonfinite() const {
    return high >= kInfinityBits || (low & kMagnitude) >= static_cast<uint32_t>(kInfinityBits);
  }
};

inline Extremes merge(Extremes a, Extremes b) {
  return {larger(a.high, b.high), larger(a.low, b.low)};
}

template <int N>
Extremes extremes(const float* __restrict x, int64_t length) {
  const int64_t n = N ? N : length;
  int32_t high = 0;
  uint32_t low = 0;
  for (int64_t i = 0; i < n; ++i) {
    high = larger(high, as_bits(x[i]));
    low = larger(low, static_cast<uint32_t>(as_bits(x[i])));
  }
  return {high, low & (uint32_t{1} << 31) ? low : 0};
}

constexpr float kLargestBFloat16 = 0x1.fep127f;
constexpr uint16_t kInfiniteScale = 0x7f80;

inline uint16_t fit_table(Extremes seen) {
  if (seen.nonfinite()) return kInfiniteScale;
  const float high = as_float(seen.high);
  const float low = as_float(static_cast<int32_t>(seen.low));
  const float largest = high >= -low ? high : low;
  return to_bfloat16(largest > kLargestBFloat16    ? kLargestBFloat16
                     : largest < -kLargestBFloat16 ? -kLargestBFloat16
                                                   : largest);
}

template <int Bits, int N>
void decode_table(const float* levels, uint16_t stored, const uint8_t* __restrict codes,
                  int64_t length, float* __restrict to) {
  const int64_t n = N ? N : length;
  constexpr int32_t count = 1 << Bits;
  float values[count];
  int32_t changes[count];
  for (int32_t k = 0; k < count; ++k) {
    values[k] = levels[k] * from_bfloat16(stored);
    changes[k] = k ? as_bits(values[k]) ^ as_bits(values[k - 1]) : as_bits(values[0]);
  }
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (Bits <= kDecodedByCounting) {
      const int32_t code = codes[i];
      int32_t value = changes[0];
#pragma GCC unroll 16
      for (int32_t k = 1; k < count; ++k) value ^= -static_cast<int32_t>(code >= k) & changes[k];
      to[i] = as_float(value);
    } else {
      to[i] = values[codes[i]];
    }
  }
}

template <int Bits, int N>
void encode_table(const float* thresholds, uint16_t stored, const float* __restrict x,
                  int64_t length, uint8_t* __restrict codes) {
  const int64_t n = N ? N : length;
  constexpr int32_t count = (1 << Bits) - 1;
  const float scale = from_bfloat16(stored);
  const float size = as_float(as_bits(scale) & kMagnitude);
  const int32_t flip = scale < 0.0f ? ~kMagnitude : 0;
  float edges[count];
  for (int32_t k = 0; k < count; ++k) edges[k] = size * thresholds[k];
  for (int64_t i = 0; i < n; ++i) {
    const float value = as_float(as_bits(x[i]) ^ flip);
    int32_t code = 0;
    if constexpr (Bits <= kEncodedByCounting) {
#pragma GCC unroll 16
      for (int32_t k = 0; k < count; ++k) code += value > edges[k];
    } else {
      // Edges ascend, so that those below the value come first.
#pragma GCC unroll 8
      for (int32_t place = Bits - 1; place >= 0; --place) {
        const int32_t half = 1 << place;
        code += static_cast<int32_t>(value > edges[code + half - 1]) << place;
      }
    }
    codes[i] = static_cast<uint8_t>(code);
  }
}

// ---- luma_core/codecs/root_v.py ----

constexpr int32_t kSmallestScaleBits = (127 - 64) << 23;

inline uint16_t fit_root(int32_t rise, int32_t largest, const uint16_t* old) {
  if (largest >= kInfinityBits) return kInfiniteScale;
  const int32_t root = larger(as_bits(__builtin_sqrtf(as_float(largest))), kSmallestScaleBits);
  const int32_t scale = largest == 0 ? 0 : (root + 0xffff) >> 16;
  const bool held = rise && old && *old > 0;
  return static_cast<uint16_t>(held ? smaller(scale, *old + rise) : scale);
}

template <int N>
void decode_root(const Moment& moment, uint16_t stored, const uint8_t* __restrict codes,
                 int64_t length, float* __restrict to) {
  const int64_t n = N ? N : length;
  const float scale = from_bfloat16(stored);
  const float step = moment.step;
  const float floor = moment.floor;
  for (int64_t i = 0; i < n; ++i) {
    const float root = (static_cast<float>(codes[i]) * step + floor) * scale;
    to[i] = root * root;
  }
}

// The draw is the upper half of `bits`; without it, rounds to nearest.
template <bool Draws, int N>
void encode_root(const Moment& moment, uint16_t stored, const float* __restrict roots,
                 const uint32_t* __restrict bits, int64_t length, uint8_t* __restrict codes) {
  const int64_t n = N ? N : length;
  const float scale = from_bfloat16(stored);
  const float per_scale = scale > 0.0f ? 1.0f / scale : 0.0f;
  const float per_step = moment.per_step;
  const float floor = moment.floor;
  const float last = static_cast<float>((1 << moment.bits) - 1);
  for (int64_t i = 0; i < n; ++i) {
    const float place = (roots[i] * per_scale - floor) * per_step;
    const float noise = Draws ? static_cast<float>(static_cast<int32_t>(bits[i] >> 16)) * 0x1p-16f
                              : 0.5f;
    // NaN, of elements of a block that is not finite, is not above zero.
    const float above = place > 0.0f ? place : 0.0f;
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>((above < last ? above : last) + noise));
  }
}

// ---- luma_core/codecs/log_v.py ----

constexpr int32_t kLogBias = 80;
constexpr int32_t kLogSmallest = -74;
constexpr int32_t kLogCut = 19;
constexpr int32_t kLogUnits = 1 << (23 - kLogCut);
constexpr int32_t kReachQuarters = 7;
constexpr int32_t kTopSlack = 5 * kLogUnits / 2;
constexpr double kCoarser = 1.1;
constexpr double kFiner = 0.9;
constexpr uint8_t kLogNonfinite = 255;

// The bits of the largest element, the number of those above zero and the sum of their logarithms.
struct Spread {
  int32_t largest = 0;
  int64_t count = 0;
  int64_t sum = 0;

  bool nonfinite() const { return largest >= kInfinityBits; }
};

inline Spread merge(Spread a, Spread b) {
  return {larger(a.largest, b.largest), a.count + b.count, a.sum + b.sum};
}

template <int N>
Spread log_spread(const float* __restrict x, int64_t length) {
  const int64_t n = N ? N : length;
  int32_t largest = 0;
  int32_t count = 0;
  int32_t sum = 0;  // of up to kChunk elements
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = as_bits(x[i]) & kMagnitude;
    largest = larger(largest, bits);
    count += (bits >> kLogCut) > 0;
    sum += bits >> kLogCut;
  }
  return {largest, count, sum};
}

struct Window {
  uint8_t exponent;
  uint8_t mantissa;
};

inline int32_t log_edge(int32_t exponent) { return (2 * exponent + 127) * kLogUnits; }

// The largest mantissa for which the need is within the window: LogV._mantissa.
inline int32_t fitting_mantissa(int32_t bits, int64_t need, int64_t count, double slack) {
  const float limit = static_cast<float>(4.0 * 2 * kLogUnits * ((1 << bits) - 1) * slack);
  const uint32_t window = as_bits(static_cast<float>(count) * limit);
  const uint32_t needed = as_bits(static_cast<float>(need));
  return static_cast<int32_t>(window - needed) >> 23;
}

inline int32_t clamp(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

// The window of a block's elements: `old`, where that still fits.
Window fit_window(int32_t bits, const Spread& seen, const Window* old) {
  const bool stood = old && old->exponent > 0;
  const int32_t top = seen.largest >> kLogCut;
  const int64_t below = top * seen.count - seen.sum;
  int32_t exponent = (((seen.largest - 1) >> 23) - 125) >> 1;
  if (stood) {
    const int32_t before = old->exponent - kLogBias;
    if (exponent <= before && top > log_edge(before) - kTopSlack) exponent = before;
  }
  const int64_t need =
      (log_edge(exponent) - top) * seen.count * 4 + below * kReachQuarters;
  int32_t mantissa = fitting_mantissa(bits, need, seen.count, 1.0);
  if (stood) {
    const int32_t coarsest = fitting_mantissa(bits, need, seen.count, kCoarser);
    const int32_t finest = fitting_mantissa(bits, need, seen.count, kFiner);
    const int32_t held = larger(static_cast<int32_t>(old->mantissa), finest);
    mantissa = held < coarsest ? held : coarsest;
  }
  const int32_t octaves = as_bits(static_cast<float>(exponent - kLogSmallest)) >> 23;
  mantissa = clamp(larger(mantissa, bits + 127 - octaves), 0, bits - 1);
  const bool some = seen.largest > 0;
  const uint8_t stored = static_cast<uint8_t>(some ? exponent + kLogBias : 0);
  return {seen.nonfinite() ? kLogNonfinite : stored, static_cast<uint8_t>(some ? mantissa : 0)};
}

// The bits of a block's lowest level; unsigned, since they wrap where a window is not finite.
inline uint32_t lowest_level(int32_t bits, Window window) {
  const uint32_t top = static_cast<uint32_t>(window.exponent - kLogBias + 127) << 23;
  return top - (((1u << bits) - 1) << (23 - window.mantissa));
}

template <int N>
void decode_log(int32_t bits, Window window, const uint8_t* __restrict codes, int64_t length,
                float* __restrict to) {
  const int64_t n = N ? N : length;
  if (window.exponent == 0 || window.exponent == kLogNonfinite) {
    const float value = window.exponent == 0 ? 0.0f : as_float(kInfinityBits);
    for (int64_t i = 0; i < n; ++i) to[i] = value;
    return;
  }
  const int32_t lowest = static_cast<int32_t>(lowest_level(bits, window));
  const int32_t cut = 23 - window.mantissa;
  for (int64_t i = 0; i < n; ++i) {
    const float root = as_float(larger((static_cast<int32_t>(codes[i]) << cut) + lowest, 0));
    to[i] = root * root;
  }
}

// The draw is the upper half of `bits`; without it, rounds to nearest.
template <bool Draws, int N>
void encode_log(int32_t size, Window window, const float* __restrict roots,
                const uint32_t* __restrict bits, int64_t length, uint8_t* __restrict codes) {
  const int64_t n = N ? N : length;
  const uint32_t lowest = lowest_level(size, window);
  const int32_t mantissa = window.mantissa;
  const int32_t cut = 23 - mantissa;
  const int32_t top = ((1 << size) - 1) << cut;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t root = as_bits(roots[i]) & kMagnitude;
    const int32_t place = clamp(static_cast<int32_t>(root - lowest), 0, top);
    const int32_t noise = (Draws ? static_cast<int32_t>(bits[i] >> 16 << 7) : 1 << 22) >> mantissa;
    codes[i] = static_cast<uint8_t>((place + noise) >> cut);
  }
}

}  // namespace
}  // namespace luma

// Exact sums of squares: luma_core/rules/norms.py.
#pragma once

#include "elements.h"
#include "ranges.h"

namespace luma {
namespace {

constexpr int kBins = 256;
constexpr int kTables = 4;
constexpr int64_t kLowDigit = 0xffffffff;

// Adds `mantissa` times 2**(place - 149).
inline void add_digits(unsigned __int128 mantissa, int32_t place, int64_t* digits) {
  const unsigned __int128 wide = mantissa << (place & 31);
  int64_t* to = digits + (place >> 5);
  to[0] += static_cast<int64_t>(wide & kLowDigit);
  to[1] += static_cast<int64_t>(wide >> 32 & kLowDigit);
  if (wide >> 64) to[2] += static_cast<int64_t>(wide >> 64);
}

// The squares of a run that are finite, and zeros for the others and up to `padded`.
void finite_squares(const Squares& x, int64_t start, int64_t n, int64_t padded,
                    float* __restrict scratch, float* __restrict to) {
  const float* __restrict from =
      load(const_cast<void*>(x.values), x.dtype, start, n, scratch);
  for (int64_t i = 0; i < n; ++i) {
    const float square = from[i] * from[i];
    to[i] = (as_bits(square) & kMagnitude) < kInfinityBits ? square : 0.0f;
  }
  for (int64_t i = n; i < padded; ++i) to[i] = 0.0f;
}

// Each square by itself: mantissas are added up by exponent, in several tables in turn, since
// neighbours mostly fall into one bin.
void flat_digits(const Squares& x, int64_t* digits, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  alignas(64) float squares[kChunk];
  alignas(64) int32_t exponents[kChunk];
  alignas(64) int32_t mantissas[kChunk];
  uint64_t bins[kTables][kBins] = {};
  const Layout layout = {1, x.rows * x.cols, 0};
  each_whole_chunk(layout, begin, end, [&](const Run& run) {
    finite_squares(x, run.start, run.length, kChunk, scratch, squares);
    for (int64_t i = 0; i < kChunk; ++i) {
      const int32_t bits = as_bits(squares[i]);
      exponents[i] = bits >> 23;
      mantissas[i] = (bits & 0x7fffff) | (bits >= 0x800000 ? 0x800000 : 0);
    }
    for (int64_t i = 0; i < kChunk; i += kTables) {
      for (int table = 0; table < kTables; ++table) {
        bins[table][exponents[i + table]] += static_cast<uint64_t>(mantissas[i + table]);
      }
    }
  });
  for (int32_t bin = 0; bin < kBins; ++bin) {
    unsigned __int128 sum = 0;
    for (int table = 0; table < kTables; ++table) sum += bins[table][bin];
    if (sum) add_digits(sum, bin ? bin - 1 : 0, digits);
  }
}

// The sum of a block in float64: halves are added to halves.
inline double block_sum(const float* __restrict squares) {
  constexpr int64_t half = kSquareBlock / 2;
  double sums[half];
  for (int64_t i = 0; i < half; ++i) {
    sums[i] = static_cast<double>(squares[i]) + static_cast<double>(squares[i + half]);
  }
  for (int64_t width = half / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

void block_digits(const Squares& x, int64_t* digits, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  alignas(64) float squares[kSquareBlock];
  each_block({x.rows, x.cols, kSquareBlock}, begin, end, false, [&](const Run& run) {
    finite_squares(x, run.start, run.length, kSquareBlock, scratch, squares);
    const double sum = block_sum(squares);
    uint64_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    if (!bits) return;
    // A sum of multiples of 2**-149, so never subnormal, and nothing is cut off below.
    const uint64_t mantissa = (bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52;
    const int32_t place = static_cast<int32_t>(bits >> 52) - 1075 + 149;
    if (place < 0) return add_digits(mantissa >> -place, 0, digits);
    add_digits(mantissa, place, digits);
  });
}

void square_digits(const Squares& x, int64_t* digits, int64_t begin, int64_t end) {
  if (x.flat) return flat_digits(x, digits, begin, end);
  block_digits(x, digits, begin, end);
}

}  // namespace
}  // namespace luma

// Encoding and decoding of one moment.
#pragma once

#include "elements.h"
#include "ranges.h"

namespace luma {
namespace {

int32_t largest_of(const float* __restrict x, int64_t n, bool root) {
  int32_t largest = 0;
  if (root) {
    for (int64_t i = 0; i < n; ++i) {
      largest = larger(largest, as_bits(__builtin_sqrtf(x[i])) & kMagnitude);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) largest = larger(largest, as_bits(x[i]) & kMagnitude);
  }
  return largest;
}

template <bool Root, bool Draws, bool Clamp>
void encode_loop(const Grid grid, const float* __restrict x, const int32_t* __restrict draws,
                int64_t n, int16_t* __restrict to) {
  const int32_t half = 1 << (grid.cut - 1);
  const int32_t shift = 16 - grid.cut;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t below = Draws ? draws[i] >> shift : half;
    to[i] = Root ? grid.encode_root<Clamp>(__builtin_sqrtf(x[i]), below)
                 : grid.encode_signed<Clamp>(x[i], below);
  }
}

template <bool Root, bool Draws>
void encode_run(const Grid grid, const float* x, const int32_t* draws, int64_t n, int16_t* to) {
  if (grid.fits) return encode_loop<Root, Draws, false>(grid, x, draws, n, to);
  return encode_loop<Root, Draws, true>(grid, x, draws, n, to);
}

void encode_chunk(const Coding& c, const float* x, int64_t at, int64_t n, uint8_t exponent) {
  const Grid grid(c.stored, exponent);
  int16_t* to = codes(c.stored) + at;
  const int32_t* draws = c.draws ? c.draws + at : nullptr;
  const bool root = c.stored.kind == kLogRoot;
  if (root && draws) return encode_run<true, true>(grid, x, draws, n, to);
  if (root) return encode_run<true, false>(grid, x, draws, n, to);
  if (draws) return encode_run<false, true>(grid, x, draws, n, to);
  return encode_run<false, false>(grid, x, draws, n, to);
}

void encode(const Coding& c, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  const bool root = c.stored.kind == kLogRoot;
  each_block(c.layout, begin, end, [&](int64_t block, int64_t start, int64_t length) {
    int32_t largest = 0;
    each_chunk(start, length, [&](int64_t at, int64_t n) {
      const float* x = load(c.plain, c.plain_dtype, at, n, scratch);
      largest = larger(largest, largest_of(x, n, root));
    });
    const uint8_t exponent = fit(c.stored, largest);
    each_chunk(start, length, [&](int64_t at, int64_t n) {
      encode_chunk(c, load(c.plain, c.plain_dtype, at, n, scratch), at, n, exponent);
    });
    c.stored.exponent[block] = exponent;
  });
}

int32_t whole_largest(const Coding& c, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  const bool root = c.stored.kind == kLogRoot;
  int32_t largest = 0;
  each_whole_chunk(c.layout, begin, end, [&](int64_t at, int64_t n) {
    largest = larger(largest, largest_of(load(c.plain, c.plain_dtype, at, n, scratch), n, root));
  });
  return largest;
}

void whole_encode(const Coding& c, uint8_t exponent, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  each_whole_chunk(c.layout, begin, end, [&](int64_t at, int64_t n) {
    encode_chunk(c, load(c.plain, c.plain_dtype, at, n, scratch), at, n, exponent);
  });
}

void decode_run(const Coding& c, int64_t start, int64_t n, uint8_t exponent) {
  const Grid grid(c.stored, exponent);
  const int16_t* __restrict from = codes(c.stored) + start;
  float* __restrict to = static_cast<float*>(c.plain) + start;
  if (c.stored.kind == kLogRoot) {
    for (int64_t i = 0; i < n; ++i) {
      const float root = grid.decode(static_cast<uint16_t>(from[i]));
      to[i] = root * root;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = grid.decode_signed(from[i]);
  }
}

void decode(const Coding& c, int64_t begin, int64_t end) {
  each_block(c.layout, begin, end, [&](int64_t block, int64_t start, int64_t length) {
    decode_run(c, start, length, c.stored.exponent[block]);
  });
}

void whole_decode(const Coding& c, int64_t begin, int64_t end) {
  each_whole_chunk(c.layout, begin, end, [&](int64_t at, int64_t n) {
    decode_run(c, at, n, *c.stored.exponent);
  });
}

}  // namespace
}  // namespace luma

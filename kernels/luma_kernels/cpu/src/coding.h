// Encoding and decoding of one moment.
#pragma once

#include "adamw.h"
#include "moments.h"

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
  const int32_t lowest = grid.lowest_root();
  for (int64_t i = 0; i < n; ++i) {
    const int32_t below = Draws ? draws[i] >> shift : half;
    const float root = __builtin_sqrtf(x[i]);
    to[i] = Root ? grid.raise_root(grid.round_root<Clamp>(root, below), root, lowest)
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

void encode_log_grid(const Coding& c, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  const bool root = c.stored.kind == kLogRoot;
  each_block(c.layout, begin, end, false, [&](const Run& block) {
    int32_t largest = 0;
    each_run(block, [&](const Run& run) {
      const float* x = load(c.plain, c.plain_dtype, run.start, run.length, scratch);
      largest = larger(largest, largest_of(x, run.length, root));
    });
    const uint8_t exponent = fit(c.stored, largest);
    each_run(block, [&](const Run& run) {
      const float* x = load(c.plain, c.plain_dtype, run.start, run.length, scratch);
      encode_chunk(c, x, run.start, run.length, exponent);
    });
    c.stored.exponent[block.block] = exponent;
  });
}

// What the elements of a run are coded from.
struct Source {
  alignas(64) float values[kChunk];
  alignas(64) float roots[kChunk];
  alignas(64) uint32_t draws[kChunk];

  void read(const Coding& c, const Run& run) {
    const float* x = load(c.plain, c.plain_dtype, run.start, run.length, values);
    if (x != values) std::memcpy(values, x, run.length * sizeof(float));
    for (int64_t i = run.length; i < run.padded; ++i) values[i] = 0.0f;
  }

  void prepare(const Coding& c, const Run& run) {
    read(c, run);
    for (int64_t i = 0; i < run.padded; ++i) roots[i] = __builtin_sqrtf(values[i]);
    if (!c.draws) return;
    for (int64_t i = 0; i < run.length; ++i) {
      draws[i] = static_cast<uint32_t>(c.draws[run.start + i]) << 16;
    }
    for (int64_t i = run.length; i < run.padded; ++i) draws[i] = 0;
  }
};

// `Source` has draws in the upper half of words.
using Fp8Coded = GridMoment<uint8_t, 16>;

template <class Stored>
void encode_blocks(const Coding& c, int64_t begin, int64_t end) {
  const Stored moment(c.stored);
  Source source;
  each_block(c.layout, begin, end, Stored::kPadded, [&](const Run& block) {
    typename Stored::Seen seen{};
    each_run(block, [&](const Run& run) {
      source.read(c, run);
      seen = merge(seen, moment.see(source.values, run.padded));
    });
    const typename Stored::Scale scale = moment.fit(seen, nullptr);
    each_run(block, [&](const Run& run) {
      source.prepare(c, run);
      moment.write(run, source.values, source.roots, c.draws ? source.draws : nullptr, scale);
    });
    moment.store(block.block, scale);
  });
}

void encode(const Coding& c, int64_t begin, int64_t end) {
  switch (c.stored.kind) {
    case kTable: return encode_blocks<TableMoment>(c, begin, end);
    case kRoot: return encode_blocks<RootMoment>(c, begin, end);
    case kLog: return encode_blocks<LogMoment>(c, begin, end);
    case kFp8: return encode_blocks<Fp8Coded>(c, begin, end);
    default: return encode_log_grid(c, begin, end);
  }
}

int32_t whole_largest(const Coding& c, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  const bool root = c.stored.kind == kLogRoot;
  int32_t largest = 0;
  each_whole_chunk(c.layout, begin, end, [&](const Run& run) {
    const float* x = load(c.plain, c.plain_dtype, run.start, run.length, scratch);
    largest = larger(largest, largest_of(x, run.length, root));
  });
  return largest;
}

void whole_encode(const Coding& c, uint8_t exponent, int64_t begin, int64_t end) {
  alignas(64) float scratch[kChunk];
  each_whole_chunk(c.layout, begin, end, [&](const Run& run) {
    const float* x = load(c.plain, c.plain_dtype, run.start, run.length, scratch);
    encode_chunk(c, x, run.start, run.length, exponent);
  });
}

void decode_run(const Coding& c, const Run& run, uint8_t exponent) {
  decode_log_grid(c.stored, run.start, run.length, exponent,
                  static_cast<float*>(c.plain) + run.start);
}

template <class Stored>
void decode_blocks(const Coding& c, int64_t begin, int64_t end) {
  const Stored moment(c.stored);
  alignas(64) float scratch[kChunk];
  float* to = static_cast<float*>(c.plain);
  each_block(c.layout, begin, end, Stored::kPadded, [&](const Run& block) {
    const typename Stored::Scale scale = moment.stored(block.block);
    each_run(block, [&](const Run& run) {
      moment.read(run, scale, scratch);
      std::memcpy(to + run.start, scratch, run.length * sizeof(float));
    });
  });
}

void decode(const Coding& c, int64_t begin, int64_t end) {
  switch (c.stored.kind) {
    case kTable: return decode_blocks<TableMoment>(c, begin, end);
    case kRoot: return decode_blocks<RootMoment>(c, begin, end);
    case kLog: return decode_blocks<LogMoment>(c, begin, end);
    case kFp8: return decode_blocks<Fp8Coded>(c, begin, end);
    default: break;
  }
  each_block(c.layout, begin, end, false, [&](const Run& run) {
    decode_run(c, run, c.stored.exponent[run.block]);
  });
}

void whole_decode(const Coding& c, int64_t begin, int64_t end) {
  each_whole_chunk(c.layout, begin, end, [&](const Run& run) {
    decode_run(c, run, *c.stored.exponent);
  });
}

}  // namespace
}  // namespace luma

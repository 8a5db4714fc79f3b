// How one moment is stored, known when compiling: each class reads a run, sees what is in it, fits
// a scale and writes the run.
#pragma once

#include "packed.h"
#include "ranges.h"

namespace luma {
namespace {

class PlainMoment {
 public:
  static constexpr bool kPadded = false;
  static constexpr bool kRounds = false;
  static constexpr bool kCoarse = false;
  static constexpr bool kRelative = true;
  struct Scale {};
  struct Seen {
    int32_t largest = 0;
    bool nonfinite() const { return largest >= kInfinityBits; }
  };

  explicit PlainMoment(const Moment& moment) : values_(values(moment)) {}

  Scale stored(int64_t) const { return {}; }
  void store(int64_t, Scale) const {}

  const float* read(const Run& run, Scale, float* scratch) const {
    if (run.padded == run.length) return values_ + run.start;
    std::memcpy(scratch, values_ + run.start, run.length * sizeof(float));
    std::memset(scratch + run.length, 0, (run.padded - run.length) * sizeof(float));
    return scratch;
  }

  Seen see(const float* x, int64_t n) const {
    return with_length(n, [&](auto fixed) { return Seen{largest_size<fixed.value>(x, n)}; });
  }

  Scale fit(Seen, const Scale*) const { return {}; }
  void round_down_below(const Run&, float*, const float*, Scale) const {}

  void write(const Run& run, const float* x, const float*, const uint32_t*, Scale) const {
    std::memcpy(values_ + run.start, x, run.length * sizeof(float));
  }

 private:
  float* values_;
};

inline PlainMoment::Seen merge(PlainMoment::Seen a, PlainMoment::Seen b) {
  return {larger(a.largest, b.largest)};
}

// bfloat16 values, rounded by the 16 bits of a draw from bit `Shift` on.
template <int Shift>
class BFloatMoment {
 public:
  static constexpr bool kPadded = false;
  static constexpr bool kRounds = true;
  static constexpr bool kCoarse = false;
  static constexpr bool kRelative = true;
  using Scale = PlainMoment::Scale;
  using Seen = PlainMoment::Seen;

  explicit BFloatMoment(const Moment& moment)
      : values_(static_cast<uint16_t*>(moment.values)) {}

  Scale stored(int64_t) const { return {}; }
  void store(int64_t, Scale) const {}

  const float* read(const Run& run, Scale, float* scratch) const {
    return load(values_, kBFloat16, run.start, run.length, scratch);
  }

  Seen see(const float* x, int64_t n) const {
    return with_length(n, [&](auto fixed) { return Seen{largest_size<fixed.value>(x, n)}; });
  }

  Scale fit(Seen, const Scale*) const { return {}; }
  void round_down_below(const Run&, float*, const float*, Scale) const {}

  void write(const Run& run, const float* __restrict x, const float*,
             const uint32_t* __restrict draws, Scale) const {
    uint16_t* __restrict to = values_ + run.start;
    for (int64_t i = 0; i < run.length; ++i) {
      const uint16_t rounded = to_bfloat16(x[i], draws[i] >> Shift & 0xffff);
      to[i] = rounded == 0 && x[i] > 0.0f ? 1 : rounded;
    }
  }

 private:
  uint16_t* values_;
};

// Signed codes on a logarithmic grid, rounded by the 16 bits of a draw from bit `Shift` on: of 16
// bits (luma16_m), or of 8 (fp8_e4m3).
template <class Code, int Shift>
class GridMoment {
 public:
  static constexpr bool kPadded = false;
  static constexpr bool kRounds = true;
  static constexpr bool kCoarse = sizeof(Code) == 1;
  static constexpr bool kRelative = false;
  using Scale = uint8_t;
  using Seen = PlainMoment::Seen;

  explicit GridMoment(const Moment& moment) : moment_(moment) {}

  Scale stored(int64_t block) const { return moment_.exponent[block]; }
  void store(int64_t block, Scale scale) const { moment_.exponent[block] = scale; }

  const float* read(const Run& run, Scale scale, float* __restrict to) const {
    const Grid grid(moment_, scale);
    const Code* __restrict from = place(run);
    for (int64_t i = 0; i < run.length; ++i) to[i] = decode(grid, from[i]);
    return to;
  }

  Seen see(const float* x, int64_t n) const { return PlainMoment(moment_).see(x, n); }
  Scale fit(Seen seen, const Scale*) const { return luma::fit(moment_, seen.largest); }

  // Codec.round_down_below; few runs have a root that is small enough to matter.
  void round_down_below(const Run& run, float* x, const float* roots, Scale scale) const {
    if (scale == kExponentNonfinite) return;
    const Grid grid(moment_, scale);
    float smallest = grid.unit;
    for (int64_t i = 0; i < run.length; ++i) smallest = roots[i] < smallest ? roots[i] : smallest;
    if (smallest < grid.unit) grid.round_down_below(x, roots, run.length);
  }

  // Without draws, rounds to nearest.
  void write(const Run& run, const float* x, const float*, const uint32_t* draws,
             Scale scale) const {
    const Grid grid(moment_, scale);
    if (!grid.fits) return encode<true>(grid, run, x, draws);
    encode<false>(grid, run, x, draws);
  }

 private:
  static constexpr bool kWide = sizeof(Code) == 2;

  static float decode(const Grid& grid, Code code) {
    if constexpr (kWide) return grid.decode_signed(code);
    const int32_t bits = code;
    return as_float(as_bits(grid.decode(bits & 0x7f)) |
                    static_cast<int32_t>(static_cast<uint32_t>(bits & 0x80) << 24));
  }

  template <bool Clamp>
  static Code encode(const Grid& grid, float x, int32_t below) {
    if constexpr (kWide) return grid.encode_signed<Clamp>(x, below);
    const float size = as_float(as_bits(x) & kMagnitude);
    const int32_t code = grid.encode<Clamp>(Clamp && size > kLargestFp8 ? kLargestFp8 : size, below);
    return static_cast<Code>(x < 0.0f ? code + 128 : code);
  }

  template <bool Clamp>
  void encode(const Grid grid, const Run& run, const float* __restrict x,
              const uint32_t* __restrict draws) const {
    Code* __restrict to = place(run);
    const int32_t half = 1 << (grid.cut - 1);
    if (!draws) {
      for (int64_t i = 0; i < run.length; ++i) to[i] = encode<Clamp>(grid, x[i], half);
    } else if (kWide) {
      const int32_t shift = 16 - grid.cut;
      for (int64_t i = 0; i < run.length; ++i) {
        const int32_t draw = static_cast<int32_t>(draws[i] >> Shift & 0xffff);
        to[i] = encode<Clamp>(grid, x[i], draw >> shift);
      }
    } else {
      // More bits are cut off than a draw has: those below it are those of one half.
      const int32_t shift = grid.cut - 16;
      const int32_t rest = 1 << (shift - 1);
      for (int64_t i = 0; i < run.length; ++i) {
        const int32_t draw = static_cast<int32_t>(draws[i] >> Shift & 0xffff);
        to[i] = encode<Clamp>(grid, x[i], (draw << shift) + rest);
      }
    }
  }

  Code* place(const Run& run) const { return static_cast<Code*>(moment_.values) + run.start; }

  const Moment moment_;
};

// Moments whose codes are packed. `Own` has `decode` and `encode` of codes in bytes: templates of
// the number of bits and of a length known when compiling.
template <class Own>
class PackedMoment {
 public:
  static constexpr bool kPadded = true;
  static constexpr bool kRelative = false;

  explicit PackedMoment(const Moment& moment) : moment_(moment) {}

  template <class Scale>
  void round_down_below(const Run&, float*, const float*, Scale) const {}

  template <class Scale>
  const float* read(const Run& run, Scale scale, float* scratch) const {
    Codes codes;
    each_kind(run, [&](auto bits, auto fixed) {
      unpack<bits.value, fixed.value>(place(run), run.padded, codes);
      own().template decode<bits.value, fixed.value>(scale, codes.bytes(), run.padded, scratch);
    });
    return scratch;
  }

  // Without draws, rounds to nearest.
  template <class Scale>
  void write(const Run& run, const float* x, const float* roots, const uint32_t* draws,
             Scale scale) const {
    Codes codes;
    each_kind(run, [&](auto bits, auto fixed) {
      const Elements from = {x, roots, draws, run.padded};
      own().template encode<bits.value, fixed.value>(scale, from, codes.bytes());
      pack<bits.value, fixed.value>(codes, run.padded, place(run));
    });
  }

 protected:
  struct Elements {
    const float* x;
    const float* roots;
    const uint32_t* draws;
    int64_t length;
  };

  const Moment moment_;

 private:
  const Own& own() const { return static_cast<const Own&>(*this); }

  uint8_t* place(const Run& run) const {
    return static_cast<uint8_t*>(moment_.values) + run.place / 8 * moment_.bits;
  }

  template <class Body>
  void each_kind(const Run& run, const Body& body) const {
    with_bits(moment_.bits, [&](auto bits) {
      with_length(run.padded, [&](auto fixed) { body(bits, fixed); });
    });
  }
};

class TableMoment : public PackedMoment<TableMoment> {
 public:
  static constexpr bool kRounds = false;
  static constexpr bool kCoarse = true;
  using Scale = uint16_t;
  using Seen = Extremes;
  using PackedMoment::PackedMoment;

  Scale stored(int64_t block) const { return moment_.scale[block]; }
  void store(int64_t block, Scale scale) const { moment_.scale[block] = scale; }

  Seen see(const float* x, int64_t n) const {
    return with_length(n, [&](auto fixed) { return extremes<fixed.value>(x, n); });
  }
  Scale fit(Seen seen, const Scale*) const { return fit_table(seen); }

  template <int Bits, int N>
  void decode(Scale scale, const uint8_t* codes, int64_t n, float* to) const {
    decode_table<Bits, N>(moment_.levels, scale, codes, n, to);
  }

  template <int Bits, int N>
  void encode(Scale scale, const Elements& from, uint8_t* codes) const {
    encode_table<Bits, N>(moment_.thresholds, scale, from.x, from.length, codes);
  }
};

class RootMoment : public PackedMoment<RootMoment> {
 public:
  static constexpr bool kRounds = true;
  static constexpr bool kCoarse = true;
  using Scale = uint16_t;
  using Seen = PlainMoment::Seen;
  using PackedMoment::PackedMoment;

  Scale stored(int64_t block) const { return moment_.scale[block]; }
  void store(int64_t block, Scale scale) const { moment_.scale[block] = scale; }

  Seen see(const float* x, int64_t n) const { return PlainMoment(moment_).see(x, n); }
  Scale fit(Seen seen, const Scale* old) const {
    return fit_root(moment_.rise, seen.largest, old);
  }

  template <int, int N>
  void decode(Scale scale, const uint8_t* codes, int64_t n, float* to) const {
    decode_root<N>(moment_, scale, codes, n, to);
  }

  template <int, int N>
  void encode(Scale scale, const Elements& from, uint8_t* codes) const {
    if (from.draws) {
      encode_root<true, N>(moment_, scale, from.roots, from.draws, from.length, codes);
    } else {
      encode_root<false, N>(moment_, scale, from.roots, from.draws, from.length, codes);
    }
  }
};

class LogMoment : public PackedMoment<LogMoment> {
 public:
  static constexpr bool kRounds = true;
  static constexpr bool kCoarse = true;
  using Scale = Window;
  using Seen = Spread;
  using PackedMoment::PackedMoment;

  Scale stored(int64_t block) const { return {moment_.exponent[block], moment_.mantissa[block]}; }
  void store(int64_t block, Scale scale) const {
    moment_.exponent[block] = scale.exponent;
    moment_.mantissa[block] = scale.mantissa;
  }

  Seen see(const float* x, int64_t n) const {
    return with_length(n, [&](auto fixed) { return log_spread<fixed.value>(x, n); });
  }
  Scale fit(const Seen& seen, const Scale* old) const {
    return fit_window(moment_.bits, seen, old);
  }

  template <int Bits, int N>
  void decode(Scale scale, const uint8_t* codes, int64_t n, float* to) const {
    decode_log<N>(Bits, scale, codes, n, to);
  }

  template <int Bits, int N>
  void encode(Scale scale, const Elements& from, uint8_t* codes) const {
    if (from.draws) {
      encode_log<true, N>(Bits, scale, from.roots, from.draws, from.length, codes);
    } else {
      encode_log<false, N>(Bits, scale, from.roots, from.draws, from.length, codes);
    }
  }
};

}  // namespace
}  // namespace luma

// How the two moments of a step are stored, known when compiling.
#pragma once

#include "adamw.h"
#include "moments.h"

namespace luma {
namespace {

// The first moment takes the lower half of an element's random bits, the second the upper half.
using FirstBFloat = BFloatMoment<0>;
using SecondBFloat = BFloatMoment<16>;
using FirstGrid = GridMoment<int16_t, 0>;
using FirstFp8 = GridMoment<uint8_t, 0>;

// Where a run's new moments are, the square roots of the second, and the update (`Work`).
struct NewMoments {
  float* first;
  float* second;
  float* root;
  float* direction;
};

// Where a run's stored moments are, as float32.
struct Moments {
  const float* first;
  const float* second;
};

// Each is stored in its own way: decoded, updated and coded one after the other.
template <class First, class Second>
class SeparatePair {
 public:
  static constexpr bool kPadded = First::kPadded || Second::kPadded;
  static constexpr bool kRounds = First::kRounds || Second::kRounds;
  static constexpr bool kCoarse = First::kCoarse || Second::kCoarse;
  struct Scales {
    typename First::Scale first;
    typename Second::Scale second;
  };
  struct Seen {
    typename First::Seen first;
    typename Second::Seen second;
    bool nonfinite() const { return first.nonfinite() || second.nonfinite(); }
  };

  explicit SeparatePair(const Step& s) : rule_(s), first_(s.first), second_(s.second) {}

  static Seen merge(const Seen& a, const Seen& b) {
    return {luma::merge(a.first, b.first), luma::merge(a.second, b.second)};
  }
  static Largest largest(const Seen& seen) { return {seen.first.largest, seen.second.largest}; }
  static Seen seen(Largest largest) { return {{largest.first}, {largest.second}}; }

  Scales stored(int64_t block) const { return {first_.stored(block), second_.stored(block)}; }
  void store(int64_t block, Scales scales) const {
    first_.store(block, scales.first);
    second_.store(block, scales.second);
  }
  Scales fit(const Seen& seen, Scales old) const {
    return {first_.fit(seen.first, &old.first), second_.fit(seen.second, &old.second)};
  }

  Moments read(const Run& run, Scales scales, float* first, float* second) const {
    return {padded(first_, run, scales.first, first), padded(second_, run, scales.second, second)};
  }

  Seen update(const Run& run, const float* grad, Scales old, NewMoments to) {
    const int64_t n = run.padded;
    const Moments from = read(run, old, old_first_, old_second_);
    with_length(n, [&](auto fixed) {
      plain_moments<fixed.value>(rule_, grad, from.first, from.second, n, to.first, to.second,
                                 to.root);
    });
    return {first_.see(to.first, n), second_.see(to.second, n)};
  }

  // As `update`, but only what is seen matters.
  Seen see(const Run& run, const float* grad, Scales old, NewMoments scratch) {
    return update(run, grad, old, scratch);
  }

  template <bool Param>
  void write(const Run& run, NewMoments from, const uint32_t* draws,
             Scales scales, float* param) const {
    if (Param) {
      with_length(run.length, [&](auto fixed) {
        update_param<fixed.value, kCoarse>(rule_, from.first, from.root, run.length, param);
      });
    }
    if (Second::kRelative) first_.round_down_below(run, from.first, from.root, scales.first);
    first_.write(run, from.first, from.root, draws, scales.first);
    second_.write(run, from.second, from.root, draws, scales.second);
  }

 private:
  // As `read`, with zeros from the run's end up to the length that the other moment's codes have.
  template <class Stored>
  static const float* padded(const Stored& moment, const Run& run, typename Stored::Scale scale,
                             float* scratch) {
    const float* from = moment.read(run, scale, scratch);
    if (Stored::kPadded || run.padded == run.length) return from;
    if (from != scratch) std::memcpy(scratch, from, run.length * sizeof(float));
    std::memset(scratch + run.length, 0, (run.padded - run.length) * sizeof(float));
    return scratch;
  }

  const AdamWNumbers rule_;
  First first_;
  Second second_;
  alignas(64) float old_first_[kChunk];
  alignas(64) float old_second_[kChunk];
};

// The two logarithmic grids of 16 bits, whose loops do several of these things at once.
class LogGridPair {
 public:
  static constexpr bool kPadded = false;
  static constexpr bool kRounds = true;
  static constexpr bool kCoarse = false;
  struct Scales {
    uint8_t first;
    uint8_t second;
  };
  struct Seen : Largest {
    bool nonfinite() const { return luma::nonfinite(*this); }
  };

  explicit LogGridPair(const Step& s) : rule_(s), first_(s.first), second_(s.second) {}

  static Seen merge(Seen a, Seen b) {
    return {{larger(a.first, b.first), larger(a.second, b.second)}};
  }
  static Largest largest(const Seen& seen) { return seen; }
  static Seen seen(Largest largest) { return {largest}; }

  Scales stored(int64_t block) const { return {first_.exponent[block], second_.exponent[block]}; }
  void store(int64_t block, Scales scales) const {
    first_.exponent[block] = scales.first;
    second_.exponent[block] = scales.second;
  }
  Scales fit(Seen seen, Scales) const {
    return {luma::fit(first_, seen.first), luma::fit(second_, seen.second)};
  }

  Moments read(const Run& run, Scales scales, float* first, float* second) const {
    decode_log_grid(first_, run.start, run.length, scales.first, first);
    decode_log_grid(second_, run.start, run.length, scales.second, second);
    return {first, second};
  }

  Seen update(const Run& run, const float* grad, Scales old, NewMoments to) {
    const LogSource from = source(run, grad, old);
    return {run.length == kBlock
                ? log_moments<kBlock>(rule_, from, run.length, to.first, to.root)
                : log_moments<0>(rule_, from, run.length, to.first, to.root)};
  }

  Seen see(const Run& run, const float* grad, Scales old, NewMoments) {
    return {log_largest(rule_, source(run, grad, old), run.length)};
  }

  template <bool Param>
  void write(const Run& run, NewMoments from, const uint32_t* draws,
             Scales scales, float* param) const {
    const LogTarget target = {from.first,
                              from.root,
                              draws,
                              codes(first_) + run.start,
                              codes(second_) + run.start,
                              param,
                              Grid(first_, scales.first),
                              Grid(second_, scales.second)};
    if (!target.grid1.fits || !target.grid2.fits) {
      log_finish<0, true, Param>(rule_, target, run.length);
    } else if (run.length == kBlock) {
      log_finish<kBlock, false, Param>(rule_, target, run.length);
    } else {
      log_finish<0, false, Param>(rule_, target, run.length);
    }
  }

 private:
  LogSource source(const Run& run, const float* grad, Scales old) const {
    return {grad, codes(first_) + run.start, codes(second_) + run.start, Grid(first_, old.first),
            Grid(second_, old.second)};
  }

  const AdamWNumbers rule_;
  const Moment first_;
  const Moment second_;
};

}  // namespace
}  // namespace luma

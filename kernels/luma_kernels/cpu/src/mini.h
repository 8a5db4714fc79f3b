// A step of Adam-mini: the mean of the squared gradients of each segment, then all else.
#pragma once

#include <type_traits>

#include "stepping.h"

namespace luma {
namespace {

// What stands in place of the root of a segment that is left as it was.
constexpr float kLeftRoot = -1.0f;

// Where a segment lies: in one index of `outer`, from one position on.
struct Segment {
  int64_t position;
  int64_t positions;
  int64_t outer;

  Segment(const Segments& g, int64_t number) : outer(number / g.per_outer) {
    const int64_t inside = number % g.per_outer;
    const int64_t* run = g.runs;
    for (int64_t i = 1; i < g.runs_count && g.runs[3 * i + 1] <= inside; ++i) run = g.runs + 3 * i;
    positions = run[2];
    position = run[0] + (inside - run[1]) * positions;
  }
};

// The number of the segment of a position.
inline int64_t segment_at(const Segments& g, int64_t outer, int64_t position) {
  const int64_t* run = g.runs;
  for (int64_t i = 1; i < g.runs_count && g.runs[3 * i] <= position; ++i) run = g.runs + 3 * i;
  return outer * g.per_outer + run[1] + (position - run[0]) / run[2];
}

// Adds up squares of gradients. The order of additions is the same everywhere.
class SquareSum {
 public:
  explicit SquareSum(const Step& step) : s_(step) {}

  double of(int64_t start, int64_t n) {
    constexpr int64_t lanes = 16;
    alignas(64) double sums[lanes] = {};
    for (int64_t done = 0; done < n; done += kChunk) {
      const int64_t here = min64(kChunk, n - done);
      squares(start + done, here);
      const int64_t full = here / lanes * lanes;
      for (int64_t i = 0; i < full; i += lanes) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          sums[lane] += static_cast<double>(squares_[i + lane]);
        }
      }
      for (int64_t i = full; i < here; ++i) sums[i - full] += static_cast<double>(squares_[i]);
    }
    for (int64_t width = lanes / 2; width > 0; width /= 2) {
      for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    }
    return sums[0];
  }

  void add(int64_t start, int64_t n, double* __restrict sums) {
    squares(start, n);
    for (int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(squares_[i]);
  }

 private:
  void squares(int64_t start, int64_t n) {
    const float* __restrict grad =
        load(const_cast<void*>(s_.grad), s_.grad_dtype, start, n, scratch_);
    const float factor = s_.grad_factor;
    for (int64_t i = 0; i < n; ++i) {
      const float scaled = grad[i] * factor;
      squares_[i] = scaled * scaled;
    }
  }

  const Step& s_;
  alignas(64) float scratch_[kChunk];
  alignas(64) float squares_[kChunk];
};

void mini_sums(const Step& s, const Segments& g, int64_t begin, int64_t end) {
  SquareSum sum(s);
  if (g.reduce == 1) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t from = unit % g.pieces * kPieceElements;
      const int64_t n = min64(kPieceElements, g.inner - from);
      g.sums[unit] = sum.of(unit / g.pieces * g.inner + from, n);
    }
    return;
  }
  const int64_t plane = g.length * g.inner;
  const int64_t per_plane = (plane + kPieceColumns - 1) / kPieceColumns;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t outer = unit / per_plane;
    const int64_t column = unit % per_plane * kPieceColumns;
    const int64_t n = min64(kPieceColumns, plane - column);
    double* to = g.sums + outer * plane + column;
    for (int64_t i = 0; i < n; ++i) to[i] = 0.0;
    for (int64_t row = 0; row < g.reduce; ++row) {
      sum.add((outer * g.reduce + row) * plane + column, n, to);
    }
  }
}

// Steps a second moment; returns its root, or `kLeftRoot`.
inline float next_root(const Step& s, double total, int64_t elements, float* second, int64_t* bad) {
  const float mean = static_cast<float>(total / static_cast<double>(elements));
  const AdamWNumbers rule(s);
  const float v = *second * rule.beta2 + mean * rule.one_minus_beta2;
  const bool finite = (as_bits(v) & kMagnitude) < kInfinityBits;
  *bad += !finite;
  if (!finite && s.skip_nonfinite) return kLeftRoot;
  *second = v;
  return __builtin_sqrtf(v);
}

int64_t mini_seconds(const Step& s, const Segments& g, int64_t begin, int64_t end) {
  int64_t bad = 0;
  for (int64_t number = begin; number < end; ++number) {
    const Segment segment(g, number);
    const double* from = g.sums + (segment.outer * g.length + segment.position) * g.pieces;
    double total = 0.0;
    for (int64_t i = 0; i < segment.positions * g.pieces; ++i) total += from[i];
    const int64_t elements = segment.positions * g.reduce * g.inner;
    const float root = next_root(s, total, elements, g.second + number, &bad);
    if (g.reduce == 1) {
      g.roots[number] = root;
      continue;
    }
    float* to = g.roots + (segment.outer * g.length + segment.position) * g.inner;
    for (int64_t i = 0; i < segment.positions * g.inner; ++i) to[i] = root;
  }
  return bad;
}

// The roots of runs of elements of all segments.
class AllRoots {
 public:
  explicit AllRoots(const Segments& segments) : g_(segments) {}

  void fill(int64_t start, int64_t n, float* to) const {
    if (g_.reduce == 1) return fill_rows(start, n, to);
    const int64_t plane = g_.length * g_.inner;
    for (int64_t done = 0; done < n;) {
      const int64_t at = start + done;
      const int64_t column = at % plane;
      const int64_t count = min64(n - done, plane - column);
      const float* from = g_.roots + at / plane / g_.reduce * plane + column;
      std::memcpy(to + done, from, count * sizeof(float));
      done += count;
    }
  }

 private:
  void fill_rows(int64_t start, int64_t n, float* to) const {
    for (int64_t done = 0; done < n;) {
      const int64_t at = (start + done) / g_.inner;
      const int64_t number = segment_at(g_, at / g_.length, at % g_.length);
      const Segment segment(g_, number);
      const int64_t last = segment.outer * g_.length + segment.position + segment.positions;
      const int64_t count = min64(n - done, last * g_.inner - start - done);
      for (int64_t i = 0; i < count; ++i) to[done + i] = g_.roots[number];
      done += count;
    }
  }

  const Segments& g_;
};

// The root of one segment.
struct OneRoot {
  float root;

  void fill(int64_t, int64_t n, float* to) const {
    for (int64_t i = 0; i < n; ++i) to[i] = root;
  }
};

template <class First>
class MiniStepper : public StepTensors {
 public:
  explicit MiniStepper(const Step& step) : StepTensors(step), rule_(step), first_(step.first) {}

  // Steps one block; one whose elements are all left stays as it is.
  template <class Roots>
  void step(const Run& block, const Roots& roots) {
    const typename First::Scale old = first_.stored(block.block);
    typename First::Seen seen{};
    bool touched = false;
    each_run(block, [&](const Run& run) {
      touched |= update(run, old, roots);
      seen = merge(seen, first_.see(work_.first, run.padded));
    });
    if (!touched) return;
    const typename First::Scale scale = first_.fit(seen, &old);
    each_run(block, [&](const Run& run) {
      if (block.padded > kChunk) update(run, old, roots);
      draw(First::kRounds, run.start, run.length, run.padded);
      step_param(run);
      first_.round_down_below(run, work_.first, work_.root, scale);
      first_.write(run, work_.first, work_.root, work_.bits, scale);
    });
    first_.store(block.block, scale);
  }

 private:
  // Computes the new first moment, which is the old one in segments that are left; returns whether
  // there are others.
  template <class Roots>
  bool update(const Run& run, typename First::Scale old, const Roots& roots) {
    roots.fill(run.start, run.length, work_.root);
    for (int64_t i = run.length; i < run.padded; ++i) work_.root[i] = kLeftRoot;
    const AdamWNumbers rule = rule_;
    const float* __restrict grad = gradients(run);
    const float* __restrict from = first_.read(run, old, work_.second);
    const float* __restrict root = work_.root;
    float* __restrict to = work_.first;
    int32_t touched = 0;
    for (int64_t i = 0; i < run.padded; ++i) {
      const float value = rule.first(from[i], rule.gradient(grad[i]));
      const bool left = root[i] == kLeftRoot;
      touched |= !left;
      to[i] = left ? from[i] : value;
    }
    return touched;
  }

  void step_param(const Run& run) {
    const AdamWNumbers rule = rule_;
    float* __restrict to = param(run);
    const float* __restrict first = work_.first;
    const float* __restrict root = work_.root;
    for (int64_t i = 0; i < run.length; ++i) {
      const float value = rule.param<false>(to[i], first[i], root[i]);
      to[i] = root[i] == kLeftRoot ? to[i] : value;
    }
    store_param(run, 0);
  }

  const AdamWNumbers rule_;
  First first_;
};

// Steps elements that lie in whole blocks of their own.
template <class First, class Roots>
void step_range(MiniStepper<First>& stepper, const Step& s, int64_t start, int64_t n,
                const Roots& roots) {
  if (std::is_empty<typename First::Scale>::value) {
    for (int64_t done = 0; done < n; done += kChunk) {
      const int64_t here = min64(kChunk, n - done);
      stepper.step(Run{0, start + done, here, start + done, here}, roots);
    }
    return;
  }
  const Layout& layout = s.layout;
  const int64_t per_row = blocks_per_row(layout);
  const int64_t row = start / layout.cols;
  const int64_t first = row * per_row + start % layout.cols / layout.block;
  const int64_t stop = start + n;
  const int64_t last = stop / layout.cols * per_row + stop % layout.cols / layout.block;
  each_block(layout, first, last, First::kPadded,
             [&](const Run& block) { stepper.step(block, roots); });
}

template <class First>
int64_t mini_segments_of(const Step& s, const Segments& g, int64_t begin, int64_t end) {
  MiniStepper<First> stepper(s);
  SquareSum sum(s);
  int64_t bad = 0;
  for (int64_t number = begin; number < end; ++number) {
    const Segment segment(g, number);
    const int64_t start = (segment.outer * g.length + segment.position) * g.inner;
    const int64_t n = segment.positions * g.inner;
    const float root = next_root(s, sum.of(start, n), n, g.second + number, &bad);
    step_range(stepper, s, start, n, OneRoot{root});
  }
  return bad;
}

template <class First>
void mini_update_of(const Step& s, const Segments& g, int64_t begin, int64_t end) {
  MiniStepper<First> stepper(s);
  const AllRoots roots(g);
  each_block(s.layout, begin, end, First::kPadded,
             [&](const Run& block) { stepper.step(block, roots); });
}

int64_t mini_segments(const Step& s, const Segments& g, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...) \
  case instance(RULE, FIRST, SECOND): return mini_segments_of<__VA_ARGS__>(s, g, begin, end);
    LUMA_MINI(LUMA_CASE)
#undef LUMA_CASE
  }
  return 0;
}

void mini_update(const Step& s, const Segments& g, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...) \
  case instance(RULE, FIRST, SECOND): return mini_update_of<__VA_ARGS__>(s, g, begin, end);
    LUMA_MINI(LUMA_CASE)
#undef LUMA_CASE
  }
}

}  // namespace
}  // namespace luma

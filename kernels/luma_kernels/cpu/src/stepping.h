// A step over ranges of blocks, or of the chunks of a tensor that is one block.
#pragma once

#include "family.h"
#include "instances.h"
#include "lion.h"

namespace luma {
namespace {

// The tensors of a step beside its moments, and what is computed from them.
class StepTensors {
 public:
  explicit StepTensors(const Step& step)
      : s_(step), noise_{step.k0, step.k1} {}

  float* param(const Run& run) {
    return load(s_.param, s_.param_dtype, run.start, run.length, work_.param);
  }

  // Rounds what `param` returned, where that is not the parameter itself.
  void store_param(const Run& run, int64_t at) {
    if (s_.param_dtype == kFloat32) return;
    const int64_t n = run.length;
    uint16_t* __restrict to = static_cast<uint16_t*>(s_.param) + run.start;
    const float* __restrict from = work_.param;
    const uint32_t* __restrict bits = work_.bits + at;
    if (s_.param_dtype == kFloat16) {
      for (int64_t i = 0; i < n; ++i) to[i] = to_float16(from[i]);
    } else if (s_.round_param) {
      for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i], third_draw(bits[i]));
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i]);
    }
  }

 protected:
  // Draws for elements from `start`; none for the rest of `padded`.
  void draw(bool rounds, int64_t start, int64_t n, int64_t padded) {
    if (!rounds && !s_.round_param) return;
    noise_.fill(work_.bits, static_cast<uint64_t>(s_.first_index + start), n);
    if (padded > n) std::memset(work_.bits + n, 0, (padded - n) * sizeof(uint32_t));
  }

  const float* gradients(const Run& run) {
    const int64_t n = run.length;
    float* grad = load(const_cast<void*>(s_.grad), s_.grad_dtype, run.start, n, work_.grad);
    const float factor = s_.grad_factor;
    if (run.padded == n && factor == 1.0f) return grad;
    for (int64_t i = 0; i < n; ++i) work_.grad[i] = grad[i] * factor;
    for (int64_t i = n; i < run.padded; ++i) work_.grad[i] = 0.0f;
    return work_.grad;
  }

  const Step& s_;
  const Noise noise_;
  Work work_;
};

// Takes a step over runs of elements. `at` counts elements of the work space.
template <class Pair>
class Stepper : public StepTensors {
 public:
  using Scales = typename Pair::Scales;
  using Seen = typename Pair::Seen;

  explicit Stepper(const Step& step) : StepTensors(step), pair_(step) {}

  Pair& pair() { return pair_; }

  Seen update(const Run& run, int64_t at, Scales old) {
    if constexpr (kTakesParam<Pair>) {
      return pair_.update(run, gradients(run), coupled(run), old, new_moments(at));
    } else {
      return pair_.update(run, gradients(run), old, new_moments(at));
    }
  }

  // As `update`, but the new moments may be lost.
  Seen see(const Run& run, Scales old) {
    if constexpr (kTakesParam<Pair>) {
      return pair_.see(run, gradients(run), coupled(run), old, new_moments(0));
    } else {
      return pair_.see(run, gradients(run), old, new_moments(0));
    }
  }

  void draw(int64_t start, int64_t n, int64_t padded) {
    StepTensors::draw(Pair::kRounds, start, n, padded);
  }

  // Stores new moments and, with `Param`, takes the step of the parameter.
  template <bool Param>
  void write(const Run& run, int64_t at, Scales scales) {
    float* to = Param ? param(run) : nullptr;
    pair_.template write<Param>(run, new_moments(at), work_.bits + at, scales, to);
    if (Param) store_param(run, at);
  }

  // The moments as they are stored.
  Moments moments(const Run& run, Scales scales) {
    return pair_.read(run, scales, work_.first, work_.second);
  }

 private:
  // The parameter, where it has a part in the gradient.
  const float* coupled(const Run& run) { return pair_.couples() ? param(run) : nullptr; }

  NewMoments new_moments(int64_t at) {
    return {work_.first + at, work_.second + at, work_.root + at, work_.direction + at};
  }

  Pair pair_;
};

// One block on its own. The new moments of one longer than a chunk are computed twice, the first
// time to see them. Returns whether it is bad.
template <class Pair, bool Param>
bool step_block(Stepper<Pair>& stepper, bool skip, const Run& block) {
  const typename Pair::Scales old = stepper.pair().stored(block.block);
  const bool fits = block.padded <= kChunk;
  typename Pair::Seen seen{};
  if (fits) {
    seen = stepper.update(block, 0, old);
  } else {
    each_run(block, [&](const Run& run) { seen = Pair::merge(seen, stepper.see(run, old)); });
  }
  const bool bad = seen.nonfinite();
  if (bad && skip) return bad;
  const typename Pair::Scales scales = stepper.pair().fit(seen, old);
  each_run(block, [&](const Run& run) {
    if (!fits) stepper.update(run, 0, old);
    stepper.draw(run.start, run.length, run.padded);
    stepper.template write<Param>(run, 0, scales);
  });
  stepper.pair().store(block.block, scales);
  return bad;
}

// Consecutive blocks that fit into one chunk, taken stage by stage: what is seen of one block is
// then known long before it is needed, and short blocks cost no more than long ones.
template <class Pair>
class Batch {
 public:
  Batch(Stepper<Pair>& stepper, bool skip) : stepper_(stepper), skip_(skip) {}

  void add(const Run& run) {
    if (count_ == kPieces || padded_ + run.padded > kChunk) flush();
    if (count_ == 0) start_ = run.start;
    const typename Pair::Scales old = stepper_.pair().stored(run.block);
    pieces_[count_++] = {run, padded_, stepper_.update(run, padded_, old)};
    length_ += run.length;
    padded_ += run.padded;
    // Elements of one batch lie side by side in its work space, for their draws.
    if (run.padded > run.length) flush();
  }

  void flush() {
    if (count_ == 0) return;
    stepper_.draw(start_, length_, padded_);
    for (int i = 0; i < count_; ++i) write(pieces_[i]);
    count_ = 0;
    length_ = padded_ = 0;
  }

  int64_t bad() const { return bad_; }

 private:
  static constexpr int kPieces = 32;

  struct Piece {
    Run run;
    int64_t at;
    typename Pair::Seen seen;
  };

  void write(const Piece& piece) {
    const bool bad = piece.seen.nonfinite();
    bad_ += bad;
    if (bad && skip_) return;
    Pair& pair = stepper_.pair();
    const typename Pair::Scales scales = pair.fit(piece.seen, pair.stored(piece.run.block));
    stepper_.template write<true>(piece.run, piece.at, scales);
    pair.store(piece.run.block, scales);
  }

  Stepper<Pair>& stepper_;
  const bool skip_;
  Piece pieces_[kPieces];
  int count_ = 0;
  int64_t start_ = 0;
  int64_t length_ = 0;
  int64_t padded_ = 0;
  int64_t bad_ = 0;
};

template <class Pair>
int64_t step_blocks(const Step& s, int64_t begin, int64_t end) {
  Stepper<Pair> stepper(s);
  const bool skip = s.skip_nonfinite != 0;
  if (s.layout.block > kChunk) {
    int64_t bad = 0;
    each_block(s.layout, begin, end, Pair::kPadded, [&](const Run& block) {
      bad += step_block<Pair, true>(stepper, skip, block);
    });
    return bad;
  }
  Batch<Pair> batch(stepper, skip);
  each_block(s.layout, begin, end, Pair::kPadded, [&](const Run& block) { batch.add(block); });
  batch.flush();
  return batch.bad();
}

// Steps are checked before: there is a row of each (`luma_steps`).
int64_t step(const Step& s, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...) \
  case instance(RULE, FIRST, SECOND): return step_blocks<__VA_ARGS__>(s, begin, end);
    LUMA_ELEMENTWISE(LUMA_CASE)
#undef LUMA_CASE
  }
  return 0;
}

template <class Pair>
Largest see_chunks(const Step& s, int64_t begin, int64_t end) {
  Stepper<Pair> stepper(s);
  const typename Pair::Scales old = stepper.pair().stored(0);
  typename Pair::Seen seen{};
  each_whole_chunk(s.layout, begin, end, [&](const Run& run) {
    seen = Pair::merge(seen, stepper.see(run, old));
  });
  return Pair::largest(seen);
}

template <class Pair>
void step_chunks(const Step& s, Largest largest, int64_t begin, int64_t end) {
  Stepper<Pair> stepper(s);
  const typename Pair::Scales old = stepper.pair().stored(0);
  const typename Pair::Scales scales = stepper.pair().fit(Pair::seen(largest), old);
  each_whole_chunk(s.layout, begin, end,
                   [&](const Run& run) {
                     stepper.update(run, 0, old);
                     stepper.draw(run.start, run.length, run.padded);
                     stepper.template write<true>(run, 0, scales);
                   });
}

Largest whole_measure(const Step& s, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...) \
  case instance(RULE, FIRST, SECOND): return see_chunks<__VA_ARGS__>(s, begin, end);
    LUMA_WHOLE(LUMA_CASE)
#undef LUMA_CASE
  }
  return {};
}

void whole_step(const Step& s, Largest largest, int64_t begin, int64_t end) {
  switch (instance(s)) {
#define LUMA_CASE(RULE, FIRST, SECOND, ...) \
  case instance(RULE, FIRST, SECOND): return step_chunks<__VA_ARGS__>(s, largest, begin, end);
    LUMA_WHOLE(LUMA_CASE)
#undef LUMA_CASE
  }
}

}  // namespace
}  // namespace luma

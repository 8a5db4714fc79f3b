// A step over ranges of blocks, or of the chunks of a tensor that is one block.
#pragma once

#include <cstring>

#include "adamw.h"
#include "ranges.h"

namespace luma {
namespace {

inline Largest merge(Largest a, Largest b) {
  return {larger(a.first, b.first), larger(a.second, b.second)};
}

struct Exponents {
  uint8_t first;
  uint8_t second;
};

// Takes a step over a run of up to kChunk elements in pieces that each lie in one block. `start`
// counts elements of the tensor, `at` those of the run.
class Stepper {
 public:
  explicit Stepper(const Step& step) : s_(step), rule_(step), noise_{step.k0, step.k1} {}

  bool plain() const { return s_.first.kind == kPlain; }

  Exponents stored(int64_t block) const {
    if (plain()) return {0, 0};
    return {s_.first.exponent[block], s_.second.exponent[block]};
  }

  void store(int64_t block, Exponents exponents) {
    if (plain()) return;
    s_.first.exponent[block] = exponents.first;
    s_.second.exponent[block] = exponents.second;
  }

  Exponents fitted(Largest largest) const {
    if (plain()) return {0, 0};
    return {fit(s_.first, largest.first), fit(s_.second, largest.second)};
  }

  Largest moments(int64_t start, int64_t n, int64_t at, Exponents old) {
    if (plain()) {
      return plain_moments(rule_, gradients(start, n), values(s_.first) + start,
                           values(s_.second) + start, n, at, work_);
    }
    const LogSource source = log_source(start, n, old);
    float* first = work_.first + at;
    float* root = work_.root + at;
    return n == kBlock ? log_moments<kBlock>(rule_, source, n, first, root)
                       : log_moments<0>(rule_, source, n, first, root);
  }

  // As `moments`, but the new moments may be lost.
  Largest largest(int64_t start, int64_t n, Exponents old) {
    return plain() ? moments(start, n, 0, old) : log_largest(rule_, log_source(start, n, old), n);
  }

  void draw(int64_t start, int64_t n) {
    if (plain() && !s_.round_param) return;
    noise_.fill(work_.bits, static_cast<uint64_t>(s_.first_index + start), n);
  }

  void write(int64_t start, int64_t n, int64_t at, Exponents exponents) {
    float* param = load(s_.param, s_.param_dtype, start, n, work_.param);
    if (plain()) {
      std::memcpy(values(s_.first) + start, work_.first + at, n * sizeof(float));
      std::memcpy(values(s_.second) + start, work_.second + at, n * sizeof(float));
      update_param(rule_, work_.first + at, work_.root + at, n, param);
    } else {
      write_log({work_.first + at, work_.root + at, work_.bits + at, codes(s_.first) + start,
                 codes(s_.second) + start, param, Grid(s_.first, exponents.first),
                 Grid(s_.second, exponents.second)},
                n);
    }
    if (s_.param_dtype != kFloat32) store_param(start, n, at);
  }

 private:
  void write_log(const LogTarget& target, int64_t n) const {
    if (!target.grid1.fits || !target.grid2.fits) {
      log_finish<0, true>(rule_, target, n);
    } else if (n == kBlock) {
      log_finish<kBlock, false>(rule_, target, n);
    } else {
      log_finish<0, false>(rule_, target, n);
    }
  }

  void store_param(int64_t start, int64_t n, int64_t at) {
    uint16_t* __restrict to = static_cast<uint16_t*>(s_.param) + start;
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

  const float* gradients(int64_t start, int64_t n) {
    return load(const_cast<void*>(s_.grad), s_.grad_dtype, start, n, work_.grad);
  }

  LogSource log_source(int64_t start, int64_t n, Exponents old) {
    return {gradients(start, n), codes(s_.first) + start, codes(s_.second) + start,
            Grid(s_.first, old.first), Grid(s_.second, old.second)};
  }

  const Step& s_;
  const Rule rule_;
  const Noise noise_;
  Work work_;
};

void write_chunk(Stepper& stepper, int64_t start, int64_t n, Exponents old, Exponents exponents) {
  stepper.moments(start, n, 0, old);
  stepper.draw(start, n);
  stepper.write(start, n, 0, exponents);
}

// A block longer than a chunk: its new moments are computed twice, the first time for its largest.
// Returns whether it is bad.
bool step_long_block(Stepper& stepper, bool skip, int64_t block, int64_t start, int64_t length) {
  const Exponents old = stepper.stored(block);
  Largest largest;
  each_chunk(start, length, [&](int64_t at, int64_t n) {
    largest = merge(largest, stepper.largest(at, n, old));
  });
  const bool bad = nonfinite(largest);
  if (bad && skip) return bad;
  const Exponents exponents = stepper.fitted(largest);
  each_chunk(start, length,
             [&](int64_t at, int64_t n) { write_chunk(stepper, at, n, old, exponents); });
  stepper.store(block, exponents);
  return bad;
}

// Consecutive blocks that fit into one chunk, taken stage by stage: the maximum of one block is
// then known long before it is needed, and short blocks cost no more than long ones.
class Batch {
 public:
  Batch(Stepper& stepper, bool skip) : stepper_(stepper), skip_(skip) {}

  void add(int64_t block, int64_t start, int64_t length) {
    if (count_ == kPieces || length_ + length > kChunk) flush();
    if (count_ == 0) start_ = start;
    const Exponents old = stepper_.stored(block);
    pieces_[count_++] = {block, length_, length, stepper_.moments(start, length, length_, old)};
    length_ += length;
  }

  void flush() {
    if (count_ == 0) return;
    stepper_.draw(start_, length_);
    for (int i = 0; i < count_; ++i) write(pieces_[i]);
    count_ = 0;
    length_ = 0;
  }

  int64_t bad() const { return bad_; }

 private:
  static constexpr int kPieces = 32;

  struct Piece {
    int64_t block;
    int64_t at;
    int64_t length;
    Largest largest;
  };

  void write(const Piece& piece) {
    const bool bad = nonfinite(piece.largest);
    bad_ += bad;
    if (bad && skip_) return;
    const Exponents exponents = stepper_.fitted(piece.largest);
    stepper_.write(start_ + piece.at, piece.length, piece.at, exponents);
    stepper_.store(piece.block, exponents);
  }

  Stepper& stepper_;
  const bool skip_;
  Piece pieces_[kPieces];
  int count_ = 0;
  int64_t start_ = 0;
  int64_t length_ = 0;
  int64_t bad_ = 0;
};

int64_t step(const Step& s, int64_t begin, int64_t end) {
  Stepper stepper(s);
  const bool skip = s.skip_nonfinite != 0;
  if (s.layout.block > kChunk) {
    int64_t bad = 0;
    each_block(s.layout, begin, end, [&](int64_t block, int64_t start, int64_t length) {
      bad += step_long_block(stepper, skip, block, start, length);
    });
    return bad;
  }
  Batch batch(stepper, skip);
  each_block(s.layout, begin, end, [&](int64_t block, int64_t start, int64_t length) {
    batch.add(block, start, length);
  });
  batch.flush();
  return batch.bad();
}

Largest whole_measure(const Step& s, int64_t begin, int64_t end) {
  Stepper stepper(s);
  const Exponents old = stepper.stored(0);
  Largest largest;
  each_whole_chunk(s.layout, begin, end, [&](int64_t at, int64_t n) {
    largest = merge(largest, stepper.largest(at, n, old));
  });
  return largest;
}

void whole_step(const Step& s, Largest largest, int64_t begin, int64_t end) {
  Stepper stepper(s);
  const Exponents old = stepper.stored(0);
  const Exponents exponents = stepper.fitted(largest);
  each_whole_chunk(s.layout, begin, end, [&](int64_t at, int64_t n) {
    write_chunk(stepper, at, n, old, exponents);
  });
}

}  // namespace
}  // namespace luma

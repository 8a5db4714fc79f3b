// What the launcher hands to the native kernels; `structs.py` mirrors these layouts field by field.
#pragma once

#include <cstdint>

namespace luma {

// Raised whenever a struct or a function changes, so that an old build is refused, not misread.
constexpr int32_t kInterfaceVersion = 6;

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Kind : int32_t {
  kPlain = 0,
  kLogSigned = 1,
  kLogRoot = 2,
  kTable = 3,
  kRoot = 4,
  kLog = 5,
  kBFloat = 6,
  kFp8 = 7,
  // Of a moment that there is not, or that is not stored element by element.
  kNone = 8,
  kKinds = 9
};
enum RuleNumber : int32_t { kAdamW = 0, kLamb = 1, kMini = 2, kLion = 3, kFamily = 4 };

// How elements form blocks: rows of `cols` elements cut into blocks of `block`; 0 means one block.
struct Layout {
  int64_t rows;
  int64_t cols;
  int64_t block;
};

// One stored moment: float32 or bfloat16 values (kPlain, kBFloat), or codes and what there is of
// each block. Codes are of 16 or 8 bits with an exponent (kLogSigned, kLogRoot, kFp8), or packed
// with a bfloat16 scale (kTable, kRoot) or with an exponent and a mantissa (kLog).
struct Moment {
  void* values;
  uint8_t* exponent;
  uint8_t* mantissa;
  uint16_t* scale;
  const float* levels;
  const float* thresholds;
  int32_t kind;
  int32_t octaves;
  int32_t mantissa_bits;
  int32_t bits;
  float floor;
  float step;
  float per_step;
  // Of kRoot: how far a scale may rise in a step, in units of its last place; 0 for any distance.
  int32_t rise;
};

struct Segments;

// Numbers of a rule for a step, in the order that the rule's own header names.
constexpr int kScalars = 16;

struct Step {
  void* param;
  const void* grad;
  Moment first;
  Moment second;
  Layout layout;
  int64_t first_index;
  int32_t param_dtype;
  int32_t grad_dtype;
  uint32_t k0;
  uint32_t k1;
  int32_t skip_nonfinite;
  int32_t round_param;
  int32_t maximize;
  int32_t rule;
  float grad_factor;
  double scalars[kScalars];
  // Of LAMB: room for two numbers for each block.
  double* sums;
  // Of Adam-mini.
  const Segments* segments;
};

// LAMB's numbers after those that it shares with AdamW (`AdamWNumbers`).
enum LambScalar { kInverseCorrection1 = 9, kWeightDecay, kAdapt, kTrustClip, kLearningRate };

// A kernel that the library has: of a rule, and moments of these kinds; with one scale for the
// whole tensor where `whole` is not 0.
struct Instance {
  int32_t rule;
  int32_t first;
  int32_t second;
  int32_t whole;
};

// One moment to encode from `plain`, or to decode into it.
struct Coding {
  void* plain;
  const int32_t* draws;
  Moment stored;
  Layout layout;
  int32_t plain_dtype;
};

// Bit patterns of the largest magnitudes seen, as integers: NaN and infinity order above all.
struct Largest {
  int32_t first = 0;
  int32_t second = 0;
};

// The Hessian blocks of Adam-mini: luma_core/codecs/segments.py.
struct Segments {
  int64_t outer;
  int64_t reduce;
  int64_t length;
  int64_t inner;
  // For each run of segments of one size: first position, first segment, positions of a segment.
  const int64_t* runs;
  int64_t runs_count;
  int64_t per_outer;
  // How many sums a position has: one for each element of `inner` where `reduce` is above 1, else
  // one for each `kPieceElements` of them.
  int64_t pieces;
  float* second;
  // Room for the sums of all positions.
  double* sums;
  // Room for what belongs to the elements of a segment, once for each, or where `reduce` is above
  // 1, for each position and element of `inner`.
  float* roots;
  // Whether each segment has blocks of its own and is short enough to be taken at once.
  int32_t alone;
};

// A tensor whose squares are added up exactly: luma_core/rules/norms.py.
struct Squares {
  const void* values;
  int64_t rows;
  int64_t cols;
  int32_t dtype;
  int32_t flat;
};

// Of summary.h.
struct Summary;

// One build of kernels.cpp. Ranges are of blocks; in the `whole_` functions, of chunks; of segments
// in `mini_segments` and `mini_seconds`, and of the sums that `sum_units` counts in `mini_sums`; in
// `square_digits` of what `square_units` counts.
struct Kernels {
  int64_t (*step)(const Step&, int64_t begin, int64_t end);
  Largest (*whole_measure)(const Step&, int64_t begin, int64_t end);
  void (*whole_step)(const Step&, Largest, int64_t begin, int64_t end);
  int64_t (*lamb_moments)(const Step&, double* sums, int64_t begin, int64_t end);
  void (*lamb_params)(const Step&, const double* sums, float rate, int64_t begin, int64_t end);
  int64_t (*mini_segments)(const Step&, const Segments&, int64_t begin, int64_t end);
  void (*mini_sums)(const Step&, const Segments&, int64_t begin, int64_t end);
  int64_t (*mini_seconds)(const Step&, const Segments&, int64_t begin, int64_t end);
  void (*mini_update)(const Step&, const Segments&, int64_t begin, int64_t end);
  void (*square_digits)(const Squares&, int64_t* digits, int64_t begin, int64_t end);
  void (*encode)(const Coding&, int64_t begin, int64_t end);
  int32_t (*whole_largest)(const Coding&, int64_t begin, int64_t end);
  void (*whole_encode)(const Coding&, uint8_t exponent, int64_t begin, int64_t end);
  void (*decode)(const Coding&, int64_t begin, int64_t end);
  void (*whole_decode)(const Coding&, int64_t begin, int64_t end);
  void (*summarize)(const Summary&);
  void (*count_codes)(const uint16_t* codes, int64_t n, uint32_t* counts);
};

// Elements that a kernel holds at once; also the unit in which one-block tensors are shared out.
constexpr int64_t kChunk = 1024;

// Elements that Adam-mini adds up at once, and columns.
constexpr int64_t kPieceElements = 1 << 16;
constexpr int64_t kPieceColumns = 256;
// Elements whose squares `norms.py` adds up before it cuts the sum into digits.
constexpr int64_t kSquareBlock = 128;
// Digits of a sum of squares.
constexpr int kDigits = 10;
constexpr int32_t kInfinityBits = 0x7f800000;
constexpr uint8_t kExponentNonfinite = 254;

// Static: the linker must not replace one build's copy by that of a newer instruction set.
static inline int64_t numel(const Layout& layout) { return layout.rows * layout.cols; }

static inline int64_t blocks_per_row(const Layout& layout) {
  return (layout.cols + layout.block - 1) / layout.block;
}

// How many ranges of sums there are: runs of columns, or pieces of positions.
static inline int64_t sum_units(const Segments& g) {
  if (g.reduce == 1) return g.outer * g.length * g.pieces;
  return g.outer * ((g.length * g.inner + kPieceColumns - 1) / kPieceColumns);
}

// Chunks of a flat tensor, or blocks of squares.
static inline int64_t square_units(const Squares& x) {
  if (x.flat) return (x.rows * x.cols + kChunk - 1) / kChunk;
  return x.rows * ((x.cols + kSquareBlock - 1) / kSquareBlock);
}

// Whether a block is bad: one of its new moments is not finite.
static inline bool nonfinite(Largest largest) {
  return largest.first >= kInfinityBits || largest.second >= kInfinityBits;
}

// The stored exponent of a block: LogGrid.fit.
static inline uint8_t fit(const Moment& moment, int32_t largest) {
  if (largest >= kInfinityBits) return kExponentNonfinite;
  const int32_t bias = 126 - moment.octaves;
  const int32_t stored = ((largest - 1) >> 23) - 126 + bias;
  return static_cast<uint8_t>(stored < 0 ? 0 : stored > 128 + bias ? 128 + bias : stored);
}

}  // namespace luma

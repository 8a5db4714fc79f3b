// What the launcher hands to the native kernels; `structs.py` mirrors these layouts field by field.
#pragma once

#include <cstdint>

namespace luma {

// Raised whenever a struct or a function changes, so that an old build is refused, not misread.
constexpr int32_t kInterfaceVersion = 3;

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Kind : int32_t {
  kPlain = 0,
  kLogSigned = 1,
  kLogRoot = 2,
  kTable = 3,
  kRoot = 4,
  kLog = 5,
  kBFloat = 6
};

// How elements form blocks: rows of `cols` elements cut into blocks of `block`; 0 means one block.
struct Layout {
  int64_t rows;
  int64_t cols;
  int64_t block;
};

// One stored moment: float32 or bfloat16 values (kPlain, kBFloat), or codes and what there is of
// each block. Codes are of 16 bits with an exponent (kLogSigned, kLogRoot), or packed with a
// bfloat16 scale (kTable, kRoot) or with an exponent and a mantissa (kLog).
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
};

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
  // The first moment is base + lerp * (grad - moment), with base the gradient or the old moment.
  int32_t lerp_from_grad;
  float lerp;
  float beta2;
  float one_minus_beta2;
  float inverse_root_correction2;
  float eps;
  float decay;
  float rate;
  float grad_factor;
  // LAMB's own.
  float inverse_correction1;
  float weight_decay;
  int32_t adapt;
  int32_t trust_clip;
  double lr;
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

// Of summary.h.
struct Summary;

// One build of kernels.cpp. Ranges are of blocks; in the `whole_` functions, of chunks.
struct Kernels {
  int64_t (*step)(const Step&, int64_t begin, int64_t end);
  Largest (*whole_measure)(const Step&, int64_t begin, int64_t end);
  void (*whole_step)(const Step&, Largest, int64_t begin, int64_t end);
  int64_t (*lamb_moments)(const Step&, double* sums, int64_t begin, int64_t end);
  void (*lamb_params)(const Step&, const double* sums, float rate, int64_t begin, int64_t end);
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

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr uint8_t kExponentNonfinite = 254;

// Static: the linker must not replace one build's copy by that of a newer instruction set.
static inline int64_t numel(const Layout& layout) { return layout.rows * layout.cols; }

static inline int64_t blocks_per_row(const Layout& layout) {
  return (layout.cols + layout.block - 1) / layout.block;
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

// The library's C interface: picks a build of the kernels and shares the work out to threads.

#include <cmath>
#include <initializer_list>

#include "instances.h"

#ifdef _OPENMP
#include <omp.h>
#else
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace luma {

namespace generic {
extern const Kernels kernels;
}
#ifdef LUMA_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  bool (*runs_here)();
};

// Slowest first.
const InstructionSet kInstructionSets[] = {
#ifdef LUMA_X86
    {"sse2", &generic::kernels, [] { return true; }},
    {"avx2", &avx2::kernels, [] { return __builtin_cpu_supports("avx2") != 0; }},
    {"avx512", &avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#else
    {"generic", &generic::kernels, [] { return true; }},
#endif
};
// Elements that a thread takes at once.
constexpr int64_t kRangeElements = 1 << 16;

// Fewer elements than this are not worth waking another thread for: some 20 microseconds.
constexpr int64_t kThreadElements = 1 << 15;

constexpr int32_t kCount = sizeof kInstructionSets / sizeof kInstructionSets[0];

// Calls body() on each of `threads` threads, or on fewer if there are no more to be had.
template <class Body>
void parallel(int32_t threads, const Body& body) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  body();
#else
  std::vector<std::thread> running;
  try {
    for (int32_t i = 1; i < threads; ++i) running.emplace_back(body);
  } catch (const std::system_error&) {
    // The threads there are do all of the work.
  }
  body();
  for (auto& thread : running) thread.join();
#endif
}

// Calls body(begin, end) for ranges of `count` units of `unit_elements` each. Threads fetch the
// next range when done with one, so that one on a busy core does not hold up the others.
template <class Body>
void share(int32_t threads, int64_t count, int64_t unit_elements, const Body& body) {
  if (threads <= 1) return body(0, count);
  const int64_t range = unit_elements < kRangeElements ? kRangeElements / unit_elements : 1;
  int64_t next = 0;
  parallel(threads, [&] {
    for (;;) {
      const int64_t begin = __atomic_fetch_add(&next, range, __ATOMIC_RELAXED);
      if (begin >= count) return;
      body(begin, begin + range < count ? begin + range : count);
    }
  });
}

template <class Body>
void share(int32_t threads, const Layout& layout, const Body& body) {
  if (layout.block) {
    const int64_t block = layout.block < layout.cols ? layout.block : layout.cols;
    return share(threads, layout.rows * blocks_per_row(layout), block, body);
  }
  share(threads, (numel(layout) + kChunk - 1) / kChunk, kChunk, body);
}

void raise_to(int32_t* shared, int32_t value) {
  int32_t seen = __atomic_load_n(shared, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(shared, &seen, value, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

int64_t whole_step(const Step& s, const Kernels& kernels, int32_t threads) {
  Largest largest;
  share(threads, s.layout, [&](int64_t begin, int64_t end) {
    const Largest part = kernels.whole_measure(s, begin, end);
    raise_to(&largest.first, part.first);
    raise_to(&largest.second, part.second);
  });
  const bool bad = nonfinite(largest);
  if (bad && s.skip_nonfinite) return bad;
  share(threads, s.layout, [&](int64_t begin, int64_t end) {
    kernels.whole_step(s, largest, begin, end);
  });
  if (s.first.kind == kLogSigned) *s.first.exponent = fit(s.first, largest.first);
  if (s.second.kind == kLogRoot) *s.second.exponent = fit(s.second, largest.second);
  return bad;
}

// The learning rate times the trust ratio of a parameter, from the sums of its blocks. Those are
// added in order, so that the result does not depend on threads.
float lamb_rate(const Step& s, const double* sums) {
  double param = 0.0;
  double update = 0.0;
  const int64_t blocks = s.layout.rows * blocks_per_row(s.layout);
  for (int64_t block = 0; block < blocks; ++block) {
    if (sums[2 * block] < 0.0) continue;
    param += sums[2 * block];
    update += sums[2 * block + 1];
  }
  const double ratio = param > 0.0 && update > 0.0 ? std::sqrt(param) / std::sqrt(update) : 1.0;
  return static_cast<float>(s.scalars[kLearningRate] *
                            (s.scalars[kTrustClip] != 0.0 && ratio > 1.0 ? 1.0 : ratio));
}

int64_t blocks_step(const Step& s, const Kernels& kernels, int32_t threads) {
  int64_t bad = 0;
  share(threads, s.layout, [&](int64_t begin, int64_t end) {
    __atomic_fetch_add(&bad, kernels.step(s, begin, end), __ATOMIC_RELAXED);
  });
  return bad;
}

int64_t lamb_step(const Step& s, const Kernels& kernels, int32_t threads) {
  int64_t bad = 0;
  share(threads, s.layout, [&](int64_t begin, int64_t end) {
    __atomic_fetch_add(&bad, kernels.lamb_moments(s, s.sums, begin, end), __ATOMIC_RELAXED);
  });
  const float rate = lamb_rate(s, s.sums);
  share(threads, s.layout, [&](int64_t begin, int64_t end) {
    kernels.lamb_params(s, s.sums, rate, begin, end);
  });
  return bad;
}

// Counts segments whose second moments were not finite.
int64_t mini_step(const Step& s, const Kernels& kernels, int32_t threads) {
  const Segments& g = *s.segments;
  const int64_t count = g.outer * g.per_outer;
  const int64_t elements = numel(s.layout);
  int64_t bad = 0;
  const auto counted = [&](auto* kernel) {
    share(threads, count, elements / count, [&](int64_t begin, int64_t end) {
      __atomic_fetch_add(&bad, kernel(s, g, begin, end), __ATOMIC_RELAXED);
    });
  };
  if (g.alone) {
    counted(kernels.mini_segments);
    return bad;
  }
  const int64_t units = sum_units(g);
  share(threads, units, elements / units, [&](int64_t begin, int64_t end) {
    kernels.mini_sums(s, g, begin, end);
  });
  counted(kernels.mini_seconds);
  share(threads, s.layout, [&](int64_t begin, int64_t end) {
    kernels.mini_update(s, g, begin, end);
  });
  return bad;
}

int64_t one_step(const Step& s, const Kernels& kernels, int32_t threads) {
  if (numel(s.layout) == 0) return 0;
  if (s.rule == kMini) return mini_step(s, kernels, threads);
  if (s.rule == kLamb) return lamb_step(s, kernels, threads);
  if (s.layout.block == 0) return whole_step(s, kernels, threads);
  return blocks_step(s, kernels, threads);
}

const Instance kInstances[] = {
#define LUMA_BLOCKS_ROW(RULE, FIRST, SECOND, ...) {RULE, FIRST, SECOND, 0},
#define LUMA_WHOLE_ROW(RULE, FIRST, SECOND, ...) {RULE, FIRST, SECOND, 1},
    LUMA_ELEMENTWISE(LUMA_BLOCKS_ROW) LUMA_LAMB(LUMA_BLOCKS_ROW) LUMA_MINI(LUMA_BLOCKS_ROW)
        LUMA_WHOLE(LUMA_WHOLE_ROW)
#undef LUMA_BLOCKS_ROW
#undef LUMA_WHOLE_ROW
};
constexpr int32_t kInstanceCount = sizeof kInstances / sizeof kInstances[0];

bool is_dtype(int32_t dtype) { return dtype >= kFloat32 && dtype <= kFloat16; }

// Whether there is a kernel of a moment's codes: packed ones have few sizes.
bool is_packed_size(const Moment& moment) {
  if (moment.kind != kTable && moment.kind != kRoot && moment.kind != kLog) return true;
  return moment.bits == 8 || (moment.bits >= 2 && moment.bits <= 6);
}

bool is_known(const Step& s) {
  if (!is_dtype(s.param_dtype) || !is_dtype(s.grad_dtype)) return false;
  if (!is_packed_size(s.first) || !is_packed_size(s.second)) return false;
  for (const Instance& row : kInstances) {
    if (row.rule == s.rule && row.first == s.first.kind && row.second == s.second.kind &&
        row.whole == (s.layout.block == 0)) {
      return true;
    }
  }
  return false;
}

bool is_known(const Coding& c) {
  if (!is_dtype(c.plain_dtype) || !is_packed_size(c.stored)) return false;
  const int32_t kind = c.stored.kind;
  if (kind == kLogSigned || kind == kLogRoot) return true;
  if (c.layout.block == 0) return false;
  for (const int32_t known : {kTable, kRoot, kLog, kFp8}) {
    if (kind == known) return true;
  }
  return false;
}

}  // namespace
}  // namespace luma

#define LUMA_EXPORT extern "C" __attribute__((visibility("default")))

LUMA_EXPORT int32_t luma_interface_version() { return luma::kInterfaceVersion; }

LUMA_EXPORT int32_t luma_instruction_sets() { return luma::kCount; }

LUMA_EXPORT const char* luma_instruction_set_name(int32_t index) {
  return luma::kInstructionSets[index].name;
}

LUMA_EXPORT int32_t luma_instruction_set_runs_here(int32_t index) {
  return luma::kInstructionSets[index].runs_here();
}

LUMA_EXPORT const char* luma_threading() {
#ifdef _OPENMP
  return "OpenMP";
#else
  return "std::thread";
#endif
}

// Returns how many kernels of steps there are; writes the first `room` of them.
LUMA_EXPORT int32_t luma_instances(luma::Instance* to, int32_t room) {
  for (int32_t i = 0; i < room && i < luma::kInstanceCount; ++i) to[i] = luma::kInstances[i];
  return luma::kInstanceCount;
}

// Takes the steps of `count` parameters, one after another; `threads` is the most that one may use.
// Writes how many blocks of each had new moments that were not all finite. Returns 0, or the number
// of the first step that there is no kernel of, from 1 on: then nothing has changed.
LUMA_EXPORT int64_t luma_steps(const luma::Step* steps, int64_t count, int64_t* bad,
                               int32_t instruction_set, int32_t threads) {
  using namespace luma;
  const Kernels& kernels = *kInstructionSets[instruction_set].kernels;
  for (int64_t i = 0; i < count; ++i) {
    if (!is_known(steps[i])) return i + 1;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t worth = numel(steps[i].layout) / kThreadElements;
    const int32_t used = worth < threads ? static_cast<int32_t>(worth) : threads;
    bad[i] = one_step(steps[i], kernels, used);
  }
  return 0;
}

// Adds the digits of the sum of squares to `digits`: int64, as many as norms.py has.
LUMA_EXPORT void luma_square_digits(const luma::Squares* squares, int64_t* digits,
                                    int32_t instruction_set, int32_t threads) {
  using namespace luma;
  const Kernels& kernels = *kInstructionSets[instruction_set].kernels;
  const int64_t unit = squares->flat ? kChunk : kSquareBlock;
  share(threads, square_units(*squares), unit, [&](int64_t begin, int64_t end) {
    int64_t part[kDigits] = {};
    kernels.square_digits(*squares, part, begin, end);
    for (int i = 0; i < kDigits; ++i) __atomic_fetch_add(digits + i, part[i], __ATOMIC_RELAXED);
  });
}

// As `luma_decode`, returns 0, or 1 where there is no kernel: then nothing is written.
LUMA_EXPORT int32_t luma_encode(const luma::Coding* coding, int32_t instruction_set,
                                int32_t threads) {
  using namespace luma;
  if (!is_known(*coding)) return 1;
  const Kernels& kernels = *kInstructionSets[instruction_set].kernels;
  if (numel(coding->layout) == 0) return 0;
  if (coding->layout.block) {
    share(threads, coding->layout,
          [&](int64_t begin, int64_t end) { kernels.encode(*coding, begin, end); });
    return 0;
  }
  int32_t largest = 0;
  share(threads, coding->layout, [&](int64_t begin, int64_t end) {
    raise_to(&largest, kernels.whole_largest(*coding, begin, end));
  });
  const uint8_t exponent = fit(coding->stored, largest);
  share(threads, coding->layout, [&](int64_t begin, int64_t end) {
    kernels.whole_encode(*coding, exponent, begin, end);
  });
  *coding->stored.exponent = exponent;
  return 0;
}

LUMA_EXPORT int32_t luma_decode(const luma::Coding* coding, int32_t instruction_set,
                                int32_t threads) {
  using namespace luma;
  if (!is_known(*coding)) return 1;
  const Kernels& kernels = *kInstructionSets[instruction_set].kernels;
  if (numel(coding->layout) == 0) return 0;
  const bool blocks = coding->layout.block != 0;
  share(threads, coding->layout, [&](int64_t begin, int64_t end) {
    (blocks ? kernels.decode : kernels.whole_decode)(*coding, begin, end);
  });
  return 0;
}

LUMA_EXPORT void luma_summarize(const luma::Summary* summary, int32_t instruction_set) {
  luma::kInstructionSets[instruction_set].kernels->summarize(*summary);
}

LUMA_EXPORT void luma_count_codes(const uint16_t* codes, int64_t n, uint32_t* counts,
                                  int32_t instruction_set) {
  luma::kInstructionSets[instruction_set].kernels->count_codes(codes, n, counts);
}

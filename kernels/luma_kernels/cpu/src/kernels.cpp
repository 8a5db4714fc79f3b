// The kernels of one instruction set: compiled once for each, with LUMA_ISA as its name. They are
// plain loops that compilers turn into vector code. No operation may be contracted or reordered, so
// that all builds compute the same bits; everything is local to its build, so that the linker
// cannot mix them.

#include "coding.h"
#include "lamb.h"
#include "mini.h"
#include "squares.h"
#include "summary.h"

namespace luma {
namespace LUMA_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    step,          whole_measure, whole_step,   lamb_moments,  lamb_params,  mini_segments,
    mini_sums,     mini_seconds,  mini_update,  square_digits, encode,       whole_largest,
    whole_encode,  decode,        whole_decode, summarize,     count_codes};

}  // namespace LUMA_ISA
}  // namespace luma

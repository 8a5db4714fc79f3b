// How ranges of blocks and of chunks are walked.
#pragma once

#include "native.h"

namespace luma {
namespace {

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Consecutive elements of one block. Packed codes of a block that is cut short by the end of its
// row have the length of others: elements beyond are coded as zeros that get no gradient.
struct Run {
  int64_t block;
  int64_t start;   // of its first element, in the tensor
  int64_t length;  // of what the tensor has of it, which can be nothing
  int64_t place;   // of its first element, where all blocks have the same length
  int64_t padded;  // its length there
};

// Calls body(run) for each of a range of blocks.
template <class Body>
void each_block(const Layout& layout, int64_t begin, int64_t end, bool padded, const Body& body) {
  const int64_t per_row = blocks_per_row(layout);
  int64_t row = begin / per_row;
  int64_t col = (begin % per_row) * layout.block;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t length = min64(layout.block, layout.cols - col);
    body(Run{block, row * layout.cols + col, length, block * layout.block,
             padded ? layout.block : length});
    col += layout.block;
    if (col >= layout.cols) {
      col = 0;
      ++row;
    }
  }
}

// Calls body(run) for the parts of a run that fit into a chunk.
template <class Body>
void each_run(const Run& all, const Body& body) {
  for (int64_t done = 0; done < all.padded; done += kChunk) {
    const int64_t length = max64(0, min64(kChunk, all.length - done));
    body(Run{all.block, all.start + done, length, all.place + done,
             min64(kChunk, all.padded - done)});
  }
}

// Calls body(run) for a range of the chunks of a tensor that is one block.
template <class Body>
void each_whole_chunk(const Layout& layout, int64_t begin, int64_t end, const Body& body) {
  const int64_t start = begin * kChunk;
  const int64_t length = min64(end * kChunk, numel(layout)) - start;
  each_run(Run{0, start, length, start, length}, body);
}

}  // namespace
}  // namespace luma

// How ranges of blocks and of chunks are walked.
#pragma once

#include "native.h"

namespace luma {
namespace {

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls body(block, start, length) for a range of blocks.
template <class Body>
void each_block(const Layout& layout, int64_t begin, int64_t end, const Body& body) {
  const int64_t per_row = blocks_per_row(layout);
  int64_t row = begin / per_row;
  int64_t col = (begin % per_row) * layout.block;
  for (int64_t block = begin; block < end; ++block) {
    body(block, row * layout.cols + col, min64(layout.block, layout.cols - col));
    col += layout.block;
    if (col >= layout.cols) {
      col = 0;
      ++row;
    }
  }
}

// Calls body(start, length) for the chunks of a run of elements.
template <class Body>
void each_chunk(int64_t start, int64_t length, const Body& body) {
  for (int64_t done = 0; done < length; done += kChunk) {
    body(start + done, min64(kChunk, length - done));
  }
}

template <class Body>
void each_whole_chunk(const Layout& layout, int64_t begin, int64_t end, const Body& body) {
  const int64_t start = begin * kChunk;
  each_chunk(start, min64(end * kChunk, numel(layout)) - start, body);
}

}  // namespace
}  // namespace luma

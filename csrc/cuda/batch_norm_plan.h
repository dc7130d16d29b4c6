// How the values of a channel are shared out among blocks. All of it follows from shape and dtype alone; a base address
// that forbids wide accesses changes which threads do a part's work, not where the part ends.
#pragma once
#include <algorithm>

#include "cuda/batch_norm.h"

namespace tilewright::gpu {

constexpr int kBatchNormThreads = 256;
// Blocks of a multiprocessor that the registers are for: 128 a thread. Left to itself, nvcc spills to make room for
// more; its code for 10.0 wants a few more than 128.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBatchNormBlocks = 1;
#else
constexpr int kBatchNormBlocks = 2;
#endif

struct BatchNormSplit {
  int64_t part, parts;  // values of a channel in a part (the last may be shorter), and their number
  bool narrow;          // rows: blocks of few channels and many rows, because one block sees all of a channel's rows
};

inline int64_t batch_norm_count(const BatchNormShape& shape) { return shape.images * shape.size; }

// Elements of one access: rows are read along channels, planes along a run.
inline int64_t batch_norm_width(const BatchNormShape& shape, int64_t element_bytes) {
  const int64_t widest = 16 / element_bytes, length = shape.rows ? shape.channels : shape.size;
  return length % widest == 0 ? widest : 1;
}

// Rows: 1 << this neighbouring threads share a row, at most 4 (64 bytes) or 32 (512 bytes) of them.
inline int batch_norm_lane_shift(int64_t accesses_of_row, bool narrow) {
  const int most = narrow ? 2 : 5;
  int shift = 0;
  while (shift < most && (int64_t{1} << shift) < accesses_of_row) ++shift;
  return shift;
}

// Blocks for all channels times parts: two for each multiprocessor of an H100 or H200 twice over. least: accesses of a
// thread, below which more blocks do not pay.
inline BatchNormSplit batch_norm_split(const BatchNormShape& shape, int64_t width, int64_t least, int64_t blocks) {
  const int64_t count = batch_norm_count(shape);
  int64_t columns = shape.channels, threads = kBatchNormThreads;  // blocks beside each other, threads of one channel
  int64_t accesses = count / width;
  if (shape.rows) {
    const int shift = batch_norm_lane_shift(shape.channels / width, false);
    columns = (shape.channels / width + (int64_t{1} << shift) - 1) >> shift;
    threads >>= shift;
    accesses = count;
  }
  const int64_t most = std::max(int64_t{1}, blocks / columns);
  const int64_t parts = std::max(int64_t{1}, std::min(most, accesses / (least * threads)));
  int64_t part = (count + parts - 1) / parts;
  if (!shape.rows) part = (part + width - 1) / width * width;
  return {part, (count + part - 1) / part, false};
}

// For sums over a channel. One part, and so one launch, where a block can do it in 32 accesses of each thread (about
// 5 us): three launches cost as much.
inline BatchNormSplit batch_norm_reduction(const BatchNormShape& shape, int64_t element_bytes) {
  constexpr int64_t kMostAlone = 32;
  const int64_t width = batch_norm_width(shape, element_bytes), count = batch_norm_count(shape);
  const int shift = shape.rows ? batch_norm_lane_shift(shape.channels / width, true) : 0;
  const int64_t accesses = shape.rows ? count : count / width;
  if (accesses <= kMostAlone * (kBatchNormThreads >> shift)) return {count, 1, true};
  return batch_norm_split(shape, width, 8, 528);
}

// For a pass that has no sums to add.
inline BatchNormSplit batch_norm_map(const BatchNormShape& shape, int64_t element_bytes) {
  return batch_norm_split(shape, batch_norm_width(shape, element_bytes), 4, 1056);
}

// What the kernels read of a split.
struct BatchNormGrid {
  int64_t images, channels, size;
  int64_t part, parts;
  int64_t columns;  // blocks beside each other: channels (planes) or tiles of channels (rows)
  int lane_shift;   // rows
  int64_t packs;    // planes: accesses of a run, and how far all threads of a block take one on:
  int64_t step_images, step_packs;
};

inline BatchNormGrid batch_norm_grid(const BatchNormShape& shape, const BatchNormSplit& split, int64_t width) {
  BatchNormGrid grid{shape.images, shape.channels, shape.size, split.part, split.parts, shape.channels, 0, 0, 0, 0};
  if (shape.rows) {
    const int64_t accesses = shape.channels / width;
    grid.lane_shift = batch_norm_lane_shift(accesses, split.narrow);
    grid.columns = (accesses + (int64_t{1} << grid.lane_shift) - 1) >> grid.lane_shift;
  } else {
    grid.packs = shape.size / width;
    grid.step_images = kBatchNormThreads / grid.packs;
    grid.step_packs = kBatchNormThreads % grid.packs;
  }
  return grid;
}

}  // namespace tilewright::gpu

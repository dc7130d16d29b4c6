// How a batch norm is cut into tasks: layout, blocks and tiles, from the shape alone (batch_norm_args.h has the
// picture).
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/tensors.h"
#include "ops/batch_norm.h"

namespace tilewright {

struct BatchNormPlan {
  at::MemoryFormat format;  // of every tensor like input
  bool rows;                // the layout, see batch_norm_args.h
  BatchNormShape shape;
  int64_t tasks;
  int64_t count;  // values per channel
};

// A block is small enough that its second pass reads from cache: 4096 elements of a plane (16 KB of float32, half of
// L1), 32768 elements of rows (128 KB, a share of L2; fewer would cost more in merging), of which no more than 1024 are
// added one by one in float32.
inline BatchNormPlan plan_batch_norm(const Tensor& input) {
  const int64_t channels = input.size(1);
  const int64_t count = channels > 0 ? input.numel() / channels : 0;
  const auto format = batch_norm_format(input);
  BatchNormPlan plan{format, false, {}, 0, count};
  plan.rows = batch_norm_is_rows(input, format, count);
  BatchNormShape& shape = plan.shape;
  shape.channels = channels;
  if (plan.rows) {
    shape.images = count;
    shape.size = 1;
    shape.block = std::clamp<int64_t>(32768 / std::min(channels, kBatchNormTile), 64, 1024);
    shape.tiles = divide_up(channels, kBatchNormTile);
  } else {
    shape.images = channels == 1 ? 1 : input.size(0);
    shape.size = shape.images > 0 ? count / shape.images : 0;
    shape.block = 4096;
    shape.tiles = 1;
  }
  shape.line_bits = divide_up(plan.rows ? channels : shape.size, 8) * 8;
  shape.blocks = divide_up(count, shape.block);
  shape.channel_stride = plan.rows ? 1 : shape.blocks;
  shape.block_stride = plan.rows ? channels : 1;
  plan.tasks = shape.blocks * (plan.rows ? shape.tiles : channels);
  return plan;
}

template <typename T>
const BatchNormPasses<T>& passes(const BatchNormPlan& plan) {
  return plan.rows ? kernels<T>().batch_norm.rows : kernels<T>().batch_norm.planes;
}

// Calls partial(index, values in the block) for each block of a channel, in order.
template <typename Body>
void for_each_block(const BatchNormPlan& plan, int64_t channel, const Body& body) {
  const BatchNormShape& shape = plan.shape;
  for (int64_t block = 0; block < shape.blocks; ++block) {
    body(channel * shape.channel_stride + block * shape.block_stride,
         std::min(shape.block, plan.count - block * shape.block));
  }
}

inline int64_t line_count(const BatchNormPlan& plan) {
  return plan.rows ? plan.shape.images : plan.shape.images * plan.shape.channels;
}
inline int64_t line_length(const BatchNormPlan& plan) { return plan.rows ? plan.shape.channels : plan.shape.size; }

// Bytes of the bits of all elements.
inline int64_t batch_norm_bits_size(const BatchNormPlan& plan) {
  return line_count(plan) * plan.shape.line_bits / 8 + kBitsSpare;
}

// Calls map(lines) over the whole tensor in the order of memory; lines are split where there are few of them.
template <typename Map>
void run_map(const BatchNormPlan& plan, const Map& map) {
  constexpr int64_t kSegment = 16384;
  const int64_t lines = line_count(plan), length = line_length(plan);
  if (length <= kSegment || lines >= 4 * at::get_num_threads()) {
    parallel_for_cost(lines, length, [&](int64_t begin, int64_t end) { map({begin, end, 1, 0, length}); });
    return;
  }
  const int64_t segments = divide_up(length, kSegment);
  parallel_for_cost(lines * segments, kSegment, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t line = i / segments, from = i % segments * kSegment;
      map({line, line + 1, 1, from, std::min(length, from + kSegment)});
    }
  });
}

// Runs reduce(tasks), then merge(channels), then map(lines). Where a channel's planes fit in a core's L2 and there are
// channels enough for all threads, channel by channel, so that map finds them in cache.
template <typename Reduce, typename Merge, typename Map>
void run_passes(const BatchNormPlan& plan, bool reduces, bool maps, int64_t bytes_per_value, const Reduce& reduce,
                const Merge& merge, const Map& map) {
  const BatchNormShape& shape = plan.shape;
  constexpr int64_t kCacheBytes = 1 << 20;
  const bool by_channel = reduces && maps && !plan.rows && shape.channels >= 2 * at::get_num_threads() &&
                          plan.count * bytes_per_value <= kCacheBytes;
  if (by_channel) {
    const int64_t lines = line_count(plan);
    parallel_for_cost(shape.channels, 2 * plan.count, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        reduce(channel * shape.blocks, (channel + 1) * shape.blocks);
        merge(channel, channel + 1);
        map({channel, lines, shape.channels, 0, shape.size});
      }
    });
    return;
  }
  const int64_t cost = shape.block * (plan.rows ? std::min(shape.channels, kBatchNormTile) : 1);
  if (reduces) parallel_for_cost(plan.tasks, cost, reduce);
  parallel_for_cost(shape.channels, reduces ? 4 * shape.blocks : 1, merge);
  if (maps) run_map(plan, map);
}

}  // namespace tilewright

// How a batch norm is cut into tasks: layout, blocks and tiles, from the shape alone (batch_norm_args.h has the picture).
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/tensors.h"

namespace tilewright {

struct BatchNormPlan {
  at::MemoryFormat format;  // of every tensor like input
  bool rows;                // the layout, see batch_norm_args.h
  BatchNormShape shape;
  int64_t tasks;
  int64_t count;  // values per channel
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block is small enough that its second pass reads from cache: 4096 elements of a plane (16 KB of float32, half of
// L1), 32768 elements of rows (128 KB, a share of L2; fewer would cost more in merging).
inline BatchNormPlan plan_batch_norm(const Tensor& input) {
  const int64_t channels = input.size(1);
  const int64_t count = channels > 0 ? input.numel() / channels : 0;
  const auto format = input.suggest_memory_format();
  BatchNormPlan plan{format, false, {}, 0, count};
  plan.rows = channels > 1 && (format != at::MemoryFormat::Contiguous || count == input.size(0));
  BatchNormShape& shape = plan.shape;
  shape.channels = channels;
  if (plan.rows) {
    shape.images = count;
    shape.size = 1;
    shape.block = std::max<int64_t>(64, 32768 / std::min(channels, kBatchNormTile));
    shape.tiles = divide_up(channels, kBatchNormTile);
  } else {
    shape.images = channels == 1 ? 1 : input.size(0);
    shape.size = shape.images > 0 ? count / shape.images : 0;
    shape.block = 4096;
    shape.tiles = 1;
  }
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

// Runs first(tasks), then merge(channels), then second(tasks). Where a channel's planes fit in a core's L2 and there are
// channels enough for all threads, channel by channel, so that second finds them in cache.
template <typename First, typename Merge, typename Second>
void run_passes(const BatchNormPlan& plan, int64_t bytes_per_value, const First& first, const Merge& merge,
                const Second& second) {
  const BatchNormShape& shape = plan.shape;
  constexpr int64_t kCacheBytes = 1 << 20;
  if (!plan.rows && shape.channels >= 2 * at::get_num_threads() && plan.count * bytes_per_value <= kCacheBytes) {
    parallel_for_cost(shape.channels, 2 * plan.count, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        first(channel * shape.blocks, (channel + 1) * shape.blocks);
        merge(channel, channel + 1);
        second(channel * shape.blocks, (channel + 1) * shape.blocks);
      }
    });
    return;
  }
  const int64_t cost = shape.block * (plan.rows ? std::min(shape.channels, kBatchNormTile) : 1);
  parallel_for_cost(plan.tasks, cost, first);
  parallel_for_cost(shape.channels, 4 * shape.blocks, merge);
  parallel_for_cost(plan.tasks, cost, second);
}

}  // namespace tilewright

// How blocks share out channels_last tiles, forward and in the data gradient. A block takes neighbouring strips of one
// tile of channels, whose weights it puts into shared memory in the accumulation type.
//
// Work says what a thread does with its access of channels and its strip: it has `channels` (the tiles of channels),
// `strips` (how many there are), a type Tile (kKernel, kVec), and work(args, channel, strip, weights, pitch).
#pragma once
#include "cuda/depthwise.cuh"

namespace tilewright::gpu {
namespace {

template <typename T, typename Work>
__global__ void __launch_bounds__(kDepthwiseBlock, 2)
    depthwise_last_strips(const DepthwiseArgs<T> args, const Work work, int64_t items) {
  using Tile = typename Work::Tile;
  auto* weights = dynamic_shared<Acc<T>>();  // [taps, pitch]
  const int width = work.channels.lanes() * Tile::kVec, pitch = width + kPitchPad;
  const int lane = static_cast<int>(threadIdx.x) & (work.channels.lanes() - 1);
  const int strips_of_block = kDepthwiseBlock >> work.channels.lanes_log;
  // Blocks of the same pixels follow each other.
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Quotient split = divide(item, work.channels.count);
    if (item != blockIdx.x) __syncthreads();  // the weights are still read
    share_weights<Tile::kKernel>(args.weight, split.rest * width, args.out.channels, width, pitch, weights);
    __syncthreads();
    const int64_t strip = split.whole * strips_of_block + (static_cast<int>(threadIdx.x) >> work.channels.lanes_log);
    work(args, split.rest * width + lane * Tile::kVec, strip, weights + lane * Tile::kVec, pitch);
  }
}

template <typename Work, typename T>
Status launch_strips(const DepthwiseArgs<T>& args, const Work& work, const Launch& where) {
  using Tile = typename Work::Tile;
  const int64_t items = divide_up(work.strips, kDepthwiseBlock / work.channels.lanes()) * work.channels.count;
  const int pitch = work.channels.lanes() * Tile::kVec + kPitchPad;
  const int shared = static_cast<int>(Tile::kKernel * Tile::kKernel * pitch * sizeof(Acc<T>));
  return launch(where, depthwise_last_strips<T, Work>, blocks_for(items), kDepthwiseBlock, shared, args, work, items);
}

template <typename T, typename Tile>
ChannelTiles channel_tiles(const DepthwiseArgs<T>& args) {
  return cut_into_channel_tiles(divide_up(args.out.channels, Tile::kVec), static_cast<int>(Tile::kVec * sizeof(T)));
}

}  // namespace
}  // namespace tilewright::gpu

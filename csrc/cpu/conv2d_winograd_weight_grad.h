// The weights' gradient by Winograd's minimal filtering; the other two passes are conv2d_winograd.h's.
#pragma once
#include "cpu/conv2d_winograd.h"

namespace tilewright {

// A weights' gradient on its way: sums [chunk][point][channel][stride] of the products of tiles.
template <typename T>
struct WinogradWeightGrad {
  ConvImages<const T> in, grad;
  ConvWindow window;
  int64_t images, channels, filters;
  int64_t stride;  // of a row of sums: whole panels of filters
  int64_t chunks;
  Acc<T>* sums;

  int64_t matrix() const { return channels * stride; }
  int64_t tile_row() const { return spread(channels); }
  // Tiles of a block or a stretch: left is what read_tiles wrote, right what read_gradients wrote. Filters are columns
  // of sums, the zeros behind the last filter among them.
  WinogradProduct<Acc<T>> product(const Acc<T>* left, int64_t left_point, const Acc<T>* right, int64_t tiles,
                                  int64_t filter_begin, int64_t filter_end, int64_t chunk, bool accumulate) const {
    return {channels,       filter_end - filter_begin,
            tiles,          left,
            left_point,     1,
            tile_row(),     right + filter_begin * tiles,
            tiles * stride, sums + chunk * kWinogradPoints * matrix() + filter_begin,
            matrix(),       stride,
            accumulate};
  }
};

// Sums that stay in cache: every chunk of blocks has its own, and one core takes a block through all steps.
template <typename T>
void weight_grad_in_blocks(const WinogradWeightGrad<T>& args, const WinogradCut& cut) {
  using A = Acc<T>;
  const auto& kernel = kernels<T>().winograd;
  const int64_t most = cut.largest().tiles(), tile_point = spread(most * args.tile_row());
  const int64_t cost = cut.count() / args.chunks * most * args.matrix() / 2;
  parallel_for_cost(args.chunks, cost, [&](int64_t begin, int64_t end) {
    const int64_t region = kernel.scratch(cut.largest(), std::max(args.channels, args.filters));
    const int64_t elements = kWinogradPoints * (tile_point + most * args.stride) + region;
    A* scratch = static_cast<A*>(thread_scratch(kConvScratchSlot, elements * sizeof(A)));
    A *tiles = scratch + region, *gradients = tiles + kWinogradPoints * tile_point;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = cut.count() * chunk / args.chunks, last = cut.count() * (chunk + 1) / args.chunks;
      for (int64_t i = first; i < last; ++i) {
        const WinogradBlock block = cut.at(i);
        kernel.read_tiles(args.in, args.window, args.channels, block, {tiles, tile_point, args.tile_row()}, scratch);
        kernel.read_gradients(args.grad, args.filters, block, 0, block.tiles(), gradients, scratch);
        kernel.multiply(
            args.product(tiles, tile_point, gradients, block.tiles(), 0, args.stride, chunk, /*accumulate=*/i > first),
            0, kWinogradPoints);
      }
    }
  });
}

// Sums beyond the cache: all threads take a stretch of tiles through one step after the other.
template <typename T>
void weight_grad_in_steps(const WinogradWeightGrad<T>& args, const WinogradCut& cut) {
  using A = Acc<T>;
  const auto& kernel = kernels<T>().winograd;
  const int64_t most_tiles = kWinogradStretchElements / kWinogradPoints / (args.tile_row() + args.stride);
  for_each_stretch(cut, most_tiles, [&](const WinogradStretch& stretch) {
    const int64_t tile_point = spread(stretch.tiles * args.tile_row());
    A* tiles = winograd_shared<A>(kWinogradPoints * (tile_point + stretch.tiles * args.stride));
    A* gradients = tiles + kWinogradPoints * tile_point;
    const int64_t most_channels = std::max(args.channels, args.filters);
    for_each_block<T>(cut, stretch, most_channels, [&](const WinogradBlock& block, int64_t first, A* scratch) {
      kernel.read_tiles(args.in, args.window, args.channels, block,
                        {tiles + first * args.tile_row(), tile_point, args.tile_row()}, scratch);
      kernel.read_gradients(args.grad, args.filters, block, first, stretch.tiles, gradients, scratch);
    });
    const Cut filters{args.stride, divide_up(args.stride, kWinogradFilters), kernels<T>().conv2d.panel};
    const int64_t cost = stretch.tiles * args.matrix() / filters.pieces / 32;
    parallel_for_cost(kWinogradPoints * filters.pieces, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / filters.pieces, piece = i % filters.pieces;
        kernel.multiply(args.product(tiles, tile_point, gradients, stretch.tiles, filters.at(piece),
                                     filters.at(piece + 1), 0, /*accumulate=*/stretch.begin > 0),
                        point, point + 1);
      }
    });
  });
}

// False where a sum was not finite.
template <typename T>
bool winograd_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight) {
  using A = Acc<T>;
  const auto& kernel = kernels<T>();
  constexpr int64_t kCachedSums = 300 * 1000, kChunks = 8, kFewestChunkTiles = 96;
  const int64_t C = shape.channels, F = shape.filters, width = kernel.conv2d.panel;
  const int64_t stride = divide_up(F, width) * width;
  const int64_t target = kWinogradPoints * C * F <= kCachedSums / 2 ? 2 * kWinogradFewestTiles : kWinogradFewestTiles;
  const WinogradCut cut(shape.out[0], shape.out[1], shape.images, target);
  const bool in_blocks = kWinogradPoints * C * F <= kCachedSums && cut.rows * cut.cols >= kChunks * kFewestChunkTiles &&
                         cut.count() >= kChunks;
  const int64_t chunks = in_blocks ? kChunks : 1;
  const auto options = x.options().dtype(accumulation_dtype(x.scalar_type()));
  const Tensor sums = at::empty({chunks, kWinogradPoints, C, stride}, options);
  const WinogradWeightGrad<T> args{images_of(x, const_data<T>(x), shape.format),
                                   images_of(dy, const_data<T>(dy), shape.format),
                                   forward_window(shape),
                                   shape.images,
                                   C,
                                   F,
                                   stride,
                                   chunks,
                                   mutable_data<A>(sums)};
  in_blocks ? weight_grad_in_blocks(args, cut) : weight_grad_in_steps(args, cut);
  const Tensor reduced = at::empty({9, C, stride}, options);
  std::atomic<bool> finite{true};
  parallel_for_cost(C, 2 * kWinogradPoints * stride * chunks, [&](int64_t begin, int64_t end) {
    if (!kernel.winograd.reduce_weights(args.sums, chunks, C, stride, begin, end, mutable_data<A>(reduced))) {
      finite = false;
    }
  });
  if (!finite) return false;
  const WeightLayout layout =
      forward_weights(shape, shape.format == at::MemoryFormat::ChannelsLast, ConvOrder::kTapsOuter);
  unpack_conv_weights(layout, const_data<A>(reduced), stride, /*chunks=*/1, 9 * C, F, mutable_data<T>(dweight));
  return true;
}

}  // namespace tilewright

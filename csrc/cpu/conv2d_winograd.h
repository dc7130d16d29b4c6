// 3x3 convolutions of stride 1 on the CPU by Winograd's minimal filtering (kernels/winograd_transforms.h): who takes
// that way, and how its steps are cut into items for torch's threads. All cuts depend on the shape alone.
#pragma once
#include <ATen/Context.h>
#include <c10/util/env.h>

#include <atomic>

#include "cpu/conv2d_work.h"

namespace tilewright {

constexpr int kWinogradSharedSlot = 3;

// Blocks of tiles for one core. A block holds whole rows of tiles, of as many images as it takes, unless one row is
// more than a block should be.
struct WinogradCut {
  int64_t rows, cols;  // of tiles, in all images and in one row
  int64_t row_pieces, col_pieces;
  WinogradCut(int64_t height, int64_t width, int64_t images, int64_t target)
      : rows(images * divide_up(height, 2)), cols(divide_up(width, 2)), row_pieces(rows), col_pieces(1) {
    if (cols > target) {
      col_pieces = divide_up(cols, target);
      return;
    }
    constexpr int64_t kEven = 4;  // whole rounds for two and four threads
    row_pieces = divide_up(rows, std::max<int64_t>(1, target / cols));
    row_pieces = std::min(rows, divide_up(row_pieces, kEven) * kEven);
  }
  int64_t count() const { return row_pieces * col_pieces; }
  WinogradBlock at(int64_t i) const {
    const int64_t row = i / col_pieces, col = i % col_pieces;
    return {rows * row / row_pieces, rows * (row + 1) / row_pieces, cols * col / col_pieces,
            cols * (col + 1) / col_pieces};
  }
  // No block is larger.
  WinogradBlock largest() const { return {0, divide_up(rows, row_pieces), 0, divide_up(cols, col_pieces)}; }
  int64_t tiles_before(int64_t i) const {
    const WinogradBlock block = at(i);
    return block.row_begin * cols + (block.row_end - block.row_begin) * block.col_begin;
  }
};

// Strides that are odd multiples of 64 bytes, so that the rows of a matrix, and the 16 matrices, spread over the
// cache's sets.
inline int64_t spread(int64_t elements) { return (divide_up(elements, 16) | 1) * 16; }

// The switch: TILEWRIGHT_WINOGRAD=0 in the environment, read once, and torch.use_deterministic_algorithms, whose user
// asks for the plain sum (this one is as reproducible, but another one).
inline bool winograd_is_allowed() {
  static const bool is_wanted = c10::utils::get_env("TILEWRIGHT_WINOGRAD") != "0";
  return is_wanted && !at::globalContext().deterministicAlgorithms();
}

// Whether the products pay: enough channels and filters to outweigh the transforms of the images, enough tiles to
// outweigh those of the weights, and not too many pixels computed and dropped. One answer for all three passes. Not for
// float64: who asks for it asks for the last digit.
inline bool winograd_suits(const Conv2dShape& shape, at::ScalarType dtype) {
  constexpr int64_t kFewestChannels = 24, kFewestTiles = 96;
  const bool fits = shape.kernel[0] == 3 && shape.kernel[1] == 3 && shape.stride[0] == 1 && shape.stride[1] == 1 &&
                    shape.dilation[0] == 1 && shape.dilation[1] == 1 && shape.groups == 1;
  if (!fits || dtype == at::kDouble || !winograd_is_allowed() ||
      std::min(shape.channels, shape.filters) < kFewestChannels)
    return false;
  const int64_t tiles = divide_up(shape.out[0], 2) * divide_up(shape.out[1], 2);
  return tiles * shape.images >= kFewestTiles && tiles * 4 * 2 <= shape.out[0] * shape.out[1] * 3;
}

// Transformed weights [point][panel][K = channels read][panel width].
template <typename T>
struct WinogradWeights {
  Tensor tensor;
  int64_t point_stride;
};

template <typename T>
WinogradWeights<T> transform_conv_weights(const WeightLayout& layout, const T* data, int64_t channels,
                                          const at::TensorOptions& options) {
  const auto& kernel = kernels<T>();
  const int64_t width = kernel.conv2d.panel, panels = divide_up(layout.filters, width), taps = 9;
  const int64_t point_stride = panels * channels * width;
  Tensor transformed = at::empty({kWinogradPoints * point_stride}, options);
  Acc<T>* out = mutable_data<Acc<T>>(transformed);
  parallel_for_cost(panels, 2 * kWinogradPoints * channels * width, [&](int64_t begin, int64_t end) {
    const size_t bytes = taps * channels * width * sizeof(Acc<T>);
    auto* packed = static_cast<Acc<T>*>(thread_scratch(kConvScratchSlot, bytes));
    for (int64_t panel = begin; panel < end; ++panel) {
      ConvWeights<const T> weights = layout.at(data);
      weights.data += panel * width * weights.filter_stride;
      weights.filters -= panel * width;
      kernel.conv2d.pack_weights(weights, taps * channels, 0, 1, packed);
      kernel.winograd.transform_weights(packed, channels, out + panel * channels * width, point_stride);
    }
  });
  return {transformed, point_stride};
}

// One convolution: out = epilogue(in * weights).
template <typename T>
struct WinogradConv {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t images, channels, filters;
  const Acc<T>* weights;
  int64_t weights_point;
  ConvEpilogue<T> epilogue;

  // tiles of the left matrix times filters of the range.
  WinogradProduct<Acc<T>> product(const WinogradMatrices<Acc<T>>& tiles, int64_t count, int64_t filter_begin,
                                  int64_t filter_end, const WinogradMatrices<Acc<T>>& sums) const {
    return {count, filter_end - filter_begin,         channels,      tiles.data, tiles.point_stride, tiles.row_stride,
            1,     weights + filter_begin * channels, weights_point, sums.data,  sums.point_stride,  sums.row_stride,
            false};
  }
};

constexpr int64_t kWinogradFewestTiles = 28;  // of a block: two register tiles of AVX-512
constexpr int64_t kWinogradFilters = 128;     // of one block of sums

// Weights that stay in cache: every core takes a block of tiles through all steps.
template <typename T>
bool run_winograd_blocks(const WinogradConv<T>& conv) {
  using A = Acc<T>;
  const auto& kernel = kernels<T>().winograd;
  constexpr int64_t kElements = 128 * 1024;  // half of L2 for tiles and sums
  const int64_t block_filters = std::min(conv.filters, kWinogradFilters);
  const int64_t target = kElements / kWinogradPoints / (conv.channels + block_filters);
  const WinogradCut cut(conv.out.height, conv.out.width, conv.images, std::max(kWinogradFewestTiles, target));
  const int64_t most = cut.largest().tiles(), tile_row = spread(conv.channels), sum_row = spread(block_filters);
  const int64_t tile_point = spread(most * tile_row), sum_point = spread(most * sum_row);
  std::atomic<bool> finite{true};
  const int64_t cost = most * kWinogradPoints * conv.channels * conv.filters / 32;
  parallel_for_cost(cut.count(), cost, [&](int64_t begin, int64_t end) {
    const int64_t region = kernel.scratch(cut.largest(), std::max(conv.channels, block_filters));
    const int64_t elements = kWinogradPoints * (tile_point + sum_point) + region;
    A* scratch = static_cast<A*>(thread_scratch(kConvScratchSlot, elements * sizeof(A)));
    const WinogradMatrices<A> tiles{scratch + region, tile_point, tile_row};
    const WinogradMatrices<A> sums{tiles.data + kWinogradPoints * tile_point, sum_point, sum_row};
    for (int64_t i = begin; i < end; ++i) {
      const WinogradBlock block = cut.at(i);
      kernel.read_tiles(conv.in, conv.window, conv.channels, block, tiles, scratch);
      for (int64_t f = 0; f < conv.filters; f += block_filters) {
        const int64_t filter_end = std::min(conv.filters, f + block_filters);
        kernel.multiply(conv.product(tiles, block.tiles(), f, filter_end, sums), 0, kWinogradPoints);
        if (!kernel.write_tiles({sums.data, sum_point, sum_row}, conv.out, conv.epilogue, f, filter_end, block,
                                scratch)) {
          finite = false;
        }
      }
    }
  });
  return finite;
}

// A stretch of blocks whose tiles lie side by side in one buffer that all threads share.
struct WinogradStretch {
  int64_t begin, end, first_tile, tiles;
};

// Calls body(stretch) for stretches of about `most_tiles` tiles, in order.
template <typename Body>
void for_each_stretch(const WinogradCut& cut, int64_t most_tiles, const Body& body) {
  const int64_t blocks = std::max<int64_t>(1, most_tiles / cut.largest().tiles());
  const int64_t stretches = divide_up(cut.count(), blocks);
  for (int64_t s = 0; s < stretches; ++s) {
    const int64_t begin = cut.count() * s / stretches, end = cut.count() * (s + 1) / stretches;
    const int64_t first = cut.tiles_before(begin);
    body(WinogradStretch{begin, end, first, cut.tiles_before(end) - first});
  }
}

// Shared elements of a stretch: tiles of 16 points whose rows are `row` elements.
constexpr int64_t kWinogradStretchElements = 3 << 20;

template <typename A>
A* winograd_shared(int64_t elements) {
  return static_cast<A*>(thread_scratch(kWinogradSharedSlot, elements * sizeof(A)));
}

// Runs body(block, its first tile in the stretch, scratch) for the stretch's blocks, on all threads.
template <typename T, typename Body>
void for_each_block(const WinogradCut& cut, const WinogradStretch& stretch, int64_t channels, const Body& body) {
  const int64_t cost = cut.largest().tiles() * channels * kWinogradPoints;
  parallel_for_cost(stretch.end - stretch.begin, cost, [&](int64_t begin, int64_t end) {
    const int64_t elements = kernels<T>().winograd.scratch(cut.largest(), channels);
    auto* scratch = static_cast<Acc<T>*>(thread_scratch(kConvScratchSlot, elements * sizeof(Acc<T>)));
    for (int64_t i = stretch.begin + begin; i < stretch.begin + end; ++i) {
      body(cut.at(i), cut.tiles_before(i) - stretch.first_tile, scratch);
    }
  });
}

// Weights beyond the cache: all threads take a stretch of tiles through one step after the other, so that the weights
// are read once for a stretch.
template <typename T>
bool run_winograd_steps(const WinogradConv<T>& conv) {
  using A = Acc<T>;
  const auto& kernel = kernels<T>().winograd;
  const WinogradCut cut(conv.out.height, conv.out.width, conv.images, kWinogradFewestTiles);
  const int64_t tile_row = spread(conv.channels), sum_row = spread(conv.filters);
  std::atomic<bool> finite{true};
  for_each_stretch(cut, kWinogradStretchElements / kWinogradPoints / (tile_row + sum_row), [&](const auto& stretch) {
    const int64_t tile_point = spread(stretch.tiles * tile_row), sum_point = spread(stretch.tiles * sum_row);
    A* data = winograd_shared<A>(kWinogradPoints * (tile_point + sum_point));
    const WinogradMatrices<A> tiles{data, tile_point, tile_row};
    const WinogradMatrices<A> sums{data + kWinogradPoints * tile_point, sum_point, sum_row};
    for_each_block<T>(cut, stretch, conv.channels, [&](const WinogradBlock& block, int64_t first, A* scratch) {
      kernel.read_tiles(conv.in, conv.window, conv.channels, block,
                        {tiles.data + first * tile_row, tile_point, tile_row}, scratch);
    });
    const Cut filters{conv.filters, divide_up(conv.filters, kWinogradFilters), kernels<T>().conv2d.panel};
    const int64_t cost = stretch.tiles * conv.channels * conv.filters / filters.pieces / 32;
    parallel_for_cost(kWinogradPoints * filters.pieces, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / filters.pieces, piece = i % filters.pieces, f = filters.at(piece);
        kernel.multiply(
            conv.product(tiles, stretch.tiles, f, filters.at(piece + 1), {sums.data + f, sum_point, sum_row}), point,
            point + 1);
      }
    });
    for_each_block<T>(cut, stretch, conv.filters, [&](const WinogradBlock& block, int64_t first, A* scratch) {
      if (!kernel.write_tiles({sums.data + first * sum_row, sum_point, sum_row}, conv.out, conv.epilogue, 0,
                              conv.filters, block, scratch)) {
        finite = false;
      }
    });
  });
  return finite;
}

// False where a sum was not finite: out then has to be computed the plain way.
template <typename T>
bool run_winograd(const WinogradConv<T>& conv) {
  constexpr int64_t kCachedWeights = 300 * 1000;  // elements
  const bool cached = kWinogradPoints * conv.channels * conv.filters <= kCachedWeights;
  return cached ? run_winograd_blocks(conv) : run_winograd_steps(conv);
}

template <typename T>
bool winograd_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                      const ConvEpilogue<T>& epilogue, const Tensor& output) {
  const auto layout = forward_weights(shape, weight_last, ConvOrder::kTapsOuter);
  const auto weights = transform_conv_weights(layout, const_data<T>(weight), shape.channels,
                                              x.options().dtype(accumulation_dtype(x.scalar_type())));
  return run_winograd(WinogradConv<T>{images_of(x, const_data<T>(x), shape.format),
                                      images_of(output, mutable_data<T>(output), shape.format), forward_window(shape),
                                      shape.images, shape.channels, shape.filters, const_data<Acc<T>>(weights.tensor),
                                      weights.point_stride, epilogue});
}

template <typename T>
bool winograd_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, bool weight_last,
                         const Tensor& dx) {
  const GradientClass part = gradient_classes(shape).front();  // stride 1 has no other
  const auto layout = gradient_weights(shape, part, weight_last, ConvOrder::kTapsOuter);
  const auto weights = transform_conv_weights(layout, const_data<T>(weight), shape.filters,
                                              dy.options().dtype(accumulation_dtype(dy.scalar_type())));
  return run_winograd(WinogradConv<T>{images_of(dy, const_data<T>(dy), shape.format),
                                      images_of(dx, mutable_data<T>(dx), shape.format),
                                      part.window(),
                                      shape.images,
                                      shape.filters,
                                      shape.channels,
                                      const_data<Acc<T>>(weights.tensor),
                                      weights.point_stride,
                                      {}});
}

}  // namespace tilewright

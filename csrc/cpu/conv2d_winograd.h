// 3x3 and 5x5 convolutions of stride 1 on the CPU by Winograd's minimal filtering (kernels/winograd_transforms.h): how
// its steps are cut into items for torch's threads. conv2d_winograd_plan.h says who takes that way. All cuts depend on
// the shape, and on whether products are split.
#pragma once
#include <atomic>

#include "cpu/conv2d_winograd_plan.h"
#include "cpu/conv2d_winograd_residues.h"
#include "cpu/conv2d_winograd_split.h"

namespace tilewright {

constexpr int kWinogradSharedSlot = 3;

template <typename T>
const WinogradTileKernels<T>& winograd_tiles(const WinogradForm& form) {
  const auto& kernel = kernels<T>().winograd;
  return form.taps == 5 ? kernel.f2x5 : form.pixels == 4 ? kernel.f4x3 : kernel.f2x3;
}

// Elements of one point of a group's transformed weights, [panel][K = channels read][panel width].
template <typename T>
int64_t winograd_weights_point(int64_t filters, int64_t channels) {
  const int64_t width = kernels<T>().conv2d.panel;
  return divide_up(filters, width) * channels * width;
}

// Transformed weights of all groups, [group][point][panel][K][panel width].
template <typename T>
Tensor transform_conv_weights(const WeightLayout& layout, const T* data, int64_t group_stride, int64_t groups,
                              int64_t channels, const WinogradForm& form, const at::TensorOptions& options) {
  const auto& kernel = kernels<T>();
  const int64_t width = kernel.conv2d.panel, K = form.taps * form.taps * channels;
  const int64_t point_stride = winograd_weights_point<T>(layout.filters, channels);
  return pack_panels<Acc<T>>(layout, data, group_stride, groups, divide_up(layout.filters, width),
                             form.points() * point_stride, options,
                             [&](ConvWeights<const T> weights, int64_t panel, Acc<T>* transformed) {
                               auto* packed = conv_scratch<Acc<T>>(K * width);
                               weights.data += panel * width * weights.filter_stride;
                               weights.filters -= panel * width;
                               kernel.conv2d.pack_weights(weights, K, 0, 1, packed);
                               winograd_tiles<T>(form).transform_weights(
                                   packed, channels, transformed + panel * channels * width, point_stride);
                             });
}

// out = epilogue(in * weights) of the first group; channels, filters: of each.
template <typename T>
struct WinogradConv {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t images, channels, filters;
  WinogradForm form;
  bool splits;
  const Acc<T>* weights;
  ConvEpilogue<T> epilogue;

  WinogradConv at_group(int64_t group) const {
    WinogradConv conv = *this;
    const int64_t first = group * filters, place = first * out.c_stride;
    conv.in.data += group * channels * in.c_stride;
    conv.out.data += place;
    conv.weights += group * points() * weights_point();
    conv.epilogue = epilogue.moved(place, first);
    return conv;
  }
  WinogradConv at_residue(const PlainWindow& plain) const {
    WinogradConv conv = *this;
    conv.in = plain.sources(in);
    conv.out = plain.results(out);
    conv.window = plain.window;
    conv.epilogue = epilogue.moved(conv.out.data - out.data, 0);
    return conv;
  }
  int64_t points() const { return form.points(); }
  int64_t weights_point() const { return winograd_weights_point<T>(filters, channels); }
  WinogradCut cut(int64_t target) const { return WinogradCut(out.height, out.width, images, form.pixels, target); }

  // tiles of the left matrix times filters of the range.
  WinogradProduct<Acc<T>> product(const WinogradMatrices<Acc<T>>& tiles, int64_t count, int64_t filter_begin,
                                  int64_t filter_end, const WinogradMatrices<Acc<T>>& sums) const {
    return {count,
            filter_end - filter_begin,
            channels,
            form.depth(),
            tiles.data,
            tiles.point_stride,
            tiles.row_stride,
            1,
            weights + filter_begin * channels,
            weights_point(),
            sums.data,
            sums.point_stride,
            sums.row_stride,
            false};
  }
};

constexpr int64_t kWinogradFewestTiles = 28;  // of a block: two register tiles of AVX-512
constexpr int64_t kWinogradFilters = 128;     // of one block of sums

// Weights that stay in cache: every core takes a block of tiles through all steps.
template <typename T>
bool run_winograd_blocks(const WinogradConv<T>& first, int64_t groups) {
  using A = Acc<T>;
  const auto& kernel = kernels<T>().winograd;
  const auto& steps = winograd_tiles<T>(first.form);
  constexpr int64_t kElements = 128 * 1024;  // half of L2 for tiles and sums
  const int64_t block_filters = std::min(first.filters, kWinogradFilters), points = first.points();
  const WinogradCut cut =
      first.cut(std::max(kWinogradFewestTiles, kElements / points / (first.channels + block_filters)));
  const int64_t most = cut.largest().tiles(), tile_row = spread(first.channels), sum_row = spread(block_filters);
  const int64_t tile_point = spread(most * tile_row), sum_point = spread(most * sum_row);
  std::atomic<bool> finite{true};
  const int64_t cost = most * points * first.channels * first.filters / 32;
  parallel_for_cost(groups * cut.count(), cost, [&](int64_t begin, int64_t end) {
    const int64_t region = steps.scratch(cut.largest(), std::max(first.channels, block_filters));
    A* scratch = conv_scratch<A>(points * (tile_point + sum_point) + region);
    const WinogradMatrices<A> tiles{scratch + region, tile_point, tile_row};
    const WinogradMatrices<A> sums{tiles.data + points * tile_point, sum_point, sum_row};
    for (int64_t i = begin; i < end; ++i) {
      const WinogradConv<T> conv = first.at_group(i / cut.count());
      const WinogradBlock block = cut.at(i % cut.count());
      steps.read_tiles(conv.in, conv.window, conv.channels, block, tiles, scratch);
      for (int64_t f = 0; f < conv.filters; f += block_filters) {
        const int64_t filter_end = std::min(conv.filters, f + block_filters);
        kernel.multiply(conv.product(tiles, block.tiles(), f, filter_end, sums), 0, points);
        if (!steps.write_tiles({sums.data, sum_point, sum_row}, conv.out, conv.epilogue, f, filter_end, block,
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

template <typename A>
A* winograd_shared(int64_t elements) {
  return static_cast<A*>(thread_scratch(kWinogradSharedSlot, elements * sizeof(A)));
}

// Runs body(block, its first tile in the stretch, scratch) for the stretch's blocks, on all threads.
template <typename T, typename Body>
void for_each_block(const WinogradCut& cut, const WinogradStretch& stretch, const WinogradForm& form, int64_t channels,
                    const Body& body) {
  const int64_t cost = cut.largest().tiles() * channels * form.points();
  parallel_for_cost(stretch.end - stretch.begin, cost, [&](int64_t begin, int64_t end) {
    auto* scratch = conv_scratch<Acc<T>>(winograd_tiles<T>(form).scratch(cut.largest(), channels));
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
  const auto& steps = winograd_tiles<T>(conv.form);
  const WinogradCut cut = conv.cut(kWinogradFewestTiles);
  const int64_t tile_row = spread(conv.channels), sum_row = spread(conv.filters), points = conv.points();
  std::atomic<bool> finite{true};
  const WinogradSteps sizes(conv.splits);
  for_each_stretch(cut, sizes.stretch / points / (tile_row + sum_row), [&](const auto& stretch) {
    const int64_t tile_point = spread(stretch.tiles * tile_row), sum_point = spread(stretch.tiles * sum_row);
    A* data = winograd_shared<A>(points * (tile_point + sum_point));
    const WinogradMatrices<A> tiles{data, tile_point, tile_row};
    const WinogradMatrices<A> sums{data + points * tile_point, sum_point, sum_row};
    for_each_block<T>(cut, stretch, conv.form, conv.channels,
                      [&](const WinogradBlock& block, int64_t first, A* scratch) {
                        steps.read_tiles(conv.in, conv.window, conv.channels, block,
                                         {tiles.data + first * tile_row, tile_point, tile_row}, scratch);
                      });
    const Cut filters{conv.filters, divide_up(conv.filters, sizes.filters), kernels<T>().conv2d.panel};
    const int64_t cost = stretch.tiles * conv.channels * conv.filters / filters.pieces / 32;
    parallel_for_cost(points * filters.pieces, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / filters.pieces, piece = i % filters.pieces, f = filters.at(piece);
        multiply_winograd<T>(
            conv.product(tiles, stretch.tiles, f, filters.at(piece + 1), {sums.data + f, sum_point, sum_row}), point,
            point + 1, conv.splits);
      }
    });
    for_each_block<T>(cut, stretch, conv.form, conv.filters,
                      [&](const WinogradBlock& block, int64_t first, A* scratch) {
                        if (!steps.write_tiles({sums.data + first * sum_row, sum_point, sum_row}, conv.out,
                                               conv.epilogue, 0, conv.filters, block, scratch)) {
                          finite = false;
                        }
                      });
  });
  return finite;
}

template <typename T>
bool run_winograd_steps(const WinogradConv<T>& conv, int64_t groups) {
  for (int64_t group = 0; group < groups; ++group) {
    if (!run_winograd_steps(conv.at_group(group))) return false;
  }
  return true;
}

template <typename T>
bool run_winograd_groups(WinogradConv<T> conv, int64_t groups, const WeightLayout& layout, const T* weights,
                         int64_t group_stride, const at::TensorOptions& options) {
  const Tensor transformed =
      transform_conv_weights(layout, weights, group_stride, groups, conv.channels, conv.form, options);
  conv.weights = const_data<Acc<T>>(transformed);
  constexpr int64_t kCachedWeights = 300 * 1000;  // elements
  const bool in_blocks = !conv.splits && conv.points() * conv.channels * conv.filters <= kCachedWeights;
  for (const PlainWindow& plain : plain_windows(conv.window)) {
    const WinogradConv<T> part = conv.at_residue(plain);
    if (!(in_blocks ? run_winograd_blocks(part, groups) : run_winograd_steps(part, groups))) return false;
  }
  return true;
}

// False where a sum was not finite: out, which is `result`, then has to be computed the plain way. Weights lie
// group_stride apart.
template <typename T>
bool run_winograd(WinogradConv<T> conv, int64_t groups, const WeightLayout& layout, const T* weights,
                  int64_t group_stride, const at::TensorOptions& options, const Tensor& result) {
  if (!run_winograd_groups(conv, groups, layout, weights, group_stride, options)) return false;
  if (!conv.splits || is_sound<T>(result)) return true;
  conv.splits = false;
  return run_winograd_groups(conv, groups, layout, weights, group_stride, options);
}

template <typename T>
bool winograd_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                      const ConvEpilogue<T>& epilogue, const Tensor& output) {
  const WinogradForm form = winograd_form(shape, ConvPass::kForward);
  const WinogradConv<T> conv{images_of(x, const_data<T>(x), shape.format),
                             images_of(output, mutable_data<T>(output), shape.format),
                             forward_window(shape),
                             shape.images,
                             shape.channels / shape.groups,
                             shape.filters / shape.groups,
                             form,
                             winograd_splits<T>(form.weights(shape), x, weight),
                             nullptr,
                             epilogue};
  return run_winograd(conv, shape.groups, forward_weights(shape, weight_last, ConvOrder::kTapsOuter),
                      const_data<T>(weight), weight.numel() / shape.groups,
                      x.options().dtype(accumulation_dtype(x.scalar_type())), output);
}

template <typename T>
bool winograd_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, bool weight_last,
                         const Tensor& dx) {
  const WinogradForm form = winograd_form(shape, ConvPass::kInputGrad);
  const GradientClass part = gradient_classes(shape).front();  // stride 1 has no other
  const WinogradConv<T> conv{images_of(dy, const_data<T>(dy), shape.format),
                             images_of(dx, mutable_data<T>(dx), shape.format),
                             part.window(),
                             shape.images,
                             shape.filters / shape.groups,
                             shape.channels / shape.groups,
                             form,
                             winograd_splits<T>(form.weights(shape), dy, weight),
                             nullptr,
                             {}};
  return run_winograd(conv, shape.groups, gradient_weights(shape, part, weight_last, ConvOrder::kTapsOuter),
                      const_data<T>(weight), weight.numel() / shape.groups,
                      dy.options().dtype(accumulation_dtype(dy.scalar_type())), dx);
}

}  // namespace tilewright

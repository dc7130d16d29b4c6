// The weights' gradient by Winograd's minimal filtering; the other two passes are conv2d_winograd.h's.
#pragma once
#include "cpu/conv2d_winograd.h"

namespace tilewright {

// A weights' gradient on its way: sums [group][chunk][point][channel][stride] of the products of tiles; channels,
// filters: of a group.
template <typename T>
struct WinogradWeightGrad {
  ConvImages<const T> in, grad;
  ConvWindow window;
  int64_t images, channels, filters;
  int64_t stride;  // of a row of sums: whole panels of filters
  WinogradForm form;
  bool splits;
  int64_t chunks;
  Acc<T>* sums;

  WinogradWeightGrad at_group(int64_t group) const {
    WinogradWeightGrad args = *this;
    args.in.data += group * channels * in.c_stride;
    args.grad.data += group * filters * grad.c_stride;
    args.sums += group * chunks * points() * matrix();
    return args;
  }
  WinogradWeightGrad at_residue(const PlainWindow& plain) const {
    WinogradWeightGrad args = *this;
    args.in = plain.sources(in);
    args.grad = plain.results(grad);
    args.window = plain.window;
    return args;
  }
  int64_t points() const { return form.points(); }
  int64_t matrix() const { return channels * stride; }
  int64_t tile_row() const { return spread(channels); }
  // Tiles of a block or a stretch: left is what read_tiles wrote, right what read_gradients wrote. Filters are columns
  // of sums, the zeros behind the last filter among them.
  WinogradProduct<Acc<T>> product(const Acc<T>* left, int64_t left_point, const Acc<T>* right, int64_t tiles,
                                  int64_t filter_begin, int64_t filter_end, int64_t chunk, bool accumulate) const {
    return {channels,
            filter_end - filter_begin,
            tiles,
            form.depth(),
            left,
            left_point,
            1,
            tile_row(),
            right + filter_begin * tiles,
            tiles * stride,
            sums + chunk * points() * matrix() + filter_begin,
            matrix(),
            stride,
            accumulate};
  }
};

// Sums that stay in cache: every chunk of blocks has its own, and one core takes a block through all steps.
template <typename T>
void weight_grad_in_blocks(const WinogradWeightGrad<T>& first, int64_t groups, const WinogradCut& cut,
                           bool accumulate) {
  using A = Acc<T>;
  const auto& steps = winograd_tiles<T>(first.form);
  const int64_t most = cut.largest().tiles(), points = first.points(), tile_point = spread(most * first.tile_row());
  const int64_t cost = cut.count() / first.chunks * most * first.matrix() / 2;
  parallel_for_cost(groups * first.chunks, cost, [&](int64_t begin, int64_t end) {
    const int64_t region = steps.scratch(cut.largest(), std::max(first.channels, first.filters));
    A* scratch = conv_scratch<A>(points * (tile_point + most * first.stride) + region);
    A *tiles = scratch + region, *gradients = tiles + points * tile_point;
    for (int64_t item = begin; item < end; ++item) {
      const WinogradWeightGrad<T> args = first.at_group(item / first.chunks);
      const int64_t chunk = item % first.chunks, from = cut.count() * chunk / first.chunks;
      for (int64_t i = from; i < cut.count() * (chunk + 1) / first.chunks; ++i) {
        const WinogradBlock block = cut.at(i);
        steps.read_tiles(args.in, args.window, args.channels, block, {tiles, tile_point, args.tile_row()}, scratch);
        steps.read_gradients(args.grad, args.filters, block, 0, block.tiles(), gradients, scratch);
        kernels<T>().winograd.multiply(
            args.product(tiles, tile_point, gradients, block.tiles(), 0, args.stride, chunk, accumulate || i > from), 0,
            points);
      }
    }
  });
}

// Sums beyond the cache: all threads take a stretch of tiles through one step after the other.
template <typename T>
void weight_grad_in_steps(const WinogradWeightGrad<T>& args, const WinogradCut& cut, bool accumulate) {
  using A = Acc<T>;
  const auto& steps = winograd_tiles<T>(args.form);
  const WinogradSteps sizes(args.splits);
  const int64_t points = args.points(), most_tiles = sizes.stretch / points / (args.tile_row() + args.stride);
  for_each_stretch(cut, most_tiles, [&](const WinogradStretch& stretch) {
    const int64_t tile_point = spread(stretch.tiles * args.tile_row());
    A* tiles = winograd_shared<A>(points * (tile_point + stretch.tiles * args.stride));
    A* gradients = tiles + points * tile_point;
    const int64_t most_channels = std::max(args.channels, args.filters);
    for_each_block<T>(cut, stretch, args.form, most_channels,
                      [&](const WinogradBlock& block, int64_t first, A* scratch) {
                        steps.read_tiles(args.in, args.window, args.channels, block,
                                         {tiles + first * args.tile_row(), tile_point, args.tile_row()}, scratch);
                        steps.read_gradients(args.grad, args.filters, block, first, stretch.tiles, gradients, scratch);
                      });
    const Cut filters{args.stride, divide_up(args.stride, sizes.filters), kernels<T>().conv2d.panel};
    const int64_t cost = stretch.tiles * args.matrix() / filters.pieces / 32;
    parallel_for_cost(points * filters.pieces, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t point = i / filters.pieces, piece = i % filters.pieces;
        multiply_winograd<T>(args.product(tiles, tile_point, gradients, stretch.tiles, filters.at(piece),
                                          filters.at(piece + 1), 0, accumulate || stretch.begin > 0),
                             point, point + 1, args.splits);
      }
    });
  });
}

// False where a sum was not finite.
template <typename T>
bool run_winograd_weight_grad(const Conv2dShape& shape, const WinogradForm& form, const Tensor& dy, const Tensor& x,
                              const Tensor& dweight, bool splits) {
  using A = Acc<T>;
  constexpr int64_t kCachedSums = 300 * 1000, kChunks = 8, kFewestChunkTiles = 96;
  const int64_t groups = shape.groups, C = shape.channels / groups, F = shape.filters / groups;
  const int64_t width = kernels<T>().conv2d.panel, stride = divide_up(F, width) * width;
  const int64_t points = form.points(), taps = form.taps * form.taps, wanted = divide_up(kChunks, groups);
  const int64_t target = points * C * F <= kCachedSums / 2 ? 2 * kWinogradFewestTiles : kWinogradFewestTiles;
  const std::vector<PlainWindow> windows = plain_windows(forward_window(shape));
  const auto cut_of = [&](const PlainWindow& plain) {
    return WinogradCut(plain.window.height, plain.window.width, shape.images, form.pixels, target);
  };
  const WinogradCut cut = cut_of(windows.front());
  const bool in_blocks = !splits && points * C * F <= kCachedSums &&
                         cut.rows * cut.cols >= wanted * kFewestChunkTiles && cut.count() >= wanted;
  const int64_t chunks = in_blocks ? wanted : 1;
  const auto options = x.options().dtype(accumulation_dtype(x.scalar_type()));
  const Tensor sums = scratch_tensor({groups, chunks, points, C, stride}, options);
  const WinogradWeightGrad<T> args{images_of(x, const_data<T>(x), shape.format),
                                   images_of(dy, const_data<T>(dy), shape.format),
                                   forward_window(shape),
                                   shape.images,
                                   C,
                                   F,
                                   stride,
                                   form,
                                   splits,
                                   chunks,
                                   mutable_data<A>(sums)};
  for (size_t i = 0; i < windows.size(); ++i) {
    const WinogradWeightGrad<T> part = args.at_residue(windows[i]);
    const WinogradCut part_cut = cut_of(windows[i]);
    if (in_blocks) weight_grad_in_blocks(part, groups, part_cut, /*accumulate=*/i > 0);
    for (int64_t group = 0; group < groups && !in_blocks; ++group) {
      weight_grad_in_steps(part.at_group(group), part_cut, /*accumulate=*/i > 0);
    }
  }
  const Tensor reduced = scratch_tensor({groups, taps, C, stride}, options);
  A* out = mutable_data<A>(reduced);
  std::atomic<bool> finite{true};
  parallel_for_cost(groups * C, 2 * points * stride * chunks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t group = i / C, channel = i % C, count = std::min(C - channel, end - i);
      if (!winograd_tiles<T>(form).reduce_weights(args.at_group(group).sums, chunks, C, stride, channel,
                                                  channel + count, out + group * taps * C * stride)) {
        finite = false;
      }
      i += count;
    }
  });
  if (!finite) return false;
  const WeightLayout layout = forward_weights(shape, !dweight.is_contiguous(), ConvOrder::kTapsOuter);
  for (int64_t group = 0; group < groups; ++group) {
    unpack_conv_weights(layout, out + group * taps * C * stride, stride, /*chunks=*/1, taps * C, F,
                        mutable_data<T>(dweight) + group * taps * C * F);
  }
  return true;
}

template <typename T>
bool winograd_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight) {
  const WinogradForm form = winograd_form(shape, ConvPass::kWeightGrad);
  const bool splits = winograd_splits<T>(form.weights(shape), x, dy);
  if (!run_winograd_weight_grad<T>(shape, form, dy, x, dweight, splits)) return false;
  return !splits || is_sound<T>(dweight) || run_winograd_weight_grad<T>(shape, form, dy, x, dweight, /*splits=*/false);
}

}  // namespace tilewright

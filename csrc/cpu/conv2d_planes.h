// Dense and grouped convolution of planes on the CPU: packs the weights, cuts pixels and filters into work items, runs
// them on torch's threads. Only the weights' gradient sums over items; its cut depends on the shape alone.
#pragma once
#include "cpu/conv2d_work.h"

namespace tilewright {

// Pixels of all images, in blocks no larger than one kernel call takes. A large plane keeps its blocks to itself, so
// that they are written in place; small images share blocks, so that tiles stay full.
struct PixelCut {
  int64_t per_image, images, block, blocks_per_image;
  PixelCut(const ConvWindow& window, int64_t image_count)
      : per_image(window.height * window.width), images(image_count) {
    constexpr int64_t kLargePlane = 512;
    if (per_image < kLargePlane && !conv_reads_runs(window)) {
      per_image *= images;
      images = 1;
    }
    constexpr int64_t kUnit = 32;
    const int64_t largest = conv_block_columns(window);
    block = std::min(largest, divide_up(divide_up(per_image, divide_up(per_image, largest)), kUnit) * kUnit);
    blocks_per_image = divide_up(per_image, block);
  }
  int64_t count() const { return images * blocks_per_image; }
  int64_t begin(int64_t i) const { return i / blocks_per_image * per_image + i % blocks_per_image * block; }
  int64_t end(int64_t i) const {
    return i / blocks_per_image * per_image + std::min(per_image, (i % blocks_per_image + 1) * block);
  }
};

// The weights of all groups: [group][panel][k][kernel.panel].
template <typename T>
Tensor pack_conv_weights(const WeightLayout& layout, const T* data, int64_t group_stride, int64_t groups, int64_t K,
                         const at::TensorOptions& options) {
  const auto& kernel = kernels<T>().conv2d;
  const int64_t panels = divide_up(layout.filters, kernel.panel);
  return pack_panels<Acc<T>>(layout, data, group_stride, groups, panels, panels * kernel.panel * K, options,
                             [&](const ConvWeights<const T>& weights, int64_t panel, Acc<T>* packed) {
                               kernel.pack_weights(weights, K, panel, panel + 1, packed);
                             });
}

// out = conv(in) for all groups. args holds group 0's pointers; the next group's lie the given steps further.
struct GroupSteps {
  int64_t in, out, filters;
};

template <typename T>
ConvGemmArgs<T> args_of_group(const ConvGemmArgs<T>& first, int64_t group, const GroupSteps& steps) {
  const int64_t K = first.window.rows * first.window.cols * first.channels, panel = kernels<T>().conv2d.panel;
  ConvGemmArgs<T> args = first;
  args.in.data += group * steps.in;
  args.out.data += group * steps.out;
  args.epilogue = args.epilogue.moved(group * steps.out, group * steps.filters);
  args.weight += group * divide_up(first.filters, panel) * panel * K;
  return args;
}

// Output rows per block of the kernel without patches; 0 where patches serve better: a single tap (nothing is read
// twice), phases that do not serve, or channels so many that a block leaves L2.
template <typename T>
int64_t flat_rows(const ConvGemmArgs<T>& args) {
  constexpr int64_t kLargestScratch = 1 << 18, kPixels = 512;
  const ConvWindow& window = args.window;
  if (window.rows * window.cols == 1 || !phases_serve(window)) return 0;
  int64_t rows = std::min(window.height, std::max<int64_t>(1, kPixels / phase_pitch(window)));
  const auto scratch = [&] { return kernels<T>().conv2d.flat_scratch(window, args.channels, args.filters, rows); };
  while (rows > 2 && scratch() > kLargestScratch) rows = divide_up(rows, 2);
  return scratch() > kLargestScratch ? 0 : divide_up(window.height, divide_up(window.height, rows));
}

template <typename T>
void run_conv_flat(const ConvGemmArgs<T>& first, int64_t groups, const GroupSteps& steps, int64_t rows) {
  const auto& kernel = kernels<T>().conv2d;
  const int64_t blocks = divide_up(first.window.height, rows),
                K = first.window.rows * first.window.cols * first.channels;
  constexpr int64_t kItems = 16, kFewestFilters = 64;
  const int64_t wanted =
      std::min(divide_up(kItems, groups * blocks * first.images), divide_up(first.filters, kFewestFilters));
  const Cut filters{first.filters, wanted, kernel.panel};
  const int64_t cost = rows * first.window.width * divide_up(first.filters, filters.pieces) * K / 32;
  parallel_for_cost(groups * first.images * blocks * filters.pieces, cost, [&](int64_t begin, int64_t end) {
    const int64_t elements = kernel.flat_scratch(first.window, first.channels, first.filters, rows);
    auto* scratch = conv_scratch<Acc<T>>(elements);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = i % filters.pieces, row = i / filters.pieces % blocks * rows;
      const int64_t n = i / filters.pieces / blocks % first.images, group = i / filters.pieces / blocks / first.images;
      kernel.flat(args_of_group(first, group, steps), n, row, std::min(first.window.height, row + rows),
                  filters.at(piece), filters.at(piece + 1), scratch);
    }
  });
}

template <typename T>
void run_conv_gemm(const ConvGemmArgs<T>& first, int64_t groups, const GroupSteps& steps) {
  const auto& kernel = kernels<T>().conv2d;
  if (const int64_t rows = flat_rows(first); rows > 0) return run_conv_flat(first, groups, steps, rows);
  const int64_t K = first.window.rows * first.window.cols * first.channels;
  const PixelCut pixels(first.window, first.images);
  // Enough items for many threads, though every cut of the filters packs the patches again.
  constexpr int64_t kItems = 16, kFewestFilters = 64;
  const int64_t wanted = std::min(divide_up(kItems, groups * pixels.count()), divide_up(first.filters, kFewestFilters));
  const Cut filters{first.filters, std::max(divide_up(first.filters, kConvBlockFilters), wanted), kernel.panel};
  const int64_t items = groups * pixels.count() * filters.pieces;
  // Two flops in a register tile take a thirtieth of the time of an element read.
  const int64_t cost = pixels.block * divide_up(first.filters, filters.pieces) * K / 32;
  parallel_for_cost(items, cost, [&](int64_t begin, int64_t end) {
    Acc<T>* scratch = conv_scratch<Acc<T>>();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % pixels.count(), piece = i / pixels.count() % filters.pieces;
      const int64_t group = i / pixels.count() / filters.pieces;
      kernel.gemm(args_of_group(first, group, steps), pixels.begin(block), pixels.end(block), filters.at(piece),
                  filters.at(piece + 1), scratch);
    }
  });
}

template <typename T>
void planes_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                    const ConvEpilogue<T>& epilogue, const Tensor& output) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1];
  const WeightLayout layout = forward_weights(shape, weight_last, ConvOrder::kChannelsOuter);
  const Tensor packed = pack_conv_weights(layout, const_data<T>(weight), F * K, shape.groups, K,
                                          x.options().dtype(accumulation_dtype(x.scalar_type())));
  ConvGemmArgs<T> args{images_of(x, const_data<T>(x), shape.format),
                       images_of(output, mutable_data<T>(output), shape.format),
                       forward_window(shape),
                       shape.images,
                       C,
                       F,
                       const_data<Acc<T>>(packed),
                       epilogue};
  const GroupSteps steps{C * args.in.c_stride, F * args.out.c_stride, F};
  join_rows(args.in, args.out, args.window);
  run_conv_gemm(args, shape.groups, steps);
}

template <typename T>
void planes_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, bool weight_last,
                       const Tensor& dx) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t group_weights = F * C * shape.kernel[0] * shape.kernel[1];
  for (const GradientClass& part : gradient_classes(shape)) {
    if (part.taps() == 0) continue;  // dx is zero there
    const int64_t K = part.taps() * F;
    const WeightLayout layout = gradient_weights(shape, part, weight_last, ConvOrder::kChannelsOuter);
    const Tensor packed = pack_conv_weights(layout, const_data<T>(weight), group_weights, shape.groups, K,
                                            dy.options().dtype(accumulation_dtype(dy.scalar_type())));
    ConvGemmArgs<T> args{images_of(dy, const_data<T>(dy), shape.format),
                         images_of_class(shape, part, dx, mutable_data<T>(dx), shape.format),
                         part.window(),
                         shape.images,
                         F,
                         C,
                         const_data<Acc<T>>(packed),
                         {}};
    const GroupSteps steps{F * args.in.c_stride, C * args.out.c_stride, C};
    join_rows(args.in, args.out, args.window);
    run_conv_gemm(args, shape.groups, steps);
  }
}

// The chunks' sums of one group, [chunk][k][stride], to its weights' gradient.
template <typename T>
void unpack_conv_weights(const WeightLayout& layout, const Acc<T>* sums, int64_t stride, int64_t chunks, int64_t K,
                         int64_t filters, T* weights) {
  const auto& kernel = kernels<T>().conv2d;
  const Cut parts{filters, divide_up(filters, kernel.panel), kernel.panel};
  parallel_for_cost(parts.pieces, K * kernel.panel * chunks, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel.unpack_weights(layout.at(weights), K, sums, stride, chunks, parts.at(part), parts.at(part + 1));
    }
  });
}

template <typename T>
void planes_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x, const Tensor& dweight) {
  const auto& kernel = kernels<T>().conv2d;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups, groups = shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  const int64_t stride = divide_up(F, kernel.panel) * kernel.panel;
  const Cut ks{K, divide_up(K, kConvBlockK), 1};
  const Cut filters{F, divide_up(F, kConvBlockFilters), kernel.panel};
  // Chunks of pixels only where the blocks of the result are too few for many threads.
  constexpr int64_t kItems = 16;
  const int64_t blocks = groups * ks.pieces * filters.pieces;
  const Cut chunks{pixels, std::min(divide_up(kItems, blocks), divide_up(pixels, kConvGradPixels)), 1};
  Tensor sums =
      scratch_tensor({groups, chunks.pieces, K, stride}, x.options().dtype(accumulation_dtype(x.scalar_type())));
  ConvWeightGradArgs<T> first{images_of(x, const_data<T>(x), shape.format),
                              images_of(dy, const_data<T>(dy), shape.format),
                              forward_window(shape),
                              shape.images,
                              C,
                              F,
                              mutable_data<Acc<T>>(sums),
                              stride};
  const GroupSteps steps{C * first.in.c_stride, F * first.grad.c_stride, F};
  join_rows(first.in, first.grad, first.window);
  join_rows(first.grad);
  const int64_t cost = pixels / chunks.pieces * (K / ks.pieces + 1) * (F / filters.pieces + 1) / 32;
  parallel_for_cost(blocks * chunks.pieces, cost, [&](int64_t begin, int64_t end) {
    Acc<T>* scratch = conv_scratch<Acc<T>>();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t filter = i % filters.pieces, k = i / filters.pieces % ks.pieces;
      const int64_t chunk = i / filters.pieces / ks.pieces % chunks.pieces;
      const int64_t group = i / filters.pieces / ks.pieces / chunks.pieces;
      ConvWeightGradArgs<T> args = first;
      args.in.data += group * steps.in;
      args.grad.data += group * steps.out;
      args.sums += (group * chunks.pieces + chunk) * K * stride;
      kernel.weight_grad(args, chunks.at(chunk), chunks.at(chunk + 1), ks.at(k), ks.at(k + 1), filters.at(filter),
                         filters.at(filter + 1), scratch);
    }
  });
  const WeightLayout layout = forward_weights(shape, !dweight.is_contiguous(), ConvOrder::kChannelsOuter);
  for (int64_t group = 0; group < groups; ++group) {
    unpack_conv_weights(layout, const_data<Acc<T>>(sums) + group * chunks.pieces * K * stride, stride, chunks.pieces, K,
                        F, mutable_data<T>(dweight) + group * F * K);
  }
}

}  // namespace tilewright

// Dense and grouped convolution of channels_last images on the CPU (kernels/conv2d_rows.h): packs the weights and cuts
// pixels and filters into work items for torch's threads. All cuts depend on the shape alone.
#pragma once
#include "cpu/conv2d_planes.h"

namespace tilewright {

// Images in the accumulation type, pixels in rows of channels. The format is said because `to` gives tensors that are
// not dense (expanded ones) strides of its own.
inline Tensor widened_images(const Tensor& images) {
  const auto sums = accumulation_dtype(images.scalar_type());
  if (images.scalar_type() == sums) return images;
  return images.to(sums, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::ChannelsLast);
}

template <typename T>
ConvRowPanels conv_row_panels(int64_t filters) {
  return ConvRowPanels(filters, kernels<T>().conv2d.row_lanes, kernels<T>().conv2d.row_vectors);
}

// The weights of all groups: [group][panel][k][filters of the panel].
template <typename T>
Tensor pack_conv_row_weights(const WeightLayout& layout, const T* data, int64_t group_stride, int64_t groups, int64_t K,
                             const at::TensorOptions& options) {
  const ConvRowPanels panels = conv_row_panels<T>(layout.filters);
  return pack_panels<Acc<T>>(layout, data, group_stride, groups, panels.count, panels.filters() * K, options,
                             [&](const ConvWeights<const T>& weights, int64_t panel, Acc<T>* packed) {
                               kernels<T>().conv2d.pack_row_weights(weights, K, panel, panel + 1, packed);
                             });
}

template <typename T>
void run_conv_rows(const ConvRowsArgs<T>& args, int64_t images) {
  const auto& kernel = kernels<T>().conv2d;
  const ConvWindow& window = args.window;
  const int64_t K = window.rows * window.cols * args.channels, pixels = images * window.height * window.width;
  const ConvRowPanels panels = conv_row_panels<T>(args.filters);
  // Whole tiles of 6 and 9 rows; what a block reads (384 KB), and its sums, stay in L2.
  constexpr int64_t kPixels = 252, kFewestPixels = 63, kElements = 96 * 1024;
  const int64_t of_pixel = args.groups * args.channels * window.stride_y * window.stride_x;
  int64_t most = kPixels;
  while (most > kFewestPixels && most * of_pixel > kElements) most /= 2;
  const WorkCut cut(pixels, most, panels.count,
                    static_cast<double>(args.groups * panels.filters() * K * sizeof(Acc<T>)),
                    static_cast<double>(pixels * of_pixel * sizeof(Acc<T>)));
  const Cut blocks{pixels, cut.blocks, 1}, parts{panels.count, cut.parts, 1};
  const int64_t largest = divide_up(pixels, cut.blocks);
  // Two flops in a register tile take a thirtieth of the time of an element read.
  const int64_t cost = args.groups * most * divide_up(args.filters, parts.pieces) * K / 32;
  parallel_for_cost(blocks.pieces * parts.pieces, cost, [&](int64_t begin, int64_t end) {
    auto* scratch =
        conv_scratch<Acc<T>>(kernel.rows_scratch(window, args.groups, args.channels, args.in.x_stride, largest));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks.pieces, part = i / blocks.pieces;
      kernel.rows(args, blocks.at(block), blocks.at(block + 1), parts.at(part), parts.at(part + 1), scratch);
    }
  });
}

// x is channels_last, output of the given format.
template <typename T>
void rows_forward(const Conv2dShape& shape, const Tensor& x_in, const Tensor& weight, bool weight_last,
                  const ConvEpilogue<T>& epilogue, const Tensor& output, at::MemoryFormat output_format) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1];
  const Tensor x = widened_images(x_in);
  const WeightLayout layout = forward_weights(shape, weight_last, ConvOrder::kTapsOuter);
  const Tensor packed = pack_conv_row_weights(layout, const_data<T>(weight), F * K, shape.groups, K, x.options());
  run_conv_rows(ConvRowsArgs<T>{images_of(x, const_data<Acc<T>>(x), shape.format),
                                images_of(output, mutable_data<T>(output), output_format), forward_window(shape),
                                shape.groups, C, F, const_data<Acc<T>>(packed), epilogue},
                shape.images);
}

template <typename T>
void rows_input_grad(const Conv2dShape& shape, const Tensor& dy_in, const Tensor& weight, bool weight_last,
                     const Tensor& dx, at::MemoryFormat dx_format) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups;
  const int64_t group_weights = F * C * shape.kernel[0] * shape.kernel[1];
  const Tensor dy = widened_images(dy_in);
  for (const GradientClass& part : gradient_classes(shape)) {
    if (part.taps() == 0) continue;  // dx is zero there
    const WeightLayout layout = gradient_weights(shape, part, weight_last, ConvOrder::kTapsOuter);
    const Tensor packed = pack_conv_row_weights(layout, const_data<T>(weight), group_weights, shape.groups,
                                                part.taps() * F, dy.options());
    ConvRowsArgs<T> args{images_of(dy, const_data<Acc<T>>(dy), shape.format),
                         images_of_class(shape, part, dx, mutable_data<T>(dx), dx_format),
                         part.window(),
                         shape.groups,
                         F,
                         C,
                         const_data<Acc<T>>(packed),
                         {}};
    run_conv_rows(args, shape.images);
  }
}

template <typename T>
void rows_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x_in, const Tensor& dweight) {
  const auto& kernel = kernels<T>().conv2d;
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups, groups = shape.groups;
  const int64_t K = C * shape.kernel[0] * shape.kernel[1], pixels = shape.images * shape.out[0] * shape.out[1];
  const Tensor x = widened_images(x_in);
  const ConvRowPanels panels = conv_row_panels<T>(F);
  // Chunks of pixels only where the parts of the result are too few for many threads.
  constexpr int64_t kItems = 16, kPartK = 1024;
  const Cut ks{K, divide_up(K, kPartK), 1};
  const Cut chunks{pixels,
                   std::min(divide_up(kItems, ks.pieces * panels.count), divide_up(pixels, kConvRowsGradPixels)), 1};
  const int64_t stride = panels.filters(), group_sums = chunks.pieces * K * stride;
  Tensor sums = scratch_tensor({groups * group_sums}, x.options());
  const ConvRowsGradArgs<T> first{images_of(x, const_data<Acc<T>>(x), shape.format),
                                  images_of(dy, const_data<T>(dy), shape.format),
                                  forward_window(shape),
                                  groups,
                                  C,
                                  F,
                                  mutable_data<Acc<T>>(sums),
                                  stride,
                                  group_sums};
  const int64_t cost = groups * (pixels / chunks.pieces) * (K / ks.pieces + 1) * (F / panels.count + 1) / 32;
  parallel_for_cost(chunks.pieces * ks.pieces * panels.count, cost, [&](int64_t begin, int64_t end) {
    auto* scratch =
        conv_scratch<Acc<T>>(kernel.rows_scratch(first.window, groups, C, first.in.x_stride, kConvRowsGradPixels));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i % panels.count, k = i / panels.count % ks.pieces, chunk = i / panels.count / ks.pieces;
      ConvRowsGradArgs<T> args = first;
      args.sums += chunk * K * stride;
      kernel.rows_weight_grad(args, chunks.at(chunk), chunks.at(chunk + 1), ks.at(k), ks.at(k + 1), panel, panel + 1,
                              scratch);
    }
  });
  const WeightLayout layout = forward_weights(shape, !dweight.is_contiguous(), ConvOrder::kTapsOuter);
  for (int64_t group = 0; group < groups; ++group) {
    unpack_conv_weights(layout, const_data<Acc<T>>(sums) + group * group_sums, stride, chunks.pieces, K, F,
                        mutable_data<T>(dweight) + group * F * K);
  }
}

}  // namespace tilewright

// Networks' first layers in bfloat16 on pairs: of 1 to 4 channels the taps of a row are joined, no pixel is filled up,
// and a product is as long as a row of taps (kernels/conv2d_pairs_strip.h):
//
//   7x7 of stride 2 on 3 channels:  7 x 22 values instead of 49 x 4
//
// Only processors without tile units, whose steps are two values: a row of 21 needs one more, with a weight of 0. That
// one is the image's next: a 0 times an infinity would be NaN, so where the image is not finite, taps are apart.
#pragma once
#include "cpu/conv2d_pairs.h"

namespace tilewright {

// What counts in strides of the window: the taps of a row fill that many, the last perhaps in part.
inline ConvWindow joined_window(const Conv2dShape& shape) {
  ConvWindow window = forward_window(shape);
  window.cols = divide_up(window.cols, window.stride_x);
  window.stride_x = 1;
  return window;
}

// Output rows of a block, or 0: not of this kind.
inline int64_t stem_rows(const Conv2dShape& shape) {
  constexpr int64_t kMostChannels = 4, kLargestScratch = 1 << 20;
  const auto& kernel = kernels<BF16>().conv2d.pairs;
  const int64_t values = shape.stride[1] * shape.channels;
  if (has_tile_unit<BF16>() || shape.groups > 1 || shape.channels > kMostChannels || values % 2 != 0 ||
      shape.dilation[1] > 1 || shape.kernel[1] == 1) {
    return 0;
  }
  const ConvWindow window = joined_window(shape);
  if (!phases_serve(window)) return 0;
  const int64_t rows = strip_rows<BF16>(window, values, shape.filters, shape.images);
  return kernel.strip_bytes(window, values, shape.filters, rows) > kLargestScratch ? 0 : rows;
}

// x channels_last; output in output_format. Whether it serves; if not, some of output may be written.
inline bool stem_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                         const ConvEpilogue<BF16>& epilogue, const Tensor& output, at::MemoryFormat output_format) {
  const int64_t rows = stem_rows(shape), run = shape.kernel[1] * shape.channels, row_step = divide_up(run, 2) * 2;
  if (rows == 0 || x.stride(3) != shape.channels) return false;
  const WeightLayout layout =
      forward_weights(shape, weight_last, ConvOrder::kTapsOuter, /*tap_step=*/shape.channels, row_step);
  const Tensor packed = pack_conv_pairs(layout, const_data<BF16>(weight), weight.numel(), /*groups=*/1,
                                        shape.kernel[0] * row_step, x.options());
  const ConvPairsArgs<BF16> args{images_of(x, const_data<BF16>(x), at::MemoryFormat::ChannelsLast),
                                 images_of(output, mutable_data<BF16>(output), output_format),
                                 joined_window(shape),
                                 /*groups=*/1,
                                 shape.stride[1] * shape.channels,
                                 shape.filters,
                                 packed.const_data_ptr(),
                                 epilogue,
                                 /*checks=*/row_step > run,
                                 run};
  SumReport report;
  run_conv_strips(args, shape.images, rows, &report);
  return row_step == run || report.is_finite();
}

}  // namespace tilewright

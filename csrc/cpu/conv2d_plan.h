// Chooses the way to compute a convolution, and the memory formats that this way works in.
#pragma once
#include "cpu/conv2d_depthwise_grad.h"
#include "cpu/conv2d_format.h"
#include "cpu/conv2d_pairs_groups.h"
#include "cpu/conv2d_planes.h"
#include "cpu/conv2d_pointwise.h"
#include "cpu/conv2d_rows.h"
#include "cpu/conv2d_split.h"
#include "cpu/conv2d_winograd_weight_grad.h"

namespace tilewright {

enum class ConvWay {
  kDepthwise,  // sums over taps, and over the few channels of a group
  kPointwise,  // 1x1: a product of matrices
  kPatches,    // the data gradient of patches that do not overlap: as 1x1
  kPairs,      // products of pairs of bfloat16
  kSplit,      // the same of float32 and float16 in parts; where sums are not sound, as without it
  kWinograd,   // 3x3 and 5x5 of stride 1; where a sum is not finite, kDense
  kDense,      // products of patches that are not written: of rows (channels_last) or planes
};

// Read their images as matrices, or look at all of them: only contiguous ones. Of pairs, that is their gradient.
inline bool reads_dense(ConvWay way) {
  return way == ConvWay::kPointwise || way == ConvWay::kPatches || way == ConvWay::kSplit;
}
inline bool reads_dense_gradient(ConvWay way) { return reads_dense(way) || way == ConvWay::kPairs; }
inline Tensor readable(const Tensor& images, at::MemoryFormat format, bool dense) {
  return dense ? dense_in_format(images, format) : in_format(images, format);
}

struct ConvPlan {
  ConvWay way;
  at::MemoryFormat format;  // of the images that are read
  at::MemoryFormat result;  // of those that are written
};

// Elements of a pixel's patch that lie side by side in channels_last images (kernels/conv2d_row_table.h).
inline bool has_short_runs(const Conv2dShape& shape) {
  constexpr int64_t kShort = 8;
  const int64_t C = shape.channels / shape.groups, cols = shape.kernel[1];
  return (joins_taps(shape.groups, C, cols, shape.dilation[1]) ? cols * C : C) < kShort;
}

// A result of few channels fills a vector of pixels, not one of filters: it is worked on as planes, and so are groups
// that are few on both sides.
inline bool prefers_planes(const Conv2dShape& shape, ConvPass pass) {
  const int64_t F = shape.filters / shape.groups, C = shape.channels / shape.groups;
  if (pass == ConvPass::kInputGrad) return C < kFewestChannels;
  if (shape.groups > 1) return std::max(F, C) < kFewestChannels;
  return pass == ConvPass::kForward && F < kFewestChannels;
}

// Planes whose copies to channels_last are paid for by the arithmetic: multiplications for each element that is copied.
// A forward's result is transposed on its way out of cache, which costs a quarter of a copy; a gradient copies what it
// reads. Tiles of pixels as rows are 5 to 10 % faster, and know no short rows of images. Of groups, the gradients gain.
inline bool prefers_channels_last(const Conv2dShape& shape, ConvPass pass) {
  if (shape.format != kPlanes) return false;
  if (shape.groups > 1) {
    constexpr int64_t kFewestFilters = 16;
    return pass != ConvPass::kForward && std::min(shape.channels, shape.filters) / shape.groups >= kFewestFilters;
  }
  if (has_short_runs(shape)) return false;
  // One to three channels fill little of what transposes them.
  const int64_t worth_a_copy = shape.channels < 4 ? 200 : 100;
  const int64_t K = shape.kernel[0] * shape.kernel[1] * shape.channels;
  const int64_t filters = pass == ConvPass::kForward ? shape.filters / 4 : shape.filters;
  return K * shape.filters >= worth_a_copy * (shape.channels * shape.stride[0] * shape.stride[1] + filters);
}

// Centred windows are summed straight from the rows of a plane (kernels/depthwise_planes_window.h); other large windows
// share more of what they load across channels than along rows, and the data gradient of strides writes neighbouring
// channels, not every third pixel of a plane (of stride 2 whole lines: kernels/depthwise_planes_grad.h).
inline bool depthwise_prefers_last(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass) {
  constexpr int64_t kLargeWindow = 49, kVector = 16;
  const bool skips = pass == ConvPass::kInputGrad && shape.stride[1] > 1 && !has_column_pairs(shape);
  const bool is_large = shape.kernel[0] * shape.kernel[1] >= kLargeWindow && !centres_window(shape, dtype);
  return shape.channels >= kVector && (is_large || skips);
}

// What is computed as channels_last writes planes as it leaves the cache, but for data gradients of strides: every
// second pixel of a plane is slower than a copy of the result.
inline at::MemoryFormat written_format(const Conv2dShape& shape, ConvPass pass) {
  const bool neighbours = pass == ConvPass::kForward || (shape.stride[0] == 1 && shape.stride[1] == 1);
  return neighbours ? shape.format : at::MemoryFormat::ChannelsLast;
}

// Whether Winograd's products, in float32, take less time than bfloat16's own, which run at twice the rate: 3x3 by
// F(4x4), a quarter of the products where tiles fill the image. Up to 1.5 times as fast (Zen 4); tile units have 16
// times the rate.
inline bool winograd_beats_pairs(const Conv2dShape& shape, ConvPass pass) {
  constexpr int64_t kFewestTiles = 49, kFewestUnfilled = 190, kFewestChannels = 24;
  const WinogradForm form = winograd_form(shape, pass);
  if (has_tile_unit<BF16>() || shape.groups > 1 || form.pixels != 4 ||
      std::min(shape.channels, shape.filters) < kFewestChannels) {
    return false;
  }
  const int64_t tiles = divide_up(shape.out[0], form.pixels) * divide_up(shape.out[1], form.pixels);
  // A quarter where tiles fit. Of a third (images of 14 pixels) it takes more tiles to repay the weights' transform,
  // and beyond (of 13) nothing does.
  const int64_t products = tiles * form.points(), plain = shape.out[0] * shape.out[1] * form.taps * form.taps;
  const int64_t fewest = 10 * products <= 3 * plain ? kFewestTiles : kFewestUnfilled;
  return shape.images * tiles >= fewest && 3 * products <= plain;
}

// A function of the shape, the dtype, the pass, the instruction set and the switches (Winograd's, split's). adds_twice:
// a bias and a residual, of which a product of matrices adds one.
inline ConvPlan choose_plan(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass, bool adds_twice = false) {
  constexpr auto kLast = at::MemoryFormat::ChannelsLast;
  const auto in = [](ConvWay way, at::MemoryFormat format) { return ConvPlan{way, format, format}; };
  if (is_depthwise(shape))
    return in(ConvWay::kDepthwise, depthwise_prefers_last(shape, dtype, pass) ? kLast : shape.format);
  const bool filters_minimally = winograd_suits(shape, dtype, pass);
  const at::MemoryFormat written = written_format(shape, pass);
  if (!filters_minimally && split_suits(shape, dtype, pass, written)) {
    return {ConvWay::kSplit, split_format(shape, pass), written};
  }
  if (pointwise_suits(shape, dtype, pass) && !adds_twice) return in(ConvWay::kPointwise, shape.format);
  if (pass == ConvPass::kInputGrad && cuts_patches(shape)) return in(ConvWay::kPatches, shape.format);
  if (multiplies_pairs(dtype) && !(filters_minimally && winograd_beats_pairs(shape, pass))) {
    return in(ConvWay::kPairs, kLast);
  }
  if (shape.format == kLast && is_small_groups(shape, dtype)) return in(ConvWay::kDepthwise, kLast);
  // The pixels of a residue are no neighbours in a plane.
  if (filters_minimally) return in(ConvWay::kWinograd, is_dilated(shape) ? kLast : shape.format);
  if (prefers_planes(shape, pass)) return in(ConvWay::kDense, kPlanes);
  if (!prefers_channels_last(shape, pass)) return in(ConvWay::kDense, shape.format);
  return {ConvWay::kDense, kLast, written};
}

}  // namespace tilewright

// Groups of few channels, in bfloat16 on pairs: a step of the tile takes 32 channels, so neighbouring groups are joined
// to as many, with zeros for weights between them:
//
//   groups of 16:   | w0  0  |       twice the products, but whole steps, whole panels, and no patches
//                   | 0   w1 |
//
// A zero times another group's infinity would be NaN: where a sum is not finite, the groups are computed apart.
#pragma once
#include <ATen/ops/zeros.h>

#include "cpu/conv2d_pairs_stem.h"
#include "cpu/conv2d_pairs_weight_grad.h"

namespace tilewright {

// How many neighbouring groups are joined, by the channels of a group that are summed over and those that are written;
// 1: none. Where a step is two channels nothing is gained.
inline int64_t joined_groups(int64_t groups, int64_t summed, int64_t written) {
  const auto& kernel = kernels<BF16>().conv2d.pairs;
  if (groups == 1 || summed >= kernel.step || kernel.step % summed != 0 || written > kernel.panel) return 1;
  const int64_t joined = kernel.step / summed;
  return groups % joined == 0 ? joined : 1;
}

inline Conv2dShape joined_shape(const Conv2dShape& shape, int64_t joined) {
  Conv2dShape result = shape;
  result.groups /= joined;
  return result;
}

// The weights of single groups inside the joined groups' [F, C, KH, KW], as [joined groups, F, C, KH, KW, joined] of
// one group's F and C.
inline Tensor blocks_of_joined(const Conv2dShape& shape, const Tensor& joined_weight, int64_t joined) {
  const int64_t groups = shape.groups / joined, F = shape.filters / shape.groups, C = shape.channels / shape.groups;
  return joined_weight.view({groups, joined, F, joined, C, shape.kernel[0], shape.kernel[1]}).diagonal(0, 1, 3);
}
inline Tensor blocks_of_groups(const Conv2dShape& shape, const Tensor& weight, int64_t joined) {
  const int64_t groups = shape.groups / joined, F = shape.filters / shape.groups, C = shape.channels / shape.groups;
  return weight.view({groups, joined, F, C, shape.kernel[0], shape.kernel[1]}).permute({0, 2, 3, 4, 5, 1});
}

inline Tensor zeros_joined(const Conv2dShape& shape, const Tensor& weight, int64_t joined) {
  const int64_t C = shape.channels / shape.groups * joined;
  return at::zeros({shape.filters, C, shape.kernel[0], shape.kernel[1]}, weight.options());
}
inline Tensor joined_weight(const Conv2dShape& shape, const Tensor& weight, int64_t joined) {
  Tensor result = zeros_joined(shape, weight, joined);
  blocks_of_joined(shape, result, joined).copy_(blocks_of_groups(shape, weight.contiguous(), joined));
  return result;
}

inline void grouped_pairs_forward(const Conv2dShape& shape, const Tensor& x, const Tensor& weight, bool weight_last,
                                  const ConvEpilogue<BF16>& epilogue, const Tensor& output) {
  if (stem_forward(shape, x, weight, weight_last, epilogue, output, shape.format)) return;
  const int64_t joined = joined_groups(shape.groups, shape.channels / shape.groups, shape.filters / shape.groups);
  const Conv2dShape wide = joined_shape(shape, joined);
  // Only strips look at what they have summed.
  if (joined > 1 && has_strips<BF16>(wide, ConvPass::kForward)) {
    SumReport report;
    pairs_forward(wide, x, joined_weight(shape, weight, joined), false, epilogue, output, shape.format, &report);
    if (report.is_finite()) return;
  }
  pairs_forward(shape, x, weight, weight_last, epilogue, output, shape.format);
}

inline void grouped_pairs_input_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, bool weight_last,
                                     const Tensor& dx) {
  const int64_t joined = joined_groups(shape.groups, shape.filters / shape.groups, shape.channels / shape.groups);
  const Conv2dShape wide = joined_shape(shape, joined);
  const auto classes = gradient_classes(shape);
  if (joined > 1 && has_strips<BF16>(wide, ConvPass::kInputGrad)) {
    SumReport report;
    const Tensor wide_weight = joined_weight(shape, weight, joined);
    for (const GradientClass& part : classes) {
      if (part.taps() > 0) pairs_input_grad<BF16>(wide, part, dy, wide_weight, false, dx, shape.format, &report);
    }
    if (report.is_finite()) return;
  }
  for (const GradientClass& part : classes) {  // dx is zero in those without taps
    if (part.taps() > 0) pairs_input_grad<BF16>(shape, part, dy, weight, weight_last, dx, shape.format);
  }
}

// What lies between the groups is computed and dropped: it reaches no gradient.
inline void grouped_pairs_weight_grad(const Conv2dShape& shape, const Tensor& dy, const Tensor& x,
                                      const Tensor& dweight) {
  const int64_t joined = joined_groups(shape.groups, shape.channels / shape.groups, shape.filters / shape.groups);
  if (joined == 1) return pairs_weight_grad(shape, dy, x, dweight);
  const Tensor all = zeros_joined(shape, dweight, joined);
  pairs_weight_grad(joined_shape(shape, joined), dy, x, all);
  const Tensor blocks = blocks_of_joined(shape, all, joined);  // [groups, F, C, KH, KW, joined]
  dweight.copy_(blocks.permute({0, 5, 1, 2, 3, 4}).reshape(dweight.sizes()));
}

}  // namespace tilewright

// conv2d: out[n, f, y, x] = act(bias[f] + sum over c, i, j of weight[f, c, i, j] *
//                               input[n, c, y * stride - padding + i * dilation, x ...] + residual[n, f, y, x])
//
// input [N, C, H, W], weight [F, C / groups, KH, KW], bias [F], residual and out [N, F, OH, OW]. Filter f reads the
// channels of its group, f / (F / groups). The output, and all gradients, are channels_last if input or weight is.
#pragma once
#include "ops/library.h"

namespace tilewright {

// The GPU's kernels hold the place of a pixel, padding included, in 32 bits: LARGEST_PLANE of
// triton/conv2d_schedule.py.
constexpr int64_t kLargestOnGpu = int64_t{1} << 28;

struct Conv2dShape {
  int64_t images, channels, height, width;
  int64_t filters, kernel[2];
  int64_t out[2];  // height, width
  int64_t stride[2], padding[2], dilation[2];
  int64_t groups;
  at::MemoryFormat format;
  std::array<int64_t, 4> output_size() const { return {images, filters, out[0], out[1]}; }
  bool empty() const { return images == 0 || filters == 0 || channels == 0 || out[0] == 0 || out[1] == 0; }
};

// Raises what native raises for arguments that do not fit together. Input must have four dimensions here.
Conv2dShape check_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bias, at::IntArrayRef stride,
                         at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups);

// Of the shape's sizes: residual may be undefined.
void check_conv2d_residual(const Conv2dShape& shape, const Tensor& input, const Tensor& residual);
void check_conv2d_gradient(const Conv2dShape& shape, const Tensor& input, const Tensor& grad_output);

// The memory format that the weight's gradient is promised in.
at::MemoryFormat conv2d_weight_grad_format(const Conv2dShape& shape, const Tensor& weight, at::MemoryFormat format);

// (output, saved): saved is what the activation is applied to, undefined unless `saves` and its gradient reads it (that
// of relu and relu6 reads the output). residual has the output's shape.
std::tuple<Tensor, Tensor> conv2d_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                          c10::SymIntArrayRef dilation, c10::SymInt groups, c10::string_view activation,
                                          bool saves, const OptionalTensor& residual);

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                   c10::SymIntArrayRef dilation, c10::SymInt groups,
                                                   std::array<bool, 3> output_mask);

}  // namespace tilewright

// conv2d with as many groups as input channels, for devices whose conv2d hands it on: conv2d_forward and
// conv2d_backward of ops/conv2d.h without `groups`. Those hand it on themselves where is_depthwise_on_gpu.
#pragma once
#include "ops/conv2d.h"

namespace tilewright {

// check_conv2d with groups = the input's channels.
Conv2dShape check_depthwise(const Tensor& input, const Tensor& weight, const Tensor& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation);

// Do the CUDA C++ kernels serve this convolution? Then it need not go through Python, as the rest of the CUDA slot's
// conv2d does. Not where it is traced: a graph holds conv2d's own ops, which every device has.
bool is_depthwise_on_gpu(const Tensor& input, const Tensor& weight, const c10::SymInt& groups);

std::tuple<Tensor, Tensor> depthwise_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                             c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                             c10::SymIntArrayRef dilation, c10::string_view activation, bool saves,
                                             const OptionalTensor& residual);

std::tuple<Tensor, Tensor, Tensor> depthwise_backward(const Tensor& grad_output, const Tensor& input,
                                                      const Tensor& weight, c10::SymIntArrayRef stride,
                                                      c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                                      std::array<bool, 3> output_mask);

}  // namespace tilewright

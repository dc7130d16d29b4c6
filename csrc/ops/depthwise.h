// conv2d with as many groups as input channels, for devices whose conv2d hands it on: conv2d_forward and
// conv2d_backward of ops/conv2d.h without `groups`.
#pragma once
#include "ops/conv2d.h"

namespace tilewright {

// check_conv2d with groups = the input's channels.
Conv2dShape check_depthwise(const Tensor& input, const Tensor& weight, const Tensor& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation);

}  // namespace tilewright

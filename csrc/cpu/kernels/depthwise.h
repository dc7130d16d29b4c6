// Depthwise convolution: every filter reads one channel, so there is no product of matrices, only sums over taps.
//
//   channels_last   a vector of channels; a few pixels of a row at once share weights and positions (depthwise_last.h)
//   planes          a vector of pixels of one channel (depthwise_planes.h)
//   small windows   strips that go down the image, of either (depthwise_last_window.h, depthwise_planes_window.h)
// Data gradients are the same sums over dy with other windows. Weight gradients keep one accumulator per tap.
#pragma once
#include "cpu/kernels/depthwise_last_grad.h"
#include "cpu/kernels/depthwise_planes_grad.h"

namespace tilewright {
namespace {

template <typename T>
void fill_depthwise(TypedKernels<T>& table) {
  table.depthwise = {depthwise_last<T>,           depthwise_last_weight_grad<T>,
                     last_classes_kernel<T>(),    depthwise_planes_scratch<Acc<T>>,
                     depthwise_planes<T>,         depthwise_classes_scratch<Acc<T>>,
                     depthwise_planes_classes<T>, depthwise_planes_weight_grad<T>};
}

}  // namespace
}  // namespace tilewright

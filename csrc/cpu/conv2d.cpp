// conv2d on the CPU: chooses the way to compute it, and the memory format that this way works in.
#include "ops/conv2d.h"

#include <ATen/ops/index_select.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/tensor.h>

#include "cpu/conv2d_depthwise.h"
#include "cpu/conv2d_format.h"
#include "cpu/conv2d_pairs_groups.h"
#include "cpu/conv2d_planes.h"
#include "cpu/conv2d_pointwise.h"
#include "cpu/conv2d_rows.h"
#include "cpu/conv2d_split.h"
#include "cpu/conv2d_winograd_weight_grad.h"
#include "ops/linear.h"

namespace tilewright {
namespace {

enum class ConvWay {
  kDepthwise,  // sums over taps, and over the few channels of a group
  kPointwise,  // 1x1: a product of matrices
  kPatches,    // the data gradient of patches that do not overlap: as 1x1
  kPairs,      // products of pairs of bfloat16
  kSplit,      // the same of float32 and float16 in parts; where sums are not sound, kDense
  kWinograd,   // 3x3 and 5x5 of stride 1; where a sum is not finite, kDense
  kDense,      // products of patches that are not written: of rows (channels_last) or planes
};

// Reads images as matrices: only contiguous ones.
bool reads_dense(ConvWay way) {
  return way == ConvWay::kPointwise || way == ConvWay::kPatches || way == ConvWay::kPairs || way == ConvWay::kSplit;
}

struct ConvPlan {
  ConvWay way;
  at::MemoryFormat format;  // of the images that are read
  at::MemoryFormat result;  // of those that are written
};

// Elements of a pixel's patch that lie side by side in channels_last images (kernels/conv2d_row_table.h).
bool has_short_runs(const Conv2dShape& shape) {
  constexpr int64_t kShort = 8;
  const int64_t C = shape.channels / shape.groups, cols = shape.kernel[1];
  return (joins_taps(shape.groups, C, cols, shape.dilation[1]) ? cols * C : C) < kShort;
}

// A result of few channels fills a vector of pixels, not one of filters: it is worked on as planes, and so are groups
// that are few on both sides.
bool prefers_planes(const Conv2dShape& shape, ConvPass pass) {
  const int64_t F = shape.filters / shape.groups, C = shape.channels / shape.groups;
  if (pass == ConvPass::kInputGrad) return C < kFewestChannels;
  if (shape.groups > 1) return std::max(F, C) < kFewestChannels;
  return pass == ConvPass::kForward && F < kFewestChannels;
}

// Planes whose copies to channels_last are paid for by the arithmetic: multiplications for each element that is copied.
// A forward's result is transposed on its way out of cache, which costs a quarter of a copy; a gradient copies what it
// reads. Tiles of pixels as rows are 5 to 10 % faster, and know no short rows of images. Of groups, the gradients gain.
bool prefers_channels_last(const Conv2dShape& shape, ConvPass pass) {
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

// Large windows share more of what they load across channels than along rows, and the data gradient of strides writes
// neighbouring channels, not every second pixel of a plane.
bool depthwise_prefers_last(const Conv2dShape& shape, ConvPass pass) {
  constexpr int64_t kLargeWindow = 49, kVector = 16;
  return shape.channels >= kVector &&
         (shape.kernel[0] * shape.kernel[1] >= kLargeWindow || (pass != ConvPass::kForward && shape.stride[1] > 1));
}

// A function of the shape, the dtype, the pass, the instruction set and the switches (Winograd's, split's). adds_twice:
// a bias and a residual, of which a product of matrices adds one.
ConvPlan choose_plan(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass, bool adds_twice = false) {
  constexpr auto kLast = at::MemoryFormat::ChannelsLast;
  const auto in = [](ConvWay way, at::MemoryFormat format) { return ConvPlan{way, format, format}; };
  if (is_depthwise(shape)) return in(ConvWay::kDepthwise, depthwise_prefers_last(shape, pass) ? kLast : shape.format);
  const bool filters_minimally = winograd_suits(shape, dtype, pass);
  if (split_suits(shape, dtype, pass) && (!filters_minimally || split_outruns_winograd(shape, dtype))) {
    return {ConvWay::kSplit, kLast, split_result(shape, pass)};
  }
  if (pointwise_suits(shape, dtype, pass) && !adds_twice) return in(ConvWay::kPointwise, shape.format);
  if (pass == ConvPass::kInputGrad && cuts_patches(shape)) return in(ConvWay::kPatches, shape.format);
  if (multiplies_pairs(dtype)) return in(ConvWay::kPairs, kLast);
  if (shape.format == kLast && is_small_groups(shape, dtype)) return in(ConvWay::kDepthwise, kLast);
  if (filters_minimally) return in(ConvWay::kWinograd, shape.format);
  if (prefers_planes(shape, pass)) return in(ConvWay::kDense, kPlanes);
  if (!prefers_channels_last(shape, pass)) return in(ConvWay::kDense, shape.format);
  return {ConvWay::kDense, kLast, split_result(shape, pass)};
}

// Weights contiguous in one format or the other: both are packed without a copy.
struct DenseWeight {
  Tensor tensor;
  bool channels_last;
};
DenseWeight dense_weight(const Tensor& weight) {
  const bool last = !weight.is_contiguous() && weight.is_contiguous(at::MemoryFormat::ChannelsLast);
  return {last ? weight : weight.contiguous(), last};
}

template <typename T>
void forward(const ConvPlan& plan, const Conv2dShape& shape, const Tensor& x, const Tensor& weight_in,
             const ConvEpilogue<T>& epilogue, const Tensor& output) {
  const ConvWay way = plan.way;
  if (way == ConvWay::kDepthwise) return depthwise_forward<T>(shape, x, weight_in, epilogue, output);
  const auto [weight, weight_last] = dense_weight(weight_in);
  if constexpr (std::is_same_v<T, BF16>) {
    if (way == ConvWay::kPairs) return grouped_pairs_forward(shape, x, weight, weight_last, epilogue, output);
  }
  if constexpr (kCanSplit<T>) {
    if (way == ConvWay::kSplit && split_forward<T>(shape, x, weight, weight_last, epilogue, output, plan.result))
      return;
  }
  if (way == ConvWay::kWinograd && winograd_forward<T>(shape, x, weight, weight_last, epilogue, output)) return;
  if (shape.format == kPlanes) return planes_forward<T>(shape, x, weight, weight_last, epilogue, output);
  rows_forward<T>(shape, x, weight, weight_last, epilogue, output, plan.result);
}

std::tuple<Tensor, Tensor> conv2d_forward_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias_opt,
                                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                              int64_t groups, c10::string_view activation_name, bool saves,
                                              const OptionalTensor& residual_opt) {
  const Tensor bias_in = value_or_undefined(bias_opt), residual_in = value_or_undefined(residual_opt);
  const Activation activation = activation_from_name(activation_name);
  Conv2dShape shape = check_conv2d(input, weight, bias_in, stride, padding, dilation, groups);
  const auto dtype = input.scalar_type();
  const std::array<int64_t, 4> size = shape.output_size();
  check_conv2d_residual(shape, input, residual_in);
  const bool saves_pre = saves && gradient_reads_input(activation);
  if (shape.empty()) {
    return {at::empty(size, input.options()), saves_pre ? at::empty(size, input.options()) : Tensor()};
  }
  const auto promised = shape.format;
  const ConvPlan plan = choose_plan(shape, dtype, ConvPass::kForward, bias_in.defined() && residual_in.defined());
  shape.format = plan.format;

  Tensor output = at::empty(size, input.options().memory_format(plan.result));
  Tensor pre = saves_pre ? at::empty_like(output) : Tensor();
  // The kernels read the residual at the output's offsets.
  const Tensor residual = residual_in.defined() ? dense_in_format(residual_in, plan.result) : residual_in;
  if (plan.way == ConvWay::kPointwise) {
    pointwise_forward(shape, input, weight.contiguous(), bias_in, residual, activation, output, pre);
  } else {
    const bool dense = plan.way == ConvWay::kSplit;
    const Tensor x = dense ? dense_in_format(input, shape.format) : in_format(input, shape.format);
    const Tensor bias = as_accumulator(bias_in, dtype);
    dispatch_floating(dtype, "conv2d", [&](auto element) {
      using T = decltype(element);
      forward<T>(plan, shape, x, weight,
                 {const_data<Acc<T>>(bias), const_data<T>(residual), activation, mutable_data<T>(pre)}, output);
    });
  }
  return {result_in(output, plan.result, promised), result_in(pre, plan.result, promised)};
}

Tensor depthwise_input_gradient(const Conv2dShape& shape, const Tensor& dy, const Tensor& weight, const Tensor& dx) {
  dispatch_floating(dy.scalar_type(), "conv2d_backward",
                    [&](auto element) { depthwise_input_grad<decltype(element)>(shape, dy, weight, dx); });
  if (dx.size(1) == shape.channels) return dx;
  const auto sums = accumulation_dtype(dy.scalar_type());
  return dx.view({shape.images, shape.channels, -1, shape.height, shape.width})
      .sum(2, /*keepdim=*/false, sums)
      .to(dy.scalar_type())
      .contiguous(shape.format);
}

Tensor input_gradient(const ConvPlan& plan, const Conv2dShape& shape, const Tensor& dy, const Tensor& weight_in) {
  const ConvWay way = plan.way;
  const bool depthwise = way == ConvWay::kDepthwise;
  // Where the kernel skips pixels, their gradient is 0.
  bool every_pixel = true;
  for (const GradientClass& part : gradient_classes(shape)) every_pixel = every_pixel && part.taps() > 0;
  const std::array<int64_t, 4> size{shape.images, depthwise ? shape.filters : shape.channels, shape.height,
                                    shape.width};
  Tensor dx = at::empty(size, dy.options().memory_format(plan.result));
  if (!every_pixel) dx.zero_();
  if (depthwise) return depthwise_input_gradient(shape, dy, weight_in, dx);
  if (way == ConvWay::kPointwise || way == ConvWay::kPatches) {
    const auto compute = way == ConvWay::kPointwise ? pointwise_input_grad : patches_input_grad;
    compute(shape, dy, weight_in.contiguous(), dx);
    return dx;
  }
  const DenseWeight weight = dense_weight(weight_in);
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, BF16>) {
      if (way == ConvWay::kPairs) return grouped_pairs_input_grad(shape, dy, weight.tensor, weight.channels_last, dx);
    }
    if constexpr (kCanSplit<T>) {
      if (way == ConvWay::kSplit &&
          split_input_grad<T>(shape, dy, weight.tensor, weight.channels_last, dx, plan.result)) {
        return;
      }
    }
    if (way == ConvWay::kWinograd && winograd_input_grad<T>(shape, dy, weight.tensor, weight.channels_last, dx)) return;
    if (shape.format == kPlanes) return planes_input_grad<T>(shape, dy, weight.tensor, weight.channels_last, dx);
    rows_input_grad<T>(shape, dy, weight.tensor, weight.channels_last, dx, plan.result);
  });
  return dx;
}

// And the bias's, in the accumulation type, where it is wanted and costs nothing; undefined otherwise.
std::tuple<Tensor, Tensor> weight_gradient(ConvWay way, const Conv2dShape& shape, const Tensor& dy, const Tensor& input,
                                           const Tensor& weight, at::MemoryFormat promised, bool wants_bias) {
  const auto final_format = conv2d_weight_grad_format(shape, weight, promised);
  // Pairs write either format; the other ways write that of the images.
  const auto format = way == ConvWay::kPairs ? final_format : conv2d_weight_grad_format(shape, weight, shape.format);
  Tensor dweight = at::empty(weight.sizes(), weight.options().memory_format(format));
  if (way == ConvWay::kPointwise) {
    const Tensor dbias = pointwise_weight_grad(shape, dy, input, dweight, wants_bias);
    return {result_in(dweight, format, final_format), dbias};
  }
  const bool dense = way == ConvWay::kSplit;
  const Tensor x = dense ? dense_in_format(input, shape.format) : in_format(input, shape.format);
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, BF16>) {
      if (way == ConvWay::kPairs) return grouped_pairs_weight_grad(shape, dy, x, dweight);
    }
    if constexpr (kCanSplit<T>) {
      if (way == ConvWay::kSplit && split_weight_grad<T>(shape, dy, x, dweight)) return;
    }
    if (way == ConvWay::kDepthwise) {
      dweight.copy_(depthwise_weight_grad<T>(shape, dy, x).reshape(weight.sizes()));
    } else if (way == ConvWay::kWinograd && winograd_weight_grad<T>(shape, dy, x, dweight)) {
      return;
    } else if (shape.format == kPlanes) {
      planes_weight_grad<T>(shape, dy, x, dweight);
    } else {
      rows_weight_grad<T>(shape, dy, x, dweight);
    }
  });
  return {result_in(dweight, format, final_format), Tensor()};
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& weight, at::IntArrayRef stride,
                                                       at::IntArrayRef padding, at::IntArrayRef dilation,
                                                       int64_t groups, std::array<bool, 3> output_mask) {
  Conv2dShape shape = check_conv2d(input, weight, Tensor(), stride, padding, dilation, groups);
  check_conv2d_gradient(shape, input, grad_output);
  Tensor dx, dweight, dbias;
  if (shape.empty()) {
    if (output_mask[0]) dx = at::zeros(input.sizes(), input.options());
    if (output_mask[1]) dweight = at::zeros_like(weight);
    if (output_mask[2]) dbias = at::zeros({shape.filters}, weight.options());
    return {dx, dweight, dbias};
  }
  const auto promised = shape.format;
  const ConvPlan dx_plan = choose_plan(shape, input.scalar_type(), ConvPass::kInputGrad);
  const ConvPlan plan = choose_plan(shape, input.scalar_type(), ConvPass::kWeightGrad);
  const auto read = [&](const ConvPlan& plan) {
    return reads_dense(plan.way) ? dense_in_format(grad_output, plan.format) : in_format(grad_output, plan.format);
  };
  Tensor dy;
  if (output_mask[0]) {
    dy = read(dx_plan);
    shape.format = dx_plan.format;
    dx = result_in(input_gradient(dx_plan, shape, dy, weight), dx_plan.result, promised);
  }
  // Dense images serve every way.
  const bool is_read =
      dy.defined() && plan.format == dx_plan.format && (!reads_dense(plan.way) || reads_dense(dx_plan.way));
  if (!is_read && (output_mask[1] || output_mask[2])) dy = read(plan);
  shape.format = plan.format;
  if (output_mask[1]) {
    std::tie(dweight, dbias) = weight_gradient(plan.way, shape, dy, input, weight, promised, output_mask[2]);
  }
  if (output_mask[2] && !dbias.defined()) {
    dispatch_floating(dy.scalar_type(), "conv2d_backward",
                      [&](auto element) { dbias = bias_grad<decltype(element)>(shape, dy); });
  }
  if (output_mask[2]) dbias = dbias.to(weight.scalar_type());
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("conv2d_forward", tilewright::conv2d_forward_cpu);
  m.impl("conv2d_backward", tilewright::conv2d_backward_cpu);
}

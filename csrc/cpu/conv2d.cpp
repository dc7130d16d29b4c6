// conv2d on the CPU: the ways of conv2d_plan.h, their operands and results.
#include "ops/conv2d.h"

#include "cpu/conv2d_plan.h"
#include "ops/linear.h"

namespace tilewright {
namespace {

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
    const Tensor x = readable(input, shape.format, reads_dense(plan.way));
    const Tensor bias = as_accumulator(bias_in, dtype);
    dispatch_floating(dtype, "conv2d", [&](auto element) {
      using T = decltype(element);
      forward<T>(plan, shape, x, weight,
                 {const_data<Acc<T>>(bias), const_data<T>(residual), activation, mutable_data<T>(pre)}, output);
    });
  }
  return {result_in(output, plan.result, promised), result_in(pre, plan.result, promised)};
}

// For a data gradient of `channels`: zeros where the kernel skips pixels, whose gradient is 0.
Tensor input_gradient_result(const Conv2dShape& shape, int64_t channels, const Tensor& dy, at::MemoryFormat format) {
  bool every_pixel = true;
  for (const GradientClass& part : gradient_classes(shape)) every_pixel = every_pixel && part.taps() > 0;
  Tensor dx = at::empty({shape.images, channels, shape.height, shape.width}, dy.options().memory_format(format));
  if (!every_pixel) dx.zero_();
  return dx;
}

// Of several filters a channel, each has a gradient of its own, in the accumulation type: rounded once, as their sum.
Tensor depthwise_input_gradient(const Conv2dShape& shape, const Tensor& dy_in, const Tensor& weight) {
  const bool sums = shape.filters > shape.channels;
  // Expanded gradients keep no format of their own.
  const Tensor dy = sums ? dy_in.to(dy_in.options().dtype(accumulation_dtype(dy_in.scalar_type())),
                                    /*non_blocking=*/false, /*copy=*/false, shape.format)
                         : dy_in;
  const Tensor dx = input_gradient_result(shape, shape.filters, dy, shape.format);
  dispatch_floating(dy.scalar_type(), "conv2d_backward",
                    [&](auto element) { depthwise_input_grad<decltype(element)>(shape, dy, weight, dx); });
  if (!sums) return dx;
  return dx.view({shape.images, shape.channels, -1, shape.height, shape.width})
      .sum(2)
      .to(dy_in.scalar_type())
      .contiguous(shape.format);
}

Tensor input_gradient(const ConvPlan& plan, const Conv2dShape& shape, const Tensor& dy, const Tensor& weight_in) {
  const ConvWay way = plan.way;
  if (way == ConvWay::kDepthwise) return depthwise_input_gradient(shape, dy, weight_in);
  const Tensor dx = input_gradient_result(shape, shape.channels, dy, plan.result);
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

Tensor weight_gradient_result(const Conv2dShape& shape, const Tensor& weight, at::MemoryFormat promised) {
  const auto format = conv2d_weight_grad_format(shape, weight, promised);
  return at::empty(weight.sizes(), weight.options().memory_format(format));
}

// And the bias's, in the accumulation type, where it is wanted and costs nothing; undefined otherwise.
std::tuple<Tensor, Tensor> weight_gradient(ConvWay way, const Conv2dShape& shape, const Tensor& dy, const Tensor& input,
                                           const Tensor& weight, at::MemoryFormat promised, bool wants_bias) {
  Tensor dweight = weight_gradient_result(shape, weight, promised);
  if (way == ConvWay::kPointwise) {
    const Tensor dbias = pointwise_weight_grad(shape, dy, input, dweight, wants_bias);
    return {dweight, dbias};
  }
  const Tensor x = readable(input, shape.format, reads_dense(way));
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, BF16>) {
      if (way == ConvWay::kPairs) return grouped_pairs_weight_grad(shape, dy, x, dweight);
    }
    if constexpr (kCanSplit<T>) {
      if (way == ConvWay::kSplit && split_weight_grad<T>(shape, dy, x, dweight)) return;
    }
    if (way == ConvWay::kSplit && pointwise_suits(shape, dy.scalar_type(), ConvPass::kWeightGrad)) {
      pointwise_weight_grad(shape, dy, x, dweight, /*wants_bias=*/false);
    } else if (way == ConvWay::kDepthwise) {
      dweight.copy_(depthwise_weight_grad<T>(shape, dy, x).reshape(weight.sizes()));
    } else if (way == ConvWay::kWinograd && winograd_weight_grad<T>(shape, dy, x, dweight)) {
      return;
    } else if (shape.format == kPlanes) {
      planes_weight_grad<T>(shape, dy, x, dweight);
    } else {
      rows_weight_grad<T>(shape, dy, x, dweight);
    }
  });
  return {dweight, Tensor()};
}

// dx and dweight.
std::tuple<Tensor, Tensor> both_depthwise_gradients(const Conv2dShape& shape, const Tensor& dy, const Tensor& input,
                                                    const Tensor& weight, at::MemoryFormat promised) {
  const Tensor dweight = weight_gradient_result(shape, weight, promised);
  const Tensor dx = input_gradient_result(shape, shape.channels, dy, shape.format);
  const Tensor x = readable(input, shape.format, /*dense=*/false);
  dispatch_floating(dy.scalar_type(), "conv2d_backward", [&](auto element) {
    dweight.copy_(depthwise_gradients<decltype(element)>(shape, dy, x, weight, dx).reshape(weight.sizes()));
  });
  return {dx, dweight};
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
    return readable(grad_output, plan.format, reads_dense_gradient(plan.way));
  };
  Tensor dy;
  const bool both_depthwise = dx_plan.way == ConvWay::kDepthwise && plan.way == ConvWay::kDepthwise;
  shape.format = dx_plan.format;
  const bool sweeps =
      output_mask[0] && output_mask[1] && both_depthwise && plan.format == dx_plan.format && sweeps_both(shape);
  if (sweeps) {
    dy = read(plan);
    std::tie(dx, dweight) = both_depthwise_gradients(shape, dy, input, weight, promised);
    dx = result_in(dx, plan.format, promised);
  } else if (output_mask[0]) {
    dy = read(dx_plan);
    dx = result_in(input_gradient(dx_plan, shape, dy, weight), dx_plan.result, promised);
  }
  // Dense images serve every way.
  const bool is_read = dy.defined() && plan.format == dx_plan.format &&
                       (!reads_dense_gradient(plan.way) || reads_dense_gradient(dx_plan.way));
  if (!is_read && (output_mask[1] || output_mask[2])) dy = read(plan);
  shape.format = plan.format;
  if (output_mask[1] && !sweeps) {
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

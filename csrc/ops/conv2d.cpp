#include "ops/conv2d.h"

#include "ops/depthwise.h"

namespace tilewright {
namespace {

// One value stands for both directions, as in torch.
void read_pair(at::IntArrayRef values, const char* name, int64_t smallest, int64_t (&pair)[2]) {
  TORCH_CHECK(values.size() == 1 || values.size() == 2, "conv2d: ", name, " must be one value or two, got ", values);
  pair[0] = values[0];
  pair[1] = values[values.size() - 1];
  TORCH_CHECK(pair[0] >= smallest && pair[1] >= smallest, "conv2d: ", name, " must be at least ", smallest, ", got ",
              values);
}

bool is_channels_last(const Tensor& tensor) {
  return tensor.dim() == 4 && tensor.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

}  // namespace

Conv2dShape check_conv2d(const Tensor& input, const Tensor& weight, const Tensor& bias, at::IntArrayRef stride,
                         at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK(input.dim() == 4, "conv2d: input must be [C, H, W] or [N, C, H, W], got shape ", input.sizes());
  TORCH_CHECK(weight.dim() == 4, "conv2d: weight must be [filters, channels / groups, height, width], got shape ",
              weight.sizes());
  TORCH_CHECK(groups > 0, "conv2d: groups must be positive, got ", groups);
  Conv2dShape shape{};
  read_pair(stride, "stride", 1, shape.stride);
  read_pair(padding, "padding", 0, shape.padding);
  read_pair(dilation, "dilation", 1, shape.dilation);
  shape.images = input.size(0), shape.channels = input.size(1);
  shape.height = input.size(2), shape.width = input.size(3);
  shape.filters = weight.size(0), shape.groups = groups;
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "conv2d: weight must have input's dtype ",
              input.scalar_type(), ", got ", weight.scalar_type());
  TORCH_CHECK(shape.filters > 0 || shape.images == 0, "conv2d: weight must have at least one filter, got shape ",
              weight.sizes());
  TORCH_CHECK(shape.filters % groups == 0 && shape.filters >= groups,
              "conv2d: the number of filters, weight.size(0), must be a multiple of groups = ", groups, ", got weight ",
              weight.sizes());
  TORCH_CHECK(weight.size(1) * groups == shape.channels,
              "conv2d: input must have weight.size(1) * groups = ", weight.size(1) * groups, " channels, got input ",
              input.sizes(), " with weight ", weight.sizes(), " and groups = ", groups);
  if (bias.defined()) {
    TORCH_CHECK(bias.dim() == 1 && bias.size(0) == shape.filters, "conv2d: bias must have shape [", shape.filters,
                "] (filters), got ", bias.sizes());
    TORCH_CHECK(bias.scalar_type() == input.scalar_type(), "conv2d: bias must have input's dtype ", input.scalar_type(),
                ", got ", bias.scalar_type());
  }
  const int64_t size[2] = {shape.height, shape.width};
  for (int d = 0; d < 2; ++d) {
    shape.kernel[d] = weight.size(2 + d);
    TORCH_CHECK(size[d] > 0 || shape.images == 0 || shape.channels == 0,
                "conv2d: input must have pixels unless it has no images or no channels, got shape ", input.sizes());
    TORCH_CHECK(shape.kernel[d] > 0, "conv2d: the kernel's size must be positive, got weight ", weight.sizes());
    const int64_t reach = shape.dilation[d] * (shape.kernel[d] - 1) + 1, padded = size[d] + 2 * shape.padding[d];
    TORCH_CHECK(reach <= padded, "conv2d: the kernel must not be larger than the padded input (", padded,
                " in dimension ", 2 + d, "), got ", reach, " from weight ", weight.sizes(), " and dilation ", dilation);
    shape.out[d] = (padded - reach) / shape.stride[d] + 1;
  }
  shape.format = is_channels_last(input) || is_channels_last(weight) ? at::MemoryFormat::ChannelsLast
                                                                     : at::MemoryFormat::Contiguous;
  return shape;
}

void check_conv2d_residual(const Conv2dShape& shape, const Tensor& input, const Tensor& residual) {
  const auto size = shape.output_size();
  const auto dtype = input.scalar_type();
  TORCH_CHECK(!residual.defined() || (residual.sizes().equals(size) && residual.scalar_type() == dtype),
              "conv2d_act: residual must have (or broadcast to) the convolution's shape ", at::IntArrayRef(size),
              " and have dtype ", dtype, ", got ", residual.sizes(), " and ", residual.scalar_type());
}

void check_conv2d_gradient(const Conv2dShape& shape, const Tensor& input, const Tensor& grad_output) {
  const auto size = shape.output_size();
  TORCH_CHECK(grad_output.sizes().equals(size) && grad_output.scalar_type() == input.scalar_type(),
              "conv2d_backward: grad_output must have the output's shape ", at::IntArrayRef(size), " and dtype ",
              input.scalar_type(), ", got ", grad_output.sizes(), " and ", grad_output.scalar_type());
}

// Where one channel or a 1x1 kernel makes weights of both formats, native's float64 path without dilation keeps the
// given strides.
at::MemoryFormat conv2d_weight_grad_format(const Conv2dShape& shape, const Tensor& weight, at::MemoryFormat format) {
  const bool keeps = weight.scalar_type() == at::kDouble && shape.dilation[0] == 1 && shape.dilation[1] == 1;
  return keeps ? weight.contiguous(format).suggest_memory_format() : format;
}

std::tuple<Tensor, Tensor> conv2d_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                          c10::SymIntArrayRef dilation, c10::SymInt groups, c10::string_view activation,
                                          bool saves, const OptionalTensor& residual) {
  if (is_depthwise_on_gpu(input, weight, groups)) {
    return depthwise_forward(input, weight, bias, stride, padding, dilation, activation, saves, residual);
  }
  static const auto op = find_op<decltype(conv2d_forward)>("tilewright::conv2d_forward");
  return op.call(input, weight, bias, stride, padding, dilation, std::move(groups), activation, saves, residual);
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                   c10::SymIntArrayRef dilation, c10::SymInt groups,
                                                   std::array<bool, 3> output_mask) {
  if (is_depthwise_on_gpu(input, weight, groups)) {
    return depthwise_backward(grad_output, input, weight, stride, padding, dilation, output_mask);
  }
  static const auto op = find_op<decltype(conv2d_backward)>("tilewright::conv2d_backward");
  return op.call(grad_output, input, weight, stride, padding, dilation, std::move(groups), output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, "
      "SymInt[2] dilation=1, SymInt groups=1) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv2d_act(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, "
      "SymInt[2] dilation=1, SymInt groups=1, *, str activation='relu', Tensor? residual=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv2d_forward(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, str activation, bool saves, Tensor? residual) -> "
      "(Tensor output, Tensor saved)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, bool[3] output_mask) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

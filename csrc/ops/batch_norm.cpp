#include "ops/batch_norm.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/movedim.h>

#include "ops/tensors.h"

namespace tilewright {
namespace {

void check_per_channel(const char* name, const OptionalTensor& tensor, const c10::SymInt& channels) {
  if (!is_defined(tensor)) return;
  TORCH_CHECK(tensor->sym_numel() == channels, "batch_norm: ", name, " should contain ", channels,
              " elements, one for each channel of input, not ", tensor->sym_numel(), " (shape ", tensor->sym_sizes(),
              ")");
}

// Native's rule: parameters of input's dtype, or all of them float32 beside a 16-bit input.
void check_dtype(const char* name, const OptionalTensor& tensor, at::ScalarType expected, const Tensor& input) {
  if (!is_defined(tensor)) return;
  TORCH_CHECK(tensor->scalar_type() == expected, "batch_norm: weight, bias, running_mean and running_var must all be ",
              input.scalar_type(), " as input, or all float32 beside a bfloat16 or float16 input; expected ", name,
              " of ", expected, ", got ", tensor->scalar_type());
}

}  // namespace

void check_batch_norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& mean, const OptionalTensor& var, bool training) {
  TORCH_CHECK(input.dim() >= 2, "batch_norm: input must have a batch and a channel dimension, [N, C, ...], got shape ",
              input.sym_sizes());
  TORCH_CHECK(training || is_defined(mean), "batch_norm: running_mean must be defined in evaluation mode, got None");
  TORCH_CHECK(training || is_defined(var), "batch_norm: running_var must be defined in evaluation mode, got None");
  TORCH_CHECK_VALUE(is_defined(mean) == is_defined(var),
                    "batch_norm: running_mean and running_var must either both be None or neither be None");
  const c10::SymInt channels = input.sym_size(1);
  check_per_channel("running_mean", mean, channels);
  check_per_channel("running_var", var, channels);
  check_per_channel("weight", weight, channels);
  check_per_channel("bias", bias, channels);
  for (const OptionalTensor& stat : {mean, var}) {
    TORCH_CHECK(!is_defined(stat) || stat->dim() == 1,
                "batch_norm: running_mean and running_var must have 1 dimension, got shape ", stat->sym_sizes());
  }
  const auto dtype = input.scalar_type();
  const bool low_precision = dtype == at::kBFloat16 || dtype == at::kHalf;
  auto expected = dtype;
  for (const OptionalTensor* tensor : {&weight, &bias, &mean, &var}) {
    if (low_precision && is_defined(*tensor) && (*tensor)->scalar_type() == at::kFloat) expected = at::kFloat;
  }
  check_dtype("weight", weight, expected, input);
  check_dtype("bias", bias, expected, input);
  check_dtype("running_mean", mean, expected, input);
  check_dtype("running_var", var, expected, input);
}

void check_batch_norm_residual(const Tensor& residual, const Tensor& input) {
  TORCH_CHECK(
      !residual.defined() || (residual.sizes().equals(input.sizes()) && residual.scalar_type() == input.scalar_type()),
      "batch_norm: residual must have input's shape ", input.sizes(), " and dtype ", input.scalar_type(), ", got ",
      residual.sizes(), " and ", residual.scalar_type());
}

void check_batch_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& var,
                               const Tensor& activated, const std::array<bool, 4>& output_mask) {
  const auto is_like_input = [&](const Tensor& tensor) {
    return tensor.sizes().equals(input.sizes()) && tensor.scalar_type() == input.scalar_type();
  };
  TORCH_CHECK(is_like_input(grad_output), "batch_norm_backward: grad_output must have input's shape ", input.sizes(),
              " and dtype ", input.scalar_type(), ", got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  TORCH_CHECK(!activated.defined() || !activated.is_cuda() || is_like_input(activated),
              "batch_norm_backward: activated must have input's shape ", input.sizes(), " and dtype ",
              input.scalar_type(), ", got ", activated.sizes(), " and ", activated.scalar_type());
  const auto expected = accumulation_dtype(input.scalar_type());
  TORCH_CHECK(mean.scalar_type() == expected && var.scalar_type() == expected && mean.numel() == input.size(1) &&
                  var.numel() == input.size(1),
              "batch_norm_backward: mean and var must hold one ", expected, " for each of ", input.size(1),
              " channels, got ", mean.sizes(), " and ", var.sizes());
  TORCH_CHECK(activated.defined() || !output_mask[3],
              "batch_norm_backward: grad_residual is grad_output itself where neither relu nor relu6 was applied");
}

void check_batch_norm_update_stats(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                   const Tensor& var) {
  const auto sum_dtype = accumulation_dtype(running_mean.scalar_type());
  for (const Tensor& running : {running_mean, running_var}) {
    TORCH_CHECK(
        running.dim() == 1 && running.numel() == mean.numel() && running.scalar_type() == running_mean.scalar_type(),
        "batch_norm_update_stats_: running_mean and running_var must be [", mean.numel(), "] and of one dtype, got ",
        running.sizes(), " and ", running.scalar_type());
  }
  for (const Tensor& batch : {mean, var}) {
    TORCH_CHECK(batch.numel() == mean.numel() && batch.is_contiguous() && batch.scalar_type() == sum_dtype,
                "batch_norm_update_stats_: mean and var must be contiguous, alike in size and ", sum_dtype, ", got ",
                batch.sizes(), " and ", batch.scalar_type());
  }
}

at::MemoryFormat batch_norm_format(const Tensor& input) {
  using at::MemoryFormat;
  for (const auto format : {MemoryFormat::Contiguous, MemoryFormat::ChannelsLast, MemoryFormat::ChannelsLast3d}) {
    const int64_t rank = format == MemoryFormat::ChannelsLast ? 4 : format == MemoryFormat::ChannelsLast3d ? 5 : 0;
    if ((rank == 0 || input.dim() == rank) && input.is_contiguous(format)) return format;
  }
  return input.suggest_memory_format();
}

at::MemoryFormat batch_norm_gradient_format(const Tensor& input) {
  const auto suggested = input.suggest_memory_format();
  return input.is_contiguous(suggested) ? suggested : batch_norm_format(input);
}

Tensor batch_norm_passing_mask(const Tensor& bits, const Tensor& input) {
  const c10::SymInt one = 1, channels = input.sym_size(1), count = input.sym_numel() / channels.max(one);
  const bool rows = batch_norm_is_rows(input, batch_norm_format(input), count);
  const c10::SymInt images = channels == 1 ? one : input.sym_size(0);
  const c10::SymInt lines = rows ? count : images * channels, length = rows ? channels : count / images.max(one);
  const c10::SymInt line_bytes = (length + 7) / 8;
  const Tensor places = at::arange(8, bits.options());
  const Tensor bytes = bits.narrow_symint(0, 0, lines * line_bytes).view_symint({lines, line_bytes, one});
  const Tensor mask = at::bitwise_and(at::bitwise_right_shift(bytes, places), 1).to(at::kBool);
  const Tensor packed = mask.view_symint({lines, line_bytes * 8}).narrow_symint(1, 0, length);
  if (!rows) return packed.reshape_symint(input.sym_sizes());
  auto sizes = input.sym_sizes().vec();
  sizes.erase(sizes.begin() + 1);
  sizes.push_back(channels);
  return packed.reshape_symint(sizes).movedim(-1, 1);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward(const Tensor& input, const OptionalTensor& weight,
                                                              const OptionalTensor& bias, const OptionalTensor& mean,
                                                              const OptionalTensor& var, double eps,
                                                              const OptionalTensor& residual,
                                                              c10::string_view activation, bool saves) {
  static const auto op = find_op<decltype(batch_norm_forward)>("tilewright::batch_norm_forward");
  return op.call(input, weight, bias, mean, var, eps, residual, activation, saves);
}

void batch_norm_update_stats(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                             const Tensor& var, c10::SymInt count, double momentum) {
  static const auto op = find_op<decltype(batch_norm_update_stats)>("tilewright::batch_norm_update_stats_");
  op.call(running_mean, running_var, mean, var, std::move(count), momentum);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad_output, const Tensor& input,
                                                               const Tensor& mean, const Tensor& var,
                                                               const OptionalTensor& weight,
                                                               const OptionalTensor& activated, double eps,
                                                               bool training, std::array<bool, 4> output_mask) {
  static const auto op = find_op<decltype(batch_norm_backward)>("tilewright::batch_norm_backward");
  return op.call(grad_output, input, mean, var, weight, activated, eps, training, output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def(
      "batch_norm(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight=None, "
      "Tensor? bias=None, bool training=False, float momentum=0.1, float eps=1e-05) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_act(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight=None, "
      "Tensor? bias=None, bool training=False, float momentum=0.1, float eps=1e-05, *, str activation=\"relu\", "
      "Tensor? residual=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, "
      "Tensor? residual, str activation, bool saves) -> (Tensor output, Tensor mean, Tensor var, Tensor saved)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_update_stats_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
      "SymInt count, float momentum) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? "
      "activated, "
      "float eps, bool training, bool[4] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, "
      "Tensor grad_residual)",
      {at::Tag::pt2_compliant_tag});
}

// dropout_add_layer_norm on the CPU: rows over threads, in chunks that depend on the shape alone (see
// cpu/layer_norm.cpp).
#include "ops/dropout_add_layer_norm.h"

#include "cpu/keep_mask.h"
#include "cpu/kernel_table.h"
#include "cpu/row_chunks.h"
#include "cpu/widened.h"

namespace tilewright {
namespace {

constexpr const char* kName = "dropout_add_layer_norm";

// Rows worked on between the two steps: 4096 elements of x, residual, z and y stay in L1; at least the four of which
// layer norm normalises long ones at once.
int64_t rows_per_block(int64_t cols) { return std::max<int64_t>(4, 4096 / std::max<int64_t>(1, cols) / 4 * 4); }

DropoutRule rule_or_keep_all(const OptionalTensor& seed, double p) {
  return is_defined(seed) ? dropout_rule_of(*seed, p, kName) : dropout_rule(0, 0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_forward_cpu(
    const Tensor& input, const Tensor& residual, at::IntArrayRef normalized_shape, const OptionalTensor& weight_opt,
    const OptionalTensor& bias_opt, double eps, const OptionalTensor& seed, double p, bool keep_sum) {
  const Tensor weight_in = value_or_undefined(weight_opt), bias_in = value_or_undefined(bias_opt);
  const auto [rows, cols] = check_dropout_add_layer_norm_forward(input, residual, normalized_shape, weight_in, bias_in);
  const auto dtype = input.scalar_type();
  const DropoutRule rule = rule_or_keep_all(seed, p);
  const Tensor x = input.contiguous(), r = residual.contiguous();
  const Tensor weight = widened(weight_in, dtype), bias = widened(bias_in, dtype);
  const auto options = input.options();
  Tensor output = at::empty(input.sizes(), options);
  Tensor sum = keep_sum ? at::empty(input.sizes(), options) : at::empty({0}, options);
  const auto stat_shape = layer_norm_stat_shape(input.sizes(), normalized_shape);
  const auto stat_options = options.dtype(accumulation_dtype(dtype));
  Tensor mean = at::empty(stat_shape, stat_options), rstd = at::empty(stat_shape, stat_options);
  if (rows == 0) return {output, sum, mean, rstd};

  const int64_t block_rows = rows_per_block(cols);
  dispatch_floating(dtype, kName, [&](auto element) {
    using T = decltype(element);
    const auto kernel = kernels<T>().dropout_add_layer_norm.forward;
    parallel_for_cost(rows, 2 * cols, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(keep_sum ? 0 : static_cast<size_t>(block_rows * cols));
      const DropoutAddLayerNormForwardArgs<T> args{const_data<T>(x),
                                                   const_data<T>(r),
                                                   const_data<Acc<T>>(weight),
                                                   const_data<Acc<T>>(bias),
                                                   keep_sum ? mutable_data<T>(sum) : scratch.data(),
                                                   mutable_data<T>(output),
                                                   mutable_data<Acc<T>>(mean),
                                                   mutable_data<Acc<T>>(rstd),
                                                   cols,
                                                   block_rows,
                                                   !keep_sum,
                                                   streams_past_cache(output.nbytes() * (keep_sum ? 4 : 3)),
                                                   static_cast<Acc<T>>(eps),
                                                   rule};
      kernel(args, begin, end);
    });
  });
  return {output, sum, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_backward_cpu(
    const Tensor& grad_output, const OptionalTensor& grad_sum, const Tensor& sum, at::IntArrayRef normalized_shape,
    const Tensor& mean, const Tensor& rstd, const OptionalTensor& weight_opt, const OptionalTensor& seed, double p,
    std::array<bool, 4> output_mask) {
  const Tensor weight_in = value_or_undefined(weight_opt);
  const auto [rows, cols] = check_dropout_add_layer_norm_backward(
      grad_output, value_or_undefined(grad_sum), sum, normalized_shape, mean, rstd, weight_in, value_or_undefined(seed),
      /*wants_grad_input=*/output_mask[0]);
  const auto dtype = sum.scalar_type();
  const DropoutRule rule = rule_or_keep_all(seed, p);
  const Tensor dy = grad_output.contiguous(), z = sum.contiguous(), means = mean.contiguous(),
               rstds = rstd.contiguous();
  const Tensor dsum = is_defined(grad_sum) ? grad_sum->contiguous() : Tensor();
  const Tensor weight = widened(weight_in, dtype);
  const bool wants_parameters = output_mask[2] || output_mask[3];
  Tensor grad_input = output_mask[0] ? at::empty(sum.sizes(), sum.options()) : Tensor();
  Tensor grad_residual = output_mask[1] ? at::empty(sum.sizes(), sum.options()) : Tensor();

  Tensor grad_weight = wants_parameters ? empty_cpu(normalized_shape, accumulation_dtype(dtype)) : Tensor();
  Tensor grad_bias = wants_parameters ? empty_cpu(normalized_shape, accumulation_dtype(dtype)) : Tensor();
  if (sum.numel() == 0) {
    if (wants_parameters) grad_weight.zero_(), grad_bias.zero_();
  } else if (output_mask[0] || output_mask[1] || wants_parameters) {
    dispatch_floating(dtype, kName, [&](auto element) {
      using T = decltype(element);
      const auto kernel = kernels<T>().dropout_add_layer_norm.backward;
      const RowChunks chunks(rows, cols);
      ChunkSums<Acc<T>> weight_sums(grad_weight, chunks.count, cols), bias_sums(grad_bias, chunks.count, cols);
      parallel_for_cost(chunks.count, 2 * chunks.rows * cols, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          const DropoutAddLayerNormBackwardArgs<T> args{const_data<T>(dy),
                                                        const_data<T>(dsum),
                                                        const_data<T>(z),
                                                        const_data<Acc<T>>(weight),
                                                        const_data<Acc<T>>(means),
                                                        const_data<Acc<T>>(rstds),
                                                        mutable_data<T>(grad_residual),
                                                        mutable_data<T>(grad_input),
                                                        weight_sums.start(chunk),
                                                        bias_sums.start(chunk),
                                                        cols,
                                                        streams_past_cache(4 * sum.nbytes()),
                                                        rule};
          kernel(args, chunks.begin(chunk), chunks.end(chunk));
        }
      });
      weight_sums.merge();
      bias_sums.merge();
    });
  }
  const auto parameter_dtype = weight_in.defined() ? weight_in.scalar_type() : dtype;
  return {grad_input, grad_residual, finished_gradient(grad_weight, output_mask[2], parameter_dtype),
          finished_gradient(grad_bias, output_mask[3], parameter_dtype)};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("dropout_add_layer_norm_forward", tilewright::dropout_add_layer_norm_forward_cpu);
  m.impl("dropout_add_layer_norm_backward", tilewright::dropout_add_layer_norm_backward_cpu);
}

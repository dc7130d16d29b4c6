// layer_norm on the CPU: rows over threads. Weight and bias gradients are summed per chunk of rows and the chunks in
// order, and the chunks depend on the shape alone, so the result is the same for any number of threads.
#include "ops/layer_norm.h"

#include "cpu/kernel_table.h"
#include "cpu/tensors.h"

namespace tilewright {
namespace {

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_cpu(const Tensor& input, at::IntArrayRef normalized_shape,
                                                          const OptionalTensor& weight_opt,
                                                          const OptionalTensor& bias_opt, double eps) {
  const Tensor weight_in = value_or_undefined(weight_opt), bias_in = value_or_undefined(bias_opt);
  const auto [rows, cols] = check_layer_norm(input, normalized_shape, weight_in, bias_in);
  const auto dtype = input.scalar_type();
  const Tensor x = input.contiguous();
  const Tensor weight = as_accumulator(weight_in, dtype), bias = as_accumulator(bias_in, dtype);

  Tensor output = at::empty(input.sizes(), input.options());
  std::vector<int64_t> stat_shape(input.sizes().begin(), input.sizes().end());
  for (size_t i = stat_shape.size() - normalized_shape.size(); i < stat_shape.size(); ++i) stat_shape[i] = 1;
  const auto stat_options = input.options().dtype(accumulation_dtype(dtype));
  Tensor mean = at::empty(stat_shape, stat_options), rstd = at::empty(stat_shape, stat_options);
  if (rows == 0) return {output, mean, rstd};

  dispatch_floating(dtype, "layer_norm", [&](auto element) {
    using T = decltype(element);
    const LayerNormForwardArgs<T> args{const_data<T>(x),
                                       const_data<Acc<T>>(weight),
                                       const_data<Acc<T>>(bias),
                                       mutable_data<T>(output),
                                       mutable_data<Acc<T>>(mean),
                                       mutable_data<Acc<T>>(rstd),
                                       cols,
                                       static_cast<Acc<T>>(eps)};
    const auto kernel = kernels<T>().layer_norm.forward;
    parallel_for_cost(rows, cols, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return {output, mean, rstd};
}

// At most 32 chunks: enough to balance any machine's threads, few enough that their partial sums stay small beside the
// input.
int64_t rows_per_chunk(int64_t rows, int64_t cols) {
  constexpr int64_t kMaxChunks = 32, kMinElements = 16384;
  const int64_t worthwhile = (kMinElements + cols - 1) / std::max<int64_t>(1, cols);
  return std::max({worthwhile, (rows + kMaxChunks - 1) / kMaxChunks, int64_t{1}});
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                           at::IntArrayRef normalized_shape, const Tensor& mean,
                                                           const Tensor& rstd, const OptionalTensor& weight_opt,
                                                           std::array<bool, 3> output_mask) {
  const Tensor weight_in = value_or_undefined(weight_opt);
  const auto [rows, cols] = check_layer_norm(input, normalized_shape, weight_in, Tensor());
  const auto dtype = input.scalar_type();
  TORCH_CHECK(grad_output.sizes().equals(input.sizes()) && grad_output.scalar_type() == dtype,
              "layer_norm_backward: grad_output must have input's shape ", input.sizes(), " and dtype ", dtype,
              ", got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  TORCH_CHECK(mean.numel() == rows && rstd.numel() == rows && mean.scalar_type() == accumulation_dtype(dtype) &&
                  rstd.scalar_type() == mean.scalar_type(),
              "layer_norm_backward: mean and rstd must hold one ", accumulation_dtype(dtype), " for each of ", rows,
              " rows, got ", mean.sizes(), " and ", rstd.sizes());
  const Tensor dy = grad_output.contiguous(), x = input.contiguous(), means = mean.contiguous(),
               rstds = rstd.contiguous();
  const Tensor weight = as_accumulator(weight_in, dtype);
  const bool wants_parameters = output_mask[1] || output_mask[2];
  const auto stat_options = input.options().dtype(accumulation_dtype(dtype));
  const int64_t chunk_rows = rows_per_chunk(rows, cols);
  const int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;

  Tensor grad_input = output_mask[0] ? at::empty(input.sizes(), input.options()) : Tensor();
  Tensor weight_sums, bias_sums;  // [chunks, cols]
  if (wants_parameters) {
    weight_sums = at::zeros({std::max<int64_t>(chunks, 1), cols}, stat_options);
    bias_sums = at::zeros_like(weight_sums);
  }
  if (rows > 0 && cols > 0 && (output_mask[0] || wants_parameters)) {
    dispatch_floating(dtype, "layer_norm_backward", [&](auto element) {
      using T = decltype(element);
      const auto kernel = kernels<T>().layer_norm.backward;
      parallel_for_cost(chunks, chunk_rows * cols, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          Acc<T>* dweight = wants_parameters ? mutable_data<Acc<T>>(weight_sums) + chunk * cols : nullptr;
          Acc<T>* dbias = wants_parameters ? mutable_data<Acc<T>>(bias_sums) + chunk * cols : nullptr;
          const LayerNormBackwardArgs<T> args{const_data<T>(dy),
                                              const_data<T>(x),
                                              const_data<Acc<T>>(weight),
                                              const_data<Acc<T>>(means),
                                              const_data<Acc<T>>(rstds),
                                              mutable_data<T>(grad_input),
                                              dweight,
                                              dbias,
                                              cols};
          kernel(args, chunk * chunk_rows, std::min(rows, (chunk + 1) * chunk_rows));
        }
      });
    });
  }
  const auto parameter_dtype = weight_in.defined() ? weight_in.scalar_type() : dtype;
  const auto merge_chunks = [&](const Tensor& sums) {
    return (chunks > 1 ? sums.sum(0) : sums[0]).view(normalized_shape).to(parameter_dtype);
  };
  const Tensor grad_weight = output_mask[1] ? merge_chunks(weight_sums) : Tensor();
  const Tensor grad_bias = output_mask[2] ? merge_chunks(bias_sums) : Tensor();
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("layer_norm_forward", tilewright::layer_norm_forward_cpu);
  m.impl("layer_norm_backward", tilewright::layer_norm_backward_cpu);
}

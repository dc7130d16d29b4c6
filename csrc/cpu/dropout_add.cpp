// dropout_add on the CPU. The bias gradient is summed per chunk of rows and the chunks in order; the chunks depend on
// the shape alone, so the result is the same for any number of threads.
#include "ops/dropout_add.h"

#include "cpu/dropout.h"
#include "cpu/keep_mask.h"
#include "cpu/kernel_table.h"
#include "ops/memory_order.h"

namespace tilewright {
namespace {

Tensor dropout_add_forward_cpu(const Tensor& input, const Tensor& residual, const OptionalTensor& bias_opt,
                               const Tensor& seed, double p) {
  check_dropout_add_forward(input, residual, value_or_undefined(bias_opt));
  const Tensor bias = as_accumulator(value_or_undefined(bias_opt), input.scalar_type());
  // The sum has residual's memory order, as in native's residual + ...; a bias asks for rows.
  Tensor output = bias.defined() ? at::empty(residual.sizes(), residual.options()) : empty_pointwise(residual);
  const Tensor x = ordered_like(input, output), r = ordered_like(residual, output);
  run_dropout(x, r, bias, output, seed, p, "dropout_add");
  return output;
}

std::tuple<Tensor, Tensor> dropout_add_backward_cpu(const Tensor& grad_output, const Tensor& seed, double p,
                                                    std::array<bool, 2> output_mask) {
  const auto [rows, cols] = check_dropout_add_backward(grad_output);
  const DropoutRule rule = dropout_rule_of(seed, p, "dropout_add_backward");
  const Tensor dy = grad_output.contiguous();
  const auto dtype = dy.scalar_type();
  Tensor grad_input = output_mask[0] ? at::empty(dy.sizes(), dy.options()) : Tensor();
  constexpr int64_t kMaxChunks = 32, kMinElements = 16384;
  const int64_t chunk_rows =
      std::max<int64_t>({1, kMinElements / std::max<int64_t>(1, cols), (rows + kMaxChunks - 1) / kMaxChunks});
  const int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
  const Tensor sums = at::zeros({std::max<int64_t>(1, chunks), cols}, dy.options().dtype(accumulation_dtype(dtype)));
  dispatch_floating(dtype, "dropout_add_backward", [&](auto element) {
    using T = decltype(element);
    const auto kernel = kernels<T>().dropout.bias_backward;
    parallel_for_cost(chunks, chunk_rows * cols, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const DropoutBiasBackwardArgs<T> args{const_data<T>(dy), mutable_data<T>(grad_input),
                                              mutable_data<Acc<T>>(sums) + chunk * cols, cols, rule};
        kernel(args, chunk * chunk_rows, std::min(rows, (chunk + 1) * chunk_rows));
      }
    });
  });
  if (!output_mask[1]) return {grad_input, Tensor()};
  return {grad_input, (chunks > 1 ? sums.sum(0) : sums[0]).to(dtype)};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("dropout_add_forward", tilewright::dropout_add_forward_cpu);
  m.impl("dropout_add_backward", tilewright::dropout_add_backward_cpu);
}

// dropout_add on the CPU. The bias gradient is summed per chunk of rows and the chunks in order; the chunks depend on
// the shape alone, so the result is the same for any number of threads.
#include "ops/dropout_add.h"

#include "cpu/dropout.h"
#include "cpu/keep_mask.h"
#include "cpu/kernel_table.h"
#include "cpu/row_chunks.h"
#include "cpu/widened.h"
#include "ops/memory_order.h"

namespace tilewright {
namespace {

Tensor dropout_add_forward_cpu(const Tensor& input, const Tensor& residual, const OptionalTensor& bias_opt,
                               const Tensor& seed, double p) {
  check_dropout_add_forward(input, residual, value_or_undefined(bias_opt));
  const Tensor bias = widened(value_or_undefined(bias_opt), input.scalar_type());
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
  Tensor grad_bias = empty_cpu({cols}, accumulation_dtype(dtype));
  if (dy.numel() == 0) grad_bias.zero_();
  dispatch_floating(dtype, "dropout_add_backward", [&](auto element) {
    using T = decltype(element);
    const auto kernel = kernels<T>().dropout.bias_backward;
    const RowChunks chunks(dy.numel() == 0 ? 0 : rows, cols);
    ChunkSums<Acc<T>> sums(grad_bias, chunks.count, cols);
    parallel_for_cost(chunks.count, chunks.rows * cols, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const DropoutBiasBackwardArgs<T> args{const_data<T>(dy), mutable_data<T>(grad_input), sums.start(chunk), cols,
                                              rule};
        kernel(args, chunks.begin(chunk), chunks.end(chunk));
      }
    });
    sums.merge();
  });
  return {grad_input, finished_gradient(grad_bias, output_mask[1], dtype)};
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("dropout_add_forward", tilewright::dropout_add_forward_cpu);
  m.impl("dropout_add_backward", tilewright::dropout_add_backward_cpu);
}

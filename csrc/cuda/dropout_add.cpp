// dropout_add on the GPU: one launch forward; backward with a bias two, without one dropout's own.
#include "ops/dropout_add.h"

#include "cuda/call.h"
#include "cuda/dropout.h"
#include "cuda/registration.h"
#include "cuda/run_dropout.h"
#include "ops/dropout.h"
#include "ops/memory_order.h"

namespace tilewright::gpu {
namespace {

Tensor dropout_add_forward_cuda(const Tensor& input, const Tensor& residual, const OptionalTensor& bias_opt,
                                const Tensor& seed, double p) {
  const Tensor bias_in = value_or_undefined(bias_opt);
  check_dropout_add_forward(input, residual, bias_in);
  const c10::DeviceGuard guard(input.device());
  // Kernels read a bias of input's dtype as it is.
  const auto dtype = input.scalar_type();
  const Tensor bias =
      bias_in.defined() && bias_in.scalar_type() != dtype ? as_accumulator(bias_in, dtype) : contiguous(bias_in);
  // The sum has residual's memory order, as in native's residual + ...; a bias asks for rows.
  Tensor output = bias.defined() ? empty_like_in(residual, residual.sizes(), dtype) : empty_pointwise(residual);
  const Tensor x = ordered_like(input, output), r = ordered_like(residual, output);
  run_dropout(x, r, bias, output, seed, p, "dropout_add");
  return output;
}

std::tuple<Tensor, Tensor> dropout_add_backward_cuda(const Tensor& grad_output, const Tensor& seed, double p,
                                                     std::array<bool, 2> output_mask) {
  const auto [rows, cols] = check_dropout_add_backward(grad_output);
  check_dropout_seed("dropout_add_backward", seed, grad_output.device(), p);
  const Call call("dropout_add_backward", grad_output);
  const Tensor dy = grad_output.contiguous();
  const auto dtype = dy.scalar_type();
  Tensor grad_input = output_mask[0] ? empty_like_in(dy, dy.sizes(), dtype) : Tensor();
  if (!output_mask[1]) {
    if (output_mask[0]) run_dropout(dy, Tensor(), Tensor(), grad_input, seed, p, "dropout_add_backward");
    return {grad_input, Tensor()};
  }
  Tensor grad_bias = empty_like_in(dy, {cols}, dtype);
  if (dy.numel() == 0) return {grad_input, grad_bias.zero_()};
  const Tensor partials = empty_like_in(dy, {dropout_bias_partial_rows(rows, cols), cols}, accumulation_dtype(dtype));
  const DropoutAddSize size{rows, cols};
  dispatch_floating(dtype, "dropout_add_backward", [&](auto element) {
    using T = decltype(element);
    const DropoutBiasBackwardArgs<T> args{const_data<T>(dy),
                                          mutable_data<T>(grad_input),
                                          mutable_data<T>(grad_bias),
                                          mutable_data<Acc<T>>(partials),
                                          size.rows,
                                          size.cols,
                                          make_dropout<Acc<T>>(seed.const_data_ptr<int64_t>(), p)};
    call.check(dropout_bias_backward(args, call.launch()));
  });
  return {grad_input, grad_bias};
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(dropout_add, m) {
  m.impl("dropout_add_forward", tilewright::gpu::dropout_add_forward_cuda);
  m.impl("dropout_add_backward", tilewright::gpu::dropout_add_backward_cuda);
}

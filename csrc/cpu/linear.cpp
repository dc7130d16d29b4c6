// linear and its gradients on the CPU: rows of input are the rows of one product, bias and activation its epilogue.
#include "ops/linear.h"

#include <ATen/ops/ones.h>

#include "cpu/kernel_table.h"
#include "cpu/product.h"
#include "cpu/row_chunks.h"
#include "cpu/tensors.h"

namespace tilewright {
namespace {

// [*, cols] as rows of one matrix: the leading dimensions joined without a copy where their strides allow it.
Tensor as_rows(const Tensor& tensor) {
  if (tensor.dim() == 2) return tensor;
  return tensor.reshape(
      {tensor.size(-1) == 0 ? c10::multiply_integers(tensor.sizes().slice(0, tensor.dim() - 1)) : -1, tensor.size(-1)});
}

std::tuple<Tensor, Tensor> linear_forward_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias_opt,
                                              c10::string_view activation_name, bool saves) {
  const Tensor bias = value_or_undefined(bias_opt);
  check_linear("linear", input, weight, bias);
  const Activation activation = activation_from_name(activation_name);
  const bool saves_pre = saves && gradient_reads_input(activation);
  c10::DimVector shape(input.sizes());
  shape.back() = weight.size(0);
  Tensor output = empty_cpu(shape, input.scalar_type());
  Tensor pre = saves_pre ? empty_cpu(shape, input.scalar_type()) : Tensor();
  if (output.numel() == 0) return {output, pre};
  const Tensor rows = as_rows(input);
  Product product;
  product.M = rows.size(0);
  product.N = weight.size(0);
  product.K = weight.size(1);
  product.a = left_operand(rows, 0);
  product.b = transposed(left_operand(weight, 0));
  product.c.data = output.mutable_data_ptr();
  product.c.row = product.N;
  product.c.col = 1;
  if (bias.defined()) product.addend = left_operand(bias, 0);
  if (bias.defined()) product.addend.col = bias.stride(0);
  product.activation = activation;
  product.pre = saves_pre ? pre.mutable_data_ptr() : nullptr;
  run_product(product, input.scalar_type(), "linear");
  return {output, pre};
}

// The sum over rows as products with a row of ones: of 32 rows each, then of 32 of those sums, and so on. One long
// chain of nearly equal values rounds the same way each time (10000 rows: 34 roundings). The 16-bit types have one
// rounding that outweighs that.
Tensor sum_of_rows(const Tensor& rows) {
  constexpr int64_t kRun = 32;
  const int64_t count = rows.size(0), cols = rows.size(1);
  const bool cuts = count >= 2 * kRun && accumulation_dtype(rows.scalar_type()) == rows.scalar_type();
  const int64_t run = cuts ? kRun : count, runs = cuts ? count / run : 1, rest = count - runs * run;
  const Tensor one = at::ones({run}, rows.options());
  Tensor sums = empty_cpu({runs + (rest > 0 ? 1 : 0), cols}, rows.scalar_type());
  if (sums.numel() == 0) return sums.select(0, 0);
  Product product;
  product.batch_sizes = {runs};
  product.is_reduced = {false};
  product.M = 1;
  product.N = cols;
  product.K = run;
  product.a.data = one.const_data_ptr();
  product.a.batch = {0};
  product.b = left_operand(rows, 1);
  product.b.batch = {run * product.b.row};
  product.c.data = sums.mutable_data_ptr();
  product.c.row = cols;
  product.c.col = 1;
  product.c.batch = {cols};
  run_product(product, rows.scalar_type(), "linear_backward");
  if (!cuts) return sums.select(0, 0);
  if (rest > 0) sums.select(0, runs).copy_(sum_of_rows(rows.narrow(0, runs * run, rest)));
  return sum_of_rows(sums);
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cpu(const Tensor& grad_output, const OptionalTensor& input_opt,
                                                       const OptionalTensor& weight_opt,
                                                       std::array<bool, 3> output_mask) {
  const Tensor input = value_or_undefined(input_opt), weight = value_or_undefined(weight_opt);
  TORCH_CHECK(grad_output.dim() >= 1, "linear_backward: grad_output must be at least 1-D");
  TORCH_CHECK((!output_mask[0] || weight.defined()) && (!output_mask[1] || input.defined()),
              "linear_backward: the gradient of input needs weight and that of weight needs input");
  const auto dtype = grad_output.scalar_type();
  const Tensor grad = as_rows(grad_output);
  Tensor grad_input, grad_weight, grad_bias;
  if (output_mask[0]) {
    TORCH_CHECK(weight.dim() == 2 && weight.size(0) == grad.size(1) && weight.scalar_type() == dtype,
                "linear_backward: weight must be [", grad.size(1), ", in_features] of dtype ", dtype,
                " like grad_output, got ", weight.sizes(), " of dtype ", weight.scalar_type());
    c10::DimVector shape(grad_output.sizes());
    shape.back() = weight.size(1);
    grad_input = empty_cpu(shape, dtype);
    Product product;
    product.M = grad.size(0);
    product.N = weight.size(1);
    product.K = grad.size(1);
    product.a = left_operand(grad, 0);
    product.b = left_operand(weight, 0);
    product.c.data = grad_input.mutable_data_ptr();
    product.c.row = product.N;
    product.c.col = 1;
    run_product(product, dtype, "linear_backward");
  }
  if (output_mask[1]) {
    const Tensor rows = as_rows(input);
    TORCH_CHECK(rows.size(0) == grad.size(0) && rows.scalar_type() == dtype, "linear_backward: input must have ",
                grad.size(0), " rows of dtype ", dtype, " like grad_output, got shape ", input.sizes(), " of dtype ",
                input.scalar_type());
    grad_weight = empty_cpu({grad.size(1), rows.size(1)}, dtype);
    Product product;
    product.M = grad.size(1);
    product.N = rows.size(1);
    product.K = grad.size(0);
    Tensor sums;
    if (output_mask[2]) {
      sums = empty_cpu({product.M}, accumulation_dtype(dtype)).zero_();
      product.left_sums = sums.mutable_data_ptr();
    }
    product.a = transposed(left_operand(grad, 0));
    product.b = left_operand(rows, 0);
    product.c.data = grad_weight.mutable_data_ptr();
    product.c.row = product.N;
    product.c.col = 1;
    if (run_product(product, dtype, "linear_backward")) grad_bias = finished_gradient(sums, true, dtype);
  }
  if (output_mask[2] && !grad_bias.defined()) grad_bias = sum_of_rows(grad);
  return {grad_input, grad_weight, grad_bias};
}

Tensor activation_backward_cpu(const Tensor& grad_output, const Tensor& saved, c10::string_view activation_name) {
  const Activation activation = activation_from_name(activation_name);
  check_activation_backward(grad_output, saved);
  // Any dense layout will do, as long as all three have it: channels_last stays channels_last.
  const Tensor dx = at::empty_like(saved);
  const auto in_layout = [&dx](const Tensor& tensor) {
    return tensor.strides().equals(dx.strides()) ? tensor : at::empty_like(dx).copy_(tensor);
  };
  const Tensor x = in_layout(saved), dy = in_layout(grad_output);
  dispatch_floating(x.scalar_type(), "activation_backward", [&](auto element) {
    using T = decltype(element);
    const auto kernel = kernels<T>().activation.backward;
    const int64_t cost = gradient_reads_output(activation) ? 1 : 8;
    // Whole cache lines per thread; the tail of a range is computed like its body, so its place does not matter.
    parallel_for_cost(x.numel(), cost, [&](int64_t begin, int64_t end) {
      kernel(activation, const_data<T>(dy), const_data<T>(x), mutable_data<T>(dx), begin, end);
    });
  });
  return dx;
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("linear_forward", tilewright::linear_forward_cpu);
  m.impl("linear_backward", tilewright::linear_backward_cpu);
  m.impl("activation_backward", tilewright::activation_backward_cpu);
}

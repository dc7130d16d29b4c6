// matmul, baddbmm and their gradients on the CPU: operands described by strides, computed by run_product.
#include "ops/matmul.h"

#include "cpu/product.h"
#include "cpu/tensors.h"

namespace tilewright {
namespace {

Product new_product(const MatmulShape& shape) {
  Product product;
  product.M = shape.M;
  product.N = shape.N;
  product.K = shape.K;
  product.batch_sizes.assign(shape.batch.begin(), shape.batch.end());
  product.is_reduced.resize(shape.batch.size(), false);
  return product;
}

// A contiguous [batch, rows, cols] result; its batch strides are 0 where it was broadcast.
MatrixOperand result_operand(const Tensor& result, at::IntArrayRef shape, bool is_left, size_t batch_dims,
                             int64_t cols) {
  MatrixOperand operand = is_left ? left_operand(result, batch_dims) : right_operand(result, batch_dims);
  operand.row = shape.size() > 1 || !is_left ? cols : 0;
  operand.col = 1;
  return operand;
}

Tensor matmul_forward_cpu(const Tensor& input, const Tensor& other) {
  check_same_dtype("matmul", "input", input, "other", other);
  const MatmulShape shape = check_matmul("matmul", input.sizes(), other.sizes());
  Tensor output = empty_cpu(shape.output, input.scalar_type());
  if (output.numel() == 0) return output;
  Product product = new_product(shape);
  const size_t dims = shape.batch.size();
  // One matrix for all items: few rows at a time would read it again for each, so they are gathered, as native does.
  constexpr int64_t kFewRows = 64;
  const bool gathers = other.dim() == 2 && input.dim() > 2 && shape.M < kFewRows;
  const Tensor left = gathers ? input.contiguous() : input;
  product.a = left_operand(left, dims);
  product.b = right_operand(other, dims);
  product.c.data = output.mutable_data_ptr();
  product.c.row = shape.N;
  product.c.col = 1;
  product.c.batch.resize(dims);
  int64_t step = shape.M * shape.N;
  for (size_t d = dims; d-- > 0; step *= shape.batch[d]) product.c.batch[d] = step;
  run_product(product, input.scalar_type(), "matmul");
  return output;
}

// grad_output as a matrix [batch, M, N] although the dimensions of vectors are missing from it.
MatrixOperand gradient_operand(const Tensor& grad, size_t batch_dims, bool has_rows, bool has_cols) {
  MatrixOperand operand;
  operand.data = grad.const_data_ptr();
  for (size_t d = 0; d < batch_dims; ++d) operand.batch.push_back(grad.stride(d));
  if (has_rows) operand.row = grad.stride(batch_dims);
  if (has_cols) operand.col = grad.stride(-1);
  return operand;
}

// Where the operand was broadcast its gradient is a sum.
void reduce_broadcast(Product& product, at::IntArrayRef operand_shape) {
  const size_t dims = product.batch_sizes.size(), own = operand_shape.size() > 2 ? operand_shape.size() - 2 : 0;
  for (size_t d = 0; d < dims; ++d) {
    product.is_reduced[d] = d + own < dims || (operand_shape[d + own - dims] == 1 && product.batch_sizes[d] != 1);
  }
}

std::tuple<Tensor, Tensor> matmul_backward_cpu(const Tensor& grad_output, const OptionalTensor& input_opt,
                                               const OptionalTensor& other_opt, at::IntArrayRef input_shape,
                                               at::IntArrayRef other_shape, const at::Scalar& alpha,
                                               std::array<bool, 2> output_mask) {
  const Tensor input = value_or_undefined(input_opt), other = value_or_undefined(other_opt);
  const MatmulShape shape = check_matmul("matmul_backward", input_shape, other_shape);
  TORCH_CHECK(grad_output.sizes().equals(shape.output), "matmul_backward: grad_output must have shape ",
              at::IntArrayRef(shape.output), ", got ", grad_output.sizes());
  TORCH_CHECK((!output_mask[0] || (other.defined() && other.sizes().equals(other_shape))) &&
                  (!output_mask[1] || (input.defined() && input.sizes().equals(input_shape))),
              "matmul_backward: the gradient of input needs other and that of other needs input, of the given shapes");
  if (output_mask[0]) check_same_dtype("matmul_backward", "grad_output", grad_output, "other", other);
  if (output_mask[1]) check_same_dtype("matmul_backward", "grad_output", grad_output, "input", input);
  const size_t dims = shape.batch.size();
  const MatrixOperand grad = gradient_operand(grad_output, dims, input_shape.size() > 1, other_shape.size() > 1);
  Tensor grad_input, grad_other;
  if (output_mask[0]) {
    grad_input = empty_cpu(input_shape, grad_output.scalar_type());
    Product product = new_product(shape);
    reduce_broadcast(product, input_shape);
    product.N = shape.K;
    product.K = shape.N;
    product.alpha = alpha.toDouble();
    product.a = grad;
    product.b = transposed(right_operand(other, dims));
    product.c = result_operand(grad_input, input_shape, /*is_left=*/true, dims, shape.K);
    if (grad_input.numel() > 0) run_product(product, grad_output.scalar_type(), "matmul_backward");
  }
  if (output_mask[1]) {
    grad_other = empty_cpu(other_shape, grad_output.scalar_type());
    Product product = new_product(shape);
    reduce_broadcast(product, other_shape);
    product.M = shape.K;
    product.K = shape.M;
    product.alpha = alpha.toDouble();
    product.a = transposed(left_operand(input, dims));
    product.b = grad;
    product.c = result_operand(grad_other, other_shape, /*is_left=*/false, dims, shape.N);
    if (grad_other.numel() > 0) run_product(product, grad_output.scalar_type(), "matmul_backward");
  }
  return {grad_input, grad_other};
}

Tensor baddbmm_forward_cpu(const Tensor& input, const Tensor& batch1, const Tensor& batch2, const at::Scalar& beta,
                           const at::Scalar& alpha) {
  // Native reads these dimensions before it looks at the ranks.
  TORCH_CHECK_INDEX(batch1.dim() >= 2 && batch2.dim() >= 3, "baddbmm: batch1 and batch2 must be 3-D, got shapes ",
                    batch1.sizes(), " and ", batch2.sizes());
  TORCH_CHECK(batch1.dim() == 3 && batch2.dim() == 3 && batch1.size(0) == batch2.size(0),
              "baddbmm: batch1 and batch2 must be 3-D with the same batch size, got shapes ", batch1.sizes(), " and ",
              batch2.sizes());
  check_same_dtype("baddbmm", "batch1", batch1, "batch2", batch2);
  check_same_dtype("baddbmm", "input", input, "batch1", batch1);
  const MatmulShape shape = check_matmul("baddbmm", batch1.sizes(), batch2.sizes());
  const Tensor addend = input.expand(shape.output);
  Tensor output = empty_cpu(shape.output, batch1.scalar_type());
  if (output.numel() == 0) return output;
  Product product = new_product(shape);
  product.a = left_operand(batch1, 1);
  product.b = right_operand(batch2, 1);
  product.c = left_operand(output, 1);
  product.c.row = shape.N;
  product.c.col = 1;
  product.alpha = alpha.toDouble();
  product.beta = beta.toDouble();
  if (product.beta != 0) product.addend = left_operand(addend, 1);
  run_product(product, batch1.scalar_type(), "baddbmm");
  return output;
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) {
  m.impl("matmul_forward", tilewright::matmul_forward_cpu);
  m.impl("matmul_backward", tilewright::matmul_backward_cpu);
  m.impl("baddbmm_forward", tilewright::baddbmm_forward_cpu);
}

#include "ops/matmul.h"

namespace tilewright {

MatmulShape check_matmul(const char* op, at::IntArrayRef input, at::IntArrayRef other) {
  TORCH_CHECK(!input.empty() && !other.empty(), op, ": input and other must be at least 1-D, got input of shape ",
              input, " and other of shape ", other);
  const size_t input_batch = input.size() > 2 ? input.size() - 2 : 0;
  const size_t other_batch = other.size() > 2 ? other.size() - 2 : 0;
  MatmulShape shape;
  shape.K = input.back();
  shape.M = input.size() > 1 ? input[input.size() - 2] : 1;
  shape.N = other.size() > 1 ? other.back() : 1;
  const int64_t other_rows = other.size() > 1 ? other[other.size() - 2] : other[0];
  TORCH_CHECK(shape.K == other_rows, op, ": input's last dimension (", shape.K, ") must equal other's second to last (",
              other_rows, "), got input of shape ", input, " and other of shape ", other);
  const size_t dims = std::max(input_batch, other_batch);
  shape.batch.resize(dims);
  for (size_t d = 0; d < dims; ++d) {
    const int64_t left = d + input_batch < dims ? 1 : input[d + input_batch - dims];
    const int64_t right = d + other_batch < dims ? 1 : other[d + other_batch - dims];
    TORCH_CHECK(left == right || left == 1 || right == 1, op, ": batch dimensions of input and other must broadcast, ",
                "got input of shape ", input, " and other of shape ", other);
    shape.batch[d] = left == 1 ? right : left;
  }
  shape.output = shape.batch;
  if (input.size() > 1) shape.output.push_back(shape.M);
  if (other.size() > 1) shape.output.push_back(shape.N);
  return shape;
}

void check_same_dtype(const char* op, const char* first_name, const Tensor& first, const char* second_name,
                      const Tensor& second) {
  TORCH_CHECK(first.scalar_type() == second.scalar_type(), op, ": ", first_name, " and ", second_name,
              " must have the same dtype, got ", first.scalar_type(), " and ", second.scalar_type());
}

Tensor matmul_forward(const Tensor& input, const Tensor& other) {
  static const auto op = find_op<decltype(matmul_forward)>("tilewright::matmul_forward");
  return op.call(input, other);
}

std::tuple<Tensor, Tensor> matmul_backward(const Tensor& grad_output, const OptionalTensor& input,
                                           const OptionalTensor& other, c10::SymIntArrayRef input_shape,
                                           c10::SymIntArrayRef other_shape, const at::Scalar& alpha,
                                           std::array<bool, 2> output_mask) {
  static const auto op = find_op<decltype(matmul_backward)>("tilewright::matmul_backward");
  return op.call(grad_output, input, other, input_shape, other_shape, alpha, output_mask);
}

Tensor baddbmm_forward(const Tensor& input, const Tensor& batch1, const Tensor& batch2, const at::Scalar& beta,
                       const at::Scalar& alpha) {
  static const auto op = find_op<decltype(baddbmm_forward)>("tilewright::baddbmm_forward");
  return op.call(input, batch1, batch2, beta, alpha);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("matmul(Tensor input, Tensor other) -> Tensor", tags);
  m.def("bmm(Tensor input, Tensor mat2) -> Tensor", tags);
  m.def("baddbmm(Tensor input, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor", tags);
  m.def("matmul_forward(Tensor input, Tensor other) -> Tensor", tags);
  m.def(
      "matmul_backward(Tensor grad_output, Tensor? input, Tensor? other, SymInt[] input_shape, SymInt[] other_shape, "
      "Scalar alpha, bool[2] output_mask) -> (Tensor grad_input, Tensor grad_other)",
      tags);
  m.def("baddbmm_forward(Tensor input, Tensor batch1, Tensor batch2, Scalar beta, Scalar alpha) -> Tensor", tags);
}

// matmul, bmm, baddbmm: torch's products of vectors, matrices and batches of matrices.
//
// input [*, M, K], other [*, K, N] -> [*, M, N], leading dimensions broadcast; a vector input is [1, K] and a vector
// other [K, 1], and the dimension of size 1 disappears from the result.
#pragma once
#include "ops/library.h"

namespace tilewright {

struct MatmulShape {
  int64_t M, N, K;
  c10::DimVector batch;   // broadcast
  c10::DimVector output;  // batch, M unless input is a vector, N unless other is one
};

// Raises what native raises for operands that do not fit together.
MatmulShape check_matmul(const char* op, at::IntArrayRef input, at::IntArrayRef other);

// Same dtype in both operands, as native wants it.
void check_same_dtype(const char* op, const char* first_name, const Tensor& first, const char* second_name,
                      const Tensor& second);

Tensor matmul_forward(const Tensor& input, const Tensor& other);

// Either of input and other may be undefined where output_mask does not need it: the gradient of input reads other, and
// the reverse. alpha scales both.
std::tuple<Tensor, Tensor> matmul_backward(const Tensor& grad_output, const OptionalTensor& input,
                                           const OptionalTensor& other, c10::SymIntArrayRef input_shape,
                                           c10::SymIntArrayRef other_shape, const at::Scalar& alpha,
                                           std::array<bool, 2> output_mask);

Tensor baddbmm_forward(const Tensor& input, const Tensor& batch1, const Tensor& batch2, const at::Scalar& beta,
                       const at::Scalar& alpha);

}  // namespace tilewright

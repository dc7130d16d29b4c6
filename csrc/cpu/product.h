// Matrix products over strided operands, for every op that is one: matmul, bmm, baddbmm, linear and their gradients.
//
//   C[batch, M, N] = act(alpha * sum over reduced batch dimensions and K of A[batch, M, K] * B[batch, K, N]
//                        + beta * addend[batch, M, N])
//
// Operands are described by pointers and strides, so a transposed, expanded or offset view is never copied: a gradient
// is the same product with the strides exchanged, and the gradient of a broadcast operand has the broadcast dimensions
// among the reduced ones.
#pragma once
#include <c10/util/SmallVector.h>

#include "cpu/kernels/matmul_args.h"
#include "ops/library.h"

namespace tilewright {

using BatchStrides = c10::SmallVector<int64_t, 4>;

struct MatrixOperand {
  const void* data = nullptr;
  int64_t row = 0, col = 0;
  BatchStrides batch;  // one stride for each dimension of Product::batch_sizes
};

struct Product {
  int64_t M = 0, N = 0, K = 0;
  BatchStrides batch_sizes;
  c10::SmallVector<bool, 4> is_reduced;  // for each batch dimension; c's stride there is 0
  MatrixOperand a, b, c, addend;         // c rows contiguous; addend.data null: none
  double alpha = 1, beta = 1;
  Activation activation = Activation::kNone;
  void* pre = nullptr;  // laid out like c
  // [M] in the accumulation type, added to: the sums of A's rows over K, where they cost nothing. run_product says so.
  void* left_sums = nullptr;
};

// The matrix in the last two dimensions of tensor, its batch dimensions aligned to the last of `batch_dims` and
// expanded where they have size 1. A vector is a row (left) or a column (right).
MatrixOperand left_operand(const Tensor& tensor, size_t batch_dims);
MatrixOperand right_operand(const Tensor& tensor, size_t batch_dims);
MatrixOperand transposed(const MatrixOperand& operand);

// Returns whether left_sums were added to.
bool run_product(const Product& product, at::ScalarType dtype, const char* op);

}  // namespace tilewright

// Gradients of matmul, bmm and baddbmm. With C = alpha * A B + beta * D:
//   dA = alpha * dC B^T,  dB = alpha * A^T dC,  dD = beta * dC,  each summed over the dimensions it was broadcast
//   along.
// An operand is saved only where the other's gradient reads it.
#include "ops/matmul.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include "autograd/autocast.h"
#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

// A tensor that was not saved, where only its shape matters: the replayed op is linear in each operand.
Tensor saved_or_zeros(const Tensor& saved, const c10::SymIntArrayRef shape, const Tensor& like) {
  return saved.defined() ? saved : at::zeros_symint(shape, like.options());
}

// An operand's shape, which its gradient needs: saved by itself only where the operand is not.
void save_shape(AutogradContext* ctx, const char* name, const Tensor& operand, bool is_saved) {
  if (!is_saved) ctx->saved_data[name] = operand.sym_sizes().vec();
}
std::vector<c10::SymInt> saved_shape(AutogradContext* ctx, const char* name, const Tensor& saved) {
  return saved.defined() ? saved.sym_sizes().vec() : ctx->saved_data[name].toSymIntVector();
}

// Native's rule.
bool is_column_major(const Tensor& matrix) {
  return matrix.dim() == 2 && matrix.sym_stride(0) == 1 && matrix.sym_stride(1) == matrix.sym_size(0);
}

class MatmulFunction : public torch::autograd::Function<MatmulFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& other) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({needs_grad(other) ? input : Tensor(), needs_grad(input) ? other : Tensor()});
    save_shape(ctx, "input_shape", input, needs_grad(other));
    save_shape(ctx, "other_shape", other, needs_grad(input));
    ctx->saved_data["turned"] =
        static_cast<int64_t>(is_column_major(input)) | static_cast<int64_t>(is_column_major(other)) << 1;
    return tilewright::matmul_forward(input, other);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& grad = grad_outputs[0];
    const auto input_shape = saved_shape(ctx, "input_shape", saved[0]);
    const auto other_shape = saved_shape(ctx, "other_shape", saved[1]);
    const auto needs = inputs_needing_grad(ctx, {true, true});
    if (wants_differentiable(grad_outputs)) {
      return native_backward({saved_or_zeros(saved[0], input_shape, grad), saved_or_zeros(saved[1], other_shape, grad)},
                             needs, grad_outputs,
                             [](const variable_list& in) -> variable_list { return {at::matmul(in[0], in[1])}; });
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // As native's, the gradient of a column-major matrix is one too: it is computed transposed.
    const int64_t turned = input_shape.size() == 2 && other_shape.size() == 2 ? ctx->saved_data["turned"].toInt() : 0;
    const bool turns_input = needs[0] && (turned & 1), turns_other = needs[1] && (turned & 2);
    auto [grad_input, grad_other] = tilewright::matmul_backward(grad, saved[0], saved[1], input_shape, other_shape, 1,
                                                                {needs[0] && !turns_input, needs[1] && !turns_other});
    if (turns_input) grad_input = tilewright::matmul_forward(saved[1], grad.t()).t();
    if (turns_other) grad_other = tilewright::matmul_forward(grad.t(), saved[0]).t();
    return {grad_input, grad_other};
  }
};

class BaddbmmFunction : public torch::autograd::Function<BaddbmmFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& batch1, const Tensor& batch2,
                        const at::Scalar& beta, const at::Scalar& alpha) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({needs_grad(batch2) ? batch1 : Tensor(), needs_grad(batch1) ? batch2 : Tensor()});
    ctx->saved_data["input_shape"] = input.sym_sizes().vec();
    save_shape(ctx, "batch1_shape", batch1, needs_grad(batch2));
    save_shape(ctx, "batch2_shape", batch2, needs_grad(batch1));
    ctx->saved_data["beta"] = beta;
    ctx->saved_data["alpha"] = alpha;
    return tilewright::baddbmm_forward(input, batch1, batch2, beta, alpha);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& grad = grad_outputs[0];
    const auto input_shape = ctx->saved_data["input_shape"].toSymIntVector();
    const auto batch1_shape = saved_shape(ctx, "batch1_shape", saved[0]);
    const auto batch2_shape = saved_shape(ctx, "batch2_shape", saved[1]);
    const at::Scalar beta = ctx->saved_data["beta"].toScalar(), alpha = ctx->saved_data["alpha"].toScalar();
    const auto needs = inputs_needing_grad(ctx, {true, true, true});
    if (wants_differentiable(grad_outputs)) {
      auto grads = native_backward(
          {at::zeros_symint(input_shape, grad.options()), saved_or_zeros(saved[0], batch1_shape, grad),
           saved_or_zeros(saved[1], batch2_shape, grad)},
          needs, grad_outputs,
          [&](const variable_list& in) -> variable_list { return {at::baddbmm(in[0], in[1], in[2], beta, alpha)}; });
      return {grads[0], grads[1], grads[2], Tensor(), Tensor()};
    }
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Tensor grad_input, grad_batch1, grad_batch2;
    if (needs[0]) grad_input = (grad * beta).sum_to_size_symint(input_shape);
    if (needs[1] || needs[2]) {
      std::tie(grad_batch1, grad_batch2) = tilewright::matmul_backward(grad, saved[0], saved[1], batch1_shape,
                                                                       batch2_shape, alpha, {needs[1], needs[2]});
    }
    return {grad_input, grad_batch1, grad_batch2, Tensor(), Tensor()};
  }
};

Tensor matmul(const Tensor& input, const Tensor& other) {
  if (use_native(Op::kMatmul, input, other)) return at::matmul(input, other);
  if (records_grad(input, other)) return MatmulFunction::apply(input, other);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return tilewright::matmul_forward(input, other);
}

Tensor bmm(const Tensor& input, const Tensor& mat2) {
  if (use_native(Op::kMatmul, input, mat2)) return at::bmm(input, mat2);
  TORCH_CHECK(input.dim() == 3 && mat2.dim() == 3, "bmm: input and mat2 must be 3-D, got shapes ", input.sym_sizes(),
              " and ", mat2.sym_sizes());
  TORCH_CHECK(input.sym_size(0) == mat2.sym_size(0),
              "bmm: input and mat2 must have the same batch size (dimension 0), got shapes ", input.sym_sizes(),
              " and ", mat2.sym_sizes());
  return tilewright::matmul(input, mat2);
}

Tensor baddbmm(const Tensor& input, const Tensor& batch1, const Tensor& batch2, const at::Scalar& beta,
               const at::Scalar& alpha) {
  if (use_native(Op::kMatmul, input, batch1, batch2)) return at::baddbmm(input, batch1, batch2, beta, alpha);
  if (records_grad(input, batch1, batch2)) return BaddbmmFunction::apply(input, batch1, batch2, beta, alpha);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return tilewright::baddbmm_forward(input, batch1, batch2, beta, alpha);
}

// Native's autocast runs these in the lower precision.
template <at::DeviceType kDevice>
void register_autocast(torch::Library& m) {
  register_precision<"matmul", kDevice>(m, matmul);
  register_precision<"bmm", kDevice>(m, bmm);
  register_precision<"baddbmm", kDevice>(m, baddbmm);
}

void register_composite(torch::Library& m) {
  m.impl("matmul", matmul);
  m.impl("bmm", bmm);
  m.impl("baddbmm", baddbmm);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) { tilewright::register_composite(m); }
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) { tilewright::register_composite(m); }
TORCH_LIBRARY_IMPL(tilewright, AutocastCPU, m) { tilewright::register_autocast<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(tilewright, AutocastCUDA, m) { tilewright::register_autocast<at::kCUDA>(m); }

// masked_scale's gradient: dx = dy * mask * scale, the op itself. A mask that is not bool may want a gradient too and
// is left to aten's ops.
#include "ops/masked_scale.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/mul.h>

#include "autograd/native_backward.h"
#include "ops/delegate.h"

namespace tilewright {
namespace {

class MaskedScaleFunction : public torch::autograd::Function<MaskedScaleFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& mask, double scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({mask});
    ctx->saved_data["scale"] = scale;
    return masked_scale_forward(input, mask, scale);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const Tensor mask = ctx->get_saved_variables()[0];
    const double scale = ctx->saved_data["scale"].toDouble();
    const Tensor& grad = grad_outputs[0];
    if (wants_differentiable(grad_outputs)) return {at::mul(at::mul(grad, mask), scale), Tensor(), Tensor()};
    return {masked_scale_forward(grad, mask, scale), Tensor(), Tensor()};
  }
};

Tensor masked_scale(const Tensor& input, const Tensor& mask, double scale) {
  const bool own = !use_native(Op::kMaskedScale, input) && mask.scalar_type() == at::kBool &&
                   mask.device() == input.device() && mask.layout() == at::kStrided;
  if (!own) return at::mul(at::mul(input, mask), scale);
  // Views, differentiated by autograd: the gradient of a broadcast input is summed there.
  const auto shape = at::infer_size_symint(input.sym_sizes(), mask.sym_sizes());
  const Tensor full_input = input.sym_sizes() == shape ? input : input.expand_symint(shape);
  const Tensor full_mask = mask.sym_sizes() == shape ? mask : mask.expand_symint(shape);
  if (records_grad(full_input)) return MaskedScaleFunction::apply(full_input, full_mask, scale);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return masked_scale_forward(full_input, full_mask, scale);
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CompositeImplicitAutograd, m) { m.impl("masked_scale", tilewright::masked_scale); }
TORCH_LIBRARY_IMPL(tilewright, FuncTorchBatched, m) { m.impl("masked_scale", tilewright::masked_scale); }

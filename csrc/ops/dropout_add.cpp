#include "ops/dropout_add.h"

namespace tilewright {

Tensor dropout_add_forward(const Tensor& input, const Tensor& residual, const OptionalTensor& bias, const Tensor& seed,
                           double p) {
  static const auto op = find_op<decltype(dropout_add_forward)>("tilewright::dropout_add_forward");
  return op.call(input, residual, bias, seed, p);
}

std::tuple<Tensor, Tensor> dropout_add_backward(const Tensor& grad_output, const Tensor& seed, double p,
                                                std::array<bool, 2> output_mask) {
  static const auto op = find_op<decltype(dropout_add_backward)>("tilewright::dropout_add_backward");
  return op.call(grad_output, seed, p, output_mask);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def("dropout_add(Tensor input, Tensor residual, float p, bool train, Tensor? bias=None) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("dropout_add_forward(Tensor input, Tensor residual, Tensor? bias, Tensor seed, float p) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "dropout_add_backward(Tensor grad_output, Tensor seed, float p, bool[2] output_mask) -> (Tensor grad_input, "
      "Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

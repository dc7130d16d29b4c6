#include "ops/masked_scale.h"

namespace tilewright {

void check_masked_scale(const Tensor& input, const Tensor& mask) {
  TORCH_CHECK(mask.scalar_type() == at::kBool && mask.sizes().equals(input.sizes()),
              "masked_scale_forward: mask must be bool of input's shape ", input.sizes(), ", got ", mask.scalar_type(),
              " of shape ", mask.sizes());
}

Tensor masked_scale_forward(const Tensor& input, const Tensor& mask, double scale) {
  static const auto op = find_op<decltype(masked_scale_forward)>("tilewright::masked_scale_forward");
  return op.call(input, mask, scale);
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def("masked_scale(Tensor input, Tensor mask, float scale) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("masked_scale_forward(Tensor input, Tensor mask, float scale) -> Tensor", {at::Tag::pt2_compliant_tag});
}

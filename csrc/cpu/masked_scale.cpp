// masked_scale on the CPU: elementwise over memory, in whatever dense order input has.
#include "ops/masked_scale.h"

#include "cpu/kernel_table.h"
#include "cpu/tensors.h"
#include "ops/memory_order.h"

namespace tilewright {
namespace {

Tensor masked_scale_forward_cpu(const Tensor& input, const Tensor& mask, double scale) {
  check_masked_scale(input, mask);
  Tensor output = empty_pointwise(input);
  const Tensor x = ordered_like(input, output), keep = ordered_like(mask, output);
  dispatch_floating(x.scalar_type(), "masked_scale", [&](auto element) {
    using T = decltype(element);
    const MaskedScaleArgs<T> args{const_data<T>(x), static_cast<const uint8_t*>(keep.const_data_ptr()),
                                  mutable_data<T>(output), static_cast<Acc<T>>(scale)};
    const auto kernel = kernels<T>().masked_scale.forward;
    parallel_for_cost(x.numel(), 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return output;
}

}  // namespace
}  // namespace tilewright

TORCH_LIBRARY_IMPL(tilewright, CPU, m) { m.impl("masked_scale_forward", tilewright::masked_scale_forward_cpu); }

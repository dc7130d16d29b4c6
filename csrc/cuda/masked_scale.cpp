// masked_scale on the GPU: elementwise over memory, in whatever dense order input has.
#include "ops/masked_scale.h"

#include "cuda/call.h"
#include "cuda/masked_scale.h"
#include "cuda/registration.h"
#include "ops/memory_order.h"

namespace tilewright::gpu {
namespace {

Tensor masked_scale_forward_cuda(const Tensor& input, const Tensor& mask, double scale) {
  check_masked_scale(input, mask);
  const Call call("masked_scale", input, {&mask});
  Tensor output = empty_pointwise(input);
  if (output.numel() == 0) return output;
  const Tensor x = ordered_like(input, output), keep = ordered_like(mask, output);
  dispatch_floating(x.scalar_type(), "masked_scale", [&](auto element) {
    using T = decltype(element);
    const MaskedScaleArgs<T> args{const_data<T>(x), const_data<uint8_t>(keep), mutable_data<T>(output), x.numel(),
                                  static_cast<Acc<T>>(scale)};
    call.check(masked_scale(args, call.launch()));
  });
  return output;
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(masked_scale, m) { m.impl("masked_scale_forward", tilewright::gpu::masked_scale_forward_cuda); }

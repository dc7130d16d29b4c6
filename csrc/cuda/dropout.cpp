// dropout on the GPU: the kernel for a tensor's memory order. The mask is a function of the logical index, so the order
// changes no result.
#include "cuda/dropout.h"

#include <ATen/MemoryOverlap.h>

#include "cuda/call.h"
#include "cuda/registration.h"
#include "cuda/run_dropout.h"
#include "ops/dropout.h"

#include <ATen/ops/empty_like.h>
#include "ops/memory_order.h"

namespace tilewright::gpu {
namespace {

template <typename T>
Status dropout_of_order(const DropoutArgs<T>& args, const MergedDims& dims, const Launch& launch) {
  if (dims.sizes.size() == 1 && dims.strides[0] == 1) return dropout_contiguous(args, launch);
  if (const auto transposed = find_transposed(dims)) {
    return dropout_transposed(args, {transposed->batch, transposed->major, transposed->minor}, launch);
  }
  PermutedLayout layout{static_cast<int>(dims.sizes.size()), {}, {}};
  std::copy(dims.sizes.begin(), dims.sizes.end(), layout.sizes);
  std::copy(dims.strides.begin(), dims.strides.end(), layout.strides);
  return dropout_permuted(args, layout, launch);
}

}  // namespace

void run_dropout(const Tensor& input, const Tensor& residual, const Tensor& bias, const Tensor& output,
                 const Tensor& seed, double p, const char* op, KeepBits bits) {
  check_dropout_seed(op, seed, input.device(), p);
  if (input.numel() == 0) return;
  const MergedDims dims = merged_dims(input.sizes(), input.strides());
  if (dims.sizes.size() > kMaxPermutedDims) {
    const Tensor x = input.contiguous(), y = empty_like_in(x, x.sizes(), x.scalar_type());
    run_dropout(x, contiguous(residual), bias, y, seed, p, op, bits);
    output.copy_(y);
    return;
  }
  const Call call(op, input, {&residual, &bias, &output});
  dispatch_floating(input.scalar_type(), op, [&](auto element) {
    using T = decltype(element);
    const DropoutArgs<T> args{const_data<T>(input),
                              const_data<T>(residual),
                              mutable_data<T>(output),
                              input.numel(),
                              make_dropout<Acc<T>>(seed.const_data_ptr<int64_t>(), p),
                              any_data(bias),
                              bias.defined() && bias.scalar_type() != input.scalar_type(),
                              bias.defined() ? bias.numel() : 1,
                              bits.write,
                              bits.read};
    call.check(dropout_of_order(args, dims, call.launch()));
  });
}

namespace {

Tensor dropout_forward_cuda(const Tensor& input, const Tensor& seed, double p) {
  const c10::DeviceGuard guard(input.device());
  Tensor output = empty_pointwise(input);
  run_dropout(ordered_like(input, output), Tensor(), Tensor(), output, seed, p, "dropout");
  return output;
}

void dropout_forward_inplace_cuda(Tensor& input, const Tensor& seed, double p) {
  at::assert_no_internal_overlap(input);
  if (input.is_non_overlapping_and_dense()) return run_dropout(input, Tensor(), Tensor(), input, seed, p, "dropout_");
  input.copy_(dropout_forward_cuda(input, seed, p));
}

std::tuple<Tensor, Tensor> dropout_forward_keeping_cuda(const Tensor& input, const Tensor& seed, double p) {
  check_dropout_keeping(input);
  Tensor output = empty_like_in(input, input.sizes(), input.scalar_type());
  Tensor keep_bits = empty_like_in(input, {keep_bits_size(input.numel())}, at::kByte);
  if (input.numel() == 0) keep_bits.zero_();
  run_dropout(input, Tensor(), Tensor(), output, seed, p, "dropout", {mutable_data<uint8_t>(keep_bits), nullptr});
  return {output, keep_bits};
}

Tensor dropout_backward_cuda(const Tensor& grad_output, const Tensor& seed, double p, const OptionalTensor& keep_bits) {
  if (!is_defined(keep_bits) || !grad_output.is_contiguous()) return dropout_forward_cuda(grad_output, seed, p);
  check_keep_bits(*keep_bits, grad_output);
  Tensor grad_input = empty_like_in(grad_output, grad_output.sizes(), grad_output.scalar_type());
  run_dropout(grad_output, Tensor(), Tensor(), grad_input, seed, p, "dropout",
              {nullptr, const_data<uint8_t>(*keep_bits)});
  return grad_input;
}

Tensor dropout_mask_cuda(const Tensor& like, const Tensor& seed, double p) {
  check_dropout_seed("dropout_mask", seed, like.device(), p);
  Tensor mask = empty_like_in(like, like.sizes(), at::kBool);
  if (mask.numel() == 0) return mask;
  const Call call("dropout_mask", like);
  call.check(dropout_mask(make_dropout<float>(seed.const_data_ptr<int64_t>(), p), mutable_data<uint8_t>(mask),
                          mask.numel(), call.launch()));
  return mask;
}

}  // namespace
}  // namespace tilewright::gpu

TILEWRIGHT_CUDA_LIBRARY(dropout, m) {
  m.impl("dropout_forward", tilewright::gpu::dropout_forward_cuda);
  m.impl("dropout_forward_keeping", tilewright::gpu::dropout_forward_keeping_cuda);
  m.impl("dropout_forward_", tilewright::gpu::dropout_forward_inplace_cuda);
  m.impl("dropout_backward", tilewright::gpu::dropout_backward_cuda);
  m.impl("dropout_mask", tilewright::gpu::dropout_mask_cuda);
}

#include "ops/dropout.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/random.h>

#include <ATen/ops/mul.h>

namespace tilewright {

void check_dropout_probability(double p) {
  TORCH_CHECK(p >= 0 && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
}

void check_dropout_seed(const char* op, const Tensor& seed, c10::Device device, double p) {
  TORCH_CHECK(seed.defined() && seed.scalar_type() == at::kLong && seed.numel() == 1 && seed.device() == device, op,
              ": seed must be one int64 on ", device, ", as dropout_seed makes it, got ", seed.numel(), " of ",
              seed.scalar_type(), " on ", seed.device());
  TORCH_CHECK(p >= 0 && p <= 1, op, ": dropout probability has to be between 0 and 1, but got ", p);
}

void check_dropout_keeping(const Tensor& input) {
  TORCH_CHECK(input.is_contiguous(), "dropout_forward_keeping: input must be contiguous, got strides ",
              input.strides());
}

void check_keep_bits(const Tensor& keep_bits, const Tensor& grad_output) {
  const int64_t size = keep_bits_size(grad_output.numel());
  TORCH_CHECK(keep_bits.scalar_type() == at::kByte && keep_bits.is_contiguous() && keep_bits.numel() == size &&
                  keep_bits.device() == grad_output.device(),
              "dropout_backward: keep_bits must be uint8 [", size,
              "] as dropout_forward_keeping makes it for grad_output's shape ", grad_output.sizes(), " on ",
              grad_output.device(), ", got ", keep_bits.scalar_type(), " ", keep_bits.sizes(), " on ",
              keep_bits.device());
}

Tensor dropout_seed(const Tensor& input) {
  static const auto op = find_op<decltype(dropout_seed)>("tilewright::dropout_seed");
  return op.call(input);
}

Tensor dropout_forward(const Tensor& input, const Tensor& seed, double p) {
  static const auto op = find_op<decltype(dropout_forward)>("tilewright::dropout_forward");
  return op.call(input, seed, p);
}

void dropout_forward_(Tensor& input, const Tensor& seed, double p) {
  static const auto op = find_op<decltype(dropout_forward_)>("tilewright::dropout_forward_");
  op.call(input, seed, p);
}

std::tuple<Tensor, Tensor> dropout_forward_keeping(const Tensor& input, const Tensor& seed, double p) {
  static const auto op = find_op<decltype(dropout_forward_keeping)>("tilewright::dropout_forward_keeping");
  return op.call(input, seed, p);
}

Tensor dropout_backward(const Tensor& grad_output, const Tensor& seed, double p, const OptionalTensor& keep_bits) {
  static const auto op = find_op<decltype(dropout_backward)>("tilewright::dropout_backward");
  return op.call(grad_output, seed, p, keep_bits);
}

Tensor dropout_mask(const Tensor& like, const Tensor& seed, double p) {
  static const auto op = find_op<decltype(dropout_mask)>("tilewright::dropout_mask");
  return op.call(like, seed, p);
}

Tensor differentiable_dropout_backward(const Tensor& grad_output, const Tensor& seed, double p) {
  const Tensor keep = dropout_mask(grad_output, seed, p).to(grad_output.scalar_type());
  return at::mul(grad_output, keep.mul(1 / (1 - p)));
}

}  // namespace tilewright

TORCH_LIBRARY_FRAGMENT(tilewright, m) {
  m.def("dropout(Tensor input, float p, bool train) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("dropout_(Tensor(a!) input, float p, bool train) -> Tensor(a!)",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("dropout_seed(Tensor input) -> Tensor", {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("dropout_forward(Tensor input, Tensor seed, float p) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("dropout_forward_(Tensor(a!) input, Tensor seed, float p) -> ()", {at::Tag::pt2_compliant_tag});
  m.def("dropout_forward_keeping(Tensor input, Tensor seed, float p) -> (Tensor output, Tensor keep_bits)",
        {at::Tag::pt2_compliant_tag});
  m.def("dropout_backward(Tensor grad_output, Tensor seed, float p, Tensor? keep_bits=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("dropout_mask(Tensor like, Tensor seed, float p) -> Tensor", {at::Tag::pt2_compliant_tag});
}

// A GPU's seed comes from torch's generator of that device and stays there: no synchronisation, and a CUDA graph draws
// a new one on each replay.
TORCH_LIBRARY_IMPL(tilewright, CUDA, m) {
  m.impl("dropout_seed", [](const at::Tensor& input) {
    return at::empty({1}, input.options().dtype(at::kLong).memory_format(std::nullopt)).random_();
  });
}

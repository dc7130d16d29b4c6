// The one place that decides whether a call is ours or native PyTorch's.
//
// Ours: dense float32, float64, bfloat16 or float16 tensors with elements, on a device we have kernels for, with plain
// reverse-mode autograd. Native's: every other dtype, layout and device; empty tensors, of which it checks less; tensor
// subclasses with their own __torch_dispatch__ (DTensor, ...); any torch.func transform or vmap; forward-mode AD.
// Native's ops are differentiable to any order, so nobody gets an error that native would not give.
#pragma once
#include "ops/gpu.h"
#include "ops/library.h"

namespace tilewright {

// Is this tensor, whatever its dtype, one that only native's ops understand (layout, device, subclass, forward AD)?
bool layout_needs_native(const Tensor& tensor);

bool is_empty(const Tensor& tensor);

// Without looking at transforms: may this tensor be handed to our kernels? Undefined tensors may.
bool tensor_needs_native(const Tensor& tensor);

inline bool tensor_needs_native(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor_needs_native(*tensor);
}

// True where a torch.func transform (grad, vmap, jvp, functionalize) is active in this thread.
bool transform_is_active();

// Do the defined ones lie on different devices? Native raises what it raises then.
bool lie_apart(std::initializer_list<const Tensor*> tensors);

inline const Tensor* address_of(const Tensor& tensor) { return &tensor; }
inline const Tensor* address_of(const OptionalTensor& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

// True where the op must be computed by native's ops. Accepts Tensor and optional<Tensor>; the first one's device and
// dtype decide whether a GPU kernel serves the op.
template <typename... Tensors>
bool use_native(Op op, const Tensor& first, const Tensors&... others) {
  if (transform_is_active() || tensor_needs_native(first) || (tensor_needs_native(others) || ...)) return true;
  if (sizeof...(others) > 0 && lie_apart({&first, address_of(others)...})) return true;
  return first.is_cuda() && !gpu_serves(op, first);
}

// What native gives for a bias of another dtype, which some of its paths add all the same; undefined where it raises,
// so that our own check can say what is wrong.
template <typename Native>
Tensor native_with_other_bias(const Tensor& input, const OptionalTensor& bias, const Native& native) {
  if (!bias.has_value() || !bias->defined() || bias->scalar_type() == input.scalar_type()) return {};
  try {
    return native();
  } catch (const c10::Error&) {
    return {};
  }
}

inline bool needs_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
inline bool needs_grad(const OptionalTensor& tensor) { return tensor.has_value() && needs_grad(*tensor); }

// True where autograd has to record the op.
template <typename... Tensors>
bool records_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (needs_grad(tensors) || ...);
}

}  // namespace tilewright

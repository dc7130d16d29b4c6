#include "ops/delegate.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstring>

namespace tilewright {
namespace {

// Keys a plain dense tensor may carry. Anything else (sparse, nested, quantized, conjugate or negative views, zero
// tensors, batched or grad-wrapped tensors, other backends) belongs to native.
const c10::DispatchKeySet kPlainKeys =
    c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::Functionalize,
                         c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}) |
    c10::autograd_dispatch_keyset | c10::autocast_dispatch_keyset;

// The set difference of DispatchKeySet keeps the bits that name the backend, so they are masked away here; the device
// is checked on its own.
bool has_plain_keys(c10::DispatchKeySet keys) {
  return (keys.raw_repr() & ~kPlainKeys.raw_repr() & ~c10::full_backend_mask) == 0;
}

bool is_supported_dtype(c10::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

// Fake and functional tensors carry the Python key too, but they trace our ops; other subclasses know only aten's.
bool is_tracing_subclass(const Tensor& tensor) {
  pybind11::gil_scoped_acquire gil;
  auto object = pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(tensor));
  const char* name = Py_TYPE(object.ptr())->tp_name;
  return std::strcmp(name, "FakeTensor") == 0 || std::strcmp(name, "FunctionalTensor") == 0 ||
         std::strcmp(name, "Tensor") == 0;
}

}  // namespace

bool tensor_needs_native(const Tensor& tensor) {
  return tensor.defined() &&
         (!is_supported_dtype(tensor.scalar_type()) || is_empty(tensor) || layout_needs_native(tensor));
}

bool is_empty(const Tensor& tensor) { return tensor.defined() && TORCH_GUARD_OR_FALSE(tensor.sym_numel().sym_eq(0)); }

bool layout_needs_native(const Tensor& tensor) {
  if (!tensor.defined()) return false;
  const auto device = tensor.device().type();
  if (device != at::kCPU && device != at::kMeta && device != at::kCUDA) return true;
  const auto keys = tensor.key_set();
  if (!has_plain_keys(keys)) return true;
  if (keys.has(c10::DispatchKey::Python) && !is_tracing_subclass(tensor)) return true;
  return tensor._fw_grad(/*level=*/0).defined();
}

bool lie_apart(std::initializer_list<const Tensor*> tensors) {
  const Tensor* first = nullptr;
  for (const Tensor* tensor : tensors) {
    if (tensor == nullptr || !tensor->defined()) continue;
    if (first == nullptr) first = tensor;
    if (tensor->device() != first->device()) return true;
  }
  return false;
}

bool transform_is_active() {
  // While a layer is on functorch's stack, one of its modes is included in this thread's dispatch keys: the front mode
  // before the layer takes the op, the back or vmap mode while it is interpreted.
  constexpr c10::DispatchKeySet kTransformModes({c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                                 c10::DispatchKey::FuncTorchDynamicLayerBackMode,
                                                 c10::DispatchKey::FuncTorchVmapMode});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(kTransformModes);
}

}  // namespace tilewright

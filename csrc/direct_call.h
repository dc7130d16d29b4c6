// Python's short way to an op: a C function of positional arguments that reads them and calls the dispatcher.
//
// torch.ops' own way boxes every argument into a stack, looks at each for overrides and unboxes again, which costs
// about 0.8 us; this one 0.2 us. It takes only the plain case: exactly as many arguments as the op has, of exactly the
// wanted types (torch.Tensor or Parameter itself, no subclass), while nothing watches calls. Everything else returns
// None without a trace, and the caller goes torch.ops' way, which knows subclasses, modes, tracing and error messages.
// From the dispatcher on both ways are one, so autograd, autocast, transforms and profilers see the same op.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include "ops/library.h"
#include "ops/op_name.h"

namespace tilewright::direct {

// Modes of __torch_function__ and __torch_dispatch__, and torch.jit.trace, which records at torch.ops' entry.
inline bool calls_are_watched() {
  return at::impl::torch_function_mode_enabled() || c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         torch::jit::tracer::isTracing();
}

// --- one reader per argument type: read() is false for anything but the plain case ---
template <typename T>
struct Argument;

template <>
struct Argument<Tensor> {
  const Tensor* value = nullptr;
  bool read(PyObject* object) {
    if (!THPVariable_CheckExact(object)) return false;
    value = &THPVariable_Unpack(object);
    return true;
  }
  const Tensor& get() const { return *value; }
};

template <>
struct Argument<OptionalTensor> {
  OptionalTensor value;
  bool read(PyObject* object) {
    if (object == Py_None) return true;
    if (!THPVariable_CheckExact(object)) return false;
    value = THPVariable_Unpack(object);
    return true;
  }
  const OptionalTensor& get() const { return value; }
};

template <>
struct Argument<at::Scalar> {
  at::Scalar value;
  bool read(PyObject* object) {
    if (PyFloat_CheckExact(object)) {
      value = PyFloat_AS_DOUBLE(object);
      return true;
    }
    if (!PyLong_CheckExact(object)) return false;
    int overflow = 0;
    value = static_cast<int64_t>(PyLong_AsLongLongAndOverflow(object, &overflow));
    return overflow == 0;
  }
  const at::Scalar& get() const { return value; }
};

template <>
struct Argument<bool> {
  bool value = false;
  bool read(PyObject* object) {
    value = object == Py_True;
    return value || object == Py_False;
  }
  bool get() const { return value; }
};

template <>
struct Argument<double> {
  double value = 0;
  bool read(PyObject* object) {
    if (!PyFloat_CheckExact(object)) return false;
    value = PyFloat_AS_DOUBLE(object);
    return true;
  }
  double get() const { return value; }
};

template <>
struct Argument<std::optional<double>> {
  std::optional<double> value;
  bool read(PyObject* object) {
    if (object == Py_None) return true;
    if (!PyFloat_CheckExact(object)) return false;
    value = PyFloat_AS_DOUBLE(object);
    return true;
  }
  std::optional<double> get() const { return value; }
};

// Sizes, as a tuple of ints.
template <>
struct Argument<c10::SymIntArrayRef> {
  c10::SymDimVector value;
  bool read(PyObject* object) {
    if (!PyTuple_CheckExact(object)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i) {
      PyObject* item = PyTuple_GET_ITEM(object, i);
      if (!PyLong_CheckExact(item)) return false;
      int overflow = 0;
      value.emplace_back(static_cast<int64_t>(PyLong_AsLongLongAndOverflow(item, &overflow)));
      if (overflow != 0) return false;
    }
    return true;
  }
  c10::SymIntArrayRef get() const { return value; }
};

template <>
struct Argument<c10::string_view> {
  c10::string_view value;
  bool read(PyObject* object) {
    if (!PyUnicode_CheckExact(object)) return false;
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (text == nullptr) PyErr_Clear();  // lone surrogates: torch.ops will say so
    value = c10::string_view(text, static_cast<size_t>(size));
    return text != nullptr;
  }
  c10::string_view get() const { return value; }
};

// --- the entries ---
template <OpName kName, typename Signature>
struct Entry;

template <OpName kName, typename... Args>
struct Entry<kName, Tensor(Args...)> {
  static PyObject* call(PyObject* /*self*/, PyObject* const* objects, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    static const auto op = find_op<Tensor(Args...)>(kName.qualified().c_str());
    std::tuple<Argument<std::remove_cvref_t<Args>>...> arguments;
    if (count != static_cast<Py_ssize_t>(sizeof...(Args)) || calls_are_watched()) Py_RETURN_NONE;
    const bool are_plain = std::apply([&](auto&... argument) { return (argument.read(*objects++) && ...); }, arguments);
    if (!are_plain) Py_RETURN_NONE;
    Tensor result;
    {
      const pybind11::gil_scoped_release released;
      result = std::apply([](const auto&... argument) { return op.call(argument.get()...); }, arguments);
    }
    return THPVariable_Wrap(std::move(result));
    END_HANDLE_TH_ERRORS
  }
};

// Adds module.<name>, the short way to tilewright::<name>.
template <OpName kName, typename Signature>
void add(pybind11::module_& module) {
  static PyMethodDef method{kName.text,
                            reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Entry<kName, Signature>::call)),
                            METH_FASTCALL, nullptr};
  module.attr(kName.text) = pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&method, nullptr));
}

}  // namespace tilewright::direct

// TILEWRIGHT_CUDA_LIBRARY in the emulation: keeps the function that fills the slot, for registration.cpp to call.
#pragma once
#include <torch/library.h>

namespace tilewright::emulation {

using Registration = void (*)(torch::Library&);

struct Kept {
  explicit Kept(Registration registration);
};

}  // namespace tilewright::emulation

#define TILEWRIGHT_CUDA_LIBRARY(name, m)                                                        \
  static void tilewright_register_##name(torch::Library& m);                                    \
  static const tilewright::emulation::Kept tilewright_kept_##name(&tilewright_register_##name); \
  static void tilewright_register_##name(torch::Library& m)

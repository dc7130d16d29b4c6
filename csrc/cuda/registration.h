// How a binding fills the CUDA slot of its ops:  TILEWRIGHT_CUDA_LIBRARY(layer_norm, m) { m.impl(...); }
//
// In the emulation of tests/ the same lines fill the CPU slot, and can be taken out of it again.
#pragma once
#include <torch/library.h>

#if defined(TILEWRIGHT_EMULATION)
#include "emulated_registration.h"
#else
#define TILEWRIGHT_CUDA_LIBRARY(name, m) TORCH_LIBRARY_IMPL(tilewright, CUDA, m)
#endif

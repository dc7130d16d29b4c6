// The kernels of the instruction set this process uses, chosen once.
//
// One table per ISA, filled by that ISA's units (isa/unit.cpp); inside it one struct of function pointers per element
// type. TILEWRIGHT_ISA=amx_bf16|avx512_bf16|avx512|avx2|baseline caps the choice; force_isa() serves tests.
#pragma once
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/kernels/typed_kernels.h"

namespace tilewright {

const KernelTable& kernel_table();

template <typename T>
const TypedKernels<T>& kernels() {
  const KernelTable& table = kernel_table();
  if constexpr (std::is_same_v<T, float>) return table.f32;
  if constexpr (std::is_same_v<T, double>) return table.f64;
  if constexpr (std::is_same_v<T, BF16>) return table.bf16;
  if constexpr (std::is_same_v<T, F16>) return table.f16;
}

// The ISAs this build has and this machine runs, slowest first.
std::vector<std::string> available_isas();

// Switches every later call to the named ISA. Not for use while other threads run our ops.
void force_isa(const std::string& name);

}  // namespace tilewright

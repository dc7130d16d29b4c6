// Which ops this process serves on a GPU, and in which dtypes. Python decides (tilewright/_backends.py: what was built,
// the card's architecture, TILEWRIGHT_CUDA_BACKEND), once per device and when the first tensor of that device arrives,
// so that importing tilewright touches neither CUDA nor Triton.
#pragma once
#include <functional>

#include "ops/library.h"

namespace tilewright {

// A family of ops that one back end serves as a whole; the names in Python are those of csrc/ops/<op>.
enum class Op : uint8_t {
  kAttention,
  kBatchNorm,
  kConv2d,
  kDropout,
  kDropoutAdd,
  kDropoutAddLayerNorm,
  kLayerNorm,
  kLinear,
  kMaskedScale,
  kMatmul,
};
constexpr int kOps = 10;

// In the order of Op.
extern const char* const kOpNames[kOps];

// For each Op a set of dtypes: bit 0 float32, 1 float64, 2 bfloat16, 3 float16.
using GpuTable = std::array<uint8_t, kOps>;

// How the table of a device is found; called at most once per device, then forgotten only by set_gpu_tables.
void set_gpu_tables(std::function<GpuTable(int device)> source);

// Does a kernel of ours serve `op` for this CUDA tensor? False for dtypes we have no kernels for.
bool gpu_serves(Op op, const Tensor& tensor);

}  // namespace tilewright

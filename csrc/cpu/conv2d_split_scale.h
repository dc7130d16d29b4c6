// Whether products are computed in parts of bfloat16, and what has to be known of operands before
// (kernels/gemm_split.h).
#pragma once
#include <c10/util/env.h>

#include <atomic>

#include "cpu/conv2d_windows.h"

namespace tilewright {

// The switch: TILEWRIGHT_SPLIT=0 in the environment, read once.
inline bool split_is_allowed() {
  static const bool is_wanted = c10::utils::get_env("TILEWRIGHT_SPLIT") != "0";
  return is_wanted && kernels<float>().conv2d.pairs.panel > 0;
}

// What is known of images or weights before it is split: whether values from `least_normal` on are among it. Its parts
// are exact but for those below 2^-126: nothing beside values from 2^-64 on.
enum class SplitScale { kZero, kTiny, kNormal };
template <typename T>
SplitScale split_scale(const Tensor& operand, float least_normal = 0x1p-64f) {
  constexpr int64_t kBlock = 4096;
  if constexpr (std::is_same_v<T, F16>) return SplitScale::kNormal;  // its least part is 2^-24
  if (!operand.is_non_overlapping_and_dense()) {
    const Tensor row = operand.select(0, 0).select(1, operand.size(2) / 2).contiguous();  // as a rule enough
    if (split_scale<T>(row, least_normal) == SplitScale::kNormal) return SplitScale::kNormal;
    return split_scale<T>(operand.contiguous(operand.suggest_memory_format()), least_normal);
  }
  const float* values = operand.const_data_ptr<float>();
  std::atomic<bool> normal{false}, zero{true};
  const auto look = [&](int64_t block) {
    bool is_normal = false, is_zero = true;
    for (int64_t i = block * kBlock; i < std::min(operand.numel(), (block + 1) * kBlock); ++i) {
      is_normal |= !(std::abs(values[i]) < least_normal);
      is_zero &= values[i] == 0.0f;
    }
    if (is_normal) normal = true;
    if (!is_zero) zero = false;
  };
  look(0);  // as a rule enough
  if (!normal) {
    parallel_for_cost(divide_up(operand.numel(), kBlock), kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end && !normal; ++block) look(block);
    });
  }
  return normal ? SplitScale::kNormal : zero ? SplitScale::kZero : SplitScale::kTiny;
}

}  // namespace tilewright

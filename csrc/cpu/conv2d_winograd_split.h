// Winograd's products in parts of bfloat16 (kernels/winograd_split.h): which, and how much at a time.
#pragma once
#include "cpu/conv2d_split_scale.h"
#include "cpu/conv2d_work.h"

namespace tilewright {

// How products beyond the cache are cut. What is split is packed again for every block of filters and every stretch of
// tiles, so both are larger then.
struct WinogradSteps {
  int64_t stretch;  // elements that all threads share
  int64_t filters;  // columns of one product
  explicit WinogradSteps(bool splits) : stretch(splits ? 6 << 20 : 3 << 20), filters(splits ? 256 : 128) {}
};

// Whether products with so many transformed weights, or sums of their gradient, go in parts. From here on it is worth
// waiting for the transforms of all images (8x80x28x28 2.1 -> 2.5x of native; 8x64x56x56 would lose: 2.1x, not 2.3x).
// The unit takes products below 2^-126 for 0: nothing beside those of operands with values from 2^-40 on, if such
// values meet. Whether they did, the result tells (is_sound).
template <typename T>
bool winograd_splits(int64_t transformed, const Tensor& images, const Tensor& other) {
  constexpr int64_t kFewest = 200 * 1000;
  constexpr float kLeast = 0x1p-40f;
  if constexpr (!std::is_same_v<Acc<T>, float>) return false;
  const auto is_normal = [](const Tensor& operand) { return split_scale<T>(operand, kLeast) == SplitScale::kNormal; };
  return transformed > kFewest && split_is_allowed() && kernels<T>().winograd.multiply_split != nullptr &&
         is_normal(images) && is_normal(other);
}

// Of a pass that was split; as for strips, one whose values are all below 2^-60 is not.
template <typename T>
bool is_sound(const Tensor& result) {
  constexpr float kLeast = 0x1p-60f;
  return split_scale<T>(result, kLeast) == SplitScale::kNormal;
}

template <typename T>
void multiply_winograd(const WinogradProduct<Acc<T>>& product, int64_t point_begin, int64_t point_end, bool splits) {
  const auto& kernel = kernels<T>().winograd;
  if (!splits) return kernel.multiply(product, point_begin, point_end);
  const auto bytes = static_cast<size_t>(kernel.split_bytes(product));
  kernel.multiply_split(product, point_begin, point_end, thread_scratch(kConvScratchSlot, bytes));
}

}  // namespace tilewright

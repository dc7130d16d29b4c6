// What the kernels of pairs and parts say of their sums (kernels/conv2d_strip_parts.h, SumCheck), from many threads.
#pragma once
#include <atomic>
#include <cmath>

namespace tilewright {

// All finite, and one of them 2^-60 or more, far from what a tile unit takes for 0.
class SumReport {
 public:
  // The largest magnitude of some sums, NaN if one is not finite.
  void add(float magnitude) {
    constexpr float kTiny = 0x1p-60f;
    if (std::isnan(magnitude)) finite_ = false;
    if (magnitude >= kTiny) normal_ = true;
  }
  bool is_finite() const { return finite_; }
  bool is_normal() const { return normal_; }

 private:
  std::atomic<bool> finite_{true}, normal_{false};
};

}  // namespace tilewright

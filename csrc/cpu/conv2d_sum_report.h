// What the kernels of pairs and parts say of their sums (kernels/conv2d_strip_parts.h, SumCheck), from many threads.
#pragma once
#include <cmath>
#include <mutex>

namespace tilewright {

// What kernels report of their sums, if they are asked to check: all finite, and one of them 2^-60 or more, far from
// what a tile unit takes for 0.
class SumReport {
 public:
  void add(float magnitude) {
    constexpr float kTiny = 0x1p-60f;
    if (std::isnan(magnitude)) finite_ = false;
    if (magnitude >= kTiny) normal_ = true;
  }
  bool is_finite() const { return finite_; }
  bool is_normal() const { return normal_; }

 private:
  bool finite_ = true, normal_ = false;
};

// The same from many threads.
class SharedSumReport {
 public:
  void add(float magnitude) {
    const std::lock_guard<std::mutex> guard(mutex_);
    report_.add(magnitude);
  }
  SumReport get() const { return report_; }

 private:
  std::mutex mutex_;
  SumReport report_;
};

}  // namespace tilewright

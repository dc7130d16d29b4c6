// Element types as kernels see them: storage without arithmetic for the 16-bit formats, and the type each one is summed
// in.
#pragma once
#include <cstdint>

namespace tilewright {

struct BF16 {
  uint16_t bits;  // the upper half of an IEEE float32
};

struct F16 {
  uint16_t bits;  // IEEE binary16
};

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

// The accumulation type: float32, or float64 for float64.
template <typename T>
using Acc = typename AccOf<T>::type;

// Bytes behind bits of elements in memory: kernels read bits by words.
constexpr int64_t kBitsSpare = 4;

}  // namespace tilewright

// What cpu/dropout.cpp and cpu/dropout_add.cpp hand to kernels/dropout.h.
#pragma once
#include "common/philox.h"
#include "common/types.h"

namespace tilewright {

// y = residual + (x + bias) * keep * scale. x, residual and y lie in memory alike.
template <typename T>
struct DropoutArgs {
  const T* x;
  const T* residual;   // or null: 0
  const Acc<T>* bias;  // [cols] or null: 0; contiguous layout only
  T* y;                // may be x
  int64_t cols;        // size of the last dimension; read with bias only
  bool streams;        // y goes past the caches
  DropoutRule rule;
  uint8_t* keep = nullptr;        // contiguous layout only: where the keep bits go, bit i % 8 of byte i / 8
  const uint8_t* kept = nullptr;  // contiguous layout only: the keep bits, made before; they are not made again
};

// A dense tensor whose memory is [batch, minor, major] where its logical order is [batch, major, minor]: channels_last
// (major = channels, minor = pixels), transposed matrices. A tile is `tile` positions of minor, all of major.
struct TransposedLayout {
  int64_t major;
  int64_t minor;
  int64_t tile;     // a multiple of 8, or minor itself
  int64_t scratch;  // bytes of scratch per thread
};

// Any other dense layout: sizes and element strides in logical order.
struct StridedLayout {
  int64_t dims;
  const int64_t* sizes;
  const int64_t* strides;
};

// dx = dy * keep * scale, dbias += the sum of dx over rows.
template <typename T>
struct DropoutBiasBackwardArgs {
  const T* dy;    // [rows, cols]
  T* dx;          // [rows, cols] or null: not wanted
  Acc<T>* dbias;  // [cols]
  int64_t cols;
  DropoutRule rule;
};

template <typename T>
struct DropoutKernels {
  // Elements [begin, end) of a contiguous tensor; begin is a multiple of 8.
  void (*contiguous)(const DropoutArgs<T>&, int64_t begin, int64_t end);
  // Tiles [begin, end), numbered through all of the batch; scratch as TransposedLayout says.
  void (*transposed)(const DropoutArgs<T>&, const TransposedLayout&, int64_t begin, int64_t end, uint8_t* scratch);
  // Logical elements [begin, end); begin is a multiple of 8.
  void (*strided)(const DropoutArgs<T>&, const StridedLayout&, int64_t begin, int64_t end);
  void (*bias_backward)(const DropoutBiasBackwardArgs<T>&, int64_t row_begin, int64_t row_end);
  // mask[i] = 1 where logical element i in [begin, end) is kept, else 0; begin is a multiple of 8.
  void (*mask)(const DropoutRule&, uint8_t* mask, int64_t begin, int64_t end);
};

}  // namespace tilewright

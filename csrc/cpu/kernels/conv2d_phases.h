// What a block of output rows reads of an image, copied once with its padding and split by the phases of the stride:
//     phase (v % stride, u % stride) holds position (v, u) at (v / stride, u / stride)
// Then pixel p = y * pitch + x reads tap t at position offset_t + p, whatever the padding, stride and dilation. The
// price are the columns between two rows of pixels (pitch - width of each), which are computed and dropped.
#pragma once
#include "cpu/kernels/conv2d_args.h"

namespace tilewright {
namespace {

// The phases of one channel for `rows` output rows.
struct PhaseLayout {
  int64_t height, pitch;  // of one phase
  int64_t size;           // of all phases
  explicit PhaseLayout(const ConvWindow& window, int64_t rows)
      : height(rows + (window.rows - 1) * window.step_y / window.stride_y),
        pitch(phase_pitch(window)),
        size(window.stride_y * window.stride_x * height * pitch) {}
};

inline void find_tap_offsets(const ConvWindow& window, const PhaseLayout& layout, int32_t* offsets) {
  for (int64_t i = 0; i < window.rows; ++i) {
    for (int64_t j = 0; j < window.cols; ++j) {
      const int64_t u = i * window.step_y, v = j * window.step_x;
      const int64_t phase = u % window.stride_y * window.stride_x + v % window.stride_x;
      *offsets++ =
          static_cast<int32_t>((phase * layout.height + u / window.stride_y) * layout.pitch + v / window.stride_x);
    }
  }
}

}  // namespace
}  // namespace tilewright

// What all convolution kernels are told: images, the positions that are read, weights, what becomes of a sum.
//
// Letters: n image, c channel of the images read (summed over), f filter = channel of the images written, t tap, k an
// index of the sum over taps and channels. Strides and offsets count elements.
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"

namespace tilewright {

// Images in either format, or the pixels of one residue of theirs: element (n, c, y, x) is at data[n * n_stride + c *
// c_stride + ...].
template <typename T>
struct ConvImages {
  T* data;
  int64_t height, width;
  int64_t n_stride, c_stride, y_stride, x_stride;
};

// Which positions are read: pixel (y, x) of `height` x `width` reads at tap (i, j) of `rows` x `cols` the position
// (y * stride_y + first_y + i * step_y, x * stride_x + first_x + j * step_x); positions outside the image read 0.
// A forward convolution has first = -padding and step = dilation. The data gradient has stride 1, and for each residue
// of the strides its own lattice of taps.
struct ConvWindow {
  int64_t height, width;
  int64_t stride_y, stride_x;
  int64_t rows, cols;
  int64_t first_y, first_x;
  int64_t step_y, step_x;
};

// Pixels from one row to the next where an image is copied with its padding (conv2d_phases.h).
inline int64_t phase_pitch(const ConvWindow& window) {
  return window.width + (window.cols - 1) * window.step_x / window.stride_x;
}

// Whether the taps of a row, neighbours in channels_last images, are read as one run: where single ones would be short.
inline bool joins_taps(int64_t groups, int64_t channels, int64_t cols, int64_t step_x) {
  constexpr int64_t kFewChannels = 32, kLongest = 128;
  return groups == 1 && step_x == 1 && cols > 1 && channels < kFewChannels && cols * channels <= kLongest;
}

// Order of k: taps outermost for channels_last images (whose patches are runs of channels), channels outermost else
// (whose patches are runs of a row). It is also the order of the weights in memory of that format.
enum class ConvOrder { kTapsOuter, kChannelsOuter };

// The weights of one group as runs: element e of run r of filter f is at data[f * filter_stride + r * run_stride +
// e * element_stride] and holds k = row_of[e] + r * run_step (or belongs to no tap of the window where row_of[e] < 0).
// filter_stride or element_stride is 1.
template <typename T>
struct ConvWeights {
  T* data;
  int64_t filters, filter_stride;
  int64_t runs, run_stride, run_length, element_stride, run_step;
  const int32_t* row_of;  // [run_length]
};

// What becomes of a sum on its way to out: out = activation(sum + bias + residual).
template <typename T>
struct ConvEpilogue {
  const Acc<T>* bias;  // [filters] or null
  const T* residual;   // at out's offsets, or null
  Activation activation;
  T* pre;  // what the activation is applied to, at out's offsets, or null
  bool empty() const { return bias == nullptr && residual == nullptr && activation == Activation::kNone; }
  // Of an `out` that begins so many elements, and so many filters, further on.
  ConvEpilogue moved(int64_t elements, int64_t filters) const {
    ConvEpilogue to = *this;
    if (bias != nullptr) to.bias += filters;
    if (residual != nullptr) to.residual += elements;
    if (pre != nullptr) to.pre += elements;
    return to;
  }
};

}  // namespace tilewright

// Depthwise convolution of channels_last images: a vector of channels of a few pixels of a row at once. Every position
// of the rows they read is loaded once and meets all taps that reach it, the weights of a row of taps wait in
// registers:
//
//   kPixels = 4, 3 taps, stride 1        position   0   1   2   3   4   5
//                                        pixel 0    w0  w1  w2
//                                        pixel 1        w0  w1  w2            sums of kPixels pixels in registers
//                                        pixel 2            w0  w1  w2
//                                        pixel 3                w0  w1  w2
//
// Positions outside the image are read from a row of zeros. Windows of up to kMostCols columns without dilation; others
// take one tap after the other.
#pragma once
#include "cpu/kernels/conv2d.h"

namespace tilewright {
namespace {

// 8 chains of fmas: 2 ports x latency 4.
constexpr int kDepthwisePixels = 8;
constexpr int kMostCols = 7;

// kPixels pixels of a row of the output from (y, x) on, of which `count` are there; kCols taps, kStride apart.
template <typename T, int kPixels, int kCols, int kStride>
void depthwise_last_pixels(const ConvDepthwiseArgs<T>& args, const T* image, const T* zeros, int64_t y, int64_t x,
                           int64_t count, int64_t place) {
  using A = Acc<T>;
  constexpr int kPositions = (kPixels - 1) * kStride + kCols;
  const ConvWindow& window = args.window;
  const ConvImages<const T>& in = args.in;
  const int64_t C = args.channels, ix = x * kStride + window.first_x, iy = y * window.stride_y + window.first_y;
  for_each_vector<A>(C, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    const Vec<A> bias = args.epilogue.bias != nullptr ? load(args.epilogue.bias + c, n) : Vec<A>{};
    Vec<A> sum[kPixels];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) sum[p] = bias;
    for (int64_t i = 0; i < window.rows; ++i) {
      const int64_t at = iy + i * window.step_y;
      if (at < 0 || at >= in.height) continue;
      const T* row = image + at * in.y_stride + ix * in.x_stride + c;
      Vec<A> weight[kCols];
#pragma GCC unroll 8
      for (int j = 0; j < kCols; ++j) weight[j] = load(args.weight + (i * kCols + j) * C + c, n);
      unrolled<kPositions>([&](auto u) TILEWRIGHT_INLINE {
        const bool inside = ix + u >= 0 && ix + u < in.width;
        const Vec<A> position = load(inside ? row + u * in.x_stride : zeros, n);
        unrolled<kPixels>([&](auto p) TILEWRIGHT_INLINE {
          constexpr int kTap = decltype(u){} - decltype(p){} * kStride;
          if constexpr (kTap >= 0 && kTap < kCols) sum[p] = fma(position, weight[kTap], sum[p]);
        });
      });
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      if (p >= count) break;
      const int64_t offset = place + p * args.out.x_stride + c;
      store(args.out.data + offset, finish_vector<T>(args.epilogue, sum[p], offset, n), n);
    }
  });
}

template <typename T>
using DepthwiseLastPixels = void (*)(const ConvDepthwiseArgs<T>&, const T*, const T*, int64_t, int64_t, int64_t,
                                     int64_t);
template <typename T, int kPixels, int kStride, int kCols = kMostCols>
inline DepthwiseLastPixels<T> depthwise_last_pixels_for(int64_t cols) {
  if constexpr (kCols == 1) {
    return depthwise_last_pixels<T, kPixels, 1, kStride>;
  } else {
    return cols == kCols ? depthwise_last_pixels<T, kPixels, kCols, kStride>
                         : depthwise_last_pixels_for<T, kPixels, kStride, kCols - 1>(cols);
  }
}

// Any window, a pixel at a time: dilation, strides beyond 2, many columns.
template <typename T>
void depthwise_last_pixel(const ConvDepthwiseArgs<T>& args, const T* image, int64_t y, int64_t x, int64_t place) {
  using A = Acc<T>;
  const ConvWindow& window = args.window;
  const ConvImages<const T>& in = args.in;
  const int64_t C = args.channels, ix = x * window.stride_x + window.first_x, iy = y * window.stride_y + window.first_y;
  for_each_vector<A>(C, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    // Two chains, of even and of odd taps.
    Vec<A> sum[2] = {args.epilogue.bias != nullptr ? load(args.epilogue.bias + c, n) : Vec<A>{}, Vec<A>{}};
    for (int64_t i = 0; i < window.rows; ++i) {
      const int64_t row = iy + i * window.step_y;
      if (row < 0 || row >= in.height) continue;
      for (int64_t j = 0; j < window.cols; ++j) {
        const int64_t col = ix + j * window.step_x;
        if (col < 0 || col >= in.width) continue;
        sum[j % 2] = fma(load(image + row * in.y_stride + col * in.x_stride + c, n),
                         load(args.weight + (i * window.cols + j) * C + c, n), sum[j % 2]);
      }
    }
    store(args.out.data + place + c, finish_vector<T>(args.epilogue, sum[0] + sum[1], place + c, n), n);
  });
}

// zeros: as many as there are channels. Rows count through all images.
template <typename T>
void depthwise_last(const ConvDepthwiseArgs<T>& args, int64_t row_begin, int64_t row_end, T* zeros) {
  const ConvWindow& window = args.window;
  const bool tiled = window.step_x == 1 && window.stride_x <= 2 && window.cols <= kMostCols;
  constexpr int kHalf = kDepthwisePixels / 2;
  DepthwiseLastPixels<T> whole = nullptr, half = nullptr;
  if (tiled) {
    whole = window.stride_x == 1 ? depthwise_last_pixels_for<T, kDepthwisePixels, 1>(window.cols)
                                 : depthwise_last_pixels_for<T, kDepthwisePixels, 2>(window.cols);
    half = window.stride_x == 1 ? depthwise_last_pixels_for<T, kHalf, 1>(window.cols)
                                : depthwise_last_pixels_for<T, kHalf, 2>(window.cols);
    for_each_vector<Acc<T>>(args.channels,
                            [&](int64_t c, int64_t n) TILEWRIGHT_INLINE { store(zeros + c, Vec<Acc<T>>{}, n); });
  }
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / window.height, y = r % window.height;
    const T* image = args.in.data + n * args.in.n_stride;
    const int64_t place = n * args.out.n_stride + y * args.out.y_stride;
    if (!tiled) {
      for (int64_t x = 0; x < window.width; ++x) {
        depthwise_last_pixel(args, image, y, x, place + x * args.out.x_stride);
      }
      continue;
    }
    for (int64_t x = 0; x < window.width;) {
      const int64_t left = window.width - x, step = left > kHalf ? kDepthwisePixels : kHalf;
      (left > kHalf ? whole : half)(args, image, zeros, y, x, smaller(left, step), place + x * args.out.x_stride);
      x += step;
    }
  }
}

}  // namespace
}  // namespace tilewright

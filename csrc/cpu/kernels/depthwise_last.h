// Depthwise convolution of channels_last images: a vector of channels of a few pixels of a row at once. Every position
// of the rows they read is loaded once and meets all taps that reach it, the weights of a row of taps wait in
// registers:
//
//   4 pixels, 3 taps, stride 1           position   0   1   2   3   4   5
//                                        pixel 0    w0  w1  w2
//                                        pixel 1        w0  w1  w2            sums of all pixels in registers
//                                        pixel 2            w0  w1  w2
//                                        pixel 3                w0  w1  w2
//
// Positions outside the image are left out. Windows of up to kMostCols columns without dilation, but for those that
// depthwise_last_window.h has; others take one tap after the other.
//
// Groups of 4 or 8 channels, as many filters each, in float32, are the same sums once for every channel of a group,
// which is spread over its group's lanes:
//
//   groups of 4      position    a0 a1 a2 a3 b0 b1 b2 b3 ...
//                    channel 1   a1 a1 a1 a1 b1 b1 b1 b1 ...   * weights of channel 1 [filters]
#pragma once
#include "cpu/kernels/depthwise_last_window.h"

namespace tilewright {
namespace {

// 8 chains of fmas: 2 ports x latency 4.
constexpr int kDepthwisePixels = 8;
constexpr int kMostCols = 7;
// Of the image, that strips go down at a time: what one asks for ahead, up to 9 KB, then waits in L1 for the next.
constexpr int64_t kBandRows = 16;

// Channel `c` of every group in the lanes of its group; `from` are the n channels of a vector.
template <int kGroup, typename T>
inline TILEWRIGHT_INLINE Vec<Acc<T>> load_spread(const T* from, int64_t c, int64_t n) {
  using A = Acc<T>;
  if constexpr (kGroup == 1) {
    return load(from, n);
  } else {
    using Index = decltype(Vec<A>{} == Vec<A>{});
    Index lanes;
    for (int lane = 0; lane < kLanes<A>; ++lane) lanes[lane] = lane / kGroup * kGroup;
    return __builtin_shuffle(load(from, n), lanes + static_cast<int>(c));
  }
}

// Calls body(integral constant) for a group that fits a vector; other dtypes than float32 have groups of one.
template <typename T, int kGroup = 8, typename Body>
inline TILEWRIGHT_INLINE void for_group(int64_t group, const Body& body) {
  if constexpr (kGroup == 2) {
    body(Index<1>{});
  } else {
    if constexpr (sizeof(T) == sizeof(float) && kGroup <= kLanes<float>) {
      if (group == kGroup) return body(Index<kGroup>{});
    }
    for_group<T, kGroup / 2>(group, body);
  }
}

// Whether the next row of pixels reads all of the rows and columns that this one does not: larger strides leave some
// out, and ask for nothing ahead.
inline bool reads_all_rows(const ConvWindow& window) { return window.stride_y <= 2 && window.stride_x <= 2; }

// kDepthwisePixels pixels of a row of the output from (y, x) on, of which `count` are there; kCols taps, kStride apart.
// kInside: all columns lie inside the image.
template <bool kInside, typename T, int kGroup, int kCols, int kStride>
inline TILEWRIGHT_INLINE void depthwise_last_pixels_at(const ConvDepthwiseArgs<T>& args, const T* image, int64_t y,
                                                       int64_t x, int64_t count, int64_t place, int64_t c_begin,
                                                       int64_t c_end) {
  using A = Acc<T>;
  constexpr int kPositions = (kDepthwisePixels - 1) * kStride + kCols;
  const ConvWindow& window = args.window;
  const ConvImages<const T>& in = args.in;
  const int64_t ix = x * kStride + window.first_x, iy = y * window.stride_y + window.first_y;
  const int64_t x_stride = in.x_stride, width = in.width, new_rows = reads_all_rows(window) ? window.stride_y : 0;
  for_each_vector<A>(c_end - c_begin, [&](int64_t at_channel, int64_t n) TILEWRIGHT_INLINE {
    const int64_t c = c_begin + at_channel;
    // What the next row reads and writes, in lines that lie a pixel apart.
    const T* below = image + (iy + (window.rows - 1) * window.step_y + 1) * in.y_stride + ix * x_stride + c;
    for (int64_t i = 0; i < new_rows; ++i)
      prefetch_lines<kDepthwisePixels * kStride>(below + i * in.y_stride, x_stride);
    prefetch_lines<kDepthwisePixels>(args.out.data + place + args.out.y_stride + c, args.out.x_stride);
    const Vec<A> bias = args.epilogue.bias != nullptr ? load(args.epilogue.bias + c, n) : Vec<A>{};
    Vec<A> sum[kDepthwisePixels];
#pragma GCC unroll 8
    for (int p = 0; p < kDepthwisePixels; ++p) sum[p] = bias;
    for (int64_t i = 0; i < window.rows; ++i) {
      const int64_t at = iy + i * window.step_y;
      if (at < 0 || at >= in.height) continue;
      const T* row = image + at * in.y_stride + ix * x_stride + c;
      for (int64_t g = 0; g < kGroup; ++g) {
        Vec<A> weight[kCols];
#pragma GCC unroll 8
        for (int j = 0; j < kCols; ++j)
          weight[j] = load(args.weight + ((i * kCols + j) * kGroup + g) * args.pitch + c, n);
        unrolled<kPositions>([&](auto u) TILEWRIGHT_INLINE {
          if (!kInside && (ix + u < 0 || ix + u >= width)) return;
          const Vec<A> position = in_register(load_spread<kGroup>(row + u * x_stride, g, n));
          unrolled<kDepthwisePixels>([&](auto p) TILEWRIGHT_INLINE {
            constexpr int kTap = decltype(u){} - decltype(p){} * kStride;
            if constexpr (kTap >= 0 && kTap < kCols) sum[p] = fma(position, weight[kTap], sum[p]);
          });
        });
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kDepthwisePixels; ++p) {
      if (p >= count) break;
      const int64_t offset = place + p * args.out.x_stride + c;
      store(args.out.data + offset, finish_vector<T>(args.epilogue, sum[p], offset, n), n);
    }
  });
}

template <typename T, int kGroup, int kCols, int kStride>
void depthwise_last_pixels(const ConvDepthwiseArgs<T>& args, const T* image, int64_t y, int64_t x, int64_t count,
                           int64_t place, int64_t c_begin, int64_t c_end) {
  const int64_t ix = x * kStride + args.window.first_x;
  choose(ix >= 0 && ix + (kDepthwisePixels - 1) * kStride + kCols <= args.in.width, [&](auto inside) TILEWRIGHT_INLINE {
    depthwise_last_pixels_at<inside.value, T, kGroup, kCols, kStride>(args, image, y, x, count, place, c_begin, c_end);
  });
}

template <typename T>
using DepthwiseLastPixels = void (*)(const ConvDepthwiseArgs<T>&, const T*, int64_t, int64_t, int64_t, int64_t, int64_t,
                                     int64_t);
template <typename T, int kGroup, int kStride, int kCols = kGroup == 1 ? kMostCols : kMostGroupCols>
inline DepthwiseLastPixels<T> depthwise_last_pixels_for(int64_t cols) {
  if constexpr (kCols == 1) {
    return depthwise_last_pixels<T, kGroup, 1, kStride>;
  } else {
    return cols == kCols ? depthwise_last_pixels<T, kGroup, kCols, kStride>
                         : depthwise_last_pixels_for<T, kGroup, kStride, kCols - 1>(cols);
  }
}

// Any window, a pixel at a time: dilation, strides beyond 2, many columns.
template <typename T>
void depthwise_last_pixel(const ConvDepthwiseArgs<T>& args, const T* image, int64_t y, int64_t x, int64_t place) {
  using A = Acc<T>;
  const ConvWindow& window = args.window;
  const ConvImages<const T>& in = args.in;
  const int64_t ix = x * window.stride_x + window.first_x, iy = y * window.stride_y + window.first_y;
  for_each_vector<A>(args.channels, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    // Two chains, of even and of odd taps.
    Vec<A> sum[2] = {args.epilogue.bias != nullptr ? load(args.epilogue.bias + c, n) : Vec<A>{}, Vec<A>{}};
    for (int64_t i = 0; i < window.rows; ++i) {
      const int64_t row = iy + i * window.step_y;
      if (row < 0 || row >= in.height) continue;
      for (int64_t j = 0; j < window.cols; ++j) {
        const int64_t col = ix + j * window.step_x;
        if (col < 0 || col >= in.width) continue;
        sum[j % 2] = fma(load(image + row * in.y_stride + col * in.x_stride + c, n),
                         load(args.weight + (i * window.cols + j) * args.pitch + c, n), sum[j % 2]);
      }
    }
    store(args.out.data + place + c, finish_vector<T>(args.epilogue, sum[0] + sum[1], place + c, n), n);
  });
}

// Rows [begin, end) of one image. Large windows go from top to bottom, tile by tile of pixels and a few channels: what
// those read stays in L1 from row to row (7 x 7: 14 columns x 7 rows x 256 bytes; 1.5x the rate), and the weights of
// groups stay there as well. Small ones read little twice and go along the rows, as memory lies.
template <typename T, int kGroup>
void depthwise_last_tiles(const ConvDepthwiseArgs<T>& args, int64_t n, int64_t begin, int64_t end) {
  constexpr int64_t kSmallWindow = 9;
  const ConvWindow& window = args.window;
  const bool small = kGroup == 1 && window.rows * window.cols <= kSmallWindow;
  const auto pixels = window.stride_x == 1 ? depthwise_last_pixels_for<T, kGroup, 1>(window.cols)
                                           : depthwise_last_pixels_for<T, kGroup, 2>(window.cols);
  const T* image = args.in.data + n * args.in.n_stride;
  const int64_t channels = small ? args.channels : (kGroup == 1 ? 4 : 1) * kLanes<Acc<T>>;
  const int64_t height = small ? 1 : end - begin;
  for (int64_t top = begin; top < end; top += height) {
    for (int64_t x = 0; x < window.width; x += kDepthwisePixels) {
      const int64_t count = smaller(window.width - x, kDepthwisePixels);
      const int64_t place = n * args.out.n_stride + x * args.out.x_stride;
      for (int64_t c = 0; c < args.channels; c += channels) {
        for (int64_t y = top; y < top + height; ++y) {
          pixels(args, image, y, x, count, place + y * args.out.y_stride, c, smaller(args.channels, c + channels));
        }
      }
    }
  }
}

// Small groups have windows that fit (kMostGroupCols, kMostGroupStride).
template <typename T, int kGroup>
void depthwise_last_rows(const ConvDepthwiseArgs<T>& args, int64_t n, int64_t begin, int64_t end) {
  const ConvWindow& window = args.window;
  if constexpr (kGroup == 1 && kHasStrips<T>) {
    if (has_strips<kLargestLastWindow>(window)) {
      return for_strip_window<kLargestLastWindow>(window, [&](auto side, auto stride) {
        constexpr int64_t kRows = kBandRows / decltype(stride){};
        for (int64_t y = begin; y < end; y += kRows) {
          depthwise_last_window<T, decltype(side){}, decltype(stride){}>(args, n, y, smaller(end, y + kRows));
        }
      });
    }
  }
  if (kGroup > 1 || (window.step_x == 1 && window.stride_x <= 2 && window.cols <= kMostCols)) {
    return depthwise_last_tiles<T, kGroup>(args, n, begin, end);
  }
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t x = 0; x < window.width; ++x) {
      depthwise_last_pixel(args, args.in.data + n * args.in.n_stride, row, x,
                           n * args.out.n_stride + row * args.out.y_stride + x * args.out.x_stride);
    }
  }
}

// Rows count through all images.
template <typename T>
void depthwise_last(const ConvDepthwiseArgs<T>& args, int64_t row_begin, int64_t row_end) {
  const int64_t height = args.window.height;
  for_group<T>(args.group, [&](auto group) {
    for (int64_t r = row_begin; r < row_end;) {
      const int64_t y = r % height, end = smaller(height, y + row_end - r);
      depthwise_last_rows<T, decltype(group){}>(args, r / height, y, end);
      r += end - y;
    }
  });
}

}  // namespace
}  // namespace tilewright

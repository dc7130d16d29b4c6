// The weights' gradient of depthwise convolutions of channels_last images: one accumulator per tap, a vector of
// channels.
#pragma once
#include "cpu/kernels/depthwise_last.h"
#include "cpu/kernels/depthwise_last_window_grad.h"

namespace tilewright {
namespace {

// Pixels [begin, end) of a row whose taps all lie inside the image's width.
inline void inner_pixels(const ConvWindow& window, int64_t width, int64_t& begin, int64_t& end) {
  const int64_t last = window.first_x + (window.cols - 1) * window.step_x;
  begin = window.first_x >= 0 ? 0 : (-window.first_x + window.stride_x - 1) / window.stride_x;
  begin = smaller(begin, window.width);
  end = width - last <= 0 ? 0 : (width - last + window.stride_x - 1) / window.stride_x;
  end = larger(begin, smaller(end, window.width));
}

// A tap of a weight gradient: where its first pixel reads, and its place in sums.
template <typename T>
struct GradTap {
  const T* from;
  int64_t first_x;
  int64_t index;
};

// sums[tap][g][c] += over one row of pixels, kTaps taps at once: dy is loaded once for all. g counts the channels of a
// group. below: of the first row of x that only the next row of dy reads, what its first pixel reads first.
template <typename T, int kGroup, int kTaps>
void depthwise_last_grad_row(const ConvDepthwiseGradArgs<T>& args, const GradTap<T>* taps, const T* dy, const T* below,
                             int64_t inner_begin, int64_t inner_end) {
  using A = Acc<T>;
  const int64_t x_step = args.window.stride_x * args.in.x_stride, dy_step = args.grad.x_stride;
  const bool asks_ahead = reads_all_rows(args.window);
  for_each_vector<A>(args.channels, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    for (int64_t g = 0; g < kGroup; ++g) {
      Vec<A> sum[kTaps] = {};
      for (int64_t x = inner_begin; x < inner_end; ++x) {
        if (asks_ahead) {
          prefetch_line(dy + args.grad.y_stride + x * dy_step + c);
          for (int64_t i = 0; i < args.window.stride_y; ++i) {
            const T* row = below + i * args.in.y_stride + x * x_step + c;
            for (int64_t j = 0; j < args.window.stride_x; ++j) prefetch_line(row + j * args.in.x_stride);
          }
        }
        const Vec<A> d = load(dy + x * dy_step + c, n);
#pragma GCC unroll 9
        for (int t = 0; t < kTaps; ++t) {
          sum[t] = fma(d, load_spread<kGroup>(taps[t].from + x * x_step + c, g, n), sum[t]);
        }
      }
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) {
        for (int64_t x = 0; x < args.window.width; ++x) {
          if (x == inner_begin) x = inner_end;
          if (x >= args.window.width) break;
          const int64_t ix = taps[t].first_x + x * args.window.stride_x;
          if (ix < 0 || ix >= args.in.width) continue;
          const Vec<A> position = load_spread<kGroup>(taps[t].from + x * x_step + c, g, n);
          sum[t] = fma(load(dy + x * dy_step + c, n), position, sum[t]);
        }
        A* total = args.sums + (taps[t].index * kGroup + g) * args.pitch + c;
        store(total, load(total, n) + sum[t], n);
      }
    }
  });
}

template <typename T>
using LastGradRow = void (*)(const ConvDepthwiseGradArgs<T>&, const GradTap<T>*, const T*, const T*, int64_t, int64_t);
template <typename T, int kGroup, int kTaps = kGradTaps>
inline LastGradRow<T> last_grad_row(int64_t taps) {
  if constexpr (kTaps == 1) {
    return depthwise_last_grad_row<T, kGroup, 1>;
  } else {
    return taps == kTaps ? depthwise_last_grad_row<T, kGroup, kTaps> : last_grad_row<T, kGroup, kTaps - 1>(taps);
  }
}

template <typename T, int kGroup>
void depthwise_last_weight_grad_of(const ConvDepthwiseGradArgs<T>& args, int64_t row_begin, int64_t row_end) {
  const ConvWindow& window = args.window;
  if constexpr (kGroup == 1 && kHasStrips<T>) {
    if (has_strips<kLargestLastWindow>(window)) {
      return for_strip_window<kLargestLastWindow>(window, [&](auto side, auto stride) {
        for (int64_t r = row_begin, rows; r < row_end; r += rows) {
          const int64_t y = r % window.height;
          rows = smaller(row_end - r, window.height - y);
          depthwise_last_window_grad<T, decltype(side){}, decltype(stride){}>(args, r / window.height, y, y + rows);
        }
      });
    }
  }
  const ConvImages<const T>& in = args.in;
  int64_t inner_begin, inner_end;
  inner_pixels(window, in.width, inner_begin, inner_end);
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / window.height, y = r % window.height;
    const T* dy = args.grad.data + n * args.grad.n_stride + y * args.grad.y_stride;
    const int64_t next = y * window.stride_y + window.first_y + (window.rows - 1) * window.step_y + 1;
    const T* below = in.data + n * in.n_stride + next * in.y_stride + window.first_x * in.x_stride;
    GradTap<T> taps[kGradTaps];
    int64_t count = 0;
    for (int64_t t = 0; t < window.rows * window.cols; ++t) {
      const int64_t iy = y * window.stride_y + window.first_y + t / window.cols * window.step_y;
      const int64_t ix = window.first_x + t % window.cols * window.step_x;
      if (iy >= 0 && iy < in.height) {
        taps[count++] = {in.data + n * in.n_stride + iy * in.y_stride + ix * in.x_stride, ix, t};
      }
      const bool last = t + 1 == window.rows * window.cols;
      if (count == kGradTaps || (last && count > 0)) {
        last_grad_row<T, kGroup>(count)(args, taps, dy, below, inner_begin, inner_end);
        count = 0;
      }
    }
  }
}

template <typename T>
void depthwise_last_weight_grad(const ConvDepthwiseGradArgs<T>& args, int64_t row_begin, int64_t row_end) {
  for_group<T>(args.group,
               [&](auto group) { depthwise_last_weight_grad_of<T, decltype(group){}>(args, row_begin, row_end); });
}

}  // namespace
}  // namespace tilewright

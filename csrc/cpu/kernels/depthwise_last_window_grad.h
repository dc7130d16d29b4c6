// Gradients of depthwise convolutions of channels_last images by windows of 3 and 5, in strips as
// depthwise_last_window.h has the forward (the data gradient of stride 1 is one): the weights', where rows of dy wait
// and every tap has a sum, and the data's of stride 2.
#pragma once
#include "cpu/kernels/depthwise_last_window.h"

namespace tilewright {
namespace {

// --- the weights' gradient ---

// Rows of taps that one sweep over a strip has sums for: with as many rows of dy they fit the registers.
template <int kSide>
constexpr int kLastGradRows = kSide == 3 ? 3 : 2;

// sums[i][j] += over rows [row_begin, row_end) of dy, for kRows rows of taps from the one on that reads at first_y.
template <bool kInside, typename T, int kRows, int kSide, int kStride>
inline TILEWRIGHT_INLINE void depthwise_last_grad_strip(const ConvDepthwiseGradArgs<T>& args,
                                                        const DepthwiseLastStrip& strip, int64_t image, int64_t first_y,
                                                        int64_t row_begin, int64_t row_end, Acc<T>* sums) {
  using A = Acc<T>;
  constexpr int kWaiting = (kRows - 1) / kStride, kPositions = kStripPositions<kSide, kStride>;
  const ConvImages<const T>& in = args.in;
  const int64_t n = kInside ? kLanes<A> : strip.n, first_x = strip.x * kStride + args.window.first_x;
  const T* first = in.data + image * in.n_stride + first_x * in.x_stride + strip.c;
  const T* first_dy = args.grad.data + image * args.grad.n_stride + strip.x * args.grad.x_stride + strip.c;
  Vec<A> sum[kRows * kSide] = {};
  Vec<A> dy[kWaiting + 1][kStripPixels] = {};  // the newest first
  for (int64_t step = row_begin; step < row_end + kWaiting; ++step) {
    unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
      unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { dy[kWaiting - u][p] = dy[kWaiting - 1 - u][p]; });
      if (step < row_end && (kInside || p < strip.count)) {
        const T* from = first_dy + step * args.grad.y_stride + p * args.grad.x_stride;
        prefetch_line(from + strip.next_out);
        dy[0][p] = load(from, n);
      }
    });
    unrolled<kStride>([&](auto e) TILEWRIGHT_INLINE {
      const int64_t row = first_y + kStride * step + e;
      if (row < 0 || row >= in.height) return;
      const T* from = first + row * in.y_stride;
      // No 0 in place of a row of dy, or of a pixel behind the last one: it would meet an Inf.
      const bool all_rows = step - kWaiting >= row_begin && step < row_end;
      for_each_position<kInside, kPositions, kStripPixels * kStride>(
          in, from, first_x, strip, n, [&](auto at, Vec<A> value) TILEWRIGHT_INLINE {
            unrolled<kWaiting + 1>([&](auto u) TILEWRIGHT_INLINE {
              constexpr int kRow = kStride * decltype(u){} + decltype(e){};
              if (!all_rows && (step - u < row_begin || step - u >= row_end)) return;
              unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
                constexpr int kCol = decltype(at){} - kStride * decltype(p){};
                if constexpr (kRow < kRows && kCol >= 0 && kCol < kSide) {
                  if (!kInside && p >= strip.count) return;
                  sum[kRow * kSide + kCol] = fma(value, dy[u][p], sum[kRow * kSide + kCol]);
                }
              });
            });
          });
    });
  }
  for (int t = 0; t < kRows * kSide; ++t) {
    A* total = sums + t * args.pitch + strip.c;
    store(total, load(total, n) + sum[t], n);
  }
}

// Rows [row_begin, row_end) of image n, and of the rows of taps those from kFirst on.
template <typename T, int kSide, int kStride, int kFirst = 0>
void depthwise_last_window_grad(const ConvDepthwiseGradArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end) {
  if constexpr (kFirst < kSide) {
    constexpr int kRows = kSide - kFirst < kLastGradRows<kSide> ? kSide - kFirst : kLastGradRows<kSide>;
    for_each_last_strip<T, kStripPixels, kStripPositions<kSide, kStride>, kStride>(
        args.window.width, args.window.first_x, args.in, args.grad.x_stride, args.channels,
        [&](auto inside, const DepthwiseLastStrip& strip) TILEWRIGHT_INLINE {
          depthwise_last_grad_strip<inside.value, T, kRows, kSide, kStride>(
              args, strip, n, args.window.first_y + kFirst, row_begin, row_end,
              args.sums + kFirst * kSide * args.pitch);
        });
    depthwise_last_window_grad<T, kSide, kStride, kFirst + kRows>(args, n, row_begin, row_end);
  }
}

// --- the data gradient of stride 2 ---

// Pixels of dy of a strip: 16 sums at once of 3x3, 20 of 5x5.
template <int kSide>
constexpr int kClassPixels = kSide == 3 ? 4 : 2;

// Row `step` of dy meets rows y = step - s of pixels (2 y + i, 2 x + j), whose sums wait, the newest first.
template <bool kInside, typename T, int kSide>
inline TILEWRIGHT_INLINE void depthwise_last_classes_strip(const ConvDepthwiseClasses<T>& args,
                                                           const DepthwiseLastStrip& strip, int64_t image,
                                                           int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int kFirst = first_shift<kSide>(0), kLast = last_shift<kSide>(1), kPixels = kClassPixels<kSide>;
  constexpr int kPositions = kPixels + kLast - kFirst;
  const ConvImages<const T>& grad = args.grad;
  const int64_t n = kInside ? kLanes<A> : strip.n, first_x = strip.x + kFirst;
  const T* first = grad.data + image * grad.n_stride + first_x * grad.x_stride + strip.c;
  T* out = args.out.data + image * args.out.n_stride + 2 * strip.x * args.out.x_stride + strip.c;
  Vec<A> weight[4][(kSide + 1) / 2 * ((kSide + 1) / 2)];
  unrolled<4>([&](auto k) TILEWRIGHT_INLINE {
    constexpr int kRows = shifts<kSide>(decltype(k){} / 2), kCols = shifts<kSide>(decltype(k){} % 2);
    unrolled<kRows * kCols>(
        [&](auto t) TILEWRIGHT_INLINE { weight[k][t] = load(args.weights[k] + t * args.pitch + strip.c, n); });
  });
  Vec<A> sum[2][kLast - kFirst + 1][2][kPixels] = {};
  for (int64_t step = row_begin + kFirst; step < row_end + kLast; ++step) {
    if (step >= 0 && step < grad.height) {
      const T* from = first + step * grad.y_stride;
      for_each_position<kInside, kPositions, kPixels>(
          grad, from, first_x, strip, n, [&](auto at, Vec<A> value) TILEWRIGHT_INLINE {
            unrolled<4 * kPixels>([&](auto index) TILEWRIGHT_INLINE {
              constexpr int i = decltype(index){} / (2 * kPixels), j = decltype(index){} / kPixels % 2;
              constexpr int p = decltype(index){} % kPixels, kCols = shifts<kSide>(j);
              constexpr int kCol = decltype(at){} + kFirst - p - first_shift<kSide>(j);
              if constexpr (kCol >= 0 && kCol < kCols) {
                unrolled<shifts<kSide>(i)>([&](auto u) TILEWRIGHT_INLINE {
                  sum[i][u][j][p] = fma(value, weight[2 * i + j][u * kCols + kCol], sum[i][u][j][p]);
                });
              }
            });
          });
    }
    unrolled<2>([&](auto i) TILEWRIGHT_INLINE {
      constexpr int kOldest = shifts<kSide>(i) - 1;
      const int64_t y = step - last_shift<kSide>(i), row = 2 * y + i;
      const bool stores = y >= row_begin && y < row_end && row < args.out.height;
      unrolled<2 * kPixels>([&](auto x) TILEWRIGHT_INLINE {
        constexpr int p = decltype(x){} / 2, j = decltype(x){} % 2;
        if (stores && (kInside || 2 * strip.x + x < args.out.width)) {
          T* to = out + row * args.out.y_stride + x * args.out.x_stride;
          prefetch_line(to + strip.next_out);
          store(to, sum[i][kOldest][j][p], n);
        }
        unrolled<kOldest>([&](auto u) TILEWRIGHT_INLINE { sum[i][kOldest - u][j][p] = sum[i][kOldest - 1 - u][j][p]; });
        sum[i][0][j][p] = Vec<A>{};
      });
    });
  }
}

// Rows count through all images of dy.
template <typename T>
void depthwise_last_classes(const ConvDepthwiseClasses<T>& args, int64_t row_begin, int64_t row_end) {
  const auto run = [&](auto side) {
    constexpr int kSide = decltype(side){}, kFirst = first_shift<kSide>(0), kPixels = kClassPixels<kSide>;
    for (int64_t r = row_begin, rows; r < row_end; r += rows) {
      const int64_t y = r % args.grad.height;
      rows = smaller(row_end - r, args.grad.height - y);
      for_each_last_strip<T, kPixels, kPixels + last_shift<kSide>(1) - kFirst, 1>(
          args.grad.width, kFirst, args.grad, 2 * args.out.x_stride, args.channels,
          [&](auto inside, const DepthwiseLastStrip& strip) TILEWRIGHT_INLINE {
            depthwise_last_classes_strip<inside.value, T, kSide>(args, strip, r / args.grad.height, y, y + rows);
          });
    }
  };
  args.windows[0].cols == 1 ? run(Index<3>{}) : run(Index<5>{});
}

// Null for types without strips.
template <typename T>
constexpr auto last_classes_kernel() -> void (*)(const ConvDepthwiseClasses<T>&, int64_t, int64_t) {
  if constexpr (kHasStrips<T>) {
    return depthwise_last_classes<T>;
  } else {
    return nullptr;
  }
}

}  // namespace
}  // namespace tilewright

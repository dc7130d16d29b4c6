// Depthwise convolution of channels_last images by windows of 3 or 5, in strips (depthwise_window.h) of a few pixels
// and one vector of channels: every position is loaded once and meets all pixels that it belongs to.
#pragma once
#include "cpu/kernels/conv2d.h"
#include "cpu/kernels/depthwise_window.h"

namespace tilewright {
namespace {

constexpr int kLargestLastWindow = 5;  // 7 rows of sums do not fit the registers
constexpr int kStripPixels = 4;  // 3 rows of sums, 9 weights: 21 registers of 32; 16 read some of the weights again

// Positions that a strip reads of a row.
template <int kSide, int kStride>
constexpr int kStripPositions = (kStripPixels - 1) * kStride + kSide;

// The n channels from c on, of `count` pixels from x on.
struct DepthwiseLastStrip {
  int64_t x, count, c, n;
  int64_t next_in, next_out;  // elements to the strip that follows, where positions are read and where pixels lie
};

// Calls body(inside, strip) for the strips of an image whose pixels lie x_stride apart. inside, a constant: all columns
// lie in the image, all pixels and channels are there.
template <typename T, int kSide, int kStride, typename Body>
inline TILEWRIGHT_INLINE void for_each_last_strip(const ConvWindow& window, const ConvImages<const T>& in,
                                                  int64_t x_stride, int64_t channels, const Body& body) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  for (int64_t x = 0; x < window.width; x += kStripPixels) {
    const int64_t first_x = x * kStride + window.first_x, count = smaller(kStripPixels, window.width - x);
    const bool columns_inside = first_x >= 0 && first_x + kStripPositions<kSide, kStride> <= in.width;
    for (int64_t c = 0; c < channels; c += kStep) {
      // The next vector of channels; behind the last one, the next pixels' first.
      const bool more = c + kStep < channels;
      const DepthwiseLastStrip strip{x,
                                     count,
                                     c,
                                     smaller(kStep, channels - c),
                                     more ? kStep : kStripPixels * kStride * in.x_stride - c,
                                     more ? kStep : kStripPixels * x_stride - c};
      choose(columns_inside && count == kStripPixels && strip.n == kStep,
             [&](auto inside) TILEWRIGHT_INLINE { body(inside, strip); });
    }
  }
}

// A strip of image n.
template <bool kInside, typename T, int kSide, int kStride>
inline TILEWRIGHT_INLINE void depthwise_last_strip(const ConvDepthwiseArgs<T>& args, const DepthwiseLastStrip& strip,
                                                   int64_t image, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int kWaiting = (kSide - 1) / kStride, kPositions = kStripPositions<kSide, kStride>;
  const ConvImages<const T>& in = args.in;
  const int64_t n = kInside ? kLanes<A> : strip.n, first_x = strip.x * kStride + args.window.first_x;
  const T* first = in.data + image * in.n_stride + first_x * in.x_stride + strip.c;
  const int64_t place = image * args.out.n_stride + strip.x * args.out.x_stride + strip.c;
  Vec<A> weight[kSide * kSide];
  unrolled<kSide * kSide>([&](auto t)
                              TILEWRIGHT_INLINE { weight[t] = load(args.weight + t * args.channels + strip.c, n); });
  const Vec<A> bias = args.epilogue.bias != nullptr ? load(args.epilogue.bias + strip.c, n) : Vec<A>{};
  Vec<A> sum[kWaiting + 1][kStripPixels];  // the newest first
  unrolled<(kWaiting + 1) * kStripPixels>([&](auto i)
                                              TILEWRIGHT_INLINE { sum[i / kStripPixels][i % kStripPixels] = bias; });
  for (int64_t step = row_begin; step < row_end + kWaiting; ++step) {
    unrolled<kStride>([&](auto e) TILEWRIGHT_INLINE {
      const int64_t row = args.window.first_y + kStride * step + e;
      if (row < 0 || row >= in.height) return;
      const T* from = first + row * in.y_stride;
      unrolled<kPositions>([&](auto at) TILEWRIGHT_INLINE {
        if (!kInside && (first_x + at < 0 || first_x + at >= in.width)) return;
        const T* position = from + at * in.x_stride;
        if constexpr (decltype(at){} < kStripPixels * kStride) prefetch_line(position + strip.next_in);
        const Vec<A> value = in_register(load(position, n));
        unrolled<kWaiting + 1>([&](auto u) TILEWRIGHT_INLINE {
          constexpr int kRow = kStride * decltype(u){} + decltype(e){};
          unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
            constexpr int kCol = decltype(at){} - kStride * decltype(p){};
            if constexpr (kRow < kSide && kCol >= 0 && kCol < kSide) {
              sum[u][p] = fma(value, weight[kRow * kSide + kCol], sum[u][p]);
            }
          });
        });
      });
    });
    const int64_t y = step - kWaiting;
    unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
      if (y >= row_begin && (kInside || p < strip.count)) {
        const int64_t offset = place + y * args.out.y_stride + p * args.out.x_stride;
        prefetch_line(args.out.data + offset + strip.next_out);
        store(args.out.data + offset, finish_vector<T>(args.epilogue, sum[kWaiting][p], offset, n), n);
      }
      unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { sum[kWaiting - u][p] = sum[kWaiting - 1 - u][p]; });
      sum[0][p] = bias;
    });
  }
}

// Rows [row_begin, row_end) of image n.
template <typename T, int kSide, int kStride>
void depthwise_last_window(const ConvDepthwiseArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end) {
  for_each_last_strip<T, kSide, kStride>(args.window, args.in, args.out.x_stride, args.channels,
                                         [&](auto inside, const DepthwiseLastStrip& strip) TILEWRIGHT_INLINE {
                                           depthwise_last_strip<inside.value, T, kSide, kStride>(args, strip, n,
                                                                                                 row_begin, row_end);
                                         });
}

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
      unrolled<kPositions>([&](auto at) TILEWRIGHT_INLINE {
        if (!kInside && (first_x + at < 0 || first_x + at >= in.width)) return;
        const T* position = from + at * in.x_stride;
        if constexpr (decltype(at){} < kStripPixels * kStride) prefetch_line(position + strip.next_in);
        const Vec<A> value = in_register(load(position, n));
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
    A* total = sums + t * args.channels + strip.c;
    store(total, load(total, n) + sum[t], n);
  }
}

// Rows [row_begin, row_end) of image n, and of the rows of taps those from kFirst on.
template <typename T, int kSide, int kStride, int kFirst = 0>
void depthwise_last_window_grad(const ConvDepthwiseGradArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end) {
  if constexpr (kFirst < kSide) {
    constexpr int kRows = kSide - kFirst < kLastGradRows<kSide> ? kSide - kFirst : kLastGradRows<kSide>;
    for_each_last_strip<T, kSide, kStride>(args.window, args.in, args.grad.x_stride, args.channels,
                                           [&](auto inside, const DepthwiseLastStrip& strip) TILEWRIGHT_INLINE {
                                             depthwise_last_grad_strip<inside.value, T, kRows, kSide, kStride>(
                                                 args, strip, n, args.window.first_y + kFirst, row_begin, row_end,
                                                 args.sums + kFirst * kSide * args.channels);
                                           });
    depthwise_last_window_grad<T, kSide, kStride, kFirst + kRows>(args, n, row_begin, row_end);
  }
}

}  // namespace
}  // namespace tilewright

// Depthwise convolution of channels_last images by square windows of 3 or 5 without dilation, of stride 1 or 2: a strip
// of a few pixels and one vector of channels goes down the image. Every position is loaded once and meets all pixels
// that it belongs to, whose sums wait in registers; of three rows of pixels, say, under a window of 3:
//
//     row of the image    pixels y - 1     y           y + 1
//     y - 1               weights[1]    weights[0]
//     y                   weights[2]    weights[1]  weights[0]
//     y + 1                             weights[2]  weights[1]       <- pixels y are finished
//
// In general row first_y + stride * step + e belongs to pixels step - u by tap row stride * u + e. In the weights'
// gradient rows of dy wait, and every tap has a sum. Positions outside of the image are left out. The lines of the next
// vector of channels are asked for ahead, because a strip's own lie a row apart.
#pragma once
#include "cpu/kernels/conv2d.h"

namespace tilewright {
namespace {

constexpr int kStripPixels = 4;  // 3 rows of sums, 9 weights: 21 registers of 32; 16 read some of the weights again

inline bool is_small_window(const ConvWindow& window) {
  return (window.rows == 3 || window.rows == 5) && window.cols == window.rows && window.step_y == 1 &&
         window.step_x == 1 && window.stride_y == window.stride_x && window.stride_x <= 2;
}

// Calls body(side, stride), constants, for such a window.
template <typename Body>
inline void for_small_window(const ConvWindow& window, const Body& body) {
  if (window.cols == 3) return window.stride_x == 1 ? body(Index<3>{}, Index<1>{}) : body(Index<3>{}, Index<2>{});
  window.stride_x == 1 ? body(Index<5>{}, Index<1>{}) : body(Index<5>{}, Index<2>{});
}

// Positions that a strip reads of a row.
template <int kSide, int kStride>
constexpr int kStripPositions = (kStripPixels - 1) * kStride + kSide;

// A strip: the n channels from c on, of `count` pixels from x on; `image` and `out` begin at its first channel.
template <typename T>
struct DepthwiseStrip {
  const T* image;
  int64_t x, count, c, n;
  int64_t next_in, next_out;  // elements to the one that follows
};

// kInside: all columns lie in the image, all pixels and channels are there.
template <bool kInside, typename T, int kSide, int kStride>
inline TILEWRIGHT_INLINE void depthwise_last_strip(const ConvDepthwiseArgs<T>& args, const DepthwiseStrip<T>& strip,
                                                   int64_t place, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int kWaiting = (kSide - 1) / kStride, kPositions = kStripPositions<kSide, kStride>;
  const ConvImages<const T>& in = args.in;
  const int64_t n = kInside ? kLanes<A> : strip.n, first_x = strip.x * kStride + args.window.first_x;
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
      const T* from = strip.image + row * in.y_stride + first_x * in.x_stride;
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
  constexpr int64_t kStep = kLanes<Acc<T>>;
  const int64_t C = args.channels, width = args.window.width;
  for (int64_t x = 0; x < width; x += kStripPixels) {
    const int64_t first_x = x * kStride + args.window.first_x, count = smaller(kStripPixels, width - x);
    const bool columns_inside = first_x >= 0 && first_x + kStripPositions<kSide, kStride> <= args.in.width;
    for (int64_t c = 0; c < C; c += kStep) {
      // The next vector of channels; behind the last one, the next strip's first.
      const bool more = c + kStep < C;
      const DepthwiseStrip<T> strip{args.in.data + n * args.in.n_stride + c,
                                    x,
                                    count,
                                    c,
                                    smaller(kStep, C - c),
                                    more ? kStep : kStripPixels * kStride * args.in.x_stride - c,
                                    more ? kStep : kStripPixels * args.out.x_stride - c};
      const int64_t place = n * args.out.n_stride + x * args.out.x_stride + c;
      choose(columns_inside && count == kStripPixels && strip.n == kStep, [&](auto inside) TILEWRIGHT_INLINE {
        depthwise_last_strip<inside.value, T, kSide, kStride>(args, strip, place, row_begin, row_end);
      });
    }
  }
}

// Rows of taps that one sweep over a strip has sums for: with as many rows of dy they fit the registers.
template <int kSide>
constexpr int kLastGradRows = kSide == 3 ? 3 : 2;

// x and dy of a strip, whose channels are `channels` in all.
template <typename T>
struct DepthwiseGradStrip {
  const T* image;
  const T* grad;
  int64_t x, count, n;
  int64_t next_in, next_grad;  // elements to the one that follows
};

// sums[i][j] += over rows [row_begin, row_end) of dy, for kRows rows of taps from the one on that reads at first_y.
template <bool kInside, typename T, int kRows, int kSide, int kStride>
inline TILEWRIGHT_INLINE void depthwise_last_grad_strip(const ConvDepthwiseGradArgs<T>& args,
                                                        const DepthwiseGradStrip<T>& strip, int64_t first_y,
                                                        int64_t row_begin, int64_t row_end, Acc<T>* sums) {
  using A = Acc<T>;
  constexpr int kWaiting = (kRows - 1) / kStride, kPositions = kStripPositions<kSide, kStride>;
  const ConvImages<const T>& in = args.in;
  const int64_t n = kInside ? kLanes<A> : strip.n, first_x = strip.x * kStride + args.window.first_x;
  Vec<A> sum[kRows * kSide] = {};
  Vec<A> dy[kWaiting + 1][kStripPixels] = {};  // the newest first
  for (int64_t step = row_begin; step < row_end + kWaiting; ++step) {
    unrolled<kStripPixels>([&](auto p) TILEWRIGHT_INLINE {
      unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { dy[kWaiting - u][p] = dy[kWaiting - 1 - u][p]; });
      if (step < row_end && (kInside || p < strip.count)) {
        const T* from = strip.grad + step * args.grad.y_stride + p * args.grad.x_stride;
        prefetch_line(from + strip.next_grad);
        dy[0][p] = load(from, n);
      }
    });
    unrolled<kStride>([&](auto e) TILEWRIGHT_INLINE {
      const int64_t row = first_y + kStride * step + e;
      if (row < 0 || row >= in.height) return;
      const T* from = strip.image + row * in.y_stride + first_x * in.x_stride;
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
    A* total = sums + t * args.channels;
    store(total, load(total, n) + sum[t], n);
  }
}

// Rows [row_begin, row_end) of image n, and of the rows of taps those from kFirst on.
template <typename T, int kSide, int kStride, int kFirst = 0>
void depthwise_last_window_grad(const ConvDepthwiseGradArgs<T>& args, int64_t n, int64_t row_begin, int64_t row_end) {
  if constexpr (kFirst < kSide) {
    constexpr int kRows = kSide - kFirst < kLastGradRows<kSide> ? kSide - kFirst : kLastGradRows<kSide>;
    constexpr int64_t kStep = kLanes<Acc<T>>;
    const int64_t C = args.channels, width = args.window.width, first_y = args.window.first_y + kFirst;
    for (int64_t x = 0; x < width; x += kStripPixels) {
      const int64_t first_x = x * kStride + args.window.first_x, count = smaller(kStripPixels, width - x);
      const bool columns_inside = first_x >= 0 && first_x + kStripPositions<kSide, kStride> <= args.in.width;
      for (int64_t c = 0; c < C; c += kStep) {
        const bool more = c + kStep < C;
        const DepthwiseGradStrip<T> strip{args.in.data + n * args.in.n_stride + c,
                                          args.grad.data + n * args.grad.n_stride + x * args.grad.x_stride + c,
                                          x,
                                          count,
                                          smaller(kStep, C - c),
                                          more ? kStep : kStripPixels * kStride * args.in.x_stride - c,
                                          more ? kStep : kStripPixels * args.grad.x_stride - c};
        choose(columns_inside && count == kStripPixels && strip.n == kStep, [&](auto inside) TILEWRIGHT_INLINE {
          depthwise_last_grad_strip<inside.value, T, kRows, kSide, kStride>(args, strip, first_y, row_begin, row_end,
                                                                            args.sums + kFirst * kSide * C + c);
        });
      }
    }
    depthwise_last_window_grad<T, kSide, kStride, kFirst + kRows>(args, n, row_begin, row_end);
  }
}

}  // namespace
}  // namespace tilewright

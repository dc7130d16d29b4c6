// Depthwise convolution of planes by square windows of stride 1 whose padding keeps the width (3x3 with padding 1, 5x5
// with 2), straight from the rows: a strip of one or two vectors of pixels goes down the plane. Every row is loaded
// once for each column of taps and meets all the rows of pixels that it belongs to, whose sums wait in registers:
//
//     row of the image    pixels y - 1     y        y + 1
//     y - 1               weights[1]    weights[0]
//     y                   weights[2]    weights[1]  weights[0]
//     y + 1                             weights[2]  weights[1]       <- pixels y are finished
//
// In the weights' gradient the rows of dy wait, and every tap has a sum. Nothing is copied, rows outside of the image
// are left out, and the columns beside it are lanes of 0. Both ask for the next plane's lines, because a strip's lie a
// row apart.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"

namespace tilewright {
namespace {

// Of windows this small, the sums or rows that wait fit the registers.
template <typename T>
inline bool keeps_width(const ConvWindow& window, const ConvImages<const T>& in) {
  return (window.rows == 3 || window.rows == 5) && window.cols == window.rows && window.stride_y == 1 &&
         window.stride_x == 1 && window.step_y == 1 && window.step_x == 1 && window.first_x == -(window.cols / 2) &&
         window.width == in.width && in.x_stride == 1;
}

// Where a strip lies: away from the sides, at the left one, or at the right one (the left one may be the right one,
// too).
enum class StripSide { kInside, kLeft, kRight };
template <StripSide kSide>
struct AtSide {
  static constexpr StripSide value = kSide;
};

// Lanes kBy .. are lanes 0 .. of v, those before are 0.
template <typename A, int kBy>
inline TILEWRIGHT_INLINE Vec<A> shifted_up(Vec<A> v) {
  using Lanes = decltype(Vec<A>{} == Vec<A>{});
  Lanes from;
  for (int lane = 0; lane < kLanes<A>; ++lane) from[lane] = lane < kBy ? static_cast<int>(kLanes<A>) : lane - kBy;
  return __builtin_shuffle(v, Vec<A>{}, from);
}

// The positions that the n pixels from `row` on read at every column of taps; the row has `width` pixels from there on.
template <typename T, int kSide, StripSide kWhere>
inline TILEWRIGHT_INLINE void load_columns(const T* row, int64_t width, int64_t n, Vec<Acc<T>> (&columns)[kSide]) {
  unrolled<kSide>([&](auto j) TILEWRIGHT_INLINE {
    constexpr int kShift = decltype(j){} - kSide / 2;
    if constexpr (kWhere == StripSide::kInside) {
      columns[j] = load(row + kShift);
    } else if constexpr (kWhere == StripSide::kLeft && kShift < 0) {
      columns[j] = shifted_up<Acc<T>, -kShift>(load(row, larger(n + kShift, 0)));
    } else {
      columns[j] = load(row + kShift, larger(smaller(n, width - kShift), 0));
    }
  });
}

// Calls body(side, vectors, x) for the strips of a row; side and vectors are constants.
template <typename A, int kSide, typename Body>
inline TILEWRIGHT_INLINE void for_each_strip(int64_t width, const Body& body) {
  constexpr int64_t kStep = kLanes<A>;
  body(AtSide<StripSide::kLeft>{}, Index<1>{}, 0);
  int64_t x = kStep;
  for (; x + 2 * kStep + kSide / 2 <= width; x += 2 * kStep) {
    body(AtSide<StripSide::kInside>{}, Index<2>{}, x);
  }
  for (; x + kStep + kSide / 2 <= width; x += kStep) {
    body(AtSide<StripSide::kInside>{}, Index<1>{}, x);
  }
  for (; x < width; x += kStep) body(AtSide<StripSide::kRight>{}, Index<1>{}, x);
}

// One plane and the filter that reads it; the next one's distance in the images that are read and written.
template <typename T>
struct DepthwisePlane {
  const T* in;
  const Acc<T>* weight;
  Acc<T> bias;
  int64_t place, next_in, next_out;
};

template <typename T, int kSide, StripSide kWhere, int kVectors>
inline TILEWRIGHT_INLINE void depthwise_window_strip(const ConvDepthwiseArgs<T>& args, const DepthwisePlane<T>& plane,
                                                     int64_t x, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  const int64_t left = args.in.width - x, n = kWhere == StripSide::kInside ? kStep : smaller(kStep, left);
  Vec<A> weight[kSide * kSide];
  unrolled<kSide * kSide>([&](auto t) TILEWRIGHT_INLINE { weight[t] = broadcast<A>(plane.weight[t]); });
  Vec<A> sum[kSide][kVectors] = {};  // of the rows of pixels in work, the oldest first
  const int64_t last = row_end - 1 + args.window.first_y + kSide - 1;
  for (int64_t row = row_begin + args.window.first_y; row <= last; ++row) {
    if (row >= 0 && row < args.in.height) {
      const T* from = plane.in + row * args.in.y_stride + x;
      unrolled<kVectors>([&](auto v) TILEWRIGHT_INLINE {
        prefetch_line(from + v * kStep + plane.next_in);
        Vec<A> columns[kSide];
        load_columns<T, kSide, kWhere>(from + v * kStep, left, n, columns);
        unrolled<kSide>([&](auto i) TILEWRIGHT_INLINE {
          unrolled<kSide>([&](auto j) TILEWRIGHT_INLINE {
            sum[i][v] = fma(columns[j], weight[(kSide - 1 - i) * kSide + j], sum[i][v]);
          });
        });
      });
    }
    const int64_t y = row - args.window.first_y - (kSide - 1);
    if (y >= row_begin) {
      const int64_t place = plane.place + y * args.out.y_stride + x;
      unrolled<kVectors>([&](auto v) TILEWRIGHT_INLINE {
        const int64_t at = place + v * kStep;
        prefetch_line(args.out.data + at + plane.next_out);
        ElementTraits<ProductElement<T>>::store_sums(args.out.data + at,
                                                     finish_vector<T>(args.epilogue, sum[0][v] + plane.bias, at, n), n);
      });
    }
    unrolled<kVectors>([&](auto v) TILEWRIGHT_INLINE {
      unrolled<kSide - 1>([&](auto i) TILEWRIGHT_INLINE { sum[i][v] = sum[i + 1][v]; });
      sum[kSide - 1][v] = Vec<A>{};
    });
  }
}

template <typename T, int kSide>
void depthwise_window_planes(const ConvDepthwiseArgs<T>& args, int64_t plane_begin, int64_t plane_end,
                             int64_t row_begin, int64_t row_end) {
  const int64_t filters = args.channels * args.multiplier;
  const auto source = [&](int64_t plane) {
    return plane / filters * args.in.n_stride + plane % filters / args.multiplier * args.in.c_stride;
  };
  const auto place = [&](int64_t plane) {
    return plane / filters * args.out.n_stride + plane % filters * args.out.c_stride;
  };
  for (int64_t p = plane_begin; p < plane_end; ++p) {
    const int64_t f = p % filters, next = smaller(p + 1, args.images * filters - 1);
    const DepthwisePlane<T> plane{args.in.data + source(p),
                                  args.weight + f * kSide * kSide,
                                  args.epilogue.bias != nullptr ? args.epilogue.bias[f] : Acc<T>(0),
                                  place(p),
                                  source(next) - source(p),
                                  place(next) - place(p)};
    for_each_strip<Acc<T>, kSide>(args.in.width, [&](auto side, auto vectors, int64_t x) TILEWRIGHT_INLINE {
      depthwise_window_strip<T, kSide, decltype(side)::value, decltype(vectors){}>(args, plane, x, row_begin, row_end);
    });
  }
}

// sums[t] += over a strip of x and of dy.
template <typename T, int kSide, StripSide kWhere>
inline TILEWRIGHT_INLINE void depthwise_window_grad_strip(const ConvDepthwiseGradArgs<T>& args, const T* in,
                                                          const T* grad, int64_t next_in, int64_t next_grad, int64_t x,
                                                          Vec<Acc<T>>* sums) {
  using A = Acc<T>;
  const int64_t left = args.in.width - x, n = kWhere == StripSide::kInside ? kLanes<A> : smaller(kLanes<A>, left);
  const int64_t height = args.window.height, first_y = args.window.first_y;
  Vec<A> sum[kSide * kSide];
  unrolled<kSide * kSide>([&](auto t) TILEWRIGHT_INLINE { sum[t] = sums[t]; });
  Vec<A> dy[kSide] = {};  // row of dy that meets tap row i of the present row of x
  for (int64_t row = first_y; row < height + first_y + kSide - 1; ++row) {
    unrolled<kSide - 1>([&](auto i) TILEWRIGHT_INLINE { dy[kSide - 1 - i] = dy[kSide - 2 - i]; });
    const int64_t y = row - first_y;
    if (y < height) {
      prefetch_line(grad + y * args.grad.y_stride + x + next_grad);
      dy[0] = load(grad + y * args.grad.y_stride + x, n);
    }
    if (row < 0 || row >= args.in.height) continue;
    const T* from = in + row * args.in.y_stride + x;
    prefetch_line(from + next_in);
    Vec<A> columns[kSide];
    load_columns<T, kSide, kWhere>(from, left, n, columns);
    unrolled<kSide>([&](auto i) TILEWRIGHT_INLINE {
      if (y - i < 0 || y - i >= height) return;  // no 0 in place of dy, which would meet an Inf
      unrolled<kSide>([&](auto j)
                          TILEWRIGHT_INLINE { sum[i * kSide + j] = fma(dy[i], columns[j], sum[i * kSide + j]); });
    });
  }
  unrolled<kSide * kSide>([&](auto t) TILEWRIGHT_INLINE { sums[t] = sum[t]; });
}

template <typename T, int kSide>
void depthwise_window_weight_grad(const ConvDepthwiseGradArgs<T>& args, int64_t filter_begin, int64_t filter_end) {
  using A = Acc<T>;
  constexpr int kTaps = kSide * kSide;
  const auto source = [&](int64_t f, int64_t n) {
    return n * args.in.n_stride + f / args.multiplier * args.in.c_stride;
  };
  for (int64_t f = filter_begin; f < filter_end; ++f) {
    Vec<A> sums[kTaps] = {};
    for (int64_t n = 0; n < args.images; ++n) {
      const T* in = args.in.data + source(f, n);
      const T* grad = args.grad.data + n * args.grad.n_stride + f * args.grad.c_stride;
      const bool more = n + 1 < args.images;  // else the next filter follows, from the first image on
      const int64_t next_in = more ? args.in.n_stride : source(f + 1, 0) - source(f, n);
      const int64_t next_grad = more ? args.grad.n_stride : args.grad.c_stride - n * args.grad.n_stride;
      for_each_strip<A, kSide>(args.in.width, [&](auto side, auto vectors, int64_t x) TILEWRIGHT_INLINE {
        unrolled<decltype(vectors){}>([&](auto v) TILEWRIGHT_INLINE {
          depthwise_window_grad_strip<T, kSide, decltype(side)::value>(args, in, grad, next_in, next_grad,
                                                                       x + v * kLanes<A>, sums);
        });
      });
    }
    for (int t = 0; t < kTaps; ++t) args.sums[f * kTaps + t] += reduce_add<A>(sums[t]);
  }
}

}  // namespace
}  // namespace tilewright

// Gradients of depthwise convolutions of planes by centred windows, straight from the rows, as
// depthwise_planes_window.h has the forward (the data gradient of stride 1 is one): the weights', where rows of dy wait
// and every tap has a sum, and the data's of stride 2.
#pragma once
#include "cpu/kernels/depthwise_planes_window.h"

namespace tilewright {
namespace {

// --- the weights' gradient ---

// Rows of taps that one sweep over a strip has sums for: with as many rows of dy and a row of columns they fit the
// registers.
template <int kSide>
constexpr int kGradRows = kManyRegisters || kSide == 3 ? 3
                          : kSide == 5                 ? 2
                                                       : 1;

// Rows of dy that one accumulator runs through, and accumulators that another one adds up: short chains, whose errors
// are native's and less (a chain through 32768 elements had six times those).
constexpr int64_t kGradBand = 64, kGradSums = 64;

// A plane of x, rows [row_begin, row_end) of one of dy, and the distance to the next ones.
template <typename T>
struct DepthwiseGradPlane {
  const T* in;
  const T* grad;
  int64_t next_in, next_grad;
  int64_t row_begin, row_end;
};

// sums[i][j] += over a strip of x and of dy, for kRows rows of taps from the one on that reads at first_y.
template <typename T, int kRows, int kSide, int kStride, StripSide kWhere>
inline TILEWRIGHT_INLINE void depthwise_window_grad_strip(const ConvDepthwiseGradArgs<T>& args,
                                                          const DepthwiseGradPlane<T>& plane, int64_t first_y,
                                                          int64_t x, Vec<Acc<T>>* sums) {
  using A = Acc<T>;
  constexpr int kWaiting = (kRows - 1) / kStride;
  const int64_t left = args.in.width - kStride * x;
  const int64_t n = kWhere == StripSide::kInside ? kLanes<A> : smaller(kLanes<A>, args.window.width - x);
  Vec<A> sum[kRows * kSide] = {};
  Vec<A> dy[kWaiting + 1] = {};  // the newest first
  for (int64_t step = plane.row_begin; step < plane.row_end + kWaiting; ++step) {
    unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { dy[kWaiting - u] = dy[kWaiting - 1 - u]; });
    if (step < plane.row_end) {
      const T* from = plane.grad + step * args.grad.y_stride + x;
      prefetch_line(from + plane.next_grad);
      dy[0] = load(from, n);
    }
    unrolled<kStride>([&](auto e) TILEWRIGHT_INLINE {
      const int64_t row = first_y + kStride * step + e;
      if (row < 0 || row >= args.in.height) return;
      const T* from = plane.in + row * args.in.y_stride + kStride * x;
      prefetch_lines<kStride>(from + plane.next_in, kLanes<A>);
      Vec<A> columns[kSide];
      load_columns<T, kSide, kStride, kWhere>(from, left, n, columns);
      unrolled<kWaiting + 1>([&](auto u) TILEWRIGHT_INLINE {
        constexpr int kRow = kStride * decltype(u){} + decltype(e){};
        if constexpr (kRow < kRows) {
          if (step - u < plane.row_begin || step - u >= plane.row_end) return;  // no 0 for dy: it would meet an Inf
          unrolled<kSide>(
              [&](auto j) TILEWRIGHT_INLINE { sum[kRow * kSide + j] = fma(dy[u], columns[j], sum[kRow * kSide + j]); });
        }
      });
    });
  }
  unrolled<kRows * kSide>([&](auto t) TILEWRIGHT_INLINE { sums[t] += sum[t]; });
}

// All rows of taps from kFirst on.
template <typename T, int kSide, int kStride, int kFirst = 0>
inline void depthwise_window_grad_plane(const ConvDepthwiseGradArgs<T>& args, const DepthwiseGradPlane<T>& plane,
                                        Vec<Acc<T>>* sums) {
  using A = Acc<T>;
  if constexpr (kFirst < kSide) {
    constexpr int kRows = kSide - kFirst < kGradRows<kSide> ? kSide - kFirst : kGradRows<kSide>;
    for_each_strip<A, kSide, kStride, 1>(args.window.width, args.in.width,
                                         [&](auto side, auto, int64_t x) TILEWRIGHT_INLINE {
                                           depthwise_window_grad_strip<T, kRows, kSide, kStride, decltype(side)::value>(
                                               args, plane, args.window.first_y + kFirst, x, sums + kFirst * kSide);
                                         });
    depthwise_window_grad_plane<T, kSide, kStride, kFirst + kRows>(args, plane, sums);
  }
}

template <typename T, int kSide, int kStride>
void depthwise_window_weight_grad(const ConvDepthwiseGradArgs<T>& args, int64_t filter_begin, int64_t filter_end) {
  using A = Acc<T>;
  constexpr int kTaps = kSide * kSide;
  const auto source = [&](int64_t f, int64_t n) {
    return n * args.in.n_stride + f / args.multiplier * args.in.c_stride;
  };
  const int64_t height = args.window.height, strips = (args.window.width + kLanes<A> - 1) / kLanes<A>;
  for (int64_t f = filter_begin; f < filter_end; ++f) {
    Vec<A> sums[kTaps] = {};
    int64_t added = 0;
    const auto add_up = [&] {
      for (int t = 0; t < kTaps; ++t) args.sums[f * kTaps + t] += reduce_add<A>(sums[t]), sums[t] = Vec<A>{};
      added = 0;
    };
    for (int64_t n = 0; n < args.images; ++n) {
      const bool more = n + 1 < args.images;  // else the next filter follows, from the first image on
      for (int64_t row = 0; row < height; row += kGradBand) {
        depthwise_window_grad_plane<T, kSide, kStride>(
            args,
            {args.in.data + source(f, n), args.grad.data + n * args.grad.n_stride + f * args.grad.c_stride,
             more ? args.in.n_stride : source(f + 1, 0) - source(f, n),
             more ? args.grad.n_stride : args.grad.c_stride - n * args.grad.n_stride, row,
             smaller(row + kGradBand, height)},
            sums);
        added += strips;
        if (added >= kGradSums) add_up();
      }
    }
    add_up();
  }
}

// --- the data gradient of stride 2 ---

// Whether the four classes (csrc/cpu/conv2d_windows.h: their positions ascend) are those of a centred window.
template <int kSide>
bool is_centred_gradient(const ConvWindow* classes) {
  bool all = true;
  for (int i = 0; i < 4; ++i) {
    const ConvWindow& window = classes[i];
    const int top = first_shift<kSide>(i / 2), left = first_shift<kSide>(i % 2);
    all = all && window.first_y == top && window.rows == shifts<kSide>(i / 2) && window.step_y == 1 &&
          window.first_x == left && window.cols == shifts<kSide>(i % 2) && window.step_x == 1;
  }
  return all;
}

// out[2 x], out[2 x + 1] = even[x], odd[x], `width` elements in all.
template <typename T>
inline TILEWRIGHT_INLINE void store_columns(Vec<Acc<T>> even, Vec<Acc<T>> odd, int64_t width, T* out) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  using Index = decltype(Vec<A>{} == Vec<A>{});
  Index first;
  for (int lane = 0; lane < kStep; ++lane) first[lane] = lane / 2 + lane % 2 * kStep;
  store(out, __builtin_shuffle(even, odd, first), smaller(width, kStep));
  if (width <= kStep) return;
  store(out + kStep, __builtin_shuffle(even, odd, first + static_cast<int>(kStep / 2)), smaller(width - kStep, kStep));
}

// A strip of dy and the pixels of dx around it. Row `step` of dy meets the rows of pixels y = step - s, whose sums
// wait: of y = step + 1 (windows of 5), y = step and y = step - 1, the newest first, each for rows and columns 2 y + i,
// 2 x + j.
template <typename T, int kSide, StripSide kWhere>
inline TILEWRIGHT_INLINE void depthwise_window_classes_strip(const ConvDepthwiseClasses<T>& args,
                                                             const DepthwisePlane<T>& plane, int64_t c, int64_t x,
                                                             int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int kFirst = first_shift<kSide>(0), kLast = last_shift<kSide>(1), kWaiting = kLast - kFirst;
  const ConvImages<const T>& grad = args.grad;
  const int64_t left = grad.width - x, n = smaller(kLanes<A>, left);  // dx has twice as many columns, or one less
  Vec<A> sum[kWaiting + 1][2][2] = {};
  for (int64_t step = row_begin + kFirst; step < row_end + kLast; ++step) {
    if (step >= 0 && step < grad.height) {
      const T* from = plane.in + step * grad.y_stride + x;
      prefetch_line(from + plane.next_in);
      Vec<A> columns[3];
      load_columns<T, 3, 1, kWhere>(from, left, n, columns);
      unrolled<kWaiting + 1>([&](auto u) TILEWRIGHT_INLINE {
        unrolled<4>([&](auto residue) TILEWRIGHT_INLINE {
          constexpr int i = decltype(residue){} / 2, j = decltype(residue){} % 2, kRowShift = decltype(u){} + kFirst;
          constexpr int kTop = first_shift<kSide>(i), kLeft = first_shift<kSide>(j);
          constexpr int kCols = shifts<kSide>(j);
          if constexpr (kRowShift >= kTop && kRowShift <= last_shift<kSide>(i)) {
            const A* weight =
                args.weights[residue] + c * args.windows[residue].rows * kCols + (kRowShift - kTop) * kCols;
            unrolled<kCols>([&](auto t) TILEWRIGHT_INLINE {
              sum[u][i][j] = fma(columns[t + kLeft + 1], broadcast<A>(weight[t]), sum[u][i][j]);
            });
          }
        });
      });
    }
    const int64_t y = step - kLast;
    if (y >= row_begin) {
      for (int64_t i = 0; i < 2 && 2 * y + i < args.out.height; ++i) {
        T* out = args.out.data + plane.place + (2 * y + i) * args.out.y_stride + 2 * x;
        prefetch_lines<2>(out + plane.next_out, kLanes<A>);
        store_columns(i == 0 ? sum[kWaiting][0][0] : sum[kWaiting][1][0],
                      i == 0 ? sum[kWaiting][0][1] : sum[kWaiting][1][1], args.out.width - 2 * x, out);
      }
    }
    unrolled<4>([&](auto residue) TILEWRIGHT_INLINE {
      constexpr int i = decltype(residue){} / 2, j = decltype(residue){} % 2;
      unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { sum[kWaiting - u][i][j] = sum[kWaiting - 1 - u][i][j]; });
      sum[0][i][j] = Vec<A>{};
    });
  }
}

template <typename T, int kSide>
void depthwise_window_classes(const ConvDepthwiseClasses<T>& args, int64_t plane_begin, int64_t plane_end,
                              int64_t row_begin, int64_t row_end) {
  const auto place = [&](const auto& images, int64_t plane) {
    return plane / args.channels * images.n_stride + plane % args.channels * images.c_stride;
  };
  for (int64_t p = plane_begin; p < plane_end; ++p) {
    const int64_t next = smaller(p + 1, args.images * args.channels - 1);
    const DepthwisePlane<T> plane{args.grad.data + place(args.grad, p),
                                  nullptr,
                                  Acc<T>(0),
                                  place(args.out, p),
                                  place(args.grad, next) - place(args.grad, p),
                                  place(args.out, next) - place(args.out, p)};
    for_each_strip<Acc<T>, 3, 1, 1>(args.windows[0].width, args.grad.width,
                                    [&](auto side, auto, int64_t x) TILEWRIGHT_INLINE {
                                      depthwise_window_classes_strip<T, kSide, decltype(side)::value>(
                                          args, plane, p % args.channels, x, row_begin, row_end);
                                    });
  }
}

}  // namespace
}  // namespace tilewright

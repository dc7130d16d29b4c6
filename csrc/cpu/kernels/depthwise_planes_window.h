// Depthwise convolution of planes by windows of 3, 5 or 7 that are centred on the pixels (padding 1, 2, 3), in strips
// (depthwise_window.h) of one or two vectors of pixels. A row is loaded once for each column of taps; the columns
// beside the image are lanes of 0.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/depthwise_window.h"

namespace tilewright {
namespace {

constexpr bool kManyRegisters = kVectorBytes == 64;  // 32 instead of 16
constexpr int kLargestPlanesWindow = 7;

// The columns left of a strip that is not the first lie in the row.
template <typename T>
inline bool is_centred_window(const ConvWindow& window, const ConvImages<const T>& in) {
  return has_strips<kLargestPlanesWindow>(window) && window.first_x == -(window.cols / 2) &&
         window.cols / 2 <= kLanes<Acc<T>> && in.x_stride == 1;
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

// Elements kOdd, kOdd + 2, ... of the first `count` from p on; behind them 0. kWhole: there are enough.
template <typename T, int kOdd, bool kWhole>
inline TILEWRIGHT_INLINE Vec<Acc<T>> load_every_second(const T* p, int64_t count) {
  using A = Acc<T>;
  using Lanes = decltype(Vec<A>{} == Vec<A>{});
  constexpr int64_t kStep = kLanes<A>;
  Lanes from;
  for (int lane = 0; lane < kStep; ++lane) from[lane] = 2 * lane + kOdd;
  if constexpr (kWhole) return __builtin_shuffle(load(p), load(p + kStep), from);
  const int64_t first = larger(smaller(count, kStep), 0), second = larger(smaller(count - kStep, kStep), 0);
  return __builtin_shuffle(load(p, first), load(p + kStep, second), from);
}

// What the n pixels that are centred on `row` and behind it read at every column of taps, 0 in the lanes behind them;
// the row has `width` elements from there on.
template <typename T, int kSide, int kStride, StripSide kWhere>
inline TILEWRIGHT_INLINE void load_columns(const T* row, int64_t width, int64_t n, Vec<Acc<T>> (&columns)[kSide]) {
  constexpr bool kInside = kWhere == StripSide::kInside;
  unrolled<kSide>([&](auto j) TILEWRIGHT_INLINE {
    constexpr int kAt = decltype(j){} - kSide / 2, kOdd = kStride == 2 ? kAt & 1 : 0;
    constexpr int kShift = (kAt - kOdd) / kStride;  // in pixels
    constexpr bool kFromLeft = kWhere == StripSide::kLeft && kShift < 0;
    const T* from = kFromLeft ? row : row + kShift * kStride;
    const int64_t pixels = kFromLeft ? n + kShift : n, there = kFromLeft ? width : width - kShift * kStride;
    Vec<Acc<T>> column;
    if constexpr (kStride == 2) {
      column = load_every_second<T, kOdd, kInside>(from, smaller(2 * pixels, there));
    } else if constexpr (kInside) {
      column = load(from);
    } else {
      column = load(from, larger(smaller(pixels, there), 0));
    }
    if constexpr (kFromLeft) {
      columns[j] = shifted_up<Acc<T>, -kShift>(column);
    } else {
      columns[j] = column;
    }
  });
}

// Calls body(side, vectors, x) for the strips of a row of pixels; side and vectors, up to kWidest, are constants.
template <typename A, int kSide, int kStride, int kWidest, typename Body>
inline TILEWRIGHT_INLINE void for_each_strip(int64_t width, int64_t in_width, const Body& body) {
  constexpr int64_t kStep = kLanes<A>;
  const auto inside = [&](int64_t x, int64_t vectors) {
    return kStride * (x + vectors * kStep + kSide / 2 / kStride) <= in_width && x + vectors * kStep <= width;
  };
  body(AtSide<StripSide::kLeft>{}, Index<1>{}, 0);
  int64_t x = kStep;
  if constexpr (kWidest > 1) {
    for (; inside(x, kWidest); x += kWidest * kStep) body(AtSide<StripSide::kInside>{}, Index<kWidest>{}, x);
  }
  for (; inside(x, 1); x += kStep) body(AtSide<StripSide::kInside>{}, Index<1>{}, x);
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

template <typename T, int kSide, int kStride, StripSide kWhere, int kVectors>
inline TILEWRIGHT_INLINE void depthwise_window_strip(const ConvDepthwiseArgs<T>& args, const DepthwisePlane<T>& plane,
                                                     int64_t x, int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int64_t kStep = kLanes<A>;
  constexpr int kWaiting = (kSide - 1) / kStride;  // rows of pixels behind the newest
  const int64_t left = args.in.width - kStride * x;
  const int64_t n = kWhere == StripSide::kInside ? kStep : smaller(kStep, args.window.width - x);
  Vec<A> weight[kSide * kSide];
  unrolled<kSide * kSide>([&](auto t) TILEWRIGHT_INLINE { weight[t] = broadcast<A>(plane.weight[t]); });
  Vec<A> sum[kWaiting + 1][kVectors] = {};  // the newest first
  for (int64_t step = row_begin; step < row_end + kWaiting; ++step) {
    unrolled<kStride>([&](auto e) TILEWRIGHT_INLINE {
      const int64_t row = args.window.first_y + kStride * step + e;
      if (row < 0 || row >= args.in.height) return;
      const T* from = plane.in + row * args.in.y_stride + kStride * x;
      unrolled<kVectors>([&](auto v) TILEWRIGHT_INLINE {
        const T* at = from + kStride * kStep * v;
        prefetch_lines<kStride>(at + plane.next_in, kStep);
        Vec<A> columns[kSide];
        load_columns<T, kSide, kStride, kWhere>(at, left, n, columns);
        unrolled<kWaiting + 1>([&](auto u) TILEWRIGHT_INLINE {
          constexpr int kRow = kStride * decltype(u){} + decltype(e){};
          if constexpr (kRow < kSide) {
            unrolled<kSide>(
                [&](auto j) TILEWRIGHT_INLINE { sum[u][v] = fma(columns[j], weight[kRow * kSide + j], sum[u][v]); });
          }
        });
      });
    });
    const int64_t y = step - kWaiting;
    if (y >= row_begin) {
      const int64_t place = plane.place + y * args.out.y_stride + x;
      unrolled<kVectors>([&](auto v) TILEWRIGHT_INLINE {
        const int64_t at = place + v * kStep;
        prefetch_line(args.out.data + at + plane.next_out);
        ElementTraits<ProductElement<T>>::store_sums(
            args.out.data + at, finish_vector<T>(args.epilogue, sum[kWaiting][v] + plane.bias, at, n), n);
      });
    }
    unrolled<kVectors>([&](auto v) TILEWRIGHT_INLINE {
      unrolled<kWaiting>([&](auto u) TILEWRIGHT_INLINE { sum[kWaiting - u][v] = sum[kWaiting - 1 - u][v]; });
      sum[0][v] = Vec<A>{};
    });
  }
}

template <typename T, int kSide, int kStride>
void depthwise_window_planes(const ConvDepthwiseArgs<T>& args, int64_t plane_begin, int64_t plane_end,
                             int64_t row_begin, int64_t row_end) {
  constexpr int kWidest = kManyRegisters || kSide == 3 ? 2 : 1;
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
    for_each_strip<Acc<T>, kSide, kStride, kWidest>(
        args.window.width, args.in.width, [&](auto side, auto vectors, int64_t x) TILEWRIGHT_INLINE {
          depthwise_window_strip<T, kSide, kStride, decltype(side)::value, decltype(vectors){}>(args, plane, x,
                                                                                                row_begin, row_end);
        });
  }
}

}  // namespace
}  // namespace tilewright

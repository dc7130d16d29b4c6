// Depthwise convolution: every filter reads one channel, so there is no product of matrices, only sums over taps.
//
//   channels_last   a vector of channels; a few pixels of a row at once share weights and positions (depthwise_last.h)
//   planes          one plane's phases at a time (conv2d_flat.h): whole vectors, no edges, rows of any width
// Data gradients are the same sums over dy with other windows. Weight gradients keep one accumulator per tap.
#pragma once
#include "cpu/kernels/depthwise_last.h"

namespace tilewright {
namespace {

// --- channels_last: weight gradient ---

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
// group.
template <typename T, int kGroup, int kTaps>
void depthwise_last_grad_row(const ConvDepthwiseGradArgs<T>& args, const GradTap<T>* taps, const T* dy,
                             int64_t inner_begin, int64_t inner_end) {
  using A = Acc<T>;
  const int64_t x_step = args.window.stride_x * args.in.x_stride, dy_step = args.grad.x_stride;
  for_each_vector<A>(args.channels, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    for (int64_t g = 0; g < kGroup; ++g) {
      Vec<A> sum[kTaps] = {};
      for (int64_t x = inner_begin; x < inner_end; ++x) {
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
        A* total = args.sums + (taps[t].index * kGroup + g) * args.channels + c;
        store(total, load(total, n) + sum[t], n);
      }
    }
  });
}

constexpr int kGradTaps = 9;  // a 3x3 kernel in one sweep; 9 accumulators fit every ISA's registers

template <typename T>
using LastGradRow = void (*)(const ConvDepthwiseGradArgs<T>&, const GradTap<T>*, const T*, int64_t, int64_t);
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
  const ConvImages<const T>& in = args.in;
  int64_t inner_begin, inner_end;
  inner_pixels(window, in.width, inner_begin, inner_end);
  for (int64_t r = row_begin; r < row_end; ++r) {
    const int64_t n = r / window.height, y = r % window.height;
    const T* dy = args.grad.data + n * args.grad.n_stride + y * args.grad.y_stride;
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
        last_grad_row<T, kGroup>(count)(args, taps, dy, inner_begin, inner_end);
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

// --- planes ----------------------------------------------------------------------------------------------------------

constexpr int64_t kFlatVectors = 8;  // 8 chains of fmas: 2 ports x latency 4

// Offsets, phases, flat output; each with room for the last block of vectors.
template <typename A>
int64_t depthwise_planes_scratch(const ConvWindow& window, int64_t rows) {
  const PhaseLayout layout(window, rows);
  return window.rows * window.cols + 16 + layout.size + rows * layout.pitch + 3 * kFlatVectors * kLanes<A>;
}

template <typename A, int kVectors>
inline void flat_block(const A* phases, const int32_t* offsets, const A* weight, int64_t taps, A* flat) {
  Vec<A> sum[kVectors] = {};
  for (int64_t t = 0; t < taps; ++t) {
    const Vec<A> w = broadcast<A>(weight[t]);
    const A* from = phases + offsets[t];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[v] = fma(load(from + v * kLanes<A>), w, sum[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store(flat + v * kLanes<A>, sum[v]);
}

template <typename T>
void depthwise_planes(const ConvDepthwiseArgs<T>& args, int64_t plane_begin, int64_t plane_end, int64_t row_begin,
                      int64_t row_end, Acc<T>* scratch) {
  using A = Acc<T>;
  const ConvWindow& window = args.window;
  const int64_t rows = row_end - row_begin, taps = window.rows * window.cols;
  const PhaseLayout layout(window, rows);
  int32_t* offsets = reinterpret_cast<int32_t*>(scratch);
  A* phases = scratch + (taps + 15) / 16 * 16;
  A* flat = phases + layout.size + kFlatVectors * kLanes<A>;
  find_tap_offsets(window, layout, offsets);
  const int64_t filters = args.channels * args.multiplier, length = (rows - 1) * layout.pitch + window.width;
  const T* copied = nullptr;
  for (int64_t plane = plane_begin; plane < plane_end; ++plane) {
    const int64_t n = plane / filters, f = plane % filters;
    const T* source = args.in.data + n * args.in.n_stride + f / args.multiplier * args.in.c_stride;
    if (source != copied) copy_phases(args.in, source, window, layout, row_begin, copied == nullptr, phases);
    copied = source;
    const A* weight = args.weight + f * taps;
    int64_t p = 0;
    for (; p + kFlatVectors * kLanes<A> <= length; p += kFlatVectors * kLanes<A>) {
      flat_block<A, kFlatVectors>(phases + p, offsets, weight, taps, flat + p);
    }
    for (; p + 3 * kLanes<A> < length; p += 4 * kLanes<A>)
      flat_block<A, 4>(phases + p, offsets, weight, taps, flat + p);
    for (; p < length; p += kLanes<A>) flat_block<A, 1>(phases + p, offsets, weight, taps, flat + p);
    const A bias = args.epilogue.bias != nullptr ? args.epilogue.bias[f] : A(0);
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t place = n * args.out.n_stride + f * args.out.c_stride + (row_begin + y) * args.out.y_stride;
      finish_row<T>(args.epilogue, flat + y * layout.pitch, window.width, nullptr, bias, place, args.out.data,
                    args.out.x_stride);
    }
  }
}

// sums[t] += over `rows` rows of dy, kTaps taps at once. Tails are masked on both sides, so that what lies in the
// garbage columns (an Inf, say) meets no 0.
template <typename T, int kTaps>
void planes_grad_rows(const Acc<T>* phases, int64_t pitch, const int32_t* offsets, const T* dy, int64_t dy_stride,
                      int64_t rows, int64_t width, Acc<T>* sums) {
  using A = Acc<T>;
  Vec<A> sum[kTaps] = {};
  for (int64_t y = 0; y < rows; ++y) {
    for_each_vector<A>(width, [&](int64_t x, int64_t n) TILEWRIGHT_INLINE {
      const Vec<A> d = load(dy + y * dy_stride + x, n);
      const A* from = phases + y * pitch + x;
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) sum[t] = fma(d, load(from + offsets[t], n), sum[t]);
    });
  }
  for (int t = 0; t < kTaps; ++t) sums[t] += reduce_add<A>(sum[t]);
}

template <typename T>
using PlanesGradRows = void (*)(const Acc<T>*, int64_t, const int32_t*, const T*, int64_t, int64_t, int64_t, Acc<T>*);
template <typename T, int kTaps = kGradTaps>
inline PlanesGradRows<T> planes_grad(int64_t taps) {
  if constexpr (kTaps == 1) {
    return planes_grad_rows<T, 1>;
  } else {
    return taps == kTaps ? planes_grad_rows<T, kTaps> : planes_grad<T, kTaps - 1>(taps);
  }
}

template <typename T>
void depthwise_planes_weight_grad(const ConvDepthwiseGradArgs<T>& args, int64_t filter_begin, int64_t filter_end,
                                  int64_t rows_per_block, Acc<T>* scratch) {
  const ConvWindow& window = args.window;
  const int64_t taps = window.rows * window.cols;
  int32_t* offsets = reinterpret_cast<int32_t*>(scratch);
  Acc<T>* phases = scratch + (taps + 15) / 16 * 16;
  for (int64_t row = 0; row < window.height; row += rows_per_block) {
    const int64_t rows = smaller(rows_per_block, window.height - row);
    const PhaseLayout layout(window, rows);
    find_tap_offsets(window, layout, offsets);
    for (int64_t f = filter_begin; f < filter_end; ++f) {
      for (int64_t n = 0; n < args.images; ++n) {
        const T* source = args.in.data + n * args.in.n_stride + f / args.multiplier * args.in.c_stride;
        const T* dy = args.grad.data + n * args.grad.n_stride + f * args.grad.c_stride + row * args.grad.y_stride;
        copy_phases(args.in, source, window, layout, row, /*clear=*/f == filter_begin && n == 0, phases);
        for (int64_t t = 0; t < taps; t += kGradTaps) {
          const int64_t count = smaller(kGradTaps, taps - t);
          planes_grad<T>(count)(phases, layout.pitch, offsets + t, dy, args.grad.y_stride, rows, window.width,
                                args.sums + f * taps + t);
        }
      }
    }
  }
}

template <typename T>
void fill_depthwise(TypedKernels<T>& table) {
  table.depthwise = {depthwise_last<T>, depthwise_last_weight_grad<T>, depthwise_planes_scratch<Acc<T>>,
                     depthwise_planes<T>, depthwise_planes_weight_grad<T>};
}

}  // namespace
}  // namespace tilewright

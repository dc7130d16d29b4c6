// Depthwise convolution of planes: one plane's phases at a time (conv2d_phases.h), so that there are only whole vectors
// of pixels, no edges, rows of any width.
#pragma once
#include "cpu/kernels/conv2d_flat.h"
#include "cpu/kernels/depthwise_planes_window.h"

namespace tilewright {
namespace {

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

template <typename A>
void flat_sums(const A* phases, const int32_t* offsets, const A* weight, int64_t taps, int64_t length, A* flat) {
  int64_t p = 0;
  for (; p + kFlatVectors * kLanes<A> <= length; p += kFlatVectors * kLanes<A>) {
    flat_block<A, kFlatVectors>(phases + p, offsets, weight, taps, flat + p);
  }
  for (; p + 3 * kLanes<A> < length; p += 4 * kLanes<A>) flat_block<A, 4>(phases + p, offsets, weight, taps, flat + p);
  for (; p < length; p += kLanes<A>) flat_block<A, 1>(phases + p, offsets, weight, taps, flat + p);
}

template <typename T>
void depthwise_planes(const ConvDepthwiseArgs<T>& args, int64_t plane_begin, int64_t plane_end, int64_t row_begin,
                      int64_t row_end, Acc<T>* scratch) {
  using A = Acc<T>;
  const ConvWindow& window = args.window;
  if constexpr (kHasStrips<T>) {
    if (is_centred_window(window, args.in) && args.out.x_stride == 1) {
      return for_strip_window<kLargestPlanesWindow>(window, [&](auto side, auto stride) {
        depthwise_window_planes<T, decltype(side){}, decltype(stride){}>(args, plane_begin, plane_end, row_begin,
                                                                         row_end);
      });
    }
  }
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
    flat_sums(phases, offsets, weight, taps, length, flat);
    const A bias = args.epilogue.bias != nullptr ? args.epilogue.bias[f] : A(0);
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t place = n * args.out.n_stride + f * args.out.c_stride + (row_begin + y) * args.out.y_stride;
      finish_row<T>(args.epilogue, flat + y * layout.pitch, window.width, nullptr, bias, place, args.out.data,
                    args.out.x_stride);
    }
  }
}

}  // namespace
}  // namespace tilewright

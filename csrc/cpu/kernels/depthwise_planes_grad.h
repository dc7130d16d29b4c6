// Gradients of depthwise convolutions of planes: the data gradient of stride 2 (of other strides it is the forward of
// other windows, class by class) and the weights' gradient.
#pragma once
#include "cpu/kernels/depthwise_planes.h"
#include "cpu/kernels/depthwise_planes_window_grad.h"

namespace tilewright {
namespace {

// --- the data gradient of stride 2 ---
//
// Its four classes of pixels (csrc/cpu/conv2d_windows.h) are sums over one plane of dy, which is copied once for all;
// those of the even and of the odd columns of a row are stored together.
//
//     dx   (0, 0) (0, 1) (0, 0) (0, 1) ...     <- rows of sums (0, 0) and (0, 1)
//          (1, 0) (1, 1) (1, 0) (1, 1) ...     <- rows of sums (1, 0) and (1, 1)

// What any of the classes reads.
inline ConvWindow window_of_classes(const ConvWindow* classes) {
  ConvWindow all = classes[0];  // of the most pixels
  int64_t last_y = all.first_y, last_x = all.first_x;
  for (int i = 0; i < 4; ++i) {
    const ConvWindow& window = classes[i];
    all.first_y = smaller(all.first_y, window.first_y);
    all.first_x = smaller(all.first_x, window.first_x);
    last_y = larger(last_y, window.first_y + (window.rows - 1) * window.step_y);
    last_x = larger(last_x, window.first_x + (window.cols - 1) * window.step_x);
  }
  all.step_y = all.step_x = 1;
  all.rows = last_y - all.first_y + 1;
  all.cols = last_x - all.first_x + 1;
  return all;
}

inline int64_t most_taps(const ConvWindow* classes) {
  int64_t most = 0;
  for (int i = 0; i < 4; ++i) most = larger(most, classes[i].rows * classes[i].cols);
  return most;
}

// The taps' offsets, phases, two flat outputs; the last three with room for the last block of vectors.
template <typename A>
struct ClassesScratch {
  static constexpr int64_t kSlack = kFlatVectors * kLanes<A>;
  PhaseLayout layout;
  int64_t offsets, phases, flat, size;
  ClassesScratch(const ConvWindow& all, int64_t most_taps, int64_t rows)
      : layout(all, rows),
        offsets((most_taps + 15) / 16 * 16),  // whole lines for each class
        phases(4 * offsets),
        flat((layout.size + kSlack + 15) / 16 * 16),
        size(phases + flat + 2 * (rows * layout.pitch + kSlack)) {}
};

template <typename A>
int64_t depthwise_classes_scratch(const ConvWindow* classes, int64_t rows) {
  return ClassesScratch<A>(window_of_classes(classes), most_taps(classes), rows).size;
}

template <typename T>
void depthwise_planes_classes(const ConvDepthwiseClasses<T>& args, int64_t plane_begin, int64_t plane_end,
                              int64_t row_begin, int64_t row_end, Acc<T>* memory) {
  using A = Acc<T>;
  if constexpr (kHasStrips<T>) {
    if (args.grad.x_stride == 1 && is_centred_gradient<3>(args.windows)) {
      return depthwise_window_classes<T, 3>(args, plane_begin, plane_end, row_begin, row_end);
    }
    if (args.grad.x_stride == 1 && is_centred_gradient<5>(args.windows)) {
      return depthwise_window_classes<T, 5>(args, plane_begin, plane_end, row_begin, row_end);
    }
  }
  const ConvWindow all = window_of_classes(args.windows);
  const ClassesScratch<A> scratch(all, most_taps(args.windows), row_end - row_begin);
  const int64_t pitch = scratch.layout.pitch;
  int32_t* offsets = reinterpret_cast<int32_t*>(memory);
  A* phases = memory + scratch.phases;
  A* flat[2] = {phases + scratch.flat, phases + scratch.flat + (scratch.size - scratch.phases - scratch.flat) / 2};
  for (int i = 0; i < 4; ++i) {
    const ConvWindow& window = args.windows[i];
    int32_t* to = offsets + i * scratch.offsets;
    for (int64_t t = 0; t < window.rows * window.cols; ++t) {
      const int64_t u = window.first_y - all.first_y + t / window.cols * window.step_y;
      *to++ = static_cast<int32_t>(u * pitch + window.first_x - all.first_x + t % window.cols * window.step_x);
    }
  }
  for (int64_t plane = plane_begin; plane < plane_end; ++plane) {
    const int64_t n = plane / args.channels, c = plane % args.channels;
    const T* dy = args.grad.data + n * args.grad.n_stride + c * args.grad.c_stride;
    copy_phases(args.grad, dy, all, scratch.layout, row_begin, /*clear=*/plane == plane_begin, phases);
    T* dx = args.out.data + n * args.out.n_stride + c * args.out.c_stride;
    for (int64_t residue = 0; residue < 2; ++residue) {
      const int64_t rows = smaller(row_end, args.windows[2 * residue].height) - row_begin;
      if (rows <= 0) continue;
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t at = 2 * residue + i, taps = args.windows[at].rows * args.windows[at].cols;
        flat_sums(phases, offsets + at * scratch.offsets, args.weights[at] + c * taps, taps,
                  (rows - 1) * pitch + args.windows[at].width, flat[i]);
      }
      for (int64_t y = 0; y < rows; ++y) {
        T* out = dx + (2 * (row_begin + y) + residue) * args.out.y_stride;
        for (int64_t x = 0; 2 * x < args.out.width; x += kLanes<A>) {
          store_columns(load(flat[0] + y * pitch + x), load(flat[1] + y * pitch + x), args.out.width - 2 * x,
                        out + 2 * x);
        }
      }
    }
  }
}

// --- the weights' gradient ---

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
  if constexpr (kHasStrips<T>) {
    if (is_centred_window(window, args.in) && args.grad.x_stride == 1) {
      return for_strip_window<kLargestPlanesWindow>(window, [&](auto side, auto stride) {
        depthwise_window_weight_grad<T, decltype(side){}, decltype(stride){}>(args, filter_begin, filter_end);
      });
    }
  }
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

}  // namespace
}  // namespace tilewright

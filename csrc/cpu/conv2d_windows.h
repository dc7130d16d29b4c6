// The windows and weight layouts that make a forward convolution or a data gradient of the same product
// (kernels/conv2d_args.h says what they mean to the kernels).
#pragma once
#include <numeric>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/tensors.h"
#include "ops/conv2d.h"

namespace tilewright {

enum class ConvPass { kForward, kInputGrad, kWeightGrad };

inline bool is_dilated(const Conv2dShape& shape) { return shape.dilation[0] > 1 || shape.dilation[1] > 1; }

inline ConvWindow forward_window(const Conv2dShape& shape) {
  return {shape.out[0],    shape.out[1],      shape.stride[0],   shape.stride[1],   shape.kernel[0],
          shape.kernel[1], -shape.padding[0], -shape.padding[1], shape.dilation[0], shape.dilation[1]};
}

// One dimension of the input pixels with index = residue (mod stride), and the kernel's taps that reach them: tap i of
// `count` is the kernel's first - i * period, so that positions in dy ascend.
struct ResidueTaps {
  int64_t residue, pixels, count, first, period, position, step;
  int64_t kernel_index(int64_t i) const { return first - i * period; }
};

// dx[r + stride * q] takes w[k] * dy[q + (r + padding - k * dilation) / stride] for every k that divides evenly.
inline std::vector<ResidueTaps> residue_taps(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                             int64_t dilation) {
  std::vector<ResidueTaps> all;
  const int64_t common = std::gcd(stride, dilation), period = stride / common;
  for (int64_t r = 0; r < std::min(stride, size); ++r) {
    ResidueTaps taps{r, (size - r + stride - 1) / stride, 0, 0, period, 0, dilation / common};
    for (int64_t k = 0; k < kernel; ++k) {
      if ((r + padding - k * dilation) % stride == 0) ++taps.count, taps.first = k;
    }
    taps.position = (r + padding - taps.first * dilation) / stride;
    all.push_back(taps);
  }
  return all;
}

// One product of a data gradient: the pixels of dx of one residue in each direction.
struct GradientClass {
  ResidueTaps y, x;
  ConvWindow window() const {
    return {y.pixels, x.pixels, 1, 1, y.count, x.count, y.position, x.position, y.step, x.step};
  }
  int64_t taps() const { return y.count * x.count; }
};

inline std::vector<GradientClass> gradient_classes(const Conv2dShape& shape) {
  std::vector<GradientClass> classes;
  const auto ys = residue_taps(shape.height, shape.kernel[0], shape.stride[0], shape.padding[0], shape.dilation[0]);
  const auto xs = residue_taps(shape.width, shape.kernel[1], shape.stride[1], shape.padding[1], shape.dilation[1]);
  for (const auto& y : ys) {
    for (const auto& x : xs) classes.push_back({y, x});
  }
  return classes;
}

// The channel stride of a single channel is anything; kernels choose their way by it.
template <typename T>
ConvImages<T> images_of(const Tensor& tensor, T* data, at::MemoryFormat format) {
  const int64_t c_stride = format == at::MemoryFormat::ChannelsLast ? 1 : tensor.stride(1);
  return {data, tensor.size(2), tensor.size(3), tensor.stride(0), c_stride, tensor.stride(2), tensor.stride(3)};
}

// Every second, third ... pixel from (y, x) on; none where that lies behind the last.
template <typename T>
ConvImages<T> every_nth(ConvImages<T> images, int64_t y, int64_t x, int64_t step_y, int64_t step_x) {
  const bool any = y < images.height && x < images.width;
  if (any) images.data += y * images.y_stride + x * images.x_stride;
  images.height = any ? divide_up(images.height - y, step_y) : 0;
  images.width = any ? divide_up(images.width - x, step_x) : 0;
  images.y_stride *= step_y;
  images.x_stride *= step_x;
  return images;
}

// The pixels of dx that a class writes.
template <typename T>
ConvImages<T> images_of_class(const Conv2dShape& shape, const GradientClass& part, const Tensor& dx, T* data,
                              at::MemoryFormat format) {
  return every_nth(images_of(dx, data, format), part.y.residue, part.x.residue, shape.stride[0], shape.stride[1]);
}

// Rows that follow each other evenly are one long row.
template <typename T>
bool rows_join(const ConvImages<T>& images) {
  return images.height == 1 || images.y_stride == images.width * images.x_stride;
}
template <typename T>
void join_rows(ConvImages<T>& images) {
  if (!rows_join(images)) return;
  images.width *= images.height;
  images.height = 1;
  images.y_stride = images.width * images.x_stride;
}

// A 1x1 convolution of stride 1 without padding: every image is one row.
template <typename In, typename Out>
void join_rows(ConvImages<In>& in, ConvImages<Out>& out, ConvWindow& window) {
  const bool pointwise = window.rows == 1 && window.cols == 1 && window.stride_y == 1 && window.stride_x == 1 &&
                         window.first_y == 0 && window.first_x == 0 && window.height == in.height &&
                         window.width == in.width;
  if (!pointwise || !rows_join(in) || !rows_join(out)) return;
  join_rows(in);
  join_rows(out);
  window.width *= window.height;
  window.height = 1;
}

// Whether a copy of the image in phases of the strides (kernels/conv2d_phases.h) costs less than patches do: no phase
// is skipped, and few columns are computed and dropped.
inline bool phases_serve(const ConvWindow& window) {
  const int64_t pitch = phase_pitch(window);
  return window.stride_y <= window.rows && window.stride_x <= window.cols && pitch * 3 <= window.width * 4;
}

// Weights [filters, channels, kernel] of one group as runs of memory, and the table that says where they go.
struct WeightLayout {
  std::vector<int32_t> row_of;
  int64_t filters, filter_stride, runs, run_stride, run_length, element_stride, run_step;
  template <typename T>
  ConvWeights<T> at(T* data) const {
    return {data, filters, filter_stride, runs, run_stride, run_length, element_stride, run_step, row_of.data()};
  }
};

// channels_last: the order of the weights in memory; order: that of k. tap_step, row_step: k's from one tap, or row of
// taps, to the next where taps are outermost; the channels, and the taps of a row, or more.
inline WeightLayout forward_weights(const Conv2dShape& shape, bool channels_last, ConvOrder order, int64_t tap_step = 0,
                                    int64_t row_step = 0) {
  const int64_t C = shape.channels / shape.groups, taps = shape.kernel[0] * shape.kernel[1], K = C * taps;
  const int64_t step = std::max(tap_step, C), cols = shape.kernel[1], next_row = std::max(row_step, cols * step);
  WeightLayout layout{std::vector<int32_t>(K), shape.filters / shape.groups, K, 1, 0, K, 1, 0};
  for (int64_t e = 0; e < K; ++e) {
    const int64_t c = channels_last ? e % C : e / taps, t = channels_last ? e / C : e % taps;
    layout.row_of[e] =
        static_cast<int32_t>(order == ConvOrder::kTapsOuter ? t / cols * next_row + t % cols * step + c : c * taps + t);
  }
  return layout;
}

// The data gradient's: its filters are the channels, summed over are the filters and the taps of one class.
inline WeightLayout gradient_weights(const Conv2dShape& shape, const GradientClass& part, bool channels_last,
                                     ConvOrder order, int64_t tap_step = 0) {
  const int64_t C = shape.channels / shape.groups, F = shape.filters / shape.groups, step = std::max(tap_step, F);
  const int64_t taps = shape.kernel[0] * shape.kernel[1];
  const bool taps_outer = order == ConvOrder::kTapsOuter;
  const bool neighbours = channels_last || taps == 1;
  WeightLayout layout{std::vector<int32_t>(taps, -1), C, neighbours ? 1 : taps, F, C * taps, taps, neighbours ? C : 1,
                      taps_outer ? 1 : part.taps()};
  for (int64_t i = 0; i < part.y.count; ++i) {
    for (int64_t j = 0; j < part.x.count; ++j) {
      const int64_t t = part.y.kernel_index(i) * shape.kernel[1] + part.x.kernel_index(j);
      const int64_t place = i * part.x.count + j;
      layout.row_of[t] = static_cast<int32_t>(taps_outer ? place * step : place);
    }
  }
  return layout;
}

}  // namespace tilewright

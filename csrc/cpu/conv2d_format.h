// Images in the memory format that kernels read, or that a result is promised in. Dense images are transposed by our
// own kernel: torch's copy steps through one of the two in strides.
#pragma once
#include "cpu/conv2d_work.h"

namespace tilewright {

constexpr auto kPlanes = at::MemoryFormat::Contiguous;

// A copy of images, contiguous in the other format, in this one.
inline Tensor transposed_images(const Tensor& images, at::MemoryFormat format) {
  const int64_t N = images.size(0), C = images.size(1), P = images.size(2) * images.size(3);
  Tensor result = at::empty(images.sizes(), images.options().memory_format(format));
  const bool from_planes = format != kPlanes;
  // Stretches of the source's rows, for as many threads.
  constexpr int64_t kStretch = 64;
  const int64_t rows = from_planes ? C : P, cols = from_planes ? P : C, stretches = divide_up(cols, kStretch);
  dispatch_floating(images.scalar_type(), "conv2d", [&](auto element) {
    using T = decltype(element);
    const T* src = const_data<T>(images);
    T* dst = mutable_data<T>(result);
    parallel_for_cost(N * stretches, rows * kStretch, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / stretches, col = i % stretches * kStretch;
        kernels<T>().conv2d.transpose(rows, std::min(kStretch, cols - col), src + n * C * P + col, cols,
                                      dst + n * C * P + col * rows, rows);
      }
    });
  });
  return result;
}

// In a format, by the cheapest copy.
inline Tensor changed_format(const Tensor& images, at::MemoryFormat format) {
  const auto other = format == kPlanes ? at::MemoryFormat::ChannelsLast : kPlanes;
  return images.is_contiguous(other) ? transposed_images(images, format) : images.contiguous(format);
}

// Contiguous in it.
inline Tensor dense_in_format(const Tensor& images, at::MemoryFormat format) {
  return images.is_contiguous(format) ? images : changed_format(images, format);
}

// Readable by the kernels of the format without a copy: its innermost dimension has stride 1.
inline Tensor in_format(const Tensor& images, at::MemoryFormat format) {
  const int64_t inner = format == kPlanes ? 3 : 1;
  const bool single = format != kPlanes && images.size(inner) == 1;  // its stride is anything
  return single || images.stride(inner) == 1 ? images : changed_format(images, format);
}

// A result that was computed in one format, in the format it is promised in.
inline Tensor result_in(const Tensor& result, at::MemoryFormat computed, at::MemoryFormat promised) {
  return computed == promised || !result.defined() ? result : transposed_images(result, promised);
}

}  // namespace tilewright

// Convolution as a product of patches and weights, one core's share at a time.
//
//   planes          out[f, pixel] = weights[f, k] * patches[k, pixel]       patches are the right operand
//   weight grad     sums[k, f]    = patches[k, pixel] * dy[pixel, f]
// so no image is ever transposed. Planes whose kernel has several taps are read without patches instead
// (conv2d_flat.h), and so are channels_last images (conv2d_rows.h; pairs of bfloat16: conv2d_pairs.h). Patches are
// packed block by block (conv2d_pack.h); the same product with other windows and weights is the data gradient. Sums run
// over k in blocks of kConvBlockK in order: the result does not depend on how pixels and filters were cut.
#pragma once
#if defined(TILEWRIGHT_ISA_HAS_BF16_DOT)  // all else is then AVX-512's
#include "cpu/kernels/conv2d_pairs_strip_grad.h"
#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
#include "cpu/kernels/winograd_split.h"
#endif

namespace tilewright {
namespace {

inline void fill_conv2d(TypedKernels<BF16>& table) {
  table.conv2d.pairs = {kPairPanel,
                        kPairStep,
                        1,
                        pack_pair_weights<BF16>,
                        conv_pairs,
                        conv_strip_bytes<BF16>,
                        conv_strip<BF16>,
                        conv_pairs_weight_grad,
                        conv_strip_grad_bytes<BF16>,
                        conv_strip_weight_grad<BF16>,
                        nullptr,
                        nullptr,
                        finish_pair_weights<BF16>};
}

#if defined(TILEWRIGHT_ISA_HAS_TILE_UNIT)
#define TILEWRIGHT_FILLS_SPLIT 1
template <typename T>
void fill_conv2d(TypedKernels<T>& table) {
  table.conv2d.pairs = {kPairPanel,
                        kPairStep,
                        kPartsOf<T>,
                        pack_pair_weights<T>,
                        nullptr,
                        conv_strip_bytes<T>,
                        conv_strip<T>,
                        nullptr,
                        conv_strip_grad_bytes<T>,
                        conv_strip_weight_grad<T>,
                        point_weight_grad_bytes<T>,
                        point_weight_grad<T>,
                        finish_pair_weights<T>};
  table.winograd.split_bytes = winograd_split_bytes;
  table.winograd.multiply_split = winograd_multiply_split;
}
#endif

}  // namespace
}  // namespace tilewright
#else
#include "cpu/kernels/conv2d_flat.h"
#include "cpu/kernels/conv2d_rows_grad.h"

namespace tilewright {
namespace {

// Equal blocks of at most `most`; one empty block where no tap reaches (the product is then zeros).
inline int64_t k_block_count(int64_t K, int64_t most) { return larger(1, (K + most - 1) / most); }

// Pixels as columns: planes.
template <typename T>
void conv_gemm_columns(const ConvGemmArgs<T>& args, int64_t pixel, int64_t pixels, int64_t filter, int64_t filters,
                       Acc<T>* scratch) {
  using A = Acc<T>;
  const ConvWindow& window = args.window;
  const ConvImages<T>& out = args.out;
  const int64_t K = window.rows * window.cols * args.channels, columns = conv_block_columns(window);
  const int64_t blocks = k_block_count(K, columns == kConvPointColumns ? kConvPointK : kConvBlockK);
  A* panels = scratch;
  A* block = scratch + kConvBlockColumns * kConvBlockK;
  int64_t block_row = columns;
  bool direct = false;
  if constexpr (sizeof(T) == sizeof(A)) {
    const int64_t plane = window.width * window.height, at = pixel % plane;
    direct = out.x_stride == 1 && out.y_stride == window.width && at + pixels <= plane;
    if (direct) {
      block = out.data + pixel / plane * out.n_stride + filter * out.c_stride + at;
      block_row = out.c_stride;
    }
  }
  const bool point = window.rows * window.cols == 1 && window.height == 1 && window.width == args.in.width &&
                     window.stride_x == 1 && window.first_x == 0 && window.first_y == 0 && args.in.x_stride == 1 &&
                     pixel % window.width + pixels <= window.width;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = K * b / blocks, k_count = K * (b + 1) / blocks - k;
    if (point) {
      const T* image = args.in.data + pixel / window.width * args.in.n_stride + pixel % window.width;
      pack_point_columns(image + k * args.in.c_stride, args.in.c_stride, pixels, k_count, panels);
    }
    for (int64_t p = 0; p < pixels && !point; p += kTileCols<A>) {
      pack_patch_columns(args.in, window, pixel + p, smaller(pixels - p, kTileCols<A>), kTileCols<A>, k, k + k_count,
                         panels + p * k_count, kTileCols<A>);
    }
    for (int64_t f = 0; f < filters; f += kTileCols<A>) {
      gemm_panels(smaller(filters - f, kTileCols<A>), pixels, k_count,
                  args.weight + (filter + f) * K + k * kTileCols<A>, int64_t{1}, kTileCols<A>, panels,
                  block + f * block_row, block_row, b > 0);
    }
  }
  if (direct && args.epilogue.empty()) return;
  for_each_pixel_run(out, window, pixel, pixels, [&](int64_t offset, int64_t at, int64_t count) {
    for (int64_t f = 0; f < filters; ++f) {
      const int64_t place = offset + (filter + f) * out.c_stride;
      const A bias = args.epilogue.bias != nullptr ? args.epilogue.bias[filter + f] : A(0);
      finish_row<T>(args.epilogue, block + f * block_row + at, count, nullptr, bias, place, out.data, out.x_stride);
    }
  });
}

template <typename T>
void conv_gemm(const ConvGemmArgs<T>& args, int64_t pixel_begin, int64_t pixel_end, int64_t filter_begin,
               int64_t filter_end, Acc<T>* scratch) {
  const int64_t step = conv_block_columns(args.window);
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += step) {
    const int64_t pixels = smaller(step, pixel_end - pixel);
    for (int64_t f = filter_begin; f < filter_end; f += kConvBlockFilters) {
      const int64_t filters = smaller(kConvBlockFilters, filter_end - f);
      conv_gemm_columns(args, pixel, pixels, f, filters, scratch);
    }
  }
}

// dy[pixel, f] as panels [panel][pixel][kTileCols].
template <typename T>
inline void pack_grad(const ConvWeightGradArgs<T>& args, int64_t pixel, int64_t pixels, int64_t filter, int64_t filters,
                      Acc<T>* panels) {
  using A = Acc<T>;
  const ConvImages<const T>& grad = args.grad;
  const ConvWindow pixels_of_grad{grad.height, grad.width, 1, 1, 1, 1, 0, 0, 1, 1};
  for (int64_t f = 0; f < filters; f += kTileCols<A>) {
    const int64_t width = smaller(filters - f, kTileCols<A>);
    A* panel = panels + f * pixels;
    for_each_pixel_run(grad, pixels_of_grad, pixel, pixels, [&](int64_t offset, int64_t at, int64_t count) {
      const T* src = grad.data + offset + (filter + f) * grad.c_stride;
      A* dst = panel + at * kTileCols<A>;
      for (int64_t j = 0; j < kTileCols<A>; j += kLanes<A>) {
        pack_transposed(count, width - j, src + j * grad.c_stride, grad.c_stride, dst + j, kTileCols<A>);
      }
    });
  }
}

template <typename T>
void conv_weight_grad(const ConvWeightGradArgs<T>& args, int64_t pixel_begin, int64_t pixel_end, int64_t k_begin,
                      int64_t k_end, int64_t filter_begin, int64_t filter_end, Acc<T>* scratch) {
  using A = Acc<T>;
  constexpr int64_t kRow = kConvBlockK + kConvPatchPadding;
  A* patches = scratch;                          // [k][kRow]
  A* panels = scratch + kConvGradPixels * kRow;  // [panel][pixel][kTileCols]
  A* sums = args.sums + k_begin * args.sums_stride + filter_begin;
  // Long chains of float64 would round more than native's products do; shorter ones cost little.
  constexpr int64_t kStep = sizeof(A) == 8 ? kConvGradPixels / 4 : kConvGradPixels;
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += kStep) {
    const int64_t pixels = smaller(kStep, pixel_end - pixel);
    pack_patch_columns(args.in, args.window, pixel, pixels, pixels, k_begin, k_end, patches, kRow);
    pack_grad(args, pixel, pixels, filter_begin, filter_end - filter_begin, panels);
    for (int64_t f = 0; f < filter_end - filter_begin; f += kTileCols<A>) {
      gemm_panels(k_end - k_begin, smaller(filter_end - filter_begin - f, kTileCols<A>), pixels, patches, kRow,
                  int64_t{1}, panels + f * pixels, sums + f, args.sums_stride, pixel > pixel_begin);
    }
  }
}

// sums[f] = sum of dy over pixels of all images, in order.
template <typename T>
void conv_bias_grad(const ConvImages<const T>& grad, int64_t pixel_begin, int64_t pixel_end, int64_t filter_begin,
                    int64_t filter_end, Acc<T>* sums) {
  using A = Acc<T>;
  const ConvWindow window{grad.height, grad.width, 1, 1, 1, 1, 0, 0, 1, 1};
  const int64_t filters = filter_end - filter_begin;
  if (grad.c_stride == 1) {
    for_each_vector<A>(filters, [&](int64_t i, int64_t n) TILEWRIGHT_INLINE {
      // Four chains: adds wait for nothing, and rounding errors grow with a quarter of the pixels.
      Vec<A> sum[4] = {};
      for_each_pixel_run(grad, window, pixel_begin, pixel_end - pixel_begin,
                         [&](int64_t offset, int64_t, int64_t count) {
                           const T* row = grad.data + offset + filter_begin + i;
                           int64_t p = 0;
                           for (; p + 4 <= count; p += 4) {
#pragma GCC unroll 4
                             for (int64_t j = 0; j < 4; ++j) sum[j] += load(row + (p + j) * grad.x_stride, n);
                           }
                           for (; p < count; ++p) sum[0] += load(row + p * grad.x_stride, n);
                         });
      store(sums + filter_begin + i, (sum[0] + sum[1]) + (sum[2] + sum[3]), n);
    });
    return;
  }
  for (int64_t f = filter_begin; f < filter_end; ++f) {
    A sum = 0;
    for_each_pixel_run(grad, window, pixel_begin, pixel_end - pixel_begin, [&](int64_t offset, int64_t, int64_t count) {
      const T* row = grad.data + offset + f * grad.c_stride;
      sum += sum_terms<A>(count, [row](int64_t i, int64_t n) TILEWRIGHT_INLINE { return load(row + i, n); });
    });
    sums[f] = sum;
  }
}

template <typename T>
void fill_conv2d(TypedKernels<T>& table) {
  table.conv2d = {kTileCols<Acc<T>>,   pack_weights<T>,
                  unpack_weights<T>,   conv_gemm<T>,
                  conv_flat_scratch,   conv_flat_rows<T>,
                  conv_weight_grad<T>, conv_bias_grad<T>,
                  kLanes<Acc<T>>,      kRowVectors,
                  pack_row_weights<T>, conv_rows_scratch<Acc<T>>,
                  conv_rows<T>,        conv_rows_weight_grad<T>,
                  transpose_matrix<T>, {}};
}

}  // namespace
}  // namespace tilewright
#endif

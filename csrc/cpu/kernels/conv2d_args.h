// What cpu/conv2d.cpp hands to kernels/conv2d*.h, and the table of those kernels.
#pragma once
#include "cpu/kernels/conv2d_images.h"
#include "cpu/kernels/conv2d_pairs_args.h"

namespace tilewright {

template <typename T>
struct ConvGemmArgs {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t images, channels, filters;
  const Acc<T>* weight;  // [panels of filters][taps * channels][panel]
  ConvEpilogue<T> epilogue;
};

template <typename T>
struct ConvWeightGradArgs {
  ConvImages<const T> in;    // x
  ConvImages<const T> grad;  // dy, whose pixels are the window's
  ConvWindow window;
  int64_t images, channels, filters;
  Acc<T>* sums;  // [taps * channels][sums_stride]: the weights' gradient of this chunk of pixels
  int64_t sums_stride;
};

// Filters of a group across panels of 1 to `widest` vectors, as even as can be: 96 are 48 + 48, not 64 + 32.
struct ConvRowPanels {
  int64_t lanes, vectors, count;
  TILEWRIGHT_INLINE ConvRowPanels(int64_t filters, int64_t lanes_of_vector, int64_t widest)
      : lanes(lanes_of_vector),
        vectors((filters + lanes_of_vector - 1) / lanes_of_vector),
        count((vectors + widest - 1) / widest) {}
  TILEWRIGHT_INLINE int64_t filter(int64_t panel) const { return vectors * panel / count * lanes; }
  TILEWRIGHT_INLINE int64_t width(int64_t panel) const {  // in vectors
    return vectors * (panel + 1) / count - vectors * panel / count;
  }
  TILEWRIGHT_INLINE int64_t filters() const { return vectors * lanes; }  // with those that fill the last vector
};

// channels_last without patches. Channels and filters are those of one group; `in` is widened where T has 16 bits.
template <typename T>
struct ConvRowsArgs {
  ConvImages<const Acc<T>> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t groups, channels, filters;
  const Acc<T>* weight;  // [group][panel][taps * channels][filters of the panel]
  ConvEpilogue<T> epilogue;
};

template <typename T>
struct ConvRowsGradArgs {
  ConvImages<const Acc<T>> in;  // x
  ConvImages<const T> grad;     // dy, whose pixels are the window's
  ConvWindow window;
  int64_t groups, channels, filters;
  Acc<T>* sums;  // [taps * channels][sums_stride] of group 0; the next group's are sums_group further
  int64_t sums_stride, sums_group;
};

// What the kernel for small groups holds in registers: neighbouring taps without dilation, up to every second pixel.
constexpr int64_t kMostGroupCols = 3, kMostGroupStride = 2;

// Taps of a depthwise weight gradient in one sweep: a 3x3 kernel's; 9 accumulators fit every ISA's registers.
constexpr int kGradTaps = 9;

// Depthwise: one channel in, one filter, for every group. Weights are [taps][channels] for channels_last and
// [channels][taps] for planes. channels_last also has groups of as many filters as channels (4 or 8, at most a
// vector's lanes; float32): weights [taps][channel in the group][filters].
template <typename T>
struct ConvDepthwiseArgs {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t images, channels;
  int64_t pitch;       // of rows of weights: channels, or all where those are some of them; channels_last only
  int64_t group;       // channels of one, channels_last only
  int64_t multiplier;  // planes only: filters per channel read (forward); plane f reads channel f / multiplier
  const Acc<T>* weight;
  ConvEpilogue<T> epilogue;
};

template <typename T>
struct ConvDepthwiseGradArgs {
  ConvImages<const T> in;
  ConvImages<const T> grad;
  ConvWindow window;
  int64_t images, channels, pitch, group, multiplier;
  Acc<T>* sums;  // [taps][channel in the group][pitch] for channels_last, [channels][taps] for planes
};

// The data gradient of stride 2: pixels (2 y + i, 2 x + j) of `out` are those of window and weights 2 i + j, of as many
// channels as there are filters. Planes: of x_stride 1.
template <typename T>
struct ConvDepthwiseClasses {
  ConvImages<const T> grad;
  ConvImages<T> out;
  ConvWindow windows[4];
  int64_t images, channels, pitch;
  const Acc<T>* weights[4];  // [taps][pitch] for channels_last, [channels][taps] for planes
};

// Blocks of the product: a block of patches (pixels x k) and of output stay in L2 (1 MB; 32-bit: 122 KB + 112 KB), one
// panel of weights (k x 32 columns: 32 KB) in L1 or close by.
constexpr int64_t kConvBlockColumns = 128;
constexpr int64_t kConvBlockK = 256;
// Planes read by one tap: long runs of few channels, because every channel is another page.
constexpr int64_t kConvPointColumns = 512;
constexpr int64_t kConvPointK = 64;
inline bool conv_reads_runs(const ConvWindow& window) {
  constexpr int64_t kShortestRun = 96;
  return window.rows * window.cols == 1 && window.width * window.height >= kShortestRun;
}
inline int64_t conv_block_columns(const ConvWindow& window) {
  return conv_reads_runs(window) ? kConvPointColumns : kConvBlockColumns;
}
constexpr int64_t kConvBlockFilters = 256;
constexpr int64_t kConvPatchPadding =
    16;  // patch rows are kConvBlockK + 16 apart: no two rows of a tile share an L1 set
constexpr int64_t kConvGradPixels = 256;
// Rows of gradients and the panel they are packed to (64 filters: 32 KB) that one tile of a weight's gradient sums.
constexpr int64_t kConvRowsGradPixels = 126;
constexpr int64_t kConvScratchElements = kConvPointColumns * (kConvPointK + kConvBlockFilters) + 64;
static_assert(kConvBlockColumns * kConvBlockK == kConvPointColumns * kConvPointK);
static_assert(kConvScratchElements >= 2 * kConvGradPixels * (kConvBlockK + kConvPatchPadding));

template <typename T>
struct Conv2dKernels {
  int64_t panel;  // filters in a panel of packed weights
  void (*pack_weights)(const ConvWeights<const T>&, int64_t k, int64_t panel_begin, int64_t panel_end, Acc<T>* packed);
  void (*unpack_weights)(const ConvWeights<T>&, int64_t k, const Acc<T>* sums, int64_t sums_stride, int64_t chunks,
                         int64_t filter_begin, int64_t filter_end);
  // scratch: kConvScratchElements, aligned to 64 bytes. Pixels count through all images.
  void (*gemm)(const ConvGemmArgs<T>&, int64_t pixel_begin, int64_t pixel_end, int64_t filter_begin, int64_t filter_end,
               Acc<T>* scratch);
  // The same for planes, without patches: output rows of image n. flat_scratch: how many elements it needs.
  int64_t (*flat_scratch)(const ConvWindow&, int64_t channels, int64_t filters, int64_t rows);
  void (*flat)(const ConvGemmArgs<T>&, int64_t n, int64_t row_begin, int64_t row_end, int64_t filter_begin,
               int64_t filter_end, Acc<T>* scratch);
  void (*weight_grad)(const ConvWeightGradArgs<T>&, int64_t pixel_begin, int64_t pixel_end, int64_t k_begin,
                      int64_t k_end, int64_t filter_begin, int64_t filter_end, Acc<T>* scratch);
  // sums[f] of one chunk; images in the given range
  void (*bias_grad)(const ConvImages<const T>& grad, int64_t pixel_begin, int64_t pixel_end, int64_t filter_begin,
                    int64_t filter_end, Acc<T>* sums);
  // channels_last without patches (ConvRowsArgs), panels as ConvRowPanels(filters, row_lanes, row_vectors) has them.
  int64_t row_lanes, row_vectors;
  void (*pack_row_weights)(const ConvWeights<const T>&, int64_t k, int64_t panel_begin, int64_t panel_end,
                           Acc<T>* packed);
  int64_t (*rows_scratch)(const ConvWindow&, int64_t groups, int64_t channels, int64_t x_stride,
                          int64_t pixels);  // accumulators
  void (*rows)(const ConvRowsArgs<T>&, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin, int64_t panel_end,
               Acc<T>* scratch);
  void (*rows_weight_grad)(const ConvRowsGradArgs<T>&, int64_t pixel_begin, int64_t pixel_end, int64_t k_begin,
                           int64_t k_end, int64_t panel_begin, int64_t panel_end, Acc<T>* scratch);
  // dst[j * dst_row + i] = src[i * src_row + j] for i < rows, j < cols.
  void (*transpose)(int64_t rows, int64_t cols, const T* src, int64_t src_row, T* dst, int64_t dst_row);
  ConvPairsKernels<T> pairs;
};

template <typename T>
struct DepthwiseKernels {
  // channels_last: rows count through all images
  void (*last)(const ConvDepthwiseArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*last_weight_grad)(const ConvDepthwiseGradArgs<T>&, int64_t row_begin, int64_t row_end);
  // Centred windows of 3 and 5 without dilation, not in float64; rows of dy
  void (*last_classes)(const ConvDepthwiseClasses<T>&, int64_t row_begin, int64_t row_end);
  // planes: plane (n, f) = n * channels + f; output rows row_begin .. row_end of each
  int64_t (*planes_scratch)(const ConvWindow&, int64_t rows);  // elements
  void (*planes)(const ConvDepthwiseArgs<T>&, int64_t plane_begin, int64_t plane_end, int64_t row_begin,
                 int64_t row_end, Acc<T>* scratch);
  int64_t (*planes_classes_scratch)(const ConvWindow*, int64_t rows);
  void (*planes_classes)(const ConvDepthwiseClasses<T>&, int64_t plane_begin, int64_t plane_end, int64_t row_begin,
                         int64_t row_end, Acc<T>* scratch);  // rows of a class
  void (*planes_weight_grad)(const ConvDepthwiseGradArgs<T>&, int64_t channel_begin, int64_t channel_end,
                             int64_t rows_per_block, Acc<T>* scratch);
};

}  // namespace tilewright

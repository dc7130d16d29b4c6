// What cpu/conv2d.cpp hands to kernels/conv2d*.h.
//
// Letters: n image, c channel of the images read (summed over), f filter = channel of the images written, t tap, k an
// index of the sum over taps and channels. Strides and offsets count elements.
#pragma once
#include "common/types.h"
#include "cpu/kernels/activation_args.h"

namespace tilewright {

// Images in either format, or the pixels of one residue of theirs: element (n, c, y, x) is at data[n * n_stride + c *
// c_stride + ...].
template <typename T>
struct ConvImages {
  T* data;
  int64_t height, width;
  int64_t n_stride, c_stride, y_stride, x_stride;
};

// Which positions are read: pixel (y, x) of `height` x `width` reads at tap (i, j) of `rows` x `cols` the position
// (y * stride_y + first_y + i * step_y, x * stride_x + first_x + j * step_x); positions outside the image read 0.
// A forward convolution has first = -padding and step = dilation. The data gradient has stride 1, and for each residue
// of the strides its own lattice of taps.
struct ConvWindow {
  int64_t height, width;
  int64_t stride_y, stride_x;
  int64_t rows, cols;
  int64_t first_y, first_x;
  int64_t step_y, step_x;
};

// Pixels from one row to the next where an image is copied with its padding (conv2d_phases.h).
inline int64_t phase_pitch(const ConvWindow& window) {
  return window.width + (window.cols - 1) * window.step_x / window.stride_x;
}

// Whether the taps of a row, neighbours in channels_last images, are read as one run: where single ones would be short.
inline bool joins_taps(int64_t groups, int64_t channels, int64_t cols, int64_t step_x) {
  constexpr int64_t kFewChannels = 32, kLongest = 128;
  return groups == 1 && step_x == 1 && cols > 1 && channels < kFewChannels && cols * channels <= kLongest;
}

// Order of k: taps outermost for channels_last images (whose patches are runs of channels), channels outermost else
// (whose patches are runs of a row). It is also the order of the weights in memory of that format.
enum class ConvOrder { kTapsOuter, kChannelsOuter };

// The weights of one group as runs: element e of run r of filter f is at data[f * filter_stride + r * run_stride +
// e * element_stride] and holds k = row_of[e] + r * run_step (or belongs to no tap of the window where row_of[e] < 0).
// filter_stride or element_stride is 1.
template <typename T>
struct ConvWeights {
  T* data;
  int64_t filters, filter_stride;
  int64_t runs, run_stride, run_length, element_stride, run_step;
  const int32_t* row_of;  // [run_length]
};

// What becomes of a sum on its way to out: out = activation(sum + bias + residual).
template <typename T>
struct ConvEpilogue {
  const Acc<T>* bias;  // [filters] or null
  const T* residual;   // at out's offsets, or null
  Activation activation;
  T* pre;  // what the activation is applied to, at out's offsets, or null
  bool empty() const { return bias == nullptr && residual == nullptr && activation == Activation::kNone; }
};

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

// bfloat16 in pairs: patches of channels_last images, weights [group][panel][part][pairs of k][panel].
template <typename T>
struct ConvPairsArgs {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t groups, channels, filters;  // of one group
  const void* weight;
  ConvEpilogue<T> epilogue;
  bool checks = false;  // does the caller look at the sums?
};

template <typename T>
struct ConvPairsGradArgs {
  ConvImages<const T> in;  // x
  const T* grad;           // dy, whose pixels are grad_row apart
  int64_t grad_row;
  ConvWindow window;
  int64_t groups, channels, filters;
  Acc<T>* sums;  // [chunk][groups * filters][taps * channels]
};

// Sums of a weights' gradient, [chunk][filters][taps][channels].
struct ConvPairsSums {
  int64_t filters, taps, channels;  // filters of all groups
  float* data;
};

// Images as 1x1 kernels see them: element (n, p, c) at data[n * image + p * pixel + c * channel]; pixel or channel
// is 1.
template <typename T>
struct PointImages {
  const T* data;
  int64_t image, pixel, channel;
};

// Pixels in blocks: of some whole images, or of a part of one. Of an image they fill whole steps. chunks: how many the
// blocks of one image are to be shared out to.
struct PointBlocks {
  int64_t images, pixels;   // in all; of an image
  int64_t together, parts;  // images of a block; blocks of an image
  PointBlocks(int64_t images_in_all, int64_t pixels_of_image, int64_t chunks)
      : images(images_in_all), pixels(pixels_of_image) {
    // 256 filters and 256 channels of so many, in three parts: 1.5 MB (of 256: 1.12x instead of 1.3x of native for
    // weights of 256 x 1024, whose sums are read and written with every block).
    constexpr int64_t kPixels = 512;
    parts = (pixels + kPixels - 1) / kPixels;
    if (parts > chunks) parts = (parts + chunks - 1) / chunks * chunks;
    together = parts > 1 ? 1 : kPixels / filled(pixels);
  }
  struct Block {
    int64_t image, images, pixel, pixels;
  };
  TILEWRIGHT_INLINE static int64_t filled(int64_t n) { return (n + 31) / 32 * 32; }
  TILEWRIGHT_INLINE int64_t count() const { return (images + together - 1) / together * parts; }
  TILEWRIGHT_INLINE Block at(int64_t block) const {
    const int64_t n = block / parts * together, part = block % parts;
    const int64_t begin = filled(pixels * part / parts),
                  end = part + 1 == parts ? pixels : filled(pixels * (part + 1) / parts);
    return {n, together < images - n ? together : images - n, begin, end - begin};
  }
  // Of the largest block.
  TILEWRIGHT_INLINE int64_t positions() const { return together * (filled(pixels / parts) + 32); }
};
constexpr int64_t kPointChannels = 256;

template <typename T>
struct ConvPointGradArgs {
  PointImages<T> grad, in;  // dy, x
  PointBlocks blocks;
  int64_t filters, channels;
  float* sums;  // [filters][sums_row], written
  int64_t sums_row;
};

// Blocks of them: pixels and filters of one block of sums, and what the copies take of L2 (1 MB): patches 106 KB and
// sums 139 KB; for a weight's gradient at most dy 348 KB, patches and panels of 128 values of k together 295 KB. Sums
// of a weight's gradient are read and written once for a block of pixels (8x128x28x28: 256 0.73x of native, 512 0.90x).
constexpr int64_t kPairPixels = 128;
constexpr int64_t kPairFilters = 256;
constexpr int64_t kPairGradPixels = 512;
constexpr int64_t kPairGradK = 128;
// Taps of a weight's gradient without patches.
constexpr int64_t kMostStripTaps = 64;
// Whole left tiles: 19 of 14 rows, 16 apart, or 8 of 32; and a vector behind the last.
constexpr int64_t kPairGradLeft = (kPairFilters + 64) * (kPairGradPixels / 2 + 16);
constexpr int64_t kPairScratchBytes = 1 << 20;

// What the kernel for small groups holds in registers: neighbouring taps without dilation, up to every second pixel.
constexpr int64_t kMostGroupCols = 3, kMostGroupStride = 2;

// Depthwise: one channel in, one filter, for every group. Weights are [taps][channels] for channels_last and
// [channels][taps] for planes. channels_last also has groups of as many filters as channels (4 or 8, at most a
// vector's lanes; float32): weights [taps][channel in the group][filters].
template <typename T>
struct ConvDepthwiseArgs {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t images, channels;
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
  int64_t images, channels, group, multiplier;
  Acc<T>* sums;  // [taps][channel in the group][channels] for channels_last, [channels][taps] for planes
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

// panel is 0 where the processor multiplies no pairs. float32 and float16 have them on tile units only, in parts of
// bfloat16, and none with patches: `forward` and `weight_grad` are null.
template <typename T>
struct ConvPairsKernels {
  int64_t panel, step;  // filters of a panel; values of k are filled up to a multiple of step
  int64_t parts;        // bfloat16 values that packed weights have of each
  void (*pack_weights)(const ConvWeights<const T>&, int64_t k, int64_t panel_begin, int64_t panel_end, void* packed);
  // scratch: kPairScratchBytes, aligned to 64 bytes.
  void (*forward)(const ConvPairsArgs<T>&, int64_t pixel_begin, int64_t pixel_end, int64_t filter_begin,
                  int64_t filter_end, void* scratch);
  // Without patches: output rows of image n. The weights of a tap are filled up to a multiple of step. strip_bytes: of
  // scratch. Returns the largest magnitude of the sums, NaN if one is not finite, if it is asked to check.
  int64_t (*strip_bytes)(const ConvWindow&, int64_t channels, int64_t filters, int64_t rows);
  float (*strip)(const ConvPairsArgs<T>&, int64_t n, int64_t row_begin, int64_t row_end, int64_t filter_begin,
                 int64_t filter_end, void* scratch);
  void (*weight_grad)(const ConvPairsGradArgs<T>&, int64_t pixel_begin, int64_t pixel_end, int64_t k_begin,
                      int64_t k_end, int64_t filter_begin, int64_t filter_end, void* scratch);
  // Without patches: blocks of output rows, counted through all images; at most kMostStripTaps taps. strip_grad_bytes:
  // of scratch.
  int64_t (*strip_grad_bytes)(const ConvWindow&, int64_t channels, int64_t filters, int64_t rows);
  void (*strip_weight_grad)(const ConvPairsGradArgs<T>&, int64_t block_rows, int64_t block_begin, int64_t block_end,
                            int64_t filter_begin, int64_t filter_end, void* scratch);
  // The same for 1x1 kernels of float32 and float16 (of bfloat16 null), a part of the filters.
  int64_t (*point_weight_grad_bytes)(const ConvPointGradArgs<T>&, int64_t filters);
  float (*point_weight_grad)(const ConvPointGradArgs<T>&, int64_t block_begin, int64_t block_end, int64_t filter_begin,
                             int64_t filter_end, void* scratch);
  // Returns what `strip` does.
  float (*finish_weights)(const ConvPairsSums&, int64_t chunks, int64_t filter_begin, int64_t filter_end,
                          bool channels_last, T* weights);
};

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
  // planes: plane (n, f) = n * channels + f; output rows row_begin .. row_end of each
  int64_t (*planes_scratch)(const ConvWindow&, int64_t rows);  // elements
  void (*planes)(const ConvDepthwiseArgs<T>&, int64_t plane_begin, int64_t plane_end, int64_t row_begin,
                 int64_t row_end, Acc<T>* scratch);
  void (*planes_weight_grad)(const ConvDepthwiseGradArgs<T>&, int64_t channel_begin, int64_t channel_end,
                             int64_t rows_per_block, Acc<T>* scratch);
};

}  // namespace tilewright

// What cpu/conv2d_pairs*.h and cpu/conv2d_split.h hand to kernels/conv2d_pairs*.h and kernels/conv2d_point_grad.h.
#pragma once
#include "cpu/kernels/conv2d_images.h"

namespace tilewright {

// Pairs of bfloat16, or parts of float32 and float16: channels_last images, weights [group][panel][part][pairs of
// k][panel].
template <typename T>
struct ConvPairsArgs {
  ConvImages<const T> in;
  ConvImages<T> out;
  ConvWindow window;
  int64_t groups, channels, filters;  // of one group
  const void* weight;
  ConvEpilogue<T> epilogue;
  bool checks = false;  // does the caller ask whether the sums are finite, of joined taps the images?
  // Values of a row of taps, where those are joined; else 0. `channels` are then the values from one pixel's row of
  // taps to the next one's, and `window` counts in these: its stride_x is 1. (first_x counts pixels of the image.)
  int64_t run = 0;
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
// Channels of x that are packed at a time: their parts of 512 pixels (0.8 MB), beside those of 256 filters, lie in L2.
constexpr int64_t kPointChannels = 256;

template <typename T>
struct ConvPointGradArgs {
  PointImages<T> grad, in;  // dy, x
  PointBlocks blocks;
  int64_t channels;
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
  // scratch. Where it checks, it returns the largest magnitude of the sums (of joined taps 0), NaN if one is not
  // finite.
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

}  // namespace tilewright

// Which convolutions of stride 1 are computed by Winograd's minimal filtering (kernels/winograd_transforms.h), in which
// form, and in what blocks. All of it depends on the shape alone, but for the switches.
#pragma once
#include <ATen/Context.h>
#include <c10/util/env.h>

#include "cpu/conv2d_split_scale.h"

namespace tilewright {

// F(pixels x pixels, taps x taps).
struct WinogradForm {
  int64_t pixels, taps;
  int64_t points() const { return (pixels + taps - 1) * (pixels + taps - 1); }
  // Of a group, transformed.
  int64_t weights(const Conv2dShape& shape) const {
    return points() * (shape.channels / shape.groups) * (shape.filters / shape.groups);
  }
  // Products that are added in a row. Those of more than 16 points are larger than their sums, so their chains are
  // short: errors in norm, simulated, were 2.7 to 3.7 times native's at 32, 3.5 to 4.6 at 64, up to 6.1 at 128.
  // (In parts of bfloat16: kernels/winograd_split.h.)
  int64_t depth() const { return points() > 16 ? 32 : 256; }
};

// Blocks of tiles of m x m pixels for one core. A block holds whole rows of tiles, of as many images as it takes,
// unless one row is more than a block should be.
struct WinogradCut {
  int64_t rows, cols;  // of tiles, in all images and in one row
  int64_t row_pieces, col_pieces;
  WinogradCut(int64_t height, int64_t width, int64_t images, int64_t m, int64_t target)
      : rows(images * divide_up(height, m)), cols(divide_up(width, m)), row_pieces(rows), col_pieces(1) {
    if (cols > target) {
      col_pieces = divide_up(cols, target);
      return;
    }
    constexpr int64_t kEven = 4;  // whole rounds for two and four threads
    row_pieces = divide_up(rows, std::max<int64_t>(1, target / cols));
    row_pieces = std::min(rows, divide_up(row_pieces, kEven) * kEven);
  }
  int64_t count() const { return row_pieces * col_pieces; }
  WinogradBlock at(int64_t i) const {
    const int64_t row = i / col_pieces, col = i % col_pieces;
    return {rows * row / row_pieces, rows * (row + 1) / row_pieces, cols * col / col_pieces,
            cols * (col + 1) / col_pieces};
  }
  // No block is larger.
  WinogradBlock largest() const { return {0, divide_up(rows, row_pieces), 0, divide_up(cols, col_pieces)}; }
  int64_t tiles_before(int64_t i) const {
    const WinogradBlock block = at(i);
    return block.row_begin * cols + (block.row_end - block.row_begin) * block.col_begin;
  }
};

// Strides that are odd multiples of 64 bytes, so that the rows of a matrix, and the matrices, spread over the
// cache's sets.
inline int64_t spread(int64_t elements) { return (divide_up(elements, 16) | 1) * 16; }

// The switch: TILEWRIGHT_WINOGRAD=0 in the environment, read once, and torch.use_deterministic_algorithms, whose user
// asks for the plain sum (this one is as reproducible, but another one).
inline bool winograd_is_allowed() {
  static const bool is_wanted = c10::utils::get_env("TILEWRIGHT_WINOGRAD") != "0";
  return is_wanted && !at::globalContext().deterministicAlgorithms();
}

// Whether the products pay: enough channels and filters to outweigh the transforms of the images, enough tiles to
// outweigh those of the weights, and not too many pixels computed and dropped. The weights' gradient of 5x5 kernels
// asks for more tiles: five taps from six points are the least exact of the forms (5 to 6 times native's error over 100
// tiles, where a plain sum is short; 2.7 over 1500). Not for float64: who asks for it asks for the last digit.
inline bool winograd_suits(const Conv2dShape& shape, at::ScalarType dtype, ConvPass pass) {
  constexpr int64_t kFewestTiles = 96, kFewestTilesOf5x5 = 400, kFewestChannels = 16, kFewestOfOthers = 32;
  const int64_t taps = shape.kernel[0];
  const bool fits = (taps == 3 || taps == 5) && shape.kernel[1] == taps && shape.stride[0] == 1 && shape.stride[1] == 1;
  // Small groups of channels_last images are computed as rows in less time.
  const bool rows = shape.groups > 1 && shape.format == at::MemoryFormat::ChannelsLast && taps == 3;
  // Dilated ones are cut into residues (conv2d_winograd_residues.h): with 16 channels 0.5 to 0.9 times as fast as rows.
  // Where parts of bfloat16 are there, those are what was measured.
  const bool dilated = is_dilated(shape);
  if (dilated && (dtype != at::kFloat || shape.groups > 1 || split_is_allowed())) return false;
  if (!fits || dtype == at::kDouble || !winograd_is_allowed() ||
      std::min(shape.channels, shape.filters) / shape.groups < (rows || dilated ? kFewestOfOthers : kFewestChannels)) {
    return false;
  }
  const int64_t height = divide_up(shape.out[0], shape.dilation[0]), width = divide_up(shape.out[1], shape.dilation[1]);
  const int64_t tiles = divide_up(height, 2) * divide_up(width, 2);
  const bool inexact = taps == 5 && pass == ConvPass::kWeightGrad;
  return tiles * shape.images >= (inexact ? kFewestTilesOf5x5 : kFewestTiles) && tiles * 4 * 2 <= height * width * 3;
}

// The form of the fewest multiplications for a pass's result, or the part of one residue. A transformed weight, written
// and read once, costs as much as kWeight of them (measured where the forms meet: 8x512x7x7).
inline WinogradForm winograd_form(const Conv2dShape& shape, ConvPass pass) {
  constexpr int64_t kWeight = 60;
  constexpr WinogradForm small{2, 3}, large{4, 3};
  const bool writes_input = pass == ConvPass::kInputGrad;
  const int64_t height = divide_up(writes_input ? shape.height : shape.out[0], shape.dilation[0]);
  const int64_t width = divide_up(writes_input ? shape.width : shape.out[1], shape.dilation[1]);
  if (shape.kernel[0] == 5) return {2, 5};
  if (shape.groups > 1) return small;  // native is more exact there: the large form reached 8.6 times its error
  const auto cost = [&](const WinogradForm& form) {
    const int64_t tiles = shape.images * divide_up(height, form.pixels) * divide_up(width, form.pixels);
    return (tiles + kWeight) * form.points();
  };
  return cost(large) < cost(small) ? large : small;
}

}  // namespace tilewright

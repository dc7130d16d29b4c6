// What cpu/conv2d_winograd.h hands to kernels/winograd*.h: 3x3 convolutions of stride 1 by F(2x2, 3x3).
//
// The image is cut into tiles of 2 x 2 pixels; a tile reads 4 x 4 positions. Tile (n, ty, tx) begins at pixel
// (2 ty, 2 tx) of image n; `row` counts rows of tiles through all images. Transformed data are 16 matrices, one for
// each of the 4 x 4 points.
#pragma once
#include "cpu/kernels/conv2d_args.h"

namespace tilewright {

constexpr int64_t kWinogradPoints = 16;

// Rows [row_begin, row_end) of tiles, columns [col_begin, col_end).
struct WinogradBlock {
  int64_t row_begin, row_end, col_begin, col_end;
  int64_t tiles() const { return (row_end - row_begin) * (col_end - col_begin); }
};

// 16 matrices: element (point, row, column) at data[point * point_stride + row * row_stride + column].
template <typename A>
struct WinogradMatrices {
  A* data;
  int64_t point_stride, row_stride;
};

// out[point][M, N] (+)= left[point][M, K] * right[point][K, N], right in panels [panel][K][panel width].
template <typename A>
struct WinogradProduct {
  int64_t M, N, K;
  const A* left;
  int64_t left_point, left_row, left_col;
  const A* right;
  int64_t right_point;
  A* out;
  int64_t out_point, out_row;
  bool accumulate;
};

template <typename T>
struct WinogradKernels {
  // One panel of weights packed for taps-outer order, [9 * channels][panel width], to [channel][panel width] of each
  // point; the points lie point_stride apart.
  void (*transform_weights)(const Acc<T>* packed, int64_t channels, Acc<T>* transformed, int64_t point_stride);
  // The reverse for the weights' gradient: sums [chunk][point][channel][stride], added up, to [tap][channel][stride]
  // for a range of channels. Returns whether all of them are finite.
  bool (*reduce_weights)(const Acc<T>* sums, int64_t chunks, int64_t channels, int64_t stride, int64_t channel_begin,
                         int64_t channel_end, Acc<T>* reduced);
  // Elements of scratch that read_tiles, read_gradients and write_tiles need for a block of that many channels.
  int64_t (*scratch)(const WinogradBlock&, int64_t channels);
  // The block's input tiles, B^T d B: matrix rows are tiles, columns are channels.
  void (*read_tiles)(const ConvImages<const T>& in, const ConvWindow&, int64_t channels, const WinogradBlock&,
                     const WinogradMatrices<Acc<T>>& out, Acc<T>* scratch);
  // The block's gradients, A dy A^T, as panels [point][panel][tile][panel width] of `tiles` tiles; from tile `first`
  // on.
  void (*read_gradients)(const ConvImages<const T>& grad, int64_t filters, const WinogradBlock&, int64_t first,
                         int64_t tiles, Acc<T>* panels, Acc<T>* scratch);
  void (*multiply)(const WinogradProduct<Acc<T>>&, int64_t point_begin, int64_t point_end);
  // out = epilogue(A^T m A): matrix rows are tiles, columns are the filters of the range. Returns whether all sums are
  // finite.
  bool (*write_tiles)(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out, const ConvEpilogue<T>&,
                      int64_t filter_begin, int64_t filter_end, const WinogradBlock&, Acc<T>* scratch);
};

}  // namespace tilewright

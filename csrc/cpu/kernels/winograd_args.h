// What cpu/conv2d_winograd.h hands to kernels/winograd*.h: r x r convolutions of stride 1 by F(m x m, r x r).
//
// The image is cut into tiles of m x m pixels; a tile reads (m+r-1)^2 positions. Tile (n, ty, tx) begins at pixel
// (m ty, m tx) of image n; `row` counts rows of tiles through all images. Transformed data are as many matrices as a
// tile reads positions, one for each point.
#pragma once
#include "cpu/kernels/conv2d_args.h"

namespace tilewright {

// Rows [row_begin, row_end) of tiles, columns [col_begin, col_end).
struct WinogradBlock {
  int64_t row_begin, row_end, col_begin, col_end;
  int64_t tiles() const { return (row_end - row_begin) * (col_end - col_begin); }
};

// Matrices: element (point, row, column) at data[point * point_stride + row * row_stride + column].
template <typename A>
struct WinogradMatrices {
  A* data;
  int64_t point_stride, row_stride;
};

// out[point][M, N] (+)= left[point][M, K] * right[point][K, N], right in panels [panel][K][panel width]; sums of at
// most `depth` products in a row.
template <typename A>
struct WinogradProduct {
  int64_t M, N, K, depth;
  const A* left;
  int64_t left_point, left_row, left_col;
  const A* right;
  int64_t right_point;
  A* out;
  int64_t out_point, out_row;
  bool accumulate;
};

// Of one form.
template <typename T>
struct WinogradTileKernels {
  // One panel of weights packed for taps-outer order, [r * r * channels][panel width], to [channel][panel width] of
  // each point; the points lie point_stride apart.
  void (*transform_weights)(const Acc<T>* packed, int64_t channels, Acc<T>* transformed, int64_t point_stride);
  // Elements of scratch that the functions which read and write tiles need for a block of that many channels.
  int64_t (*scratch)(const WinogradBlock&, int64_t channels);
  // The block's input tiles, B^T d B: matrix rows are tiles, columns are channels.
  void (*read_tiles)(const ConvImages<const T>& in, const ConvWindow&, int64_t channels, const WinogradBlock&,
                     const WinogradMatrices<Acc<T>>& out, Acc<T>* scratch);
  // out = epilogue(A^T m A): matrix rows are tiles, columns are the filters of the range. Returns whether all sums are
  // finite.
  bool (*write_tiles)(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out, const ConvEpilogue<T>&,
                      int64_t filter_begin, int64_t filter_end, const WinogradBlock&, Acc<T>* scratch);
  // The weights' gradient. The block's gradients, A dy A^T, as panels [point][panel][tile][panel width] of `tiles`
  // tiles; from tile `first` on.
  void (*read_gradients)(const ConvImages<const T>& grad, int64_t filters, const WinogradBlock&, int64_t first,
                         int64_t tiles, Acc<T>* panels, Acc<T>* scratch);
  // Sums [chunk][point][channel][stride], added up, to [tap][channel][stride] for a range of channels. Returns whether
  // all of them are finite.
  bool (*reduce_weights)(const Acc<T>* sums, int64_t chunks, int64_t channels, int64_t stride, int64_t channel_begin,
                         int64_t channel_end, Acc<T>* reduced);
};

template <typename T>
struct WinogradKernels {
  WinogradTileKernels<T> f2x3, f4x3, f2x5;  // f m x r
  void (*multiply)(const WinogradProduct<Acc<T>>&, int64_t point_begin, int64_t point_end);
  // The same in parts of bfloat16, of sums in float32 on tile units; null elsewhere. split_bytes: of scratch.
  int64_t (*split_bytes)(const WinogradProduct<Acc<T>>&);
  void (*multiply_split)(const WinogradProduct<Acc<T>>&, int64_t point_begin, int64_t point_end, void* scratch);
};

}  // namespace tilewright

// Winograd's minimal filtering (winograd_transforms.h) over images: tiles are read from images of either format,
// multiplied with the transformed weights or gradients, and written through the epilogue.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/winograd_regions.h"
#include "cpu/kernels/winograd_transforms.h"

namespace tilewright {
namespace {

// --- images ----------------------------------------------------------------------------------------------------------

// Calls body(rows of one image, its first tile counted from the block's) for every image the block touches.
template <typename Body>
inline void for_each_image(const WinogradBlock& block, int64_t tile_rows, const Body& body) {
  for (int64_t row = block.row_begin; row < block.row_end;) {
    const int64_t n = row / tile_rows, y = row % tile_rows;
    const int64_t rows = smaller(block.row_end - row, tile_rows - y);
    body(TileRows{n, y, y + rows}, (row - block.row_begin) * (block.col_end - block.col_begin));
    row += rows;
  }
}

// The transform of tiles whose positions at(i, j) are S, a storage type or the accumulator.
template <typename A, typename S>
inline void read_tile(const S* const (&at)[4][4], int64_t channels, A* out, int64_t point_stride) {
  for_each_vector<A>(channels, [&](int64_t c, int64_t n) TILEWRIGHT_INLINE {
    transform_input<A>([&](int i, int j) TILEWRIGHT_INLINE { return load(at[i][j] + c, n); },
                       [&](int point, Vec<A> v) TILEWRIGHT_INLINE { store(out + point * point_stride + c, v, n); });
  });
}

template <typename T>
void winograd_read_tiles(const ConvImages<const T>& in, const ConvWindow& window, int64_t channels,
                         const WinogradBlock& block, const WinogradMatrices<Acc<T>>& out, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, first_x = 2 * block.col_begin + window.first_x;
  for_each_image(block, (window.height + 1) / 2, [&](const TileRows& tiles, int64_t first) {
    const int64_t first_y = 2 * tiles.begin + window.first_y;
    const Region region{first_y, first_x, 2 * (tiles.end - tiles.begin) + 2, 2 * cols + 2, padded_channels(channels)};
    A* row_out = out.data + first * out.row_stride;
    const T* image = in.data + tiles.image * in.n_stride;
    const bool last = in.c_stride == 1;
    if (!last) read_region(in, image, channels, region, scratch);
    const T* zeros = reinterpret_cast<const T*>(scratch);
    if (last) fill_zero(scratch, channels);
    for (int64_t row = 0; row < tiles.end - tiles.begin; ++row) {
      for (int64_t col = 0; col < cols; ++col, row_out += out.row_stride) {
        if (!last) {
          const A* at[4][4];
          for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j) {
              at[i][j] = scratch + ((2 * row + i) * region.width + 2 * col + j) * region.pixel;
            }
          }
          read_tile<A, A>(at, channels, row_out, out.point_stride);
          continue;
        }
        const T* at[4][4];
        for (int i = 0; i < 4; ++i) {
          const int64_t y = first_y + 2 * row + i;
          const bool inside = y >= 0 && y < in.height;
          for (int j = 0; j < 4; ++j) {
            const int64_t x = first_x + 2 * col + j;
            at[i][j] = inside && x >= 0 && x < in.width ? image + y * in.y_stride + x * in.x_stride : zeros;
          }
        }
        read_tile<A, T>(at, channels, row_out, out.point_stride);
      }
    }
  });
}

template <typename A, typename S>
inline void read_gradient_tile(const S* const (&at)[2][2], int64_t filters, A* out, int64_t panel_stride,
                               int64_t point_stride) {
  for (int64_t f = 0; f < filters; f += kTileCols<A>) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kTileCols<A>; v += kLanes<A>) {
      A* to = out + f / kTileCols<A> * panel_stride + v;
      const int64_t n = larger(0, smaller(filters - f - v, kLanes<A>));
      transform_gradient<A>([&](int i, int j) TILEWRIGHT_INLINE { return load(at[i][j] + (n > 0 ? f + v : 0), n); },
                            [&](int point, Vec<A> x) TILEWRIGHT_INLINE { store(to + point * point_stride, x); });
    }
  }
}

template <typename T>
void winograd_read_gradients(const ConvImages<const T>& grad, int64_t filters, const WinogradBlock& block,
                             int64_t first_tile, int64_t tiles_in_all, Acc<T>* panels, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, first_x = 2 * block.col_begin;
  const int64_t panel_stride = tiles_in_all * kTileCols<A>;
  const int64_t point_stride = (filters + kTileCols<A> - 1) / kTileCols<A> * panel_stride;
  for_each_image(block, (grad.height + 1) / 2, [&](const TileRows& tiles, int64_t first) {
    const int64_t first_y = 2 * tiles.begin;
    const Region region{first_y, first_x, 2 * (tiles.end - tiles.begin), 2 * cols, padded_channels(filters)};
    A* out = panels + (first_tile + first) * kTileCols<A>;
    const T* image = grad.data + tiles.image * grad.n_stride;
    const bool last = grad.c_stride == 1;
    if (!last) read_region(grad, image, filters, region, scratch);
    const T* zeros = reinterpret_cast<const T*>(scratch);
    if (last) fill_zero(scratch, filters);
    for (int64_t row = 0; row < tiles.end - tiles.begin; ++row) {
      for (int64_t col = 0; col < cols; ++col, out += kTileCols<A>) {
        if (!last) {
          const A* at[2][2];
          for (int i = 0; i < 2; ++i) {
            for (int j = 0; j < 2; ++j) {
              at[i][j] = scratch + ((2 * row + i) * region.width + 2 * col + j) * region.pixel;
            }
          }
          read_gradient_tile<A, A>(at, filters, out, panel_stride, point_stride);
          continue;
        }
        const T* at[2][2];
        for (int i = 0; i < 2; ++i) {
          for (int j = 0; j < 2; ++j) {
            const int64_t y = first_y + 2 * row + i, x = first_x + 2 * col + j;
            at[i][j] = y < grad.height && x < grad.width ? image + y * grad.y_stride + x * grad.x_stride : zeros;
          }
        }
        read_gradient_tile<A, T>(at, filters, out, panel_stride, point_stride);
      }
    }
  });
}

// --- products --------------------------------------------------------------------------------------------------------

template <typename A>
void winograd_multiply(const WinogradProduct<A>& product, int64_t point_begin, int64_t point_end) {
  const int64_t blocks = larger(1, (product.K + kConvBlockK - 1) / kConvBlockK);
  for (int64_t point = point_begin; point < point_end; ++point) {
    const A* left = product.left + point * product.left_point;
    const A* right = product.right + point * product.right_point;
    A* out = product.out + point * product.out_point;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k = product.K * b / blocks, depth = product.K * (b + 1) / blocks - k;
      for (int64_t f = 0; f < product.N; f += kTileCols<A>) {
        gemm_panels(product.M, smaller(product.N - f, kTileCols<A>), depth, left + k * product.left_col,
                    product.left_row, product.left_col, right + f * product.K + k * kTileCols<A>, out + f,
                    product.out_row, b > 0 || product.accumulate);
      }
    }
  }
}

// --- results ---------------------------------------------------------------------------------------------------------

// One tile's pixels, before the epilogue, for a vector of filters.
template <typename A>
inline TILEWRIGHT_INLINE void output_of_tile(const WinogradMatrices<const A>& in, int64_t tile, int64_t f, int64_t n,
                                             Vec<A> (&y)[2][2]) {
  const A* from = in.data + tile * in.row_stride + f;
  transform_output<A>([&](int point) TILEWRIGHT_INLINE { return load(from + point * in.point_stride, n); }, y);
}

template <typename T>
bool winograd_write_last(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out,
                         const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filter_end,
                         const WinogradBlock& block) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, filters = filter_end - filter_begin;
  Vec<A> check{};
  for_each_image(block, (out.height + 1) / 2, [&](const TileRows& tiles, int64_t tile) {
    for (int64_t row = tiles.begin; row < tiles.end; ++row) {
      for (int64_t col = block.col_begin; col < block.col_begin + cols; ++col, ++tile) {
        const int64_t height = smaller(2, out.height - 2 * row), width = smaller(2, out.width - 2 * col);
        const int64_t place =
            tiles.image * out.n_stride + 2 * row * out.y_stride + 2 * col * out.x_stride + filter_begin;
        for_each_vector<A>(filters, [&](int64_t f, int64_t n) TILEWRIGHT_INLINE {
          Vec<A> y[2][2];
          output_of_tile<A>(in, tile, f, n, y);
          const Vec<A> bias = epilogue.bias != nullptr ? load(epilogue.bias + filter_begin + f, n) : Vec<A>{};
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
              if (i >= height || j >= width) continue;
              check = fma(y[i][j], Vec<A>{}, check);
              const int64_t at = place + i * out.y_stride + j * out.x_stride + f;
              store(out.data + at, finish_vector<T>(epilogue, y[i][j] + bias, at, n), n);
            }
          }
        });
      }
    }
  });
  return all_finite<A>(check);
}

template <typename T>
bool winograd_write_planes(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out,
                           const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filter_end,
                           const WinogradBlock& block, Acc<T>* scratch) {
  using A = Acc<T>;
  const int64_t cols = block.col_end - block.col_begin, filters = filter_end - filter_begin;
  Vec<A> check{};
  for_each_image(block, (out.height + 1) / 2, [&](const TileRows& tiles, int64_t tile) {
    const Region region{2 * tiles.begin, 2 * block.col_begin, smaller(out.height, 2 * tiles.end) - 2 * tiles.begin,
                        smaller(out.width, 2 * block.col_end) - 2 * block.col_begin, padded_channels(filters)};
    for (int64_t row = 0; row < tiles.end - tiles.begin; ++row) {
      for (int64_t col = 0; col < cols; ++col, ++tile) {
        const int64_t height = smaller(2, region.height - 2 * row), width = smaller(2, region.width - 2 * col);
        A* pixels = scratch + (2 * row * region.width + 2 * col) * region.pixel;
        for_each_vector<A>(filters, [&](int64_t f, int64_t n) TILEWRIGHT_INLINE {
          Vec<A> y[2][2];
          output_of_tile<A>(in, tile, f, n, y);
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
              if (i >= height || j >= width) continue;
              check = fma(y[i][j], Vec<A>{}, check);
              store(pixels + (i * region.width + j) * region.pixel + f, y[i][j]);
            }
          }
        });
      }
    }
    write_region(region, scratch, out, tiles.image, epilogue, filter_begin, filters);
  });
  return all_finite<A>(check);
}

template <typename T>
bool winograd_write_tiles(const WinogradMatrices<const Acc<T>>& in, const ConvImages<T>& out,
                          const ConvEpilogue<T>& epilogue, int64_t filter_begin, int64_t filter_end,
                          const WinogradBlock& block, Acc<T>* scratch) {
  if (out.c_stride == 1) return winograd_write_last(in, out, epilogue, filter_begin, filter_end, block);
  return winograd_write_planes(in, out, epilogue, filter_begin, filter_end, block, scratch);
}

template <typename T>
void fill_winograd(TypedKernels<T>& table) {
  using A = Acc<T>;
  table.winograd = {winograd_transform_weights<A>, winograd_reduce_weights<A>, winograd_scratch,
                    winograd_read_tiles<T>,        winograd_read_gradients<T>, winograd_multiply<A>,
                    winograd_write_tiles<T>};
}

}  // namespace
}  // namespace tilewright

// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(2x2, 3x3): 16 products where the plain sum has 36.
//
//   y = A^T [ (G g G^T) * (B^T d B) ] A        d 4x4 positions, g 3x3 weights, y 2x2 pixels; * point by point
//   dg = G^T [ (B^T d B) * (A dy A^T) ] G      the weights' gradient, the same identity read backwards
//
//        1  0 -1  0            1   0   0
//  B^T = 0  1  1  0      G =  .5  .5  .5      A^T = 1  1  1  0
//        0 -1  1  0           .5 -.5  .5            0  1 -1 -1
//        0  1  0 -1            0   0   1
//
// Summed over channels (or tiles) the products are 16 matrix products. The transforms are sums and halvings: errors
// stay at those of the plain sum (F(4x4, 3x3) would multiply them by ten and more). Points a pixel does not depend on
// have a zero in A^T or B^T, so an Inf or a NaN reaches the pixels it reaches in the plain sum, but Inf may become NaN
// there: the functions that finish a result report values that are not finite, and the caller computes the plain sum.
#pragma once
#include "cpu/kernels/conv2d_epilogue.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/winograd_regions.h"

namespace tilewright {
namespace {

template <typename A>
inline TILEWRIGHT_INLINE void input_points(const Vec<A>& d0, const Vec<A>& d1, const Vec<A>& d2, const Vec<A>& d3,
                                           Vec<A> (&out)[4]) {
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

// B^T d B of one vector of channels: load_at(i, j) gives position (i, j), keep(point, v) takes the result.
template <typename A, typename LoadAt, typename Keep>
inline TILEWRIGHT_INLINE void transform_input(const LoadAt& load_at, const Keep& keep) {
  Vec<A> half[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Vec<A> column[4];
    input_points<A>(load_at(0, j), load_at(1, j), load_at(2, j), load_at(3, j), column);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) half[i][j] = column[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Vec<A> row[4];
    input_points<A>(half[i][0], half[i][1], half[i][2], half[i][3], row);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) keep(i * 4 + j, row[j]);
  }
}

// A^T m A: load_at(point) gives the sums, y the 2 x 2 pixels.
template <typename A, typename LoadAt>
inline TILEWRIGHT_INLINE void transform_output(const LoadAt& load_at, Vec<A> (&y)[2][2]) {
  Vec<A> half[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec<A> m0 = load_at(j), m1 = load_at(4 + j), m2 = load_at(8 + j), m3 = load_at(12 + j);
    half[0][j] = m0 + m1 + m2;
    half[1][j] = m1 - m2 - m3;
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[i][0] = half[i][0] + half[i][1] + half[i][2];
    y[i][1] = half[i][1] - half[i][2] - half[i][3];
  }
}

// A dy A^T: load_at(i, j) gives pixel (i, j).
template <typename A, typename LoadAt, typename Keep>
inline TILEWRIGHT_INLINE void transform_gradient(const LoadAt& load_at, const Keep& keep) {
  Vec<A> half[4][2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const Vec<A> d0 = load_at(0, j), d1 = load_at(1, j);
    half[0][j] = d0;
    half[1][j] = d0 + d1;
    half[2][j] = d0 - d1;
    half[3][j] = -d1;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    keep(i * 4, half[i][0]);
    keep(i * 4 + 1, half[i][0] + half[i][1]);
    keep(i * 4 + 2, half[i][0] - half[i][1]);
    keep(i * 4 + 3, -half[i][1]);
  }
}

// --- weights ---------------------------------------------------------------------------------------------------------

template <typename A>
void winograd_transform_weights(const A* packed, int64_t channels, A* transformed, int64_t point_stride) {
  const int64_t tap_stride = channels * kTileCols<A>;
  for_each_vector<A>(tap_stride, [&](int64_t e, int64_t n) TILEWRIGHT_INLINE {
    Vec<A> half[4][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const A* tap = packed + j * tap_stride + e;
      const Vec<A> g0 = load(tap, n), g1 = load(tap + 3 * tap_stride, n), g2 = load(tap + 6 * tap_stride, n);
      const Vec<A> even = (g0 + g2) * A(0.5), odd = g1 * A(0.5);
      half[0][j] = g0;
      half[1][j] = even + odd;
      half[2][j] = even - odd;
      half[3][j] = g2;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<A> even = (half[i][0] + half[i][2]) * A(0.5), odd = half[i][1] * A(0.5);
      A* out = transformed + i * 4 * point_stride + e;
      store(out, half[i][0], n);
      store(out + point_stride, even + odd, n);
      store(out + 2 * point_stride, even - odd, n);
      store(out + 3 * point_stride, half[i][2], n);
    }
  });
}

template <typename A>
inline bool all_finite(Vec<A> zero_or_nan) {
  return reduce_add<A>(zero_or_nan) == A(0);
}

template <typename A>
bool winograd_reduce_weights(const A* sums, int64_t chunks, int64_t channels, int64_t stride, int64_t channel_begin,
                             int64_t channel_end, A* reduced) {
  const int64_t matrix = channels * stride, begin = channel_begin * stride;
  Vec<A> check{};
  for_each_vector<A>((channel_end - channel_begin) * stride, [&](int64_t e, int64_t n) TILEWRIGHT_INLINE {
    const auto sum_of = [&](int64_t point) TILEWRIGHT_INLINE {
      const A* from = sums + point * matrix + begin + e;
      Vec<A> sum = load(from, n);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load(from + chunk * kWinogradPoints * matrix, n);
      return sum;
    };
    Vec<A> half[3][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec<A> s1 = sum_of(4 + j), s2 = sum_of(8 + j), even = (s1 + s2) * A(0.5);
      half[0][j] = sum_of(j) + even;
      half[1][j] = (s1 - s2) * A(0.5);
      half[2][j] = even + sum_of(12 + j);
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const Vec<A> even = (half[i][1] + half[i][2]) * A(0.5);
      const Vec<A> out[3] = {half[i][0] + even, (half[i][1] - half[i][2]) * A(0.5), even + half[i][3]};
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        check = fma(out[j], Vec<A>{}, check);
        store(reduced + (i * 3 + j) * matrix + begin + e, out[j], n);
      }
    }
  });
  return all_finite<A>(check);
}

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
